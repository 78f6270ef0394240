"""Signed assignments: what one device shall run, said by the hub, and only for a while.

- An envelope is `{"signed": {...}, "signatures": [{"keyid": ..., "sig": hex}]}`. The signature is over a fixed prefix and
  the canonical JSON of `signed`: a signature made for TUF metadata can never pass for an assignment, nor the other way.
- The keys come from the publisher's root metadata (field `x-edgestill-assignment`), so that the root's keys can take
  the power to assign away from a hub. Key ids are computed; one key counts once, however often it signs.
- Refused are: too few good signatures, another device's assignment, one that comes before one already seen (a replay),
  and one past its time. The signature is judged first: nothing unsigned is believed, not even for an error text.
- Root metadata tells the epoch of the keys, which grows when they change; an assignment names its epoch, and must be of the
  present one. Assignments are ordered by epoch, then by counter: who stole a key and signed the largest counter has lost
  again when the key is replaced, and what a key signed once says nothing should it ever come back.
- What it names must also be listed by the publisher; that is `client.TrustedClient`'s part.
- What a device shall time (`core.release.Measurement`) comes in an envelope of its own, under another prefix and counted by itself: an agent
  of old never sees it, and neither kind can stand for the other, or push the other's counter on. What it shall vote on
  (`core.release.Turn`) comes in a third, in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import ExpiredError, MessageError, ReplayError, SettingError, TrustError
from edgestill.core.jsonio import Fields, canonical
from edgestill.core.release import MAX_COUNTER, MAX_EPOCH, Assignment, Measurement, Turn
from edgestill.trust.keys import PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.trust.keys import SigningKey

PREFIX: Final = b"edgestill-assignment-v1\n"
MEASURE_PREFIX: Final = b"edgestill-measurement-v1\n"
VOTE_PREFIX: Final = b"edgestill-vote-v1\n"
MAX_KEYS: Final = 8
MAX_SIGNED_BYTES: Final = 4096

_WHERE: Final = "assignment"
_KEYID: Final = r"[0-9a-f]{64}"


@final
@dataclass(frozen=True, slots=True)
class AssignmentKeys:
    """Who may assign.

    Attributes:
        keys: distinct, 1 to `MAX_KEYS` of them.
        threshold: how many of them must sign, from 1 to their number.
        epoch: how often they were changed, from 0 to `MAX_EPOCH`.
    """

    keys: tuple[PublicKey, ...]
    threshold: int = 1
    epoch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS or len(set(self.keys)) != len(self.keys):
            raise SettingError(
                "assignment keys are unusable",
                expected=f"1 to {MAX_KEYS} distinct keys",
                where="assignment keys",
                got=f"{len(self.keys)} keys",
                fix="name each key once",
            )
        if not 1 <= self.threshold <= len(self.keys):
            raise SettingError(
                "a threshold that cannot be met",
                expected=f"1 to {len(self.keys)}",
                got=self.threshold,
                where="assignment keys: threshold",
                fix="lower it, or name more keys",
            )
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise SettingError(
                "an epoch is out of range",
                expected=f"0 to {MAX_EPOCH}",
                got=self.epoch,
                where="assignment keys: epoch",
                fix="count on from the root before",
            )

    def as_json(self) -> JsonObject:
        """The field of root metadata."""
        said: JsonObject = {
            "keyids": [key.keyid for key in self.keys],
            "threshold": self.threshold,
            "keys": {key.keyid: key.as_json() for key in self.keys},
        }
        if self.epoch:  # a device of an earlier version refuses the field
            said["epoch"] = self.epoch
        return said

    @classmethod
    def from_json(cls, value: Json, *, where: str = "x-edgestill-assignment") -> Self:
        """Reads the field of root metadata.

        Raises:
            MessageError: not such a field, or a key under an id that is not its own.
        """
        fields = Fields.of(value, where)
        fields.only(("keyids", "threshold", "keys", "epoch"))
        named = fields.inner("keys").unknown(())
        keyids = fields.items("keyids", at_most=MAX_KEYS)
        if not named or sorted(named) != sorted(map(str, keyids)):
            raise MessageError(
                "key ids and keys differ",
                where=where,
                expected="the same names in both",
                got="different names",
            )
        keys = {
            keyid: PublicKey.from_json(key, where=f"{where}: {keyid[:64]}") for keyid, key in named.items()
        }
        for keyid, key in keys.items():
            if key.keyid != keyid:
                raise MessageError(
                    "a key under an id that is not its own", where=where, expected=key.keyid, got=keyid[:64]
                )
        threshold = fields.integer("threshold", least=1, most=len(keys))
        epoch = fields.integer("epoch", most=MAX_EPOCH) if fields.has("epoch") else 0
        return cls(tuple(key for _, key in sorted(keys.items())), threshold, epoch)

    def verify(self, data: bytes, signatures: Iterable[tuple[str, bytes]]) -> None:
        """Checks that enough of the keys signed `data`.

        Raises:
            TrustError: too few good signatures by distinct keys.
        """
        good = self.signed(data, signatures)
        if good < self.threshold:
            raise TrustError(
                "an assignment is not signed as it must be",
                where=_WHERE,
                expected=f"{self.threshold} good signatures by keys that root.json names",
                got=good,
                fix="refresh the metadata, then poll again",
            )

    def signed(self, data: bytes, signatures: Iterable[tuple[str, bytes]]) -> int:
        """How many of the keys have signed `data`."""
        known = {key.keyid: key for key in self.keys}
        return len(
            {
                keyid
                for keyid, signature in signatures
                if keyid in known and known[keyid].verifies(signature, data)
            }
        )


def sign(assignment: Assignment, key: SigningKey) -> JsonObject:
    """The envelope to send to the device."""
    return _enveloped(assignment.as_json(), PREFIX, key)


def sign_measurement(measurement: Measurement, key: SigningKey) -> JsonObject:
    """Likewise, of what it shall time."""
    return _enveloped(measurement.as_json(), MEASURE_PREFIX, key)


def sign_turn(turn: Turn, key: SigningKey) -> JsonObject:
    """Likewise, of what it shall vote on."""
    return _enveloped(turn.as_json(), VOTE_PREFIX, key)


def verify(envelope: JsonObject, *, keys: AssignmentKeys, device: str, seen: int, now: float) -> Assignment:
    """The assignment in an envelope, if this device may follow it now.

    Args:
        envelope: what the hub sent.
        keys: `TrustedClient.assignment_keys`.
        device: the id of this device.
        seen: the largest `Assignment.place` accepted so far, 0 before the first. The same again is no replay.
        now: seconds since 1970; `TrustedClient.now()` knows a floor that a flat battery cannot undo.

    Raises:
        MessageError: not an envelope, or the signed part is no assignment.
        TrustError: too few good signatures.
        ReplayError: for another device, of another epoch, or older than `seen`.
        ExpiredError: past its time.
    """
    found = Assignment.from_fields(_opened(envelope, PREFIX, keys))
    _check(found, keys=keys, device=device, seen=seen, now=now)
    return found


def verify_measurement(
    envelope: JsonObject, *, keys: AssignmentKeys, device: str, seen: int, now: float
) -> Measurement:
    """What a device shall time, if it may do so now; arguments and errors as `verify`.

    `seen` is the largest `Measurement.place` accepted so far, which has nothing to do with that of assignments.
    """
    found = Measurement.from_fields(_opened(envelope, MEASURE_PREFIX, keys))
    _check(found, keys=keys, device=device, seen=seen, now=now)
    return found


def verify_turn(envelope: JsonObject, *, keys: AssignmentKeys, device: str, seen: int, now: float) -> Turn:
    """What a device shall vote on, if it may do so now; arguments and errors as `verify`.

    `seen` is the largest `Turn.place` accepted so far, which has nothing to do with those of assignments and measurements.
    """
    found = Turn.from_fields(_opened(envelope, VOTE_PREFIX, keys))
    _check(found, keys=keys, device=device, seen=seen, now=now)
    return found


def _enveloped(signed: JsonObject, prefix: bytes, key: SigningKey) -> JsonObject:
    signature = key.sign(_payload(signed, prefix)).hex()
    return {"signed": signed, "signatures": [{"keyid": key.public.keyid, "sig": signature}]}


def _opened(envelope: JsonObject, prefix: bytes, keys: AssignmentKeys) -> Fields:
    """The signed part, once the signatures are good."""
    fields = Fields(envelope, _WHERE)
    fields.only(("signed", "signatures"))
    signed = envelope.get("signed")
    keys.verify(_payload(signed, prefix), _signatures(fields))
    return Fields.of(signed, _WHERE)


def _check(
    found: Assignment | Measurement | Turn, *, keys: AssignmentKeys, device: str, seen: int, now: float
) -> None:
    if found.device != device:
        raise ReplayError("an assignment for another device", where=_WHERE, expected=device, got=found.device)
    if found.epoch != keys.epoch:
        raise ReplayError(
            "an assignment of another epoch",
            where=_WHERE,
            expected=f"epoch {keys.epoch}, which root.json names",
            got=found.epoch,
            fix="poll again; if it stays, the hub has another root than this device",
        )
    if found.place < seen:
        epoch, counter = divmod(seen, MAX_COUNTER + 1)
        same = epoch == found.epoch
        raise ReplayError(
            "an assignment older than one already seen",
            where=_WHERE,
            expected=f"counter {counter} or more" if same else f"keys of epoch {epoch} or later",
            got=found.counter if same else f"epoch {found.epoch}",
        )
    if now >= found.expires:
        raise ExpiredError(
            "an assignment is past its time",
            where=_WHERE,
            expected=f"now before {found.expires} (seconds since 1970)",
            got=int(now),
            fix="poll again; if it stays, set the clock",
        )


def _payload(signed: Json, prefix: bytes) -> bytes:
    if not isinstance(signed, dict):
        raise MessageError(
            "a field is not what it should be",
            where=f"{_WHERE}: signed",
            expected="{...}",
            got="another value",
        )
    try:
        data = prefix + canonical(signed)
    except ValueError as error:  # half a surrogate pair is a JSON string, but no text
        raise MessageError(
            "cannot be written as JSON in UTF-8",
            where=_WHERE,
            got=error,
            expected="whole characters and finite numbers",
        ) from error
    if len(data) > MAX_SIGNED_BYTES:
        raise MessageError(
            "an assignment is too long",
            where=_WHERE,
            expected=f"at most {MAX_SIGNED_BYTES} bytes",
            got=len(data),
        )
    return data


def _signatures(fields: Fields) -> list[tuple[str, bytes]]:
    return [
        (one.text("keyid", pattern=_KEYID), bytes.fromhex(one.text("sig", pattern=r"[0-9a-f]{128}")))
        for one in fields.objects("signatures", at_most=MAX_KEYS)
    ]

"""Whom a fleet believes about its members, in the word of the keys that the publisher's root lets assign.

- A device believes an authority because its join token vouched for it. It goes over to another by this word alone: signed by the keys
  of root metadata (field `x-edgestill-assignment`), for which the publisher answers. So neither the authority that is left, whose key may be
  stolen, nor whoever answers on a connection that it vouches for, has a say in who follows.
- The word is public and needs no safe way: who alters it is found out by the signature, who holds it back holds back a poll as well.
- It is ordered as assignments are, by the epoch of the keys and then by a number that grows: who brings an older one is refused. A
  stolen key loses its say with the root that replaces it, and the next word counts above whatever number it had signed.
- It has no end. What it says holds until another is said, and a device that was away for years shall find its fleet again.
- The signature is over a prefix of its own and canonical JSON: no word about authorities passes for an assignment, nor the other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import MessageError, ReplayError, TrustError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.release import MAX_COUNTER, MAX_EPOCH
from edgestill.core.wire import MAX_AUTHORITIES_BYTES, MAX_VOUCHED_BYTES
from edgestill.trust.assignment import MAX_KEYS
from edgestill.trust.certificates import Authorities

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject
    from edgestill.trust.assignment import AssignmentKeys
    from edgestill.trust.keys import SigningKey

PREFIX: Final = b"edgestill-authorities-v1\n"

_WHERE: Final = "authorities"
_KEYID: Final = r"[0-9a-f]{64}"
_SIG: Final = r"[0-9a-f]{128}"


@final
@dataclass(frozen=True, slots=True)
class Vouched:
    """Whom to believe, from one word to the next.

    Attributes:
        authorities: the first of them issues.
        number: of the word, from 1 to `MAX_COUNTER`.
        epoch: of the keys that say it.
    """

    authorities: Authorities
    number: int
    epoch: int = 0

    @property
    def place(self) -> int:
        """Where it stands among all words: by epoch, then by number."""
        return place_of(self.epoch, self.number)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Reads a word that was verified before, as a device keeps it; its signatures are not looked at.

        Raises:
            MessageError: not such a word. TrustError: authorities of two fleets.
        """
        return cls.from_fields(_fields(data).inner("signed"))

    @classmethod
    def from_fields(cls, signed: Fields) -> Self:
        """Reads the signed part."""
        signed.only(("authorities", "epoch", "number"))
        pem = signed.text("authorities", at_most=MAX_AUTHORITIES_BYTES)
        number = signed.integer("number", least=1, most=MAX_COUNTER)
        return cls(
            Authorities.from_pem(pem.encode()), number, signed.integer("epoch", least=0, most=MAX_EPOCH)
        )


def place_of(epoch: int, number: int) -> int:
    """See `Vouched.place`; below 2^53."""
    return epoch * (MAX_COUNTER + 1) + number


def sign(vouched: Vouched, key: SigningKey) -> bytes:
    """The word, to hand to whoever asks."""
    signed: JsonObject = {
        "authorities": vouched.authorities.to_pem().decode("ascii"),
        "epoch": vouched.epoch,
        "number": vouched.number,
    }
    signature = key.sign(PREFIX + canonical(signed)).hex()
    return canonical({"signed": signed, "signatures": [{"keyid": key.public.keyid, "sig": signature}]})


def verify(data: bytes, *, keys: AssignmentKeys, seen: int) -> Vouched:
    """What a word says, if a device may go by it.

    Args:
        data: as it came.
        keys: `TrustedClient.assignment_keys`.
        seen: place of the newest word that was gone by, 0 before the first. The same again is no replay.

    Raises:
        MessageError: not such a word.
        TrustError: too few good signatures by keys that root names, or authorities of two fleets.
        ReplayError: of another epoch, or older than `seen`.
    """
    fields = _fields(data)
    signed = fields.inner("signed")
    signatures = [
        (one.text("keyid", pattern=_KEYID), bytes.fromhex(one.text("sig", pattern=_SIG)))
        for one in fields.objects("signatures", at_most=MAX_KEYS)
    ]
    good = keys.signed(PREFIX + canonical(signed.unknown(())), signatures)
    if good < keys.threshold:
        raise TrustError(
            "a word about the fleet's authority is not signed as it must be",
            where=_WHERE,
            expected=f"{keys.threshold} good signatures by keys that root.json names",
            got=good,
            fix="refresh the metadata, then ask again",
        )
    found = Vouched.from_fields(signed)
    if found.epoch != keys.epoch or found.place < seen:
        raise ReplayError(
            "a word about the fleet's authority that does not count any more",
            where=_WHERE,
            expected=f"epoch {keys.epoch}, place {seen} or later",
            got=f"epoch {found.epoch}, place {found.place}",
            fix="ask again; if it stays, the hub was restored: give it a new key (edgestill release root --new-hub-key)",
        )
    return found


def _fields(data: bytes) -> Fields:
    try:
        fields = Fields(parse_object(data, where=_WHERE, max_bytes=MAX_VOUCHED_BYTES), _WHERE)
        canonical(fields.inner("signed").unknown(()))
    except ValueError as error:  # half a surrogate pair is a JSON string, but no text
        raise MessageError(
            "cannot be written as JSON in UTF-8",
            where=_WHERE,
            expected="whole characters and finite numbers",
            got=error,
        ) from error
    fields.only(("signed", "signatures"))
    return fields

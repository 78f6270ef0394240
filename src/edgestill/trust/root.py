"""Root metadata: which keys may say what, and how that changes hands.

- Roots follow each other one by one: each is signed by itself and by its predecessor, so that no single later key can
  cut a device off from what it trusted first.
- Beside TUF's four roles a root names who may assign (field `x-edgestill-assignment`): under the root's signatures,
  because TUF keeps fields it does not know.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from securesystemslib.signer import Key  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.errors import SettingError, TrustError
from edgestill.trust.assignment import AssignmentKeys
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import ASSIGNMENT_FIELD, check_time, read, refusing, root_of, signed_by, time_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.trust.keys import AnyKey, PublicKey
    from edgestill.trust.named import NamedKey


def create_root(
    *,
    root: Sequence[SigningKey | AnyKey],
    targets: Sequence[AnyKey],
    online: PublicKey,
    expires: float,
    version: int = 1,
    threshold: int = 1,
    targets_threshold: int = 1,
    epoch: int = 0,
    signers: Sequence[SigningKey | NamedKey] = (),
) -> bytes:
    """Root metadata: which keys may say what. Signed by all of `root` that are signing keys, and by `signers`.

    A later version (`version` = the last one's + 1) also needs the signatures of the version before it: see
    `countersign`, then `check_root`.

    Args:
        root: the root keys; kept offline. Of those whose other half is elsewhere, the public one.
        targets: the publisher's keys for targets.json.
        online: the hub's key, for snapshot, timestamp and assignments.
        expires: seconds since 1970; every device stops installing then, so renew in time.
        version: 1 for the first.
        threshold: root keys that must sign the next root.
        targets_threshold: targets keys that must sign targets.json.
        epoch: of the hub's key: one more than the last root's where that named another, else the same.
        signers: sign as well: root keys, and those of the version before.

    Raises:
        SettingError: a threshold that cannot be met, a key given twice, a version or time out of range.
    """
    held = [key.public if isinstance(key, SigningKey) else key for key in root]
    roles = {
        Root.type: _role(held, threshold),
        Targets.type: _role(targets, targets_threshold),
        Snapshot.type: _role([online], 1),
        Timestamp.type: _role([online], 1),
    }
    if version < 1:
        raise SettingError(
            "a version is out of range",
            expected="1 or more",
            got=version,
            where="root.json: version",
            fix="count on from the root before",
        )
    signed = Root(
        version=version,
        expires=time_of(expires),
        keys={key.keyid: tuf_key(key) for key in (*held, *targets, online)},
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={ASSIGNMENT_FIELD: AssignmentKeys((online,), epoch=epoch).as_json()},
    )
    return signed_by(Metadata(signed), [*(key for key in root if isinstance(key, SigningKey)), *signers])


def check_root(*, root: bytes, previous: bytes | None, now: float) -> AssignmentKeys:
    """What a hub checks of a root before it serves it; returns who may assign under it.

    Args:
        root: the candidate.
        previous: the root served until now; None for the first, which is trusted for its digest alone.
        now: seconds since 1970.

    Raises:
        TrustError: not signed by itself and by its predecessor, not the next version, no usable assignment keys, or of
            another epoch than they must be.
        ExpiredError: past its time.
    """
    with refusing("root.json"):
        candidate = read(Root, root)
        before = None if previous is None else root_of(previous)
        result = candidate.signed.get_root_verification_result(
            before, candidate.signed_bytes, candidate.signatures
        )
        if not result:
            raise TrustError(
                "root.json is not signed as it must be",
                where="root.json",
                expected="its own threshold of signatures, and its predecessor's",
                got=f"{len(result.second.signed)} and {len(result.first.signed)}",
                fix="have the missing keys countersign it",
            )
        check_time(candidate.signed, now)
        found = assignment_keys(candidate.signed)
        if before is not None:
            _check_epoch(found, assignment_keys(before))
        return found


def _check_epoch(found: AssignmentKeys, before: AssignmentKeys) -> None:
    """Other keys begin the next epoch; without it, what was signed with the old ones could never be outlived."""
    expected = before.epoch + (set(found.keys) != set(before.keys))
    if found.epoch != expected:
        raise TrustError(
            "root.json is of another epoch than it must be",
            where=f"root.json: {ASSIGNMENT_FIELD}",
            expected=f"epoch {expected}: one more than before where other keys may assign, else the same",
            got=found.epoch,
            fix="sign it anew with this epoch",
        )


@lru_cache(maxsize=4)
def epoch_of(root: bytes) -> int:
    """The epoch of the keys that may assign under a root that is already trusted; TrustError as `assignment_keys`."""
    return assignment_keys(root_of(root)).epoch


def assignment_keys(root: Root) -> AssignmentKeys:
    """Who may assign under a root that is already trusted.

    Raises:
        TrustError: it does not say, or not in a way that can be used.
    """
    with refusing("root.json"):
        return AssignmentKeys.from_json(
            root.unrecognized_fields.get(ASSIGNMENT_FIELD), where=f"root.json: {ASSIGNMENT_FIELD}"
        )


def _role(keys: Sequence[AnyKey], threshold: int) -> Role:
    keyids = [key.keyid for key in keys]
    if len(set(keyids)) != len(keyids):
        raise SettingError(
            "a key is given twice for one role",
            got=", ".join(keyids),
            where="root.json",
            expected="different keys",
            fix="leave one out",
        )
    if not 1 <= threshold <= len(keyids):
        raise SettingError(
            "a threshold that cannot be met",
            expected=f"1 to {len(keyids)}, the number of keys",
            got=threshold,
            where="root.json: threshold",
            fix="lower it, or name more keys",
        )
    return Role(keyids, threshold)


def tuf_key(key: AnyKey) -> Key:
    """A key as python-tuf has it."""
    return Key.from_dict(key.keyid, dict(key.as_json()))

"""The signing side of TUF, for publisher and hub: bytes in, bytes out; no files, no clock.

- The publisher holds root and targets keys: it makes `root.json` (`create_root`, `countersign`) and says what may be
  installed at all (`sign_targets`). The hub holds one online key: it keeps that list fresh (`freshen`) and assigns.
- What comes back from a hub is judged before it is signed or built upon: the list a publisher continues must carry the
  publisher's own signatures, and the list a hub takes in must carry those that root names (`check_targets`).
- Versions only grow. A target's content never changes under its name: that takes a new version, or removing it first.
- Snapshot and timestamp state length and SHA-256 of what they pin, so that files of two moments cannot be mixed.
- Metadata expires in whole seconds; one that expires at `t` is refused from `t` on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.errors import ConflictError, NotFoundError, SettingError, TrustError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.release import LISTED
from edgestill.trust.metadata import (
    MAX_BYTES,
    TargetInfo,
    check_time,
    file_of,
    read,
    refusing,
    root_of,
    signed_by,
    target_info,
    target_path,
    time_of,
    verified,
)
from edgestill.trust.roles import Delegation, change_delegations, check_delegated, delegations_in
from edgestill.trust.root import check_root, create_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # re-exported there without saying so

    from edgestill.trust.keys import AnyKey, PublicKey, SigningKey
    from edgestill.trust.named import NamedKey

__all__ = (
    "Delegation",
    "Fresh",
    "TargetInfo",
    "check_delegated",
    "check_root",
    "check_targets",
    "countersign",
    "create_root",
    "file_name",
    "freshen",
    "sign_targets",
    "target_path",
    "versions_said",
)

SNAPSHOT_LIFETIMES: Final = 4
"""A snapshot holds this many timestamps' lifetimes, so that most refreshes need not fetch it again."""

_TARGETS_FILE: Final = "targets.json"


@dataclass(frozen=True, slots=True)
class Fresh:
    """What the hub's online key says now: both hold for the lifetime asked for, at least.

    Attributes:
        snapshot: names the version of targets.json.
        timestamp: names the version of the snapshot.
    """

    snapshot: bytes
    timestamp: bytes


def countersign(metadata: bytes, *, keys: Sequence[SigningKey | NamedKey]) -> bytes:
    """The same metadata with further signatures: of a retiring root key, or of a second person.

    Whoever countersigns vouches for the content: look at it first (`check_root`, `check_targets`).

    Raises:
        TrustError: not root or targets metadata.
    """
    if _head(metadata)[0] == Root.type:
        return signed_by(read(Root, metadata), keys)
    return signed_by(read(Targets, metadata), keys)


# Targets


def sign_targets(
    *,
    previous: bytes | None,
    add: Mapping[str, TargetInfo],
    remove: Iterable[str] = (),
    keys: Sequence[SigningKey | NamedKey],
    expires: float,
    trusted: Sequence[AnyKey] = (),
    delegate: Iterable[Delegation] = (),
    undelegate: Iterable[str] = (),
    least: int = 1,
    most_bytes: int = MAX_BYTES[Targets.type],
) -> bytes:
    """The next list of what may be installed: the publisher's, or of a role that the publisher delegates to.

    Args:
        previous: the list until now, as the hub gave it; None starts a list.
        add: target name -> size and digest.
        remove: names to retire; no device installs them any more.
        keys: sign the new list.
        expires: seconds since 1970; devices stop installing then, so sign again in time.
        trusted: keys that must all have signed `previous`; those of `keys` when empty. Name the old ones after
            a change of keys.
        delegate: roles that speak for a part of the names from now on, each in place of an earlier one of its name.
        undelegate: names of roles that speak for nothing any more.
        least: a version that the new list has at least.
        most_bytes: of the new list.

    Raises:
        TrustError: `previous` lacks a signature: somebody else may have slipped something in.
        NotFoundError: a name to remove is not listed, or a role to undelegate not delegated to.
        ConflictError: another content under a name that is listed.
        SettingError: no keys, too many roles, or the list would become longer than devices accept.
    """
    if not keys:
        raise SettingError(
            "nobody signs the list",
            expected="at least one key",
            where="keys",
            got="none",
            fix="give the key for targets",
        )
    signed = Targets() if previous is None else _vouched(previous, trusted or [key.public for key in keys])
    for name in remove:
        if signed.targets.pop(name, None) is None:
            raise NotFoundError(
                "no such target is listed",
                where=_TARGETS_FILE,
                got=name,
                expected="a name of the list",
                fix="look at the names in the list",
            )
    for name, info in add.items():
        _add(signed, name, info)
    change_delegations(signed, delegate, undelegate)
    signed.version = max(least, 1 if previous is None else signed.version + 1)
    signed.expires = time_of(expires)
    data = signed_by(Metadata(signed), keys)
    if len(data) > most_bytes:
        raise SettingError(
            "the list of targets is too long",
            expected=f"at most {most_bytes} bytes",
            got=len(data),
            fix="remove old releases",
            where=_TARGETS_FILE,
        )
    return data


def listed_in(targets: bytes) -> dict[str, TargetInfo]:
    """What a list names; nothing is said of whether it is to be trusted.

    Raises:
        TrustError: not targets metadata, or an entry that is no bundle's.
    """
    return {name: target_info(name, entry) for name, entry in read(Targets, targets).signed.targets.items()}


def check_targets(
    *, root: bytes, previous: bytes | None, targets: bytes, now: float
) -> dict[str, TargetInfo]:
    """What a hub checks of an uploaded list before it serves it; returns the list.

    Args:
        root: the root that the hub serves.
        previous: the list served until now.
        targets: the candidate.
        now: seconds since 1970.

    Raises:
        TrustError: too few good signatures, a version that does not grow, an entry no device would install, or
            delegations of another kind than `trust.roles` has.
        ExpiredError: past its time.
    """
    signed = verified(Targets, targets, root_of(root))
    check_time(signed, now)
    if previous is not None and signed.version <= (last := read(Targets, previous).signed.version):
        raise TrustError(
            "the list does not grow",
            where=_TARGETS_FILE,
            expected=f"version {last + 1} or more",
            got=signed.version,
            fix="sign again, from the current list",
        )
    delegations_in(signed)
    return {name: target_info(name, entry) for name, entry in signed.targets.items()}


# What the hub says by itself


def freshen(
    *,
    root: bytes,
    targets: bytes,
    previous_snapshot: bytes | None,
    previous_timestamp: bytes | None,
    online: SigningKey,
    now: float,
    lifetime: float,
    delegated: Mapping[str, bytes] | None = None,
) -> Fresh:
    """A timestamp that holds for `lifetime` seconds, and the snapshot it names.

    The snapshot stays byte for byte while it names the same lists and outlives the timestamp. Call this at every
    change, and again well within the lifetime: devices refuse everything once the timestamp has expired.

    What a snapshot has named, the next one names too (TUF 5.5.5), also of a role that was revoked; only the first under another online key
    begins anew, which is how a version far ahead is recovered from (TUF 5.3.11). Whether a delegated list has expired is not looked at:
    that concerns who looks for something in it, and must not silence the publisher.

    Args:
        root: the publisher's newest.
        targets: the publisher's list.
        previous_snapshot: said last.
        previous_timestamp: likewise.
        online: signs.
        now: seconds since 1970.
        lifetime: seconds.
        delegated: role -> its list, as `roles.check_delegated` has accepted it.

    Raises:
        TrustError: root does not name this key, targets.json is not signed as root says, or a list is older than the one in
            the previous snapshot.
        ExpiredError: root or targets.json is past its time; the publisher must sign again.
        SettingError: a lifetime under one second.
    """
    if lifetime < 1:
        raise SettingError(
            "a lifetime is too short",
            expected="at least 1 s",
            got=lifetime,
            where="lifetime",
            fix="choose a longer one",
        )
    trusted = root_of(root)
    check_time(trusted, now)
    _check_online(trusted, online.public)
    listed = verified(Targets, targets, trusted)
    check_time(listed, now)
    pinned = {_TARGETS_FILE: MetaFile.from_data(listed.version, targets, ["sha256"])}
    for role, data in sorted((delegated or {}).items()):
        pinned[f"{role}.json"] = MetaFile.from_data(read(Targets, data).signed.version, data, ["sha256"])
    said = _said_by(previous_snapshot, online.public)
    pinned = _going_on(said, pinned)
    still_good = said is not None and said.meta == pinned and not said.is_expired(time_of(now + lifetime))
    if previous_snapshot is not None and still_good:
        snapshot = previous_snapshot
    else:
        until = time_of(now + SNAPSHOT_LIFETIMES * lifetime)
        content = Snapshot(_next_version(previous_snapshot), None, until, pinned)
        snapshot = signed_by(Metadata(content), [online])
    named = MetaFile.from_data(_head(snapshot)[1], snapshot, ["sha256"])
    stamp = Timestamp(_next_version(previous_timestamp), None, time_of(now + lifetime), named)
    return Fresh(snapshot, signed_by(Metadata(stamp), [online]))


def file_name(metadata: bytes) -> str:
    """The name to serve metadata under, below `metadata/`: `3.targets.json`, but `timestamp.json` (TUF 6.2).

    Raises:
        TrustError: not top-level metadata.
    """
    role, version = _head(metadata)
    return file_of(role, None if role == Timestamp.type else version)


def _head(metadata: bytes) -> tuple[str, int]:
    with refusing("metadata"):
        value = parse_object(metadata, where="metadata", max_bytes=max(MAX_BYTES.values()))
        signed = Fields(value, "metadata").inner("signed")
        return signed.text("_type", pattern="|".join(MAX_BYTES)), signed.integer("version", least=1)


def _vouched(previous: bytes, keys: Sequence[AnyKey]) -> Targets:
    found = read(Targets, previous)
    for key in keys:
        signature = found.signatures.get(key.keyid)
        if signature is None or not _is_signed(key, signature, found.signed_bytes):
            raise TrustError(
                "the list to continue is not the publisher's",
                where=_TARGETS_FILE,
                expected=f"a good signature by key {key.keyid[:16]}",
                fix="compare it with what was signed last; name the keys of then as `trusted`",
                got="none",
            )
    return found.signed


def _is_signed(key: AnyKey, signature: Signature, data: bytes) -> bool:
    try:
        return key.verifies(bytes.fromhex(signature.signature), data)
    except (TypeError, ValueError):
        return False


def _add(signed: Targets, name: str, info: TargetInfo) -> None:
    if re.fullmatch(LISTED, name) is None:
        raise SettingError(
            "not a target name",
            expected="NAME/1.2.3/CLASS.esb, timing/NAME/1.2.3/CLASS.est, or proxy/NAME/1.2.3/samples.esp",
            got=repr(name),
            where=_TARGETS_FILE,
            fix="name the hardware class and a version of three numbers",
        )
    listed = signed.targets.get(name)
    if listed is not None and target_info(name, listed) != info:
        raise ConflictError(
            "another content under a name that is listed",
            where=f"{_TARGETS_FILE}: {name}",
            expected=listed.hashes.get("sha256"),
            got=info.digest.hex,
            fix="publish it as a new version",
        )
    signed.targets[name] = TargetFile(info.size, {"sha256": info.digest.hex}, name)


def _check_online(root: Root, key: PublicKey) -> None:
    for role in (Snapshot.type, Timestamp.type):
        if key.keyid not in root.roles[role].keyids:
            raise TrustError(
                f"root.json does not let this key sign {role}.json",
                where="root.json",
                expected=", ".join(keyid[:16] for keyid in root.roles[role].keyids),
                got=key.keyid[:16],
                fix="have the publisher name it in a new root",
            )


def _next_version(previous: bytes | None) -> int:
    return 1 if previous is None else _head(previous)[1] + 1


def versions_said(snapshot: bytes | None, online: PublicKey) -> dict[str, int]:
    """Role -> version of its list, of all lists that a snapshot of this key names; of none where it is another key's."""
    said = _said_by(snapshot, online)
    return (
        {} if said is None else {file.removesuffix(".json"): one.version for file, one in said.meta.items()}
    )


def _said_by(snapshot: bytes | None, online: PublicKey) -> Snapshot | None:
    """What a snapshot says that this key has signed."""
    if snapshot is None:
        return None
    found = read(Snapshot, snapshot)
    signature = found.signatures.get(online.keyid)
    good = signature is not None and _is_signed(online, signature, found.signed_bytes)
    return found.signed if good else None


def _going_on(said: Snapshot | None, pinned: dict[str, MetaFile]) -> dict[str, MetaFile]:
    """With what was said before of lists that are not told of now."""
    if said is None:
        return pinned
    for file, before in said.meta.items():
        named = pinned.setdefault(file, before)
        if before.version > named.version:
            raise TrustError(
                f"{file[:100]} is older than the one already served",
                where=file[:100],
                expected=f"version {before.version} or more",
                got=named.version,
            )
    return pinned

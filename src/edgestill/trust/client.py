"""The verifying side of TUF, on a device: a thin shell around python-tuf's pure trusted metadata set.

- Every rule of TUF about signatures, versions, hashes and expiry is python-tuf's. This module says in which order bytes
  are brought, what is kept on disk, how much may be downloaded, and what time it is (ADR 0004).
- The root given at construction is the anchor. Later roots are accepted one by one, each signed by its predecessor
  (TUF 5.3), and kept, so that the chain is checked again from the anchor at every start.
- A file is kept only after it was accepted, whole or not at all, in the order root, timestamp, snapshot, targets: killed
  between any two writes, the device still refuses everything older than what it kept (TUF 5.4 to 5.6).
- A new root ends the trust in all that was loaded before it, until a refresh under that root succeeds.
- No download is longer than the role's bound, whatever the metadata promises.
- Time never goes back: a floor under the clock is kept. It is raised only when everything is verified and unexpired at
  that time, so a clock that was wrongly ahead can lead by the metadata's remaining lifetime at most.
- What expired while nothing could be fetched lists nothing: `target` asks the clock each time.

One process, one thread at a time, per folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, final

from tuf.api.exceptions import EqualVersionNumberError
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from edgestill.core.errors import EdgestillError, NotFoundError, TrustError
from edgestill.core.release import TARGET
from edgestill.trust.delegation import Listed, find
from edgestill.trust.metadata import (
    TargetInfo,
    bound_of,
    check_bytes,
    check_time,
    file_of,
    refusing,
    target_info,
    target_path,
    time_of,
)
from edgestill.trust.root import assignment_keys

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock
    from edgestill.trust.assignment import AssignmentKeys
    from edgestill.trust.kept import Kept

__all__ = ("Fetch", "Listing", "TargetInfo", "TrustedClient", "target_path")

Fetch = Callable[[str, int], bytes]
"""Path such as `metadata/1.root.json` and the longest answer wanted, in bytes -> the bytes.

It raises NotFoundError where there is no such file, and whatever else it must: nothing is swallowed.
"""

MAX_NEW_ROOTS: Final = 32
"""New roots fetched in one refresh (TUF 5.3.9); with more, the next refresh goes on."""

FLOOR_STEP: Final = 3600.0
"""Seconds by which the kept time floor may lag: writing it at every refresh would wear out flash."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is said of a bundle, and by whom.

    Attributes:
        role: `targets` for the publisher itself, or a role of `trust.roles`.
        info: size and digest.
    """

    role: str
    info: TargetInfo


@final
class TrustedClient:
    """What the publisher lists, as far as this device can verify it.

    Args:
        kept: where accepted metadata is kept: on a device `KeptMetadata`, in a folder of its own.
        root: the trusted root metadata, as it came with enrolment (its digest was pinned by the join token).
        fetch: brings metadata.
        clock: says what time it is.

    Raises:
        TrustError: `root` is not root metadata signed by itself.
    """

    def __init__(self, kept: Kept, *, root: bytes, fetch: Fetch, clock: Clock) -> None:
        self._kept = kept
        self._anchor = root
        self._fetch = fetch
        self._clock = clock
        self._floor: float | None = None
        self._root = _trusted_set(root, 0).root
        self._has_chain = False
        self._view: TrustedMetadataSet | None = None
        self._vouched: dict[tuple[str, str], Targets] = {}

    def now(self) -> float:
        """Seconds since 1970, and never before the floor."""
        if self._floor is None:
            self._floor = self._kept.floor()
        return max(self._clock.now(), self._floor)

    def refresh(self) -> None:
        """Fetches what is new and verifies it (TUF 5.3 to 5.6).

        Where this fails, what was verified before stays usable until it expires, unless a new root was accepted.

        Raises:
            NotFoundError: the repository has no timestamp (nothing is published yet), or lacks a file it names.
            TrustError: something must not be trusted.
            ExpiredError: something is past its time, or an attacker holds back what is new.
            PathError: the folder cannot be written.
        """
        self._kept.prepare()
        now = self.now()
        trusted = self._load_chain(now)
        self._fetch_roots(trusted)
        self._fetch_timestamp(trusted)
        self._fetch_snapshot(trusted)
        self._targets_of(trusted, Targets.type, Root.type)
        self._view = trusted
        self._raise_floor(now)

    def refresh_root(self) -> None:
        """Fetches newer roots only: who may say what, whatever else is wrong with the repository.

        Raises:
            TrustError: a root that must not be trusted. PathError: the folder cannot be written.
        """
        self._kept.prepare()
        self._fetch_roots(self._load_chain(self.now()))

    @property
    def newest_root(self) -> bytes:
        """The newest root that is kept, as it came; the anchor where there was none after it."""
        if not self._has_chain:
            self._load_chain(self.now())
        return self._kept.read(Root.type, self._root.version) or self._anchor

    def restore(self) -> bool:
        """Loads what was kept, without fetching; whether it is complete and has not expired."""
        trusted = self._load_chain(self.now())
        for role in (Timestamp.type, Snapshot.type, Targets.type):
            data = self._kept.read(role)
            if data is None or not _accepts(trusted, role, data):
                return False
        self._vouched[Targets.type, Root.type] = trusted.targets
        self._view = trusted
        return True

    def target(self, name: str) -> TargetInfo:
        """What targets.json itself says about the bundle, or the family of models, of this name; roles that it delegates to are not asked.

        Raises:
            TrustError: not listed, or nothing is verified yet.
            ExpiredError: what was verified has expired since.
        """
        entry = self._current().targets.get(name)
        if entry is None:
            raise TrustError(
                "the publisher does not list this target",
                where="targets.json",
                got=repr(name[:200]),
                fix="publish it, or assign another",
                expected="a name that targets.json lists",
            )
        return target_info(name, entry)

    def listing(self, name: str) -> Listing:
        """What the publisher says about the bundle of this name, or a role to which it delegates; and which role that is.

        Raises:
            TrustError: nobody lists it, nothing is verified yet, or the role was named by another than the publisher: who may list
                unattended updates must not make roles that are taken for others.
            ExpiredError, NotFoundError: as `find`.
        """
        found = self.find(name)
        if found is None:
            raise TrustError(
                "the publisher does not list this target",
                where="targets.json",
                got=repr(name[:200]),
                fix="publish it, or assign another",
                expected="a name that targets.json lists, or a role that it delegates to",
            )
        if found.delegator not in {Root.type, Targets.type}:
            raise TrustError(
                "a role that the publisher has not named",
                where=found.role[:100],
                expected="a delegation by targets.json",
                got=f"one by {found.delegator[:100]}",
            )
        return Listing(found.role, target_info(name, found.entry))

    def find(self, name: str) -> Listed | None:
        """What targets.json, or a role that it delegates to, says of a target of any name; None where none lists it.

        Roles are fetched and kept as the search comes to them (TUF 5.6.7).

        Raises:
            TrustError, ExpiredError: nothing is verified, or a role on the way must not be trusted or is past its time.
            NotFoundError: the repository lacks a role.
        """
        self._current()
        trusted = self._view
        assert trusted is not None
        now = self.now()

        def load(role: str, delegator: str) -> Targets:
            signed = self._targets_of(trusted, role, delegator)
            check_time(signed, now)
            return signed

        return find(name, load, by_hash=bool(trusted.root.consistent_snapshot))

    def targets(self) -> dict[str, TargetInfo]:
        """All bundles the publisher lists, by name. Entries of a kind unknown here are left out.

        Raises:
            TrustError, ExpiredError: as `target`.
        """
        return dict(sorted(_bundles(self._current())))

    @property
    def assignment_keys(self) -> AssignmentKeys:
        """Who may assign, under the newest root known; kept roots are read where that has not happened yet.

        Raises:
            TrustError: root does not say. ExpiredError: root is past its time.
        """
        if not self._has_chain:
            self._load_chain(self.now())
        check_time(self._root, self.now())
        return assignment_keys(self._root)

    def _current(self) -> Targets:
        if self._view is None:
            raise TrustError(
                "nothing is verified yet",
                fix="refresh first",
                where="trusted metadata",
                expected="a verified targets.json",
                got="none",
            )
        now = self.now()
        for signed in (self._view.root, self._view.timestamp, self._view.snapshot, self._view.targets):
            check_time(signed, now)
        return self._view.targets

    def _load_chain(self, now: float) -> TrustedMetadataSet:
        """The anchor, and the kept roots after it: the first that is missing or damaged is fetched again."""
        self._vouched = {}
        trusted = _trusted_set(self._anchor, now)
        for version in count(trusted.root.version + 1):
            data = self._kept.read(Root.type, version)
            if data is None or not _accepts(trusted, Root.type, data):
                break
        self._adopt(trusted.root)
        self._has_chain = True
        return trusted

    def _adopt(self, root: Root) -> None:
        if root.version > self._root.version:
            self._root = root
            self._view = None

    def _fetch_roots(self, trusted: TrustedMetadataSet) -> None:
        first = trusted.root.version + 1
        for version in range(first, first + MAX_NEW_ROOTS):
            try:
                data = self._download(Root.type, version)
            except NotFoundError:
                return
            with refusing(f"{version}.root.json"):
                trusted.update_root(data)
            self._adopt(trusted.root)
            self._kept.write(Root.type, data, version)

    def _fetch_timestamp(self, trusted: TrustedMetadataSet) -> None:
        kept = self._kept.read(Timestamp.type)
        if kept is not None:
            _accepts(trusted, Timestamp.type, kept)
        data = self._download(Timestamp.type)
        with refusing("timestamp.json"):
            try:
                trusted.update_timestamp(data)
            except EqualVersionNumberError:
                # TUF 5.4.3.1: nothing new. What is kept may have expired, though: a freeze.
                check_time(trusted.timestamp, self.now())
                return
        self._kept.write(Timestamp.type, data)

    def _fetch_snapshot(self, trusted: TrustedMetadataSet) -> None:
        kept = self._kept.read(Snapshot.type)
        if kept is not None and _accepts(trusted, Snapshot.type, kept):
            return
        named = trusted.timestamp.snapshot_meta
        data = self._download(Snapshot.type, _version(trusted, named.version), named.length)
        with refusing(f"{named.version}.snapshot.json"):
            trusted.update_snapshot(data)
        self._kept.write(Snapshot.type, data)

    def _targets_of(self, trusted: TrustedMetadataSet, role: str, delegator: str) -> Targets:
        """The metadata of a role that lists targets, off the disk or fetched; for another delegator it is verified again.

        What each delegator vouched for is kept apart: a repository may serve two of them different bytes under one version.
        """
        if not trusted.contains(role, delegator):
            kept = self._kept.read(role)
            if kept is None or not _accepts(trusted, role, kept, delegator):
                self._fetch_targets(trusted, role, delegator)
            found = trusted[role]
            assert isinstance(found, Targets)
            self._vouched[role, delegator] = found
        return self._vouched[role, delegator]

    def _fetch_targets(self, trusted: TrustedMetadataSet, role: str, delegator: str) -> None:
        file = f"{role}.json"
        named = trusted.snapshot.meta.get(file)
        if named is None:
            raise TrustError(
                f"snapshot.json names no {file[:100]}",
                where="snapshot.json",
                expected=file[:100],
                got="none",
            )
        data = self._download(role, _version(trusted, named.version), named.length)
        with refusing(f"{named.version}.{file[:100]}"):
            trusted.update_delegated_targets(data, role, delegator)
        self._kept.write(role, data)

    def _download(self, role: str, version: int | None = None, length: int | None = None) -> bytes:
        """Bytes of bounded length that are JSON of bounded depth; nothing more is known about them."""
        file = file_of(role, version)
        at_most = bound_of(role) if length is None else min(length, bound_of(role))
        data = self._fetch(f"metadata/{file}", at_most)
        if len(data) > at_most:
            raise TrustError("metadata is too long", where=file, expected=f"{at_most} bytes", got=len(data))
        with refusing(file):
            check_bytes(role, data)
        return data

    def _raise_floor(self, now: float) -> None:
        kept = self._kept.floor()
        self._floor = now
        if now >= kept + FLOOR_STEP:
            self._kept.write_floor(now)


def _trusted_set(root: bytes, now: float) -> TrustedMetadataSet:
    with refusing("root.json"):
        check_bytes(Root.type, root)
        trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = time_of(now)
    return trusted


def _version(trusted: TrustedMetadataSet, version: int) -> int | None:
    """In names of files: none where the repository keeps only the newest of each (TUF 6.2)."""
    return version if trusted.root.consistent_snapshot else None


def _accepts(trusted: TrustedMetadataSet, role: str, kept: bytes, delegator: str = Root.type) -> bool:
    """Whether kept bytes are final. Where not, they may still serve as a lower bound for what is fetched."""
    try:
        with refusing(f"{role}.json"):
            check_bytes(role, kept)
            if role == Root.type:
                trusted.update_root(kept)
            elif role == Timestamp.type:
                trusted.update_timestamp(kept)
            elif role == Snapshot.type:
                trusted.update_snapshot(kept, trusted=True)
            else:
                trusted.update_delegated_targets(kept, role, delegator)
    except EdgestillError:
        return False
    return True


def _bundles(signed: Targets) -> list[tuple[str, TargetInfo]]:
    found = []
    for name, entry in signed.targets.items():
        if re.fullmatch(TARGET, name) is None:  # a family of models, or what a newer publisher lists
            continue
        try:
            found.append((name, target_info(name, entry)))
        except TrustError:
            continue
    return found

"""What devices download: TUF metadata, archives and patches, as plain files that any web server could serve.

- Archives come first, then the signed list that names them, then the hub's own word. A list is taken in only when every
  archive it names is here, is a sound bundle, and is what its path says.
- Patches from older versions are made before the list is published, so that a device that learns of a release finds its
  patch. They are hints: a device trusts only the digest of the result.
- `timestamp.json` is written last and is the one switch: until it names the new snapshot, the old list stands. What a kill
  leaves half written is not named by anything, and is written again by the next try.
- The list of a role that the publisher delegates to is taken in likewise, as far as the publisher's newest list vouches for it (`hub.delegates`).
- Everything here is synchronous and reads or writes files: the service calls it in a thread, one change at a time.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from dataclasses import replace as altered
from typing import TYPE_CHECKING, Final, final

from edgestill.core.bundle import Bundle, replace
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    EdgestillError,
    MessageError,
    NotFoundError,
    StoreError,
    TrustError,
)
from edgestill.core.family import Family, is_family
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.manifest import REFERENCE
from edgestill.core.proxyset import ProxySet, is_proxy_set
from edgestill.core.release import PROXY, TARGET, TIMING, target_name
from edgestill.delta.codec import diff
from edgestill.hub import images
from edgestill.hub.delegates import (
    MOST_NAMED,
    RoleList,
    listed_before,
    lister_of,
    read_lists,
    still_vouched,
)
from edgestill.hub.registry import Parts, Reference
from edgestill.infer.outlines import check_family
from edgestill.learn.proxysets import check_proxy_set
from edgestill.learn.statistics import MAX_BYTES, Statistics
from edgestill.trust.metadata import file_of
from edgestill.trust.repository import (
    TargetInfo,
    check_delegated,
    check_root,
    check_targets,
    file_name,
    freshen,
    versions_said,
)
from edgestill.trust.roles import ROLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgestill.hub.home import Home
    from edgestill.hub.settings import Settings
    from edgestill.store.files import FileBlobs, Incoming
    from edgestill.trust.assignment import AssignmentKeys

log: Final = logging.getLogger(__name__)

METADATA_FILE: Final = r"(?:[1-9][0-9]{0,8}\.(?:root|targets|snapshot)|timestamp)\.json"
TARGET_FILE: Final = (
    r"((?:(?:timing|proxy)/)?(?:[a-z0-9._-]+/){2})([0-9a-f]{64})\.([a-z0-9_-]{1,60}\.es[btp])"
)

_MAX_METADATA: Final = 5_000_000
_ROLE_FILE: Final = re.compile(rf"([1-9][0-9]{{0,8}})\.({ROLE})\.json")
_ROOT_FILE: Final = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is served at one moment; None for what is not there yet.

    Attributes:
        root: the newest root metadata.
        targets: the publisher's list.
        snapshot: the hub's word on which list stands.
        timestamp: the hub's word on which snapshot stands.
        published: what the publisher's list says.
        delegated: role -> its list, of roles that the publisher delegates to.
        listers: name -> who is asked first of all that list it, and what they say.
        fresh_at: hub time at which snapshot and timestamp were made last; 0 when unknown.
    """

    root: bytes | None = None
    targets: bytes | None = None
    snapshot: bytes | None = None
    timestamp: bytes | None = None
    published: Mapping[str, TargetInfo] = field(default_factory=dict)
    delegated: Mapping[str, RoleList] = field(default_factory=dict)
    listers: Mapping[str, tuple[str, TargetInfo]] = field(default_factory=dict)
    fresh_at: float = 0.0

    @property
    def listed(self) -> dict[str, TargetInfo]:
        """What may be installed, by whoever lists it."""
        return bundles_of({path: info for path, (_, info) in self.listers.items()})

    @property
    def families(self) -> dict[str, TargetInfo]:
        """What may be timed: the publisher's own word only."""
        return _of_kind(TIMING, self.published)

    @property
    def proxy_sets(self) -> dict[str, TargetInfo]:
        """What may be voted on: likewise."""
        return _of_kind(PROXY, self.published)


@final
class Artefacts:
    """The files, and the publication they make up.

    Args:
        home: the hub's folder.
        blobs: the archives, within that folder.
        settings: bounds and lifetimes.

    Attributes:
        publication: what is served now.
    """

    def __init__(self, home: Home, blobs: FileBlobs, settings: Settings) -> None:
        self._home = home
        self._blobs = blobs
        self._settings = settings
        self.publication = Publication()

    def load(self) -> None:
        """Reads what the files say.

        Raises:
            StoreError: they contradict each other, or are damaged.
        """
        try:
            self.publication = self._read()
        except (OSError, EdgestillError) as error:
            raise StoreError(
                "the metadata folder is damaged",
                where=self._home.metadata,
                got=error,
                fix="restore it from a backup, or publish again into a new hub",
                expected="the files that its newest timestamp names",
            ) from error

    def incoming(self) -> AbstractContextManager[Incoming]:
        """An archive to be written in pieces; what was not kept is gone when the block ends."""
        return self._blobs.incoming()

    def add_archive(self, coming: Incoming) -> TargetInfo:
        """Checks an archive that has come, a bundle, a family of models or a proxy set, and keeps it.

        Raises:
            BundleError, BundleTruncatedError, BundleAlteredError: it is no sound one.
            StoreError: it cannot be kept.
        """
        coming.sync()
        if is_family(coming.path):
            check_family(coming.path)
        elif is_proxy_set(coming.path):
            check_proxy_set(coming.path)
        else:
            Bundle.open(coming.path).verify()
        return TargetInfo(coming.size, coming.keep())

    def add_image(self, coming: Incoming) -> images.Image:
        """Checks an image that has come and keeps it; errors as `images.take_in`."""
        return images.take_in(coming, self._blobs)

    def image_path(self, digest: Digest) -> Path:
        """The file of an image that was kept; StoreError where it is gone."""
        return self._blobs.path(digest)

    def reference(self, digest: Digest) -> Reference:
        """What an archive's own statistics are of; of nothing where it brings none that can be read, or is gone."""
        try:
            bundle = Bundle.open(self._blobs.path(digest))
            known = bundle.manifest.blobs.get(REFERENCE)
            if known is None or known.size > MAX_BYTES:
                return Reference()
            found = Statistics.from_bytes(bundle.read(REFERENCE))
        except EdgestillError as error:
            log.warning("the statistics of %s cannot be read: %s", digest, error)
            return Reference()
        return Reference(str(found.backbone), found.classes, found.features)

    def set_root(self, root: bytes, now: float) -> None:
        """Takes in the publisher's root, the first or the next one.

        Raises:
            TrustError: not signed as it must be, or it does not give this hub's key the roles it needs.
            ExpiredError: past its time.
        """
        if root == self.publication.root:
            return
        self._require_named(root, check_root(root=root, previous=self.publication.root, now=now))
        replace(self._home.metadata / file_name(root), root)
        self.publication = altered(self.publication, root=root)

    def set_roots(self, roots: Sequence[bytes], now: float) -> None:
        """Takes in every root of the publisher, from the first to the newest: for a hub that lost them, or a second one.

        The newest names this hub; those before may name another, and may have ended, as each says only which comes next (TUF 5.3.10).

        Raises:
            ConflictError: a hub that has other roots.
            TrustError: one that is not signed as it must be, or the newest does not name this hub.
            ExpiredError: the newest is past its time.
        """
        previous = None
        if not roots:
            raise MessageError("no roots", where="roots", expected="one at least", got="none")
        if self.publication.root not in {None, roots[-1]}:
            raise ConflictError(
                "this hub has a root already",
                where="root.json",
                expected="a hub without one",
                got=file_name(self.publication.root or b""),
                fix="hand over the next one alone",
            )
        for number, root in enumerate(roots, start=1):
            keys = check_root(root=root, previous=previous, now=now if number == len(roots) else 0.0)
            if file_name(root) != f"{number}.root.json":
                raise TrustError(
                    "a root is missing",
                    where="roots",
                    expected=f"{number}.root.json",
                    got=file_name(root),
                )
            previous = root
        self._require_named(roots[-1], keys)
        for root in reversed(
            roots
        ):  # cut off in between, the newest is there, and all can be handed over again
            replace(self._home.metadata / file_name(root), root)
        self.publication = altered(self.publication, root=roots[-1])

    def publish(self, targets: bytes, now: float) -> None:
        """Takes in the publisher's next list, and serves it once everything it names can be had.

        Raises:
            ConflictError: there is no root yet, or a listed name got another content.
            TrustError, ExpiredError: the list is not to be trusted (see `check_targets`).
            NotFoundError: an archive is not here. BundleError: it is not what its path says.
        """
        served = self.publication
        if targets == served.targets:
            return
        if served.root is None:
            raise ConflictError(
                "there is no root yet",
                fix="upload root.json first",
                where="root.json",
                expected="an uploaded root",
                got="none",
            )
        published = check_targets(root=served.root, previous=served.targets, targets=targets, now=now)
        for path, info in published.items():
            self._check_entry(path, info, served.published.get(path))
        self._make_patches(published)
        self._say(targets, published, still_vouched(targets, served.delegated), now)

    def publish_role(self, role: str, data: bytes, now: float) -> None:
        """Takes in the next list of a role that the publisher delegates to, and serves it once everything it names can be had.

        Raises:
            ConflictError: nothing is published yet, there were too many roles, or a name is somebody else's or got another content.
            TrustError, ExpiredError, NotFoundError: the list is not to be trusted (see `check_delegated`), or an archive is not here.
            BundleError: an archive is not what its path says.
        """
        served = self.publication
        before = served.delegated.get(role)
        if before is not None and data == before.data:
            return
        if served.targets is None:
            raise ConflictError(
                "nothing is published yet",
                fix="have the publisher name the role's key: edgestill release keys delegate",
                where="targets.json",
                expected="a list that delegates to this role",
                got="none",
            )
        said = self.versions_said
        others = listed_before(role, served.published, served.delegated, served.targets)
        listed = check_delegated(
            targets=served.targets, role=role, data=data, last=said.get(role, 0), now=now, others=others
        )
        if role not in said and len(said) >= MOST_NAMED:
            raise ConflictError(
                "there were too many roles",
                where="snapshot.json",
                expected=f"at most {MOST_NAMED} lists, those of revoked roles too",
                got=f"another one, {role}",
                fix="use the name of a role that there was, or give the hub a new key",
            )
        for path, info in listed.items():
            self._check_entry(path, info, None if before is None else before.listed.get(path))
        self._make_patches(listed)
        taken = RoleList(data, listed)
        replace(self._home.metadata / file_of(role, taken.version), data)
        self._say(served.targets, served.published, {**served.delegated, role: taken}, now)

    @property
    def versions_said(self) -> dict[str, int]:
        """Role -> version of its list that this hub has named last, be it served still or not."""
        return versions_said(self.publication.snapshot, self._home.key.public)

    def freshen(self, now: float) -> None:
        """Says again, with new times, what is served.

        Raises:
            TrustError: the list is not signed as a new root says.
            ExpiredError: root or list are past their time; the publisher must sign again.
        """
        if self.publication.root is not None and self.publication.targets is not None:
            served = self.publication
            self._say(self.publication.targets, served.published, served.delegated, now)

    def needs_freshening(self, now: float) -> bool:
        """Whether half of the timestamp's lifetime is over."""
        age = now - self.publication.fresh_at
        return self.publication.targets is not None and not 0 <= age < self._settings.metadata_lifetime / 2

    def metadata_path(self, name: str) -> Path:
        """The file behind `metadata/NAME`, of a role that is served as `3.CLASS.json` or `3.auto/CLASS.json`; NotFoundError where there is none."""
        match = _ROLE_FILE.fullmatch(name)
        if match is not None and match[2] in self.publication.delegated:
            file = file_of(match[2], int(match[1]))
            return _existing(self._home.metadata, file, re.escape(file))
        return _existing(self._home.metadata, name, METADATA_FILE)

    def patch_path(self, base: str, new: str) -> Path:
        """The file behind `patches/BASE/NEW`, digests as 64 hex digits; NotFoundError where there is none."""
        return _existing(self._home.patches, f"{base}/{new}", r"[0-9a-f]{64}/[0-9a-f]{64}")

    def archive_path(self, path: str) -> tuple[Path, Digest]:
        """The file behind `targets/NAME/VERSION/SHA256.CLASS.esb`, behind `targets/timing/...est`, or behind `targets/proxy/...esp`, and its digest.

        Raises:
            NotFoundError: not listed by the publisher, or not here.
        """
        match = re.fullmatch(TARGET_FILE, path)
        _, info = self.publication.listers.get("" if match is None else f"{match[1]}{match[3]}", ("", None))
        if match is None or info is None or info.digest.hex != match[2]:
            raise NotFoundError(
                "no such target",
                got=repr(path[:200]),
                where="targets.json",
                expected="a listed target",
                fix="look at the list of releases",
            )
        return self._blobs.path(info.digest), info.digest

    def _read(self) -> Publication:
        folder = self._home.metadata
        versions = sorted(
            int(match[1]) for one in folder.iterdir() if (match := _ROOT_FILE.fullmatch(one.name))
        )
        if not versions:
            return Publication()
        root = (folder / f"{versions[-1]}.root.json").read_bytes()
        if not (folder / "timestamp.json").exists():
            return Publication(root=root)
        timestamp = (folder / "timestamp.json").read_bytes()
        snapshot = (folder / f"{_named(timestamp, 'snapshot.json')}.snapshot.json").read_bytes()
        targets = (folder / f"{_named(snapshot, 'targets.json')}.targets.json").read_bytes()
        published, delegated = _listed(targets), read_lists(folder, snapshot, targets)
        return Publication(
            root=root,
            targets=targets,
            snapshot=snapshot,
            timestamp=timestamp,
            published=published,
            delegated=delegated,
            listers=lister_of(published, delegated, targets),
        )

    def _say(
        self,
        targets: bytes,
        published: Mapping[str, TargetInfo],
        delegated: Mapping[str, RoleList],
        now: float,
    ) -> None:
        served = self.publication
        assert served.root is not None
        fresh = freshen(
            root=served.root,
            targets=targets,
            previous_snapshot=served.snapshot,
            previous_timestamp=served.timestamp,
            online=self._home.key,
            now=now,
            lifetime=self._settings.metadata_lifetime,
            delegated={role: one.data for role, one in delegated.items()},
        )
        listers = lister_of(published, delegated, targets)
        for data in (targets, fresh.snapshot):
            replace(self._home.metadata / file_name(data), data)
        # devices read files: what the timestamp names can be had before it names it
        self.publication = altered(served, listers={**served.listers, **listers})
        try:
            replace(self._home.metadata / file_name(fresh.timestamp), fresh.timestamp)
        except BaseException:
            self.publication = served
            raise
        self.publication = Publication(
            root=served.root,
            targets=targets,
            snapshot=fresh.snapshot,
            timestamp=fresh.timestamp,
            published=published,
            delegated=delegated,
            listers=listers,
            fresh_at=now,
        )

    def _check_entry(self, path: str, info: TargetInfo, before: TargetInfo | None) -> None:
        """Looks at an entry; `before` is what the same list said of the name."""
        if before == info:
            return
        if before is not None:
            raise ConflictError(
                "another content under a name that is listed",
                where=path,
                expected=before.digest,
                got=info.digest,
                fix="publish it as a new version",
            )
        if not self._blobs.has(info.digest):
            raise NotFoundError(
                "an archive is not here",
                where=path,
                got=info.digest,
                fix="upload it first",
                expected="an archive of that digest",
            )
        file = self._blobs.path(info.digest)
        said = _own_name(file)
        if said != path or file.stat().st_size != info.size:
            raise ConflictError(
                "an archive is not what its name says",
                where=path,
                expected=f"{path}, {info.size} bytes",
                got=f"{said}, {file.stat().st_size} bytes",
                fix="list it under its own name and size",
            )

    def _require_named(self, root: bytes, keys: AssignmentKeys) -> None:
        mine = self._home.key.public
        if mine not in keys.keys or not _has_online_roles(root, mine.keyid):
            raise TrustError(
                "the root does not name this hub",
                where="root.json",
                expected=f"key {mine.keyid} for snapshot, timestamp and assignments",
                fix="make the root with the hub's online key",
                got="other keys",
            )

    def family(self, digest: str) -> Family:
        """The archive of a family of models that the publisher lists, or once listed, by the 64 hex digits of its digest.

        Raises:
            StoreError, PathError: it is gone.
        """
        return Family.open(self._blobs.path(Digest(digest)))

    def proxy_set(self, digest: str) -> ProxySet:
        """Likewise, a proxy set."""
        return ProxySet.open(self._blobs.path(Digest(digest)))

    def _make_patches(self, listed: Mapping[str, TargetInfo]) -> None:
        served, bundles = self.publication.listed, bundles_of(listed)
        known = {**served, **bundles}
        for path, info in bundles.items():
            if served.get(path) != info:
                for base in _bases(path, known)[: self._settings.patch_bases]:
                    self._make_patch(known[base], info)

    def _make_patch(self, base: TargetInfo, new: TargetInfo) -> None:
        """Makes one patch, unless it would save nothing. A failure costs the patch, never the release."""
        if max(base.size, new.size) > self._settings.max_patched or base.digest == new.digest:
            return
        folder = self._home.patches / base.digest.hex
        try:
            patch = diff(self._blobs.get(base.digest), self._blobs.get(new.digest))
            if len(patch) < new.size:
                folder.mkdir(exist_ok=True)
                replace(folder / new.digest.hex, patch)
        except (OSError, EdgestillError) as error:
            log.warning("no patch from %s to %s: %s", base.digest, new.digest, error)


def bundles_of(listed: Mapping[str, TargetInfo]) -> dict[str, TargetInfo]:
    """Those names of a list that are of bundles."""
    return _of_kind(TARGET, listed)


def _of_kind(pattern: str, listed: Mapping[str, TargetInfo]) -> dict[str, TargetInfo]:
    return {path: info for path, info in listed.items() if re.fullmatch(pattern, path)}


def _own_name(file: Path) -> str:
    """The name under which an archive may be listed."""
    if is_family(file):
        return Family.open(file).head.target
    if is_proxy_set(file):
        return ProxySet.open(file).head.target
    manifest = Bundle.open(file).manifest
    return target_name(manifest.name, manifest.version, manifest.hardware_class)


def _bases(path: str, known: Iterable[str]) -> list[str]:
    """Older versions of the same name and class, newest first."""
    parts = Parts.of(path)
    older = [
        other
        for other in known
        if (found := Parts.of(other)).name == parts.name
        and found.hardware_class == parts.hardware_class
        and found.order < parts.order
    ]
    return sorted(older, key=lambda other: Parts.of(other).order, reverse=True)


def _existing(folder: Path, name: str, pattern: str) -> Path:
    """A file below `folder` whose name was checked as a whole: no part of it can leave the folder."""
    if re.fullmatch(pattern, name) is None or not (folder / name).is_file():
        raise NotFoundError(
            "no such file",
            got=repr(name[:200]),
            where="targets",
            expected="a file that is served here",
            fix="look at the list of releases",
        )
    return folder / name


def _signed(data: bytes, where: str) -> Fields:
    return Fields(parse_object(data, where=where, max_bytes=_MAX_METADATA), where).inner("signed")


def _listed(targets: bytes) -> dict[str, TargetInfo]:
    """What a list says that was checked when it was taken in."""
    entries = _signed(targets, "targets.json").inner("targets")
    found = {}
    for path in entries.names():
        entry = entries.inner(path)
        found[path] = TargetInfo(
            entry.integer("length"), Digest(entry.inner("hashes").text("sha256", at_most=64))
        )
    return found


def _named(data: bytes, file: str) -> int:
    """The version of `file` that snapshot or timestamp metadata names."""
    return _signed(data, "metadata").inner("meta").inner(file).integer("version", least=1)


def _has_online_roles(root: bytes, keyid: str) -> bool:
    roles = _signed(root, "root.json").inner("roles")
    return all(
        keyid in roles.inner(role).items("keyids", at_most=64) and roles.inner(role).integer("threshold") == 1
        for role in ("snapshot", "timestamp")
    )

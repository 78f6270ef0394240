"""What devices without a network are brought: the publisher's list, archives and assignments, as files in a folder.

- A stick that comes back may have been in anybody's hands. Before anything is written each part of each path is looked at: links, and files that
  have another name elsewhere, are refused, so that nothing outside the folder is written.
"""

from __future__ import annotations

import datetime as dt
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import PUBLIC, replace
from edgestill.core.errors import ConflictError, NotFoundError, PathError, SettingError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.release import Assignment
from edgestill.link.folder import ASSIGNMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgestill.core.protocols import Clock, Transport
    from edgestill.link.operator import OperatorClient
    from edgestill.trust.client import TrustedClient
    from edgestill.trust.metadata import TargetInfo

MAX_MESSAGE_BYTES: Final = 64_000
MAX_LIST_BYTES: Final = 5_000_000
TIMESTAMP: Final = "metadata/timestamp.json"
_ROOT: Final = re.compile(r"metadata/([0-9]{1,15})\.root\.json", re.ASCII)
TIMEOUT: Final = 30.0
MINIMUM_SPEED: Final = 4096.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a folder was filled with.

    Attributes:
        assigned: to each device.
        good_until: when the first thing ends that these devices need (seconds since 1970).
    """

    assigned: Mapping[str, Assignment]
    good_until: float


def carry(
    folder: Path,
    devices: Sequence[str],
    *,
    client: OperatorClient,
    transport: Transport,
    hub: str,
    expires_in: float,
    clock: Clock,
) -> Carried:
    """Fills a folder for these devices; assignments come last, so that a folder with one has all that it needs, and the timestamp after what it leads to.

    Args:
        folder: new, empty, or one that was filled before.
        devices: of the fleet.
        client: of the hub, for assignments.
        transport: to the hub, for everything else.
        hub: its address.
        expires_in: seconds for which the assignments hold.
        clock: for metadata and speeds.

    Returns:
        What each device is assigned, and until when.

    Raises:
        SettingError: two names that differ in case only, which a stick cannot tell apart.
        NotFoundError, ConflictError: no such device, or nothing is assigned to it; or nothing is published.
        TrustError, ExpiredError: the hub serves what no device would take.
        PathError: the folder cannot be written, or a link in it would lead out of it.
    """
    from edgestill.link.download import download, part_of
    from edgestill.trust.client import target_path

    _refuse_same_names(devices)
    told = {one: client.assignment(one, expires_in=expires_in) for one in devices}
    found = {one: _read(data) for one, data in told.items()}
    targets = sorted({one.target for one in found.values()})
    metadata, listed = _metadata(targets, client, transport, hub, clock)
    archives = {target: target_path(target, info.digest) for target, info in listed.items()}
    for path in (*archives.values(), *metadata, *(f"{ASSIGNMENTS}/{device}.json" for device in told)):
        _refuse_links(folder, Path(path))
        _refuse_links(folder, part_of(Path(path)))
    for target, info in listed.items():
        path = archives[target]
        to = folder / path
        _make(to.parent)
        download(
            transport,
            f"{hub.rstrip('/')}/{path}",
            to=to,
            size=info.size,
            digest=info.digest,
            clock=clock,
            timeout=TIMEOUT,
            minimum_speed=MINIMUM_SPEED,
        )
    _make(folder / "metadata")
    for path, data in sorted(metadata.items(), key=lambda one: one[0] == TIMESTAMP):
        replace(folder / path, data, mode=PUBLIC)
    _make(folder / ASSIGNMENTS)
    for device, data in told.items():
        replace(folder / ASSIGNMENTS / f"{device}.json", data, mode=PUBLIC)
    return Carried(assigned=found, good_until=_good_until(found, metadata))


def _good_until(found: Mapping[str, Assignment], metadata: Mapping[str, bytes]) -> float:
    """When the first thing ends that these devices need; of several roots the newest counts. Nothing else in the folder does."""
    roots = {int(known[1]): path for path in metadata if (known := _ROOT.fullmatch(path)) is not None}
    older = {path for version, path in roots.items() if version < max(roots)}
    ends = [float(one.expires) for one in found.values()]
    for path in metadata.keys() - older:
        signed = Fields(parse_object(metadata[path], where=path, max_bytes=MAX_LIST_BYTES), path)
        told = signed.inner("signed").text("expires", at_most=40)
        ends.append(dt.datetime.fromisoformat(told).timestamp())
    return min(ends)


def _metadata(
    targets: Sequence[str], client: OperatorClient, transport: Transport, hub: str, clock: Clock
) -> tuple[dict[str, bytes], dict[str, TargetInfo]]:
    """Every file of it that a device asks for on the way to these targets, verified as a device would, and what they say of these."""
    from edgestill.link.control import ControlClient
    from edgestill.trust.client import TrustedClient
    from edgestill.trust.kept import KeptMetadata

    first = client.root_of(1)
    if first is None:
        raise NotFoundError(
            "nothing is published yet",
            where="1.root.json",
            expected="a root of the publisher",
            got="none",
            fix="publish: edgestill release publish",
        )
    fetched = {"metadata/1.root.json": first}
    control = ControlClient(transport, hub)

    def fetch(path: str, at_most: int) -> bytes:
        fetched[path] = control.artefact(path, at_most)
        return fetched[path]

    with tempfile.TemporaryDirectory() as scratch:
        trusted = TrustedClient(KeptMetadata(Path(scratch) / "tuf"), root=first, fetch=fetch, clock=clock)
        trusted.refresh()
        return fetched, {target: _listed(trusted, target) for target in targets}


def _listed(trusted: TrustedClient, target: str) -> TargetInfo:
    """What the publisher, or a role of theirs, says of it."""
    if trusted.find(target) is None:
        raise ConflictError(
            "what is assigned is not listed any more",
            where="targets.json",
            expected=target,
            got="no such target",
            fix="start a rollout of a release that is",
        )
    return trusted.listing(target).info


def _read(told: bytes) -> Assignment:
    fields = Fields(parse_object(told, where="assignment", max_bytes=MAX_MESSAGE_BYTES), "assignment")
    return Assignment.from_fields(fields.inner("assignment").inner("signed"))


def _refuse_same_names(devices: Sequence[str]) -> None:
    if len({one.casefold() for one in devices}) < len(devices):
        raise SettingError(
            "two devices of one name",
            where="--device",
            expected="names that differ in more than the case of letters",
            got=", ".join(devices)[:200],
            fix="make a folder for each",
        )


def _refuse_links(folder: Path, path: Path) -> None:
    """Looks at each part of a path within the folder that is to be written."""
    for part in (*reversed(path.parents[:-1]), path):
        try:
            found = (folder / part).lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unsafe(folder / part, error.strerror or error) from error
        if part != path and not stat.S_ISDIR(found.st_mode):
            raise _unsafe(folder / part, "no plain folder")
        if part == path and not (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
            raise _unsafe(folder / part, "no plain file with one name")


def _unsafe(where: Path, got: object) -> PathError:
    return PathError(
        "a folder that would have other files overwritten",
        where=where,
        expected="plain files in plain folders, or nothing yet",
        got=got,
        fix="do not trust this stick: empty it, or take another",
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(
            "cannot write the folder",
            where=folder,
            expected="a folder with room",
            got=error.strerror,
            fix="choose another, or look at the stick",
        ) from error

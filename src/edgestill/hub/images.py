"""Images for other updaters, and what devices that take them were told: functions on a connection, and the check of an image.

- An image belongs to one archive, the one that it holds. What is assigned is the archive, as for any device; a device that asks by hawkBit's
  interface is given the image of it.
- An image is taken in only where its archive is here and is what the image says, and where nothing else is in it (`core.swu`). Whether its
  signature is good is for devices to say: the hub knows neither key nor certificate.
- An image that is handed over again takes the place of the earlier one, as when a certificate has ended. Who has begun to fetch the earlier one
  gets the rest of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, insert, select, update

from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, NotFoundError
from edgestill.core.swu import Image as Swu
from edgestill.hub.ddi import Action
from edgestill.hub.registry import Parts
from edgestill.hub.tables import controllers, images, targets

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject
    from edgestill.store.files import FileBlobs, Incoming

MAX_OVERHEAD: Final = 30_000
"""Bytes that an image has more than its bundle, at most."""

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as it is offered.

    Attributes:
        archive: SHA-256 (hex) of the archive in it.
        digest: SHA-256 (hex) of the image, under which it lies among the blobs.
        size: bytes of the image.
        sha1: of the image, which hawkBit's clients compare; it proves nothing.
        md5: likewise.
    """

    archive: str
    digest: str
    size: int
    sha1: str
    md5: str

    def as_json(self, target: str, base: str) -> JsonObject:
        """The artefact in a deployment.

        Args:
            target: TUF path of the archive.
            base: address of the controller resource.
        """
        link: JsonObject = {"href": f"{base}/softwaremodules/{self.digest}/artifacts/{file_name(target)}"}
        hashes: JsonObject = {"sha1": self.sha1, "md5": self.md5, "sha256": self.digest}
        return {
            "filename": file_name(target),
            "hashes": hashes,
            "size": self.size,
            "_links": {"download": link, "download-http": link},
        }


def file_name(target: str) -> str:
    """What the image of a target is called: `watch-1.0.0-CLASS.swu`."""
    parts = Parts.of(target)
    return f"{parts.name}-{parts.version}-{parts.hardware_class}.swu"


def deployment(action: int, target: str, image: Image | None, base: str) -> JsonObject:
    """The message that tells a device to install this image; None for a device that has: there is nothing in it, but the action's id."""
    parts = Parts.of(target)
    if image is None:
        return {
            "id": str(action),
            "deployment": {"download": "forced", "update": "forced", "chunks": []},
        }
    return {
        "id": str(action),
        "deployment": {
            "download": "forced",
            "update": "forced",
            "chunks": [
                {
                    "part": "bApp",
                    "name": parts.name,
                    "version": parts.version,
                    "artifacts": [image.as_json(target, base)],
                }
            ],
        },
    }


def take_in(coming: Incoming, blobs: FileBlobs) -> Image:
    """Checks an image that has come and keeps it among the blobs.

    Raises:
        MessageError: not an image of the one form that there is, or altered.
        NotFoundError: the archive in it was not handed over. ConflictError: it is called otherwise there.
        StoreError: it cannot be kept.
    """
    coming.sync()
    said = Swu.read(coming.path).description
    if not blobs.has(said.digest):
        raise NotFoundError(
            "the bundle of an image is not here",
            where=said.file,
            expected="an archive that was handed over before",
            got=said.digest,
            fix="publish the bundle that the image was made of: edgestill release publish",
        )
    manifest = Bundle.open(blobs.path(said.digest)).manifest
    if (manifest.name, manifest.version) != (said.name, said.version):
        raise ConflictError(
            "an image is not what it says",
            where=said.file,
            expected=f"{manifest.name} {manifest.version}",
            got=f"{said.name} {said.version}",
            fix="make it anew: edgestill bundle export --to swu",
        )
    sha1, md5 = _sums(coming.path)
    size, digest = coming.size, coming.keep()
    return Image(archive=said.digest.hex, digest=digest.hex, size=size, sha1=sha1, md5=md5)


async def keep(connection: AsyncConnection, image: Image, now: float) -> None:
    """Remembers an image that lies among the blobs, as the newest of its archive."""
    await connection.execute(delete(images).where(images.c.digest == image.digest))
    await connection.execute(insert(images).values(**asdict(image), added_at=now))


async def of_target(connection: AsyncConnection, target: str, digest: str = "") -> Image | None:
    """The newest image of a listed target, or the one of this digest (hex); None where there is none."""
    columns = [images.c[name] for name in Image.__dataclass_fields__]
    wanted = (
        select(*columns)
        .join(targets, targets.c.digest == images.c.archive)
        .where(targets.c.path == target, targets.c.listed)
        .order_by(images.c.id.desc())
        .limit(1)
    )
    rows = await connection.execute(wanted.where(images.c.digest == digest) if digest else wanted)
    row = rows.mappings().first()
    return None if row is None else Image(**row)


async def archive_of(connection: AsyncConnection, target: str) -> Digest:
    """The digest of a target that was once assigned, listed or not."""
    found = await connection.execute(select(targets.c.digest).where(targets.c.path == target))
    return Digest(found.scalar_one())


async def last_action(connection: AsyncConnection, device: str) -> tuple[Action, dict[str, str] | None]:
    """The action that a device was given last, and what it says of itself."""
    row = (await connection.execute(select(controllers).where(controllers.c.device_id == device))).first()
    if row is None:
        return Action(), None
    action = Action(
        id=row.action, target=row.target, outcome=row.outcome, is_staged=row.staged, note=row.note
    )
    return action, row.attributes


async def keep_action(connection: AsyncConnection, device: str, action: Action) -> None:
    """Remembers where a device's last action stands."""
    await _keep(
        connection,
        device,
        action=action.id,
        target=action.target,
        outcome=action.outcome,
        staged=action.is_staged,
        note=action.note,
    )


async def keep_attributes(connection: AsyncConnection, device: str, told: dict[str, str]) -> None:
    """Remembers what a device says of itself."""
    await _keep(connection, device, attributes=told)


async def _keep(connection: AsyncConnection, device: str, **values: object) -> None:
    mine = controllers.c.device_id == device
    if (await connection.execute(select(controllers.c.device_id).where(mine))).first() is None:
        await connection.execute(insert(controllers).values(device_id=device, **values))
    else:
        await connection.execute(update(controllers).where(mine).values(**values))


def _sums(path: Path) -> tuple[str, str]:
    """SHA-1 and MD5 of a file."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            sha1.update(piece)
            md5.update(piece)
    return sha1.hexdigest(), md5.hexdigest()

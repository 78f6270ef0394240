"""The hub's folder: what is in it, and how it comes to be.

| path | content |
|---|---|
| `hub.db` | the database |
| `blobs/` | archives by digest |
| `metadata/` | TUF metadata, as it is served |
| `patches/BASE/NEW` | patches, as they are served |
| `blobs/incoming/` | uploads that are not complete; emptied when a hub begins to serve |
| `lock` | held by the hub that serves |
| `online.pem` | the hub's private key: snapshot, timestamp, assignments. Readable by its owner only |
| `operator.token` | the operator's secret; the hub itself compares its digest |
| `authority.key` | the private key of the fleet's authority, which issues certificates. Readable by its owner only |
| `authority.pem` | its certificate, which everybody may have; after it those that are still believed |
| `authority.next.key` | while one authority hands over to the next (`hub.handover`): the key of the next. Readable by its owner only |
| `authority.number` | of the hub's word about its authorities; grows with every change of them |
| `authority.key.new` | the key until its certificate is written; then it gets its name. So either of the two alone has lost the other |
| `server.pem` | key and certificate of a hub that serves with one of the fleet's own (`hub.tls`). Readable by its owner only |
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.bundle import replace, sync_folder
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, PathError
from edgestill.hub import handover
from edgestill.hub.handover import AUTHORITIES, AUTHORITY_KEY
from edgestill.store.files import INCOMING
from edgestill.trust.authority import LIFETIME, Authority
from edgestill.trust.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Clock

FOLDERS: Final = ("blobs", "metadata", "patches")
SECRETS: Final = ("online.pem", "operator.token", AUTHORITY_KEY, AUTHORITIES)

_OPERATOR_TOKEN: Final = r"eso1\.[A-Za-z0-9_-]{20,200}"  # noqa: S105  # the form of a secret, not one
_OWNER_ONLY: Final = 0o700


@dataclass(frozen=True, slots=True)
class Home:
    """A folder that `init` has made.

    Attributes:
        folder: where everything is.
        key: the online key.
        operator: SHA-256 (hex) of the operator's token.
        authority: issues certificates to devices.
        number: of the hub's word about its authorities.
    """

    folder: Path
    key: SigningKey
    operator: str
    authority: Authority
    number: int = 1

    @classmethod
    def init(cls, folder: Path, *, clock: Clock | None = None) -> Self:
        """Makes what is missing and keeps what is there, so that it may be called again after a kill.

        Args:
            folder: of the hub.
            clock: by which an authority that is made gets its end; the machine's own where None.

        Raises:
            PathError: it cannot be written, or one of the authority's two files is lost, which cannot be made again.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(_OWNER_ONLY)
            for name in FOLDERS:
                (folder / name).mkdir(exist_ok=True)
        except OSError as error:
            raise PathError(
                "cannot make the hub's folder",
                where=folder,
                got=error.strerror,
                expected="a folder that can be made",
                fix="choose another --home",
            ) from error
        if not (folder / "online.pem").exists():
            replace(folder / "online.pem", SigningKey.generate().to_pem(None))
        if not (folder / "operator.token").exists():
            replace(folder / "operator.token", f"eso1.{secrets.token_urlsafe(32)}\n".encode())
        _make_authority(folder, (clock or SystemClock()).now())
        handover.settle(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the secrets.

        Raises:
            PathError: not a hub's folder, or not readable.
            MessageError: `online.pem` holds no key, or the files of the authority not what they should.
            TrustError: the authority's key is not its certificate's.
        """
        missing = [name for name in (*FOLDERS, *SECRETS) if not (folder / name).exists()]
        if missing:
            raise PathError(
                "not a hub's folder",
                where=folder,
                expected=", ".join(missing),
                fix=f"run: python -m edgestill.hub.main init --home {folder}",
                got="a folder without them",
            )
        try:
            key = SigningKey.from_pem((folder / "online.pem").read_bytes())
            token = (folder / "operator.token").read_text(encoding="utf-8").strip()
            standing = handover.standing_of(folder)
        except OSError as error:
            raise PathError(
                "cannot read the hub's folder",
                where=folder,
                got=error.strerror,
                expected="files of ours",
                fix="check their owner",
            ) from error
        if re.fullmatch(_OPERATOR_TOKEN, token) is None:
            raise PathError(
                "no operator token",
                where=folder / "operator.token",
                expected="eso1.SECRET",
                fix="delete the file and run init again to get a new one",
                got="something else",
            )
        return cls(folder, key, Digest.of(token.encode()).hex, standing.authority, standing.number)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second hub out for as long as the block runs, and drops what a kill left behind half-written.

        Two would make different metadata under one version. The kernel lets go when a process ends.

        Raises:
            ConflictError: another hub runs on this folder.
        """
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConflictError(
                    "a hub runs here already",
                    where=self.folder,
                    fix="stop it, or use another --home",
                    expected="a free lock",
                    got="one that is held",
                ) from error
            unfinished = (
                *self.incoming.glob("*"),
                *(self.folder / INCOMING).glob("*"),
            )  # the latter: hubs of old
            for left in (*unfinished, *self.metadata.glob(".*"), *self.patches.glob("*/.*")):
                left.unlink()
            yield
        finally:
            os.close(handle)

    @property
    def database(self) -> Path:
        """The database's file."""
        return self.folder / "hub.db"

    @property
    def blobs(self) -> Path:
        """The folder of archives."""
        return self.folder / "blobs"

    @property
    def metadata(self) -> Path:
        """The folder of TUF metadata."""
        return self.folder / "metadata"

    @property
    def patches(self) -> Path:
        """The folder of patches."""
        return self.folder / "patches"

    @property
    def incoming(self) -> Path:
        """The folder of uploads in progress."""
        return self.blobs / INCOMING


def _make_authority(folder: Path, now: float) -> None:
    """Makes an authority where there is none, or ends what a kill has left of that.

    Neither of its files is ever written over, because the fleet believes them: the key cannot be made again, and a certificate that
    was made again would be another one, since its signature is random (FIPS 186-5, 6.3.1) and join tokens name its digest.

    Raises:
        PathError: one of both is lost, or cannot be written.
        TrustError, MessageError: what a kill has left does not belong together.
    """
    key, certificate, new = folder / AUTHORITY_KEY, folder / AUTHORITIES, folder / f"{AUTHORITY_KEY}.new"
    if not key.exists() and not certificate.exists():
        made = Authority.create(secrets.token_hex(8), until=now + LIFETIME)
        replace(new, made.key_pem())
        replace(certificate, made.authorities.to_pem())
    if not key.exists() and new.exists():
        Authority.open(handover.read_authority(new), handover.read_authority(certificate))
        try:
            new.rename(key)
            sync_folder(folder)
        except OSError as error:
            raise PathError(
                "cannot make the fleet's authority",
                where=key,
                expected="a file that can be made",
                got=error.strerror,
                fix="check the folder's owner and its disk, and run init again",
            ) from error
    missing = [path for path in (key, certificate) if not path.exists()]
    if missing:
        raise PathError(
            "a file of the fleet's authority is lost",
            where=missing[0],
            expected=f"{AUTHORITY_KEY} and {AUTHORITIES}, which belong together",
            got=f"{(key if missing[0] == certificate else certificate).name} alone",
            fix="put it back from a backup (a device's authorities.pem is as good for a lost authority.pem); where nobody has"
            " joined yet, or all shall join anew, remove both and run init again",
        )

"""A copy of a hub from which another can be made: taken while it serves, checked byte by byte, and read back before it counts.

    backup.json     what is in it: name, size and SHA-256 of each file; written last
    hub.db          the database as it was at one moment
    metadata/, blobs/
    authority.key, authority.pem, and what else a hand-over has (hub.handover)

- The hub's folder only gains files, but for `timestamp.json` and the database. So the database is copied first, then the timestamp, then other
  metadata, and archives last: whatever a copied file names is copied after it, and is there.
- Left out are the online key and the operator's token. A hub that was restored must have new ones in any case: its counters are older than
  those that devices have seen (ADR 20), and nobody who finds a backup can assign. It holds the authority's key all the same, and evidence:
  files are for their owner alone.
- Patches, the hub's own certificate and the lock are left out, too: they make themselves.
- A backup, like a folder that is restored, is made beside its place under another name, and gets its own when it is whole.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from edgestill.core.begun import begun as beside
from edgestill.core.bundle import replace, sync_folder
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, NotFoundError, PathError, StoreError
from edgestill.core.files import open_plain, read_plain
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.manifest import BlobRef
from edgestill.hub import handover
from edgestill.hub.database import migrate
from edgestill.hub.home import FOLDERS, Home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock

MANIFEST: Final = "backup.json"
DATABASE: Final = "hub.db"
VERSION: Final = 1
MOST_FILES: Final = 1_000_000

_KEPT: Final = (handover.AUTHORITIES, handover.AUTHORITY_KEY, handover.NEXT_KEY, handover.NUMBER)
_TIMESTAMP: Final = "metadata/timestamp.json"
_MAX_MANIFEST: Final = 256 * MOST_FILES
_PART: Final = r"[A-Za-z0-9_%-][A-Za-z0-9_.%-]{0,199}"
_NAME: Final = re.compile(
    rf"hub\.db|authority(?:\.next)?\.key|authority\.(?:pem|number)|metadata/{_PART}(?:/{_PART})?"
    r"|blobs/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{64}"
)
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What a backup holds.

    Attributes:
        made_at: seconds since 1970, by the machine that made it.
        fleet: id of the fleet.
        files: name -> size and digest.
    """

    made_at: float
    fleet: str
    files: dict[str, BlobRef]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files.values())

    def to_bytes(self) -> bytes:
        """The bytes of `backup.json`."""
        files: JsonObject = {
            name: {"size": one.size, "digest": str(one.digest)} for name, one in self.files.items()
        }
        return canonical({"version": VERSION, "made_at": self.made_at, "fleet": self.fleet, "files": files})


def back_up(home: Path, to: Path, *, clock: Clock) -> Backup:
    """Copies a hub, which may serve meanwhile.

    Args:
        home: its folder.
        to: there is nothing of that name yet, or an empty folder.
        clock: of this machine.

    Returns:
        What was copied, and read back.

    Raises:
        ConflictError: something is there already. NotFoundError: the hub has no database yet.
        PathError: one of both cannot be read or written.
        StoreError: the hub's folder is damaged: an archive is not what its name says, or the database cannot be read.
    """
    Home.open(home)
    with beside(to, what="", fix="choose another folder") as begun:
        files = {DATABASE: _copy_database(home / DATABASE, begun / DATABASE)}
        for name in _names(home):
            files[name] = _copied(home / name, begun / name)
            _check_blob(name, files[name])
        standing = handover.standing_of(begun)
        made = Backup(
            made_at=clock.now(), fleet=standing.authority.authorities.fleet, files=dict(sorted(files.items()))
        )
        _check_database(begun / DATABASE)
        replace(begun / MANIFEST, made.to_bytes())
        _sync(begun)
        verify(begun)
    return made


def verify(folder: Path) -> Backup:
    """Reads a backup as a whole, and compares every byte with what `backup.json` says.

    Raises:
        NotFoundError: no backup. MessageError: `backup.json` is none that this version reads.
        StoreError: a file is missing, or another one.
        PathError: it cannot be read.
    """
    found = _read(folder)
    for name, known in found.files.items():
        _require(name, _digested(folder / name, at_most=known.size), known)
    return found


def restore(backup: Path, to: Path) -> Home:
    """Makes a hub's folder of a backup, with a new online key and a new token of its operator.

    Args:
        backup: made by `back_up`.
        to: there is nothing of that name yet, or an empty folder.

    Returns:
        The hub's folder. The publisher's next root must name its key before devices follow it.

    Raises:
        ConflictError: something is there already.
        NotFoundError, MessageError, StoreError, PathError: as `verify`; a database that a newer version wrote.
        TrustError: the authority's key and certificate do not belong together.
    """
    found = _read(backup)
    with beside(to, what="", fix="choose another folder") as begun:
        for name in FOLDERS:
            (begun / name).mkdir(exist_ok=True)
        for name, known in found.files.items():
            _require(name, _copied(backup / name, begun / name, at_most=known.size), known)
        _check_database(begun / DATABASE)
        migrate(begun / DATABASE)
        Home.init(begun)
        _sync(begun)
    return Home.open(to)


def _read(folder: Path) -> Backup:
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(
            "not a backup of a hub",
            where=folder,
            expected=f"a folder with {MANIFEST}",
            got="none",
            fix="name the folder that edgestill hub backup has made",
        )
    data = read_plain(folder / MANIFEST, what="the backup's list", at_most=_MAX_MANIFEST)
    fields = Fields(parse_object(data, where=MANIFEST, max_bytes=_MAX_MANIFEST), MANIFEST)
    fields.integer("version", least=VERSION, most=VERSION)
    named, files = fields.inner("files"), {}
    for name in named.names():
        if _NAME.fullmatch(name) is None:
            raise MessageError(
                "a name that no backup has", where=MANIFEST, expected=_NAME.pattern, got=name[:100]
            )
        one = named.inner(name)
        files[name] = BlobRef(one.digest("digest"), one.integer("size"))
    missing = {DATABASE, handover.AUTHORITIES, handover.AUTHORITY_KEY} - set(files)
    if missing:
        raise MessageError(
            "a backup without what a hub needs",
            where=MANIFEST,
            expected=", ".join(sorted(missing)),
            got="none of them",
        )
    return Backup(made_at=fields.number("made_at"), fleet=fields.text("fleet", at_most=16), files=files)


def _names(home: Path) -> Iterator[str]:
    """What is copied beside the database, in its order: `timestamp.json` before what it names, and archives last.

    A folder is looked into only when what names its files has been copied: a list made before would lack what has come since.
    """
    yield from (name for name in (*_KEPT, _TIMESTAMP) if (home / name).exists())
    for folder in ("metadata/**/*.json", "blobs/*/*/*"):
        for path in sorted(home.glob(folder)):
            name = path.relative_to(home).as_posix()
            if _NAME.fullmatch(name) and name != _TIMESTAMP:
                yield name


def _copy_database(source: Path, to: Path) -> BlobRef:
    """One moment of a database that may be written meanwhile."""
    if not source.exists():
        raise NotFoundError(
            "this hub has no database yet",
            where=source,
            expected="a hub that has served",
            got="none",
            fix="start it once: edgestill hub up",
        )
    try:
        with closing(
            sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30)
        ) as connection:
            connection.execute("VACUUM INTO ?", (str(to),))
        to.chmod(stat.S_IRUSR | stat.S_IWUSR)
        with to.open("rb") as file:
            os.fsync(file.fileno())
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            "the database cannot be copied",
            where=source,
            expected="SQLite, and room on the disk",
            got=error,
            fix="check the disk; what the hub's log says of it",
        ) from error
    return _digested(to)


def _check_database(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            said = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
            said += [f"{row[0]}: a row of nothing" for row in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.Error as error:
        said = [str(error)]
    if said != ["ok"]:
        raise StoreError(
            "the database is damaged",
            where=path,
            expected="ok, of PRAGMA integrity_check",
            got=said[0][:200],
            fix="take an older backup",
        )


def _copied(source: Path, to: Path, *, at_most: int | None = None) -> BlobRef:
    """Copies a file in pieces, for its owner alone; what was copied. See `_pieces` for a file whose size is known."""
    with _told("cannot copy a file", source):
        to.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        with os.fdopen(handle, "wb") as written, open_plain(source, follow=at_most is None) as read:
            digest = Digest.of_chunks(_copying(_pieces(read, at_most), written))
            written.flush()
            os.fsync(written.fileno())
            return BlobRef(digest, written.tell())


def _copying(pieces: Iterable[bytes], written: BinaryIO) -> Iterator[bytes]:
    for piece in pieces:
        written.write(piece)
        yield piece


def _pieces(read: BinaryIO, at_most: int | None) -> Iterator[bytes]:
    """A file in pieces; no further than a byte behind the size that it must have, so that one that is longer is found out and not read."""
    left = None if at_most is None else at_most + 1
    while piece := read.read(_CHUNK if left is None else min(_CHUNK, left)):
        left = None if left is None else left - len(piece)
        yield piece


def _digested(path: Path, *, at_most: int | None = None) -> BlobRef:
    with _told("cannot read a file", path), open_plain(path, follow=at_most is None) as read:
        digest = Digest.of_chunks(_pieces(read, at_most))
        return BlobRef(digest, read.tell())


def _require(name: str, found: BlobRef, known: BlobRef) -> None:
    if found != known:
        raise StoreError(
            "a file of the backup is another one",
            where=name,
            expected=f"{known.size} bytes, {known.digest}",
            got=f"{found.size} bytes, {found.digest}",
            fix="take another copy of the backup, or an older one",
        )
    _check_blob(name, found)


def _check_blob(name: str, found: BlobRef) -> None:
    """An archive is what its name says: a damaged one would be found out by the first device."""
    if name.startswith("blobs/") and found.digest.hex != name.rpartition("/")[2]:
        raise StoreError(
            "a damaged archive",
            where=name,
            expected=f"sha256:{name.rpartition('/')[2]}",
            got=found.digest,
            fix="publish it again (the hub takes it where the digest is right), and check the disk",
        )


@contextmanager
def _told(what: str, where: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(
            "a file is missing", where=where, expected="a file", got="none", fix="take an older backup"
        ) from error
    except OSError as error:
        raise PathError(
            what,
            where=where,
            expected="files that can be read, and room for their copies",
            got=error.strerror or error,
            fix="check owner and disk",
        ) from error


def _sync(folder: Path) -> None:
    """Lets the disk know of every folder's entries."""
    for path in (*(one for one in folder.rglob("*") if one.is_dir()), folder):
        sync_folder(path)

"""Blobs as files: `FOLDER/ab/cd/abcd...`, each named by its digest.

- A name holds the whole blob or is not there, whenever the process is killed or the power fails: bytes are written
  and synced under `FOLDER/incoming`, then renamed, and every folder whose entries changed is synced before `put` returns.
- What is read is checked. A file that was damaged is an error of `get`, and the next `put` of its bytes mends it.
- A blob may come in pieces (`incoming`): its digest is taken on the way, and no more of it is in memory than a piece.
- Writers share a lock on `incoming`; who opens the store throws away what is left there only when no writer lives.
  Several processes may share a folder.
- Foreign files are left alone and never listed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.bundle import sync_folder
from edgestill.core.digest import Digest
from edgestill.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

INCOMING: Final = "incoming"

_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_FIX: Final = "check the disk and its permissions"


@final
class FileBlobs:
    """A `core.protocols.BlobStore` in a folder. Safe for threads and processes. See `FileBlobs.open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Opens the store, makes the folder where there is none, and clears away what dead writers left.

        Raises:
            StoreError: the folder cannot be made or read.
        """
        store = cls(Path(folder))
        incoming = store.folder / INCOMING
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            with suppress(BlockingIOError), _locked(incoming, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for leftover in incoming.iterdir():
                    leftover.unlink()
        except OSError as error:
            raise _failed("cannot open a blob store", store.folder, error) from error
        return store

    def put(self, data: bytes) -> Digest:
        """Keeps the bytes durably; keeping them twice is keeping them once.

        Raises:
            StoreError: they cannot be written.
        """
        digest = Digest.of(data)
        path = self._path(digest)
        try:
            if _holds(path, data):
                sync_folder(path.parent)  # its writer may have been killed just before that
                return digest
        except OSError as error:
            raise _failed("cannot keep a blob", path, error) from error
        with self.incoming() as coming:
            coming.write(data)
            return coming.keep()

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A blob to be written in pieces; what was not kept is gone when the block ends.

        Raises:
            StoreError: it cannot be begun.
        """
        folder = self.folder / INCOMING
        with ExitStack() as stack:
            with _told("cannot keep a blob", folder):
                stack.enter_context(_locked(folder, fcntl.LOCK_SH))
                handle, name = tempfile.mkstemp(dir=folder)
            path = Path(name)
            stack.callback(path.unlink, missing_ok=True)
            file = os.fdopen(handle, "wb")
            stack.callback(_close, file)
            yield Incoming(self, path, file)

    def adopt(self, path: Path, digest: Digest) -> None:
        """Gives a synced file of this store's file system the name of its digest, which is not looked at again.

        Raises:
            StoreError: it cannot be moved there.
        """
        named = self._path(digest)
        with _told("cannot keep a blob", named):
            _make_folder(named.parent.parent)
            _make_folder(named.parent)
            path.replace(named)
            sync_folder(named.parent)

    def get(self, digest: Digest) -> bytes:
        """The bytes, checked against their digest.

        Raises:
            StoreError: not there, damaged, or not readable.
        """
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError(
                "no such blob",
                where=self.folder,
                got=digest,
                expected="a digest that is kept here",
                fix="fetch it again, or restore the store from its backup",
            ) from error
        except OSError as error:
            raise _failed("cannot read a blob", path, error) from error
        if Digest.of(data) != digest:
            raise StoreError(
                "a damaged blob",
                where=path,
                expected=digest,
                got=Digest.of(data),
                fix="put its bytes again, and check the disk",
            )
        return data

    def path(self, digest: Digest) -> Path:
        """Where the bytes lie, for who streams them; unchecked.

        Raises:
            StoreError: not there.
        """
        path = self._path(digest)
        if not path.is_file():
            raise StoreError(
                "no such blob",
                where=self.folder,
                got=digest,
                expected="a digest that is kept here",
                fix="fetch it again, or restore the store from its backup",
            )
        return path

    def has(self, digest: Digest) -> bool:
        """Whether the bytes are there."""
        return self._path(digest).is_file()

    def delete(self, digest: Digest) -> None:
        """Forgets the bytes durably; forgetting what is not there is no error.

        Raises:
            StoreError: they cannot be removed.
        """
        path = self._path(digest)
        try:
            path.unlink()
            sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed("cannot forget a blob", path, error) from error

    def list(self) -> Iterator[Digest]:
        """Every digest kept, in order. What changes meanwhile may be there or not."""
        for outer in _folders(self.folder):
            for inner in _folders(outer):
                prefix = outer.name + inner.name
                for name in sorted(one.name for one in inner.iterdir()):
                    if name.startswith(prefix) and _NAME.fullmatch(name):
                        yield Digest(name)

    def _path(self, digest: Digest) -> Path:
        return self.folder / digest.hex[:2] / digest.hex[2:4] / digest.hex


@final
class Incoming:
    """A blob that comes in pieces, its digest taken on the way. Made by `FileBlobs.incoming`.

    Attributes:
        path: where its bytes lie until they are kept; whole after `sync`.
        size: bytes so far.
    """

    def __init__(self, store: FileBlobs, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = 0
        self._store = store
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Takes the next piece.

        Raises:
            StoreError: it cannot be written.
        """
        with _told("cannot keep a blob", self.path):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def sync(self) -> None:
        """Makes all that came durable, so that whoever reads `path` reads what will be kept.

        Raises:
            StoreError: it cannot be written.
        """
        with _told("cannot keep a blob", self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def keep(self) -> Digest:
        """Gives the bytes their name, durably; the last call.

        Raises:
            StoreError: they cannot be written.
        """
        self.sync()
        digest = Digest(self._hash.hexdigest())
        self._store.adopt(self.path, digest)
        return digest


def _close(file: BinaryIO) -> None:
    """Closes a file whose content no longer matters: on a full disk the last piece may not go out."""
    with suppress(OSError):
        file.close()


@contextmanager
def _told(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(what, path, error) from error


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Holds the lock of a folder; BlockingIOError where it is taken and `how` does not wait."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if _SHARD.fullmatch(one.name) and one.is_dir())


def _failed(what: str, path: Path, error: OSError) -> StoreError:
    return StoreError(
        what, where=path, expected="a folder that can be used", got=error.strerror or error, fix=_FIX
    )

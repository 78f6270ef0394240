"""A file of fixed length, read and written in place.

Tests put another `Blocks` between: one that fails where they like, and one that loses, on a power cut, what was not synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Protocol, Self, final

from edgestill.core.bundle import sync_folder
from edgestill.core.errors import ConflictError
from edgestill.core.files import open_plain, refuse_special

if TYPE_CHECKING:
    from pathlib import Path


class Blocks(Protocol):
    """Bytes at offsets. Every method but `close` raises OSError where the disk fails."""

    @property
    def length(self) -> int:
        """Of the file, in bytes."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes; durable after the next `sync`, and torn or not there after a power cut before it."""
        ...

    def sync(self) -> None:
        """Makes durable what was written."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


@final
class PlainFile:
    """The blocks of a file on disk.

    Args:
        handle: of the open file.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def to_read(cls, path: Path) -> Self:
        """Opens a file that somebody else may be writing; OSError where it cannot be."""
        with open_plain(path) as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def to_write(cls, path: Path) -> Self:
        """Opens a file for this process alone.

        Raises:
            OSError: it cannot be opened.
            ConflictError: another has it.
        """
        refuse_special(path)
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _lock(handle, path)
        except BaseException:
            os.close(handle)
            raise
        return cls(handle)

    @classmethod
    def create(cls, path: Path, *, head: bytes, length: int) -> Self:
        """Makes a file of zeros after a head, in place of what has the name, and takes its room on the disk.

        Raises:
            OSError: it cannot be made; what had the name still has it.
            ConflictError: another writes the file that has the name.
        """
        refuse_special(path)
        part = path.with_name(f".{path.name}.part")  # one name, so that those of kills do not pile up
        part.unlink(missing_ok=True)
        # whoever writes the file that has the name must not go on writing into one without a name
        before = cls.to_write(path) if path.exists() and not path.is_symlink() else None
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        file = cls(handle)
        try:
            _lock(handle, path)
            _take_room(handle, length)
            file.write(0, head)
            file.sync()
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            file.close()
            raise
        finally:
            if before is not None:
                before.close()
        return file

    @property
    def length(self) -> int:
        """Of the file, in bytes."""
        return os.fstat(self._handle).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        parts = []
        while size > 0 and (part := os.pread(self._handle, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes."""
        left = memoryview(data)
        while left:
            done = os.pwrite(self._handle, left, offset)
            offset, left = offset + done, left[done:]

    def sync(self) -> None:
        """Makes durable what was written."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._handle)


def _take_room(handle: int, length: int) -> None:
    """Makes a file so long, and has the disk set its room aside where the file system can do that."""
    try:
        os.posix_fallocate(handle, 0, length)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        os.ftruncate(handle, length)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(
            "another process writes this buffer",
            where=path,
            expected="a free lock",
            got="one that is held",
            fix="let one process write it; others may read it meanwhile",
        ) from error

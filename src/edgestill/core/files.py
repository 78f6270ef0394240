"""Files that people name: plain ones only, and read no further than is sensible.

A path may lead to a device or a pipe, which never ends or never begins; nobody means those, so they are refused at once.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from edgestill.core.errors import PathError

if TYPE_CHECKING:
    from pathlib import Path


def open_plain(path: Path, *, follow: bool = True) -> BinaryIO:
    """A file to read from.

    Args:
        path: of the file.
        follow: whether a link at the end of the path is followed.

    Raises:
        OSError: it cannot be opened, or is a folder, device, pipe or socket; a link that is not followed.
    """
    flags = 0 if follow else os.O_NOFOLLOW
    # a pipe without a writer would wait
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(None, "a folder" if stat.S_ISDIR(mode) else "a device or a pipe", str(path))
    return os.fdopen(handle, "rb")


def refuse_special(path: Path) -> None:
    """Refuses to put a file where something is that is neither a plain file nor a link.

    A rename would take the place of a device or a pipe, and whoever uses it would find a file there.

    Raises:
        OSError: such a thing is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OSError(None, "a folder" if stat.S_ISDIR(mode) else "a device or a pipe", str(path))


def read_plain(path: Path, *, what: str, at_most: int) -> bytes:
    """All bytes of a file.

    Args:
        path: of the file.
        what: it is, for errors, such as `the patch`.
        at_most: bytes that are still sensible.

    Raises:
        PathError: it cannot be read, is no plain file, or is longer.
    """
    try:
        with open_plain(path) as file:
            data = file.read(at_most + 1)
    except OSError as error:
        raise PathError(
            f"cannot read {what}",
            where=path,
            expected="a file that can be read",
            got=error.strerror or error,
            fix="check the path",
        ) from error
    if len(data) > at_most:
        raise PathError(
            f"{what} is too long",
            where=path,
            expected=f"at most {at_most} bytes",
            got="more",
            fix="is it the right file?",
        )
    return data

"""A folder that is made beside its place and gets its name when it is whole: there is all of it, or nothing.

- What a kill has left of an earlier try is cleared by the next one. Whoever is at it holds a lock on the folder that was begun: two at once
  never clear each other's away, and the later one is told.
- The place may be named by a link to an empty folder. The folder that the program runs in is refused, however it is named.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgestill.core.bundle import sync_folder
from edgestill.core.errors import ConflictError, PathError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def begun(to: Path, *, what: str, fix: str) -> Iterator[Path]:
    """A folder, for its owner alone, that takes the place of `to` when the block ends well, and is gone otherwise.

    Args:
        to: there is nothing of that name yet, or an empty folder.
        what: it is for, for errors, such as ` for keys`; empty says nothing.
        fix: what to do where something is there.

    Raises:
        ConflictError: something is there already, or somebody else is making it. PathError: it cannot be made.
    """
    with _told(to, what):
        to = to.resolve()
        _require_free(to, fix)
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f".{to.name}.begun")
        handle = _begin(beside)
    try:
        yield beside
        with _told(to, what):
            beside.rename(to)
            sync_folder(to.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(handle)


def _require_free(to: Path, fix: str) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        there = "a file"
    elif to.samefile("."):
        there = "the folder that this runs in"  # another in its place would leave the shell in none
    else:
        there = next((one.name for one in to.iterdir()), "")
    if there:
        raise ConflictError(
            "there is something already",
            where=to,
            expected="no folder, or an empty one",
            got=there,
            fix=fix,
        )


def _begin(beside: Path) -> int:
    """Makes the folder, in the place of one that a kill has left; a handle that holds its lock."""
    if beside.exists():
        left = _locked(beside)
        shutil.rmtree(beside, ignore_errors=True)
        os.close(left)
    try:
        beside.mkdir(mode=stat.S_IRWXU)
    except FileExistsError as error:
        raise _at_once(beside) from error
    return _locked(beside)


def _locked(beside: Path) -> int:
    try:
        handle = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _at_once(beside) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise _at_once(beside) from error
    return handle


def _at_once(beside: Path) -> ConflictError:
    return ConflictError(
        "somebody else is making this folder",
        where=beside,
        expected="one at a time",
        got="a folder that was begun, and is in use",
        fix="wait for the other, or choose another folder",
    )


@contextmanager
def _told(to: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PathError(
            f"cannot make a folder{what}",
            where=to,
            expected="a folder that can be made",
            got=error.strerror or error,
            fix="check owner and disk, or choose another one",
        ) from error

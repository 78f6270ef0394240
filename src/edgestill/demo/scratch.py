"""A folder for what nobody needs after the demonstration: the fleet, its secrets, and what the lab keeps for a while.

- It is its owner's alone (0700), and goes with the demonstration, however that ends.
- Nobody can catch SIGKILL. So a janitor, a process of its own session, holds one end of a pipe whose other end only the
  demonstration has; when that closes, it waits for the lock and removes the folder.
- The lock (`flock`, which the kernel lets go) is the demonstration's and every process's that it started: it is free
  when the last of them has ended, and not before.
- Where the janitor dies too (the machine went down), the next demonstration sweeps folders whose lock is free.
- A folder without a lock is just being made, holds nothing yet, and is left alone.

    python -m edgestill.demo.scratch LINE FOLDER
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import PathError
from edgestill.demo.signals import signals_put_off

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "edgestill-demo-"
LOCK: Final = "lock"

_TRIES: Final = 50
_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Scratch:
    """The folder while it is held.

    Attributes:
        folder: everything goes here.
        lock: a handle for every process that works here to inherit.
    """

    folder: Path
    lock: int


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Makes the folder, removes those of dead demonstrations, and sees to it that this one goes too.

    Within, temporary files of this process go into the folder.

    Raises:
        PathError: it cannot be made.
    """
    base = Path(tempfile.gettempdir())
    sweep(base)
    with ExitStack() as ending:
        with signals_put_off():
            held = _made(base)
            ending.callback(_remove, held.folder)  # where the janitor was killed, too
            janitor, line = _janitor(held.folder)
            ending.callback(_end, janitor, [held.lock, line], tempfile.tempdir)
            tempfile.tempdir = str(held.folder)
        yield held


def sweep(base: Path) -> None:
    """Removes the folders of demonstrations of this user that have ended without a chance to do it."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is another's, gone meanwhile, or held
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(handle)


def main() -> None:
    """The janitor: waits for the end of the demonstration and of all its processes, and removes the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its end is that of the demonstration
    line, folder = int(sys.argv[1]), Path(sys.argv[2])
    while os.read(line, 1):
        pass
    with contextlib.suppress(OSError):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
    _remove(folder)


def _janitor(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the end of the pipe that it waits for."""
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603  # our own module under our own interpreter
            [sys.executable, "-m", "edgestill.demo.scratch", str(theirs), str(folder)],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    return process, ours


def _end(janitor: subprocess.Popen[bytes], handles: list[int], before: str | None) -> None:
    """Lets go of what the janitor waits for, and waits until it has done its work."""
    with signals_put_off():
        tempfile.tempdir = before
        for handle in handles:
            os.close(handle)
        janitor.wait()


def _remove(folder: Path) -> None:
    """Removes all of it, though somebody should still be writing there for a moment."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(_PAUSE)


def _made(base: Path) -> Scratch:
    """A new folder with its lock, which gets its name only when it is held: a sweep cannot come between."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        handle = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        (folder / "new").rename(folder / LOCK)
    except OSError as error:
        raise PathError(
            "cannot make a temporary folder",
            where=base,
            expected="a folder with room that can be written",
            got=error.strerror or error,
            fix="name another one in TMPDIR",
        ) from error
    return Scratch(folder, handle)


if __name__ == "__main__":
    main()

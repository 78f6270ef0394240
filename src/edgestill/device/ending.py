"""The end of a child process that ran what others made: with all that it has started, and without waiting for what it says.

- The child leads a session of its own (`start_new_session`), and its process group is ended with it. The group is killed while the child has
  not been reaped: until then nobody else can have its number. A process that made itself a session of its own is not reached.
- What such a child says is short and has no tensors: longer frames are refused before they are read.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgestill.device.frames import Bounds

if TYPE_CHECKING:
    import subprocess

SAID: Final = Bounds(header=64_000, body=0)
"""Of a frame from a child that says what came of its work."""
_GLANCE: Final = 0.02


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a child and its process group at once, and reaps it. Safe to call twice."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):  # it leads no group, or is all that is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()


def has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a child ends by itself within so many seconds; it is not reaped by this."""
    for _ in range(max(1, round(seconds / _GLANCE))):
        if process.returncode is not None or _is_waiting(process.pid):
            return True
        select.select([], [], [], _GLANCE)
    return False


def _is_waiting(pid: int) -> bool:
    """Whether a child of this process is over and waits to be reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody else reaped it
        return True

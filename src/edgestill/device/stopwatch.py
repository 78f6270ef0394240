"""The process that times models, as the agent sees it: asked for one round of one model at a time, and let go at any moment.

- Waiting for an answer is cut into short looks, so that a question to the device, or the end of the agent, never waits for a round; nor for
  the rest of an answer that has begun, which has a few seconds in all.
- The process has run a stranger's model: it is ended with all that it has started (`device.ending`), and what it says is short and bounded.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, EngineError
from edgestill.core.jsonio import Fields
from edgestill.core.timing import LONGEST, SHORTEST
from edgestill.device.ending import SAID, end_group, has_ended
from edgestill.device.frames import Frame, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import Clock

STEP_SECONDS: Final = 120.0
"""That one round of one model may take, or the start."""
CPU_SECONDS: Final = 3600
LEAST_MEMORY, MOST_MEMORY = 256_000_000, 1_000_000_000
"""Bytes of data that the process may have, as much of it as half of what is free allows."""
MEMINFO: Final = Path("/proc/meminfo")
_LOOK: Final = 0.25
_ANSWER_SECONDS: Final = 5.0
"""That an answer may take from its first byte to its last, and a process that hung up to its end."""


class _LetGoError(Exception):
    """It does not go on, in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class Round:
    """One model in one round; seconds."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that the engine refuses, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The process ended, or was ended because it did not answer; nothing can be asked of it any more."""

    reason: str


@final
class Stopwatch:
    """A running process.

    Args:
        process: started by `start`.
        control: our end of its control socket.
        clock: of this machine; None is the system's.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, clock: Clock | None = None
    ) -> None:
        self._process = process
        self._control = control
        self._clock = clock or SystemClock()
        self._is_ready = False

    @classmethod
    def start(cls, archive: Path) -> Self:
        """Starts the process for an archive.

        Raises:
            EngineError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "edgestill.device.timing_child", "--archive", str(archive)]
        command += [
            "--control",
            str(theirs.fileno()),
            "--memory",
            str(memory()),
            "--seconds",
            str(CPU_SECONDS),
        ]
        try:
            process = subprocess.Popen(  # noqa: S603  # our own module under our own interpreter
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            ours.close()
            raise EngineError(
                "the process that times models cannot be started",
                where=archive,
                expected="a system with room for one more process",
                got=error,
            ) from error
        finally:
            theirs.close()
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def round_of(
        self, at: int, *, goes_on: Callable[[], bool], looks: int = int(STEP_SECONDS / _LOOK)
    ) -> Round | LeftOut | Broken | None:
        """Times a model once.

        Args:
            at: its place.
            goes_on: asked every quarter of a second whether to go on waiting.
            looks: so many times; then it has taken too long.

        Returns:
            None where it does not go on: the process is ended then.
        """
        if not self._is_ready:
            found = self._answer(goes_on, looks)
            if not isinstance(found, Frame):
                return found
            if found.header.get("op") != "ready":
                return self._broke(str(found.header.get("reason", ""))[:1000])
            self._is_ready = True
        try:
            send(self._control, Frame({"at": at}))
        except EdgestillError:
            return self._broke(self._epitaph())
        found = self._answer(goes_on, looks)
        return self._read(found) if isinstance(found, Frame) else found

    def end(self) -> None:
        """Ends the process, and what it has started, at once. Safe to call twice."""
        end_group(self._process)
        self._control.close()

    def _answer(self, goes_on: Callable[[], bool], looks: int) -> Frame | Broken | None:
        try:
            for _ in range(looks):
                if self._speaks(goes_on):
                    return self._heard(goes_on)
        except _LetGoError:
            self.end()
            return None
        return self._broke(f"it took longer than {looks * _LOOK:g} s")

    def _speaks(self, goes_on: Callable[[], bool]) -> bool:
        """Whether there is something to read after one look."""
        if not goes_on():
            raise _LetGoError
        return bool(select.select([self._control], [], [], _LOOK)[0])

    def _heard(self, goes_on: Callable[[], bool]) -> Frame | Broken:
        ends = self._clock.monotonic() + _ANSWER_SECONDS

        def left() -> float:
            while (seconds := ends - self._clock.monotonic()) > 0 and not self._speaks(goes_on):
                pass
            return seconds

        try:
            found = receive(self._control, left=left, within=SAID)
        except TimeoutError:
            return self._broke(f"its answer took longer than {_ANSWER_SECONDS:g} s")
        except (EdgestillError, OSError):
            found = None
        return self._broke(self._epitaph()) if found is None else found

    def _read(self, frame: Frame) -> Round | LeftOut | Broken:
        """What the process says is bounded as if a stranger said it: it has run a stranger's model."""
        try:
            fields = Fields(frame.header, "timing")
            if frame.header.get("op") == "left-out":
                return LeftOut(fields.text("reason", at_most=10_000))
            p50 = max(fields.number("p50", least=0, most=LONGEST), SHORTEST)
            return Round(p50, fields.number("p95", least=p50, most=LONGEST))
        except EdgestillError as error:
            return self._broke(str(error))

    def _broke(self, reason: str) -> Broken:
        self.end()
        return Broken(reason)

    def _epitaph(self) -> str:
        if not has_ended(self._process, _ANSWER_SECONDS):
            return "it closed its control socket, or said what is no answer"
        self.end()
        code = self._process.returncode
        return (
            f"its process was killed by signal {-code}"
            if code < 0
            else f"its process ended with status {code}"
        )


def memory() -> int:
    """Bytes of data that the process may have: half of what is free, within bounds."""
    try:
        with MEMINFO.open(encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return LEAST_MEMORY
    return min(max(free // 2, LEAST_MEMORY), MOST_MEMORY)

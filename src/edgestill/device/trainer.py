"""The process that trains, as the agent sees it: started on one bundle, told to end, and asked what it took.

It runs the training step of a bundle: it is ended with all that it has started, and the one thing that it says is short and has a few seconds
(`device.ending`).
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, EngineError
from edgestill.core.jsonio import Fields
from edgestill.device.ending import SAID, end_group, has_ended
from edgestill.device.frames import receive

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.protocols import Clock

STOP_SECONDS: Final = 5.0
_MOST_TEXT: Final = 2000


@final
class TrainerProcess:
    """A running one.

    Args:
        process: started by `start`.
        control: our end of its control socket; the child ends when it closes.
        clock: of this machine; None is the system's.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, clock: Clock | None = None
    ) -> None:
        self._process = process
        self._control = control
        self._clock = clock or SystemClock()
        self._cpu_seconds = 0.0
        self._failure = ""
        self._is_over = False

    @classmethod
    def start(cls, home: Path, archive: Path, seconds: float) -> Self:
        """Starts a child on a bundle's archive, for at most so many seconds.

        Raises:
            EngineError: the process cannot be started.
        """
        try:
            ours, theirs = socket.socketpair()
            try:
                command = [sys.executable, "-m", "edgestill.device.trainer_child", "--home", str(home)]
                command += ["--archive", str(archive), "--seconds", f"{seconds:g}"]
                process = subprocess.Popen(  # noqa: S603  # our own module under our own interpreter
                    [*command, "--control", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
        except OSError as error:
            raise EngineError(
                "the trainer cannot be started",
                got=error,
                where=archive,
                expected="a system with room for one more process",
            ) from error
        return cls(process, ours)

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself within so many seconds."""
        if not self._is_over and select.select([self._control], [], [], seconds)[0]:
            self._hear()
        return self._is_over

    def stop(self) -> None:
        """Ends it: our end of the socket says so when it is shut, and what has not ended soon after, or stays of what it has started, is killed."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        if not self._is_over and select.select([self._control], [], [], STOP_SECONDS)[0]:
            self._hear()
        self._control.close()
        has_ended(self._process, STOP_SECONDS)
        end_group(self._process)
        if not self._is_over:
            self._failure = f"it ended without a word, with status {self._process.returncode}"

    @property
    def cpu_seconds(self) -> float:
        """That it took, by its own word."""
        return self._cpu_seconds

    @property
    def failure(self) -> str:
        """Why it failed; empty where it did not."""
        return self._failure

    def _hear(self) -> None:
        """The one thing it says, at its end."""
        self._is_over = True
        ends = self._clock.monotonic() + STOP_SECONDS
        try:
            frame = receive(self._control, left=lambda: ends - self._clock.monotonic(), within=SAID)
            if frame is None:
                self._failure = "it ended without a word"
                return
            fields = Fields(frame.header, "trainer")
            self._cpu_seconds = fields.number("cpu_seconds", least=0, most=1e9)
            if fields.has("failure"):
                self._failure = fields.text("failure", at_most=_MOST_TEXT)
        except TimeoutError:
            self._failure = f"its last word took longer than {STOP_SECONDS:g} s"
        except (EdgestillError, OSError) as error:
            self._failure = str(error)

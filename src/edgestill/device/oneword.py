"""A child process that says one thing, at its end: started, told to end, and asked what it said.

It runs what others made: it is ended with all that it has started, and the one thing that it says is bounded and has a few seconds
(`device.ending`).
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, EngineError
from edgestill.device.ending import SAID, end_group, has_ended
from edgestill.device.frames import receive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.protocols import Clock
    from edgestill.device.frames import Bounds, Frame

STOP_SECONDS: Final = 5.0


@final
class OneWord:
    """A running one.

    Args:
        process: started by `start`.
        control: our end of its control socket; the child ends when it closes.
        within: bounds of what it may say.
        clock: of this machine; None is the system's.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        *,
        within: Bounds = SAID,
        clock: Clock | None = None,
    ) -> None:
        self._process = process
        self._control = control
        self._within = within
        self._clock = clock or SystemClock()
        self._said: Frame | None = None
        self._failure = ""
        self._is_over = False

    @classmethod
    def start(cls, module: str, options: Sequence[str], *, within: Bounds = SAID) -> Self:
        """Starts a module of ours with these options and a control socket.

        Raises:
            EngineError: the process cannot be started.
        """
        try:
            ours, theirs = socket.socketpair()
            try:
                command = [sys.executable, "-m", f"edgestill.device.{module}", *options]
                process = subprocess.Popen(  # noqa: S603  # our own module under our own interpreter
                    [*command, "--control", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
        except OSError as error:
            raise EngineError(
                f"{module} cannot be started",
                got=error,
                where=" ".join(options)[:200],
                expected="a system with room for one more process",
            ) from error
        return cls(process, ours, within=within)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def said(self) -> Frame | None:
        """What it said; None before that, or where it said nothing."""
        return self._said

    @property
    def failure(self) -> str:
        """Why it said nothing; empty where it did, or still may."""
        return self._failure

    def wait(self, seconds: float) -> bool:
        """Whether it spoke or ended within so many seconds."""
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

    def _hear(self) -> None:
        """The one thing it says, at its end."""
        self._is_over = True
        ends = self._clock.monotonic() + STOP_SECONDS
        try:
            self._said = receive(
                self._control, left=lambda: ends - self._clock.monotonic(), within=self._within
            )
            if self._said is None:
                self._failure = "it ended without a word"
        except TimeoutError:
            self._failure = f"its last word took longer than {STOP_SECONDS:g} s"
        except (EdgestillError, OSError) as error:
            self._failure = str(error)

"""Processes that end when the demonstration does, however it ends.

Each gets a session of its own, so that Ctrl-C in the terminal reaches the demonstration alone, which then ends the
others in order: SIGTERM, some seconds of grace, SIGKILL. Where it is killed and cannot, each ends by itself: it is on a
leash (`demo.leash`) that only the demonstration holds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, AnyStr, Final, Self, final

from edgestill.core.errors import DemoError
from edgestill.demo.signals import signals_put_off

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from edgestill.core.protocols import Clock
    from edgestill.demo.scratch import Scratch

GRACE: Final = 8.0
LOOK: Final = 0.05

_LEASH: Final = "edgestill.demo.leash"


@final
class Processes:
    """The running ones.

    Args:
        logs: folder for what they print; it exists.
        clock: for deadlines.
        pause: lets some seconds pass.
        longest: seconds that one run to its end may take.
        scratch: the folder that they work in, which stays until the last of them has ended.
    """

    def __init__(
        self,
        logs: Path,
        *,
        clock: Clock,
        pause: Callable[[float], None],
        longest: float = 120.0,
        scratch: Scratch | None = None,
    ) -> None:
        self._longest = longest
        self._handles = [] if scratch is None else [scratch.lock]
        self._environment = {} if scratch is None else {"TMPDIR": str(scratch.folder)}
        self._logs, self._clock, self._pause = logs, clock, pause
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._line: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def run(self, name: str, module: str, arguments: Sequence[str]) -> str:
        """Runs `python -m module` to its end; what it printed.

        Raises:
            DemoError: it failed, or did not end in time; the text ends with what it said.
        """
        with ExitStack() as ending:
            with signals_put_off():
                line = self._held()
                process = subprocess.Popen(  # noqa: S603  # our own modules, with arguments we made
                    [sys.executable, "-m", _LEASH, str(line), module, *arguments],
                    pass_fds=[line, *self._handles],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    env=os.environ | self._environment,
                )
                ending.enter_context(process)
                ending.callback(_kill, process)
            try:
                said, failed = process.communicate(timeout=self._longest)
            except subprocess.TimeoutExpired as error:
                raise DemoError(
                    f"{name} did not end",
                    where=module,
                    expected=f"within {error.timeout:g} s",
                    got="still running",
                    fix="is the machine very busy? Try again",
                ) from error
        if process.returncode != 0:
            raise DemoError(
                f"{name} failed",
                where=module,
                expected="exit status 0",
                got=failed[-300:],
                fix="read what it said; docs/errors.md says what its code means",
            )
        return said

    def start(self, name: str, module: str, arguments: Sequence[str], *, ready: Path) -> None:
        """Starts `python -m module` in the background; `wait_for` its ready file before using it."""
        ready.unlink(missing_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log, signals_put_off():
            line = self._held()
            process = subprocess.Popen(  # noqa: S603  # our own modules, with arguments we made
                [sys.executable, "-m", _LEASH, str(line), module, *arguments],
                pass_fds=[line, *self._handles],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self._environment,
            )
            self._running.append((name, process))

    def wait_for(self, what: str, holds: Callable[[], bool], *, within: float) -> None:
        """Looks until `holds`, and whether all processes still run.

        Raises:
            DemoError: a process ended, or the time is up; the text names the log.
        """
        until = self._clock.monotonic() + within
        while not holds():
            for name, process in self._running:
                if process.poll() is not None:
                    log = self._logs / f"{name}.log"
                    said = log.read_text(errors="replace").strip()[-300:]
                    raise DemoError(
                        f"{name} ended while waiting for {what}",
                        where=log,
                        got=said or "nothing said",
                        expected="a process that runs",
                        fix="read its log; a second try may do where it was killed",
                    )
            if self._clock.monotonic() > until:
                raise DemoError(
                    f"waited in vain for {what}",
                    where=self._logs,
                    expected=f"within {within:g} s",
                    fix="read the logs there; a busy machine may need another try",
                    got="nothing so far",
                )
            self._pause(LOOK)

    def end(self) -> None:
        """Ends all: asks, waits, kills; a second Ctrl-C meanwhile only ends the waiting."""
        until = self._clock.monotonic() + GRACE
        try:
            for _, process in reversed(self._running):
                process.send_signal(signal.SIGTERM)
            for _, process in reversed(self._running):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, until - self._clock.monotonic()))
        finally:
            for _, process in reversed(self._running):
                _kill(process)
            self._running.clear()
            self._let_go()

    def _held(self) -> int:
        """The end of the leash that a process gets; ours is inherited by nobody, so it closes with this process."""
        if self._line is None:
            self._line = os.pipe()
        return self._line[0]

    def _let_go(self) -> None:
        for handle in self._line or ():
            os.close(handle)
        self._line = None


def _kill(process: subprocess.Popen[AnyStr]) -> None:
    """Ends it and what it has left in its session, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""The engine child as the supervisor sees it: a process, a control socket, and what it says.

- The child inherits the listening socket of the applications, so that connections wait, and none is refused, while
  one engine takes over from another.
- The control socket is also the life line: the child ends when it closes, however the supervisor ended.
- A thread per child reads its frames and hands them on; the last thing it hands on is the end.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import EdgestillError, EngineError, ProbeError
from edgestill.device.frames import Frame, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.device.state import SlotName, Target

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 120.0
STOP_SECONDS: Final = 5.0


@final
class EngineProcess:
    """A running engine child.

    Args:
        slot: that it serves.
        target: the bundle in it.
        process: started by `start`.
        control: our end of its control socket.

    Attributes:
        left_at: wall time at which it was told to give way, None before.
    """

    def __init__(
        self, slot: SlotName, target: Target, process: subprocess.Popen[bytes], control: socket.socket
    ) -> None:
        self.slot = slot
        self.target = target
        self.left_at: float | None = None
        self._process = process
        self._control = control
        self._reader: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        home: Path,
        *,
        slot: SlotName,
        target: Target,
        archive: Path,
        listener: socket.socket | None,
    ) -> Self:
        """Starts a child.

        Args:
            home: the device's folder.
            slot: that it serves.
            target: the bundle.
            archive: where that lies.
            listener: what applications connect to; None for a probe, which runs the golden inputs and ends.

        Raises:
            EngineError: the process cannot be started.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise EngineError(
                "the engine process cannot be started",
                got=error,
                where=archive,
                expected="a system with room for one more process",
            ) from error
        handles = [theirs.fileno()] + ([] if listener is None else [listener.fileno()])
        command = [sys.executable, "-m", "edgestill.device.engine_child", "--home", str(home)]
        command += ["--archive", str(archive), "--control", str(theirs.fileno())]
        command += ["--probe"] if listener is None else ["--listener", str(listener.fileno())]
        try:
            process = subprocess.Popen(  # noqa: S603  # our own module under our own interpreter
                command, pass_fds=handles, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise EngineError(
                "the engine process cannot be started",
                got=error,
                where=archive,
                expected="a system with room for one more process",
            ) from error
        finally:
            theirs.close()
        return cls(slot, target, process, ours)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def listen(self, hear: Callable[[EngineProcess, Frame | None], None]) -> None:
        """Starts the thread that hands on what the child says; None is its end."""

        def read() -> None:
            while (frame := self.receive()) is not None:
                hear(self, frame)
            hear(self, None)

        self._reader = threading.Thread(target=read, name=f"engine-{self.slot}", daemon=True)
        self._reader.start()

    def receive(self, *, timeout: float | None = None) -> Frame | None:
        """The next frame; None where the child ended, said something that is no frame, or said nothing in time."""
        self._control.settimeout(timeout)
        try:
            return receive(self._control)
        except (EdgestillError, OSError):
            return None

    def say(self, op: str) -> None:
        """Tells the child something; a child that is gone hears nothing, and its end is handed on by `listen`."""
        try:
            send(self._control, Frame({"op": op}))
        except EdgestillError as error:
            log.debug("%s", error)

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Lets the child finish and hand in its last figures; kills it where it does not. Safe to call twice."""
        self.say("stop")
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(seconds)
        self._control.close()

    def kill(self) -> None:
        """Ends the child at once."""
        self._process.kill()
        self._process.wait()

    def epitaph(self) -> str:
        """How the child ended, for people."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its control socket"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def probe(
    home: Path, slot: SlotName, target: Target, archive: Path, *, seconds: float = PROBE_SECONDS
) -> None:
    """Runs the golden inputs of an archive in a process of their own, so that a bad model harms nobody.

    Raises:
        ProbeError: it does not load, answers wrongly or too slowly, or takes the process down.
    """
    try:
        child = EngineProcess.start(home, slot=slot, target=target, archive=archive, listener=None)
    except EngineError as error:
        raise ProbeError(error.what, where=archive, got=error.got, expected=error.expected) from error
    try:
        frame = child.receive(timeout=seconds)
        if frame is None:
            child.kill()
            raise ProbeError(
                "the probe did not come to its end",
                where=archive,
                got=child.epitaph(),
                expected="an answer of the probe",
            )
        if frame.header.get("op") != "probed":
            raise ProbeError(
                "the bundle does not serve",
                where=archive,
                got=frame.header.get("reason"),
                expected="answers as the golden ones",
            )
    finally:
        child.stop()


def listening(path: Path) -> socket.socket:
    """A Unix socket that applications connect to, for the owner alone.

    Raises:
        EngineError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise EngineError(
            "the application socket cannot be made",
            where=path,
            got=error,
            expected="a folder in which sockets can be made",
        ) from error
    return listener

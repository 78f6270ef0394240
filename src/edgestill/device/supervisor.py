"""The agent as a process: one loop that decides, three threads that wait, and an engine child.

- The loop alone owns the machine's state. The *poller* asks the hub, the *installer* carries out slow work, the
  *courier* delivers reports, a reader per child listens; each only puts what it learned into one queue.
- This process never imports numpy or an engine: it stays small, and a model that takes its process down takes only
  the child.
- A new engine is started before the old one is stopped: one of them always answers. The application socket is
  handed to the children already listening.
- An engine that dies is restarted with growing pauses. How often, and what then, decides `device.machine`.
- SIGTERM and SIGINT end everything in order: the child hands in its last figures, the outbox keeps them.
"""

from __future__ import annotations

import logging
import queue
import secrets
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

from edgestill.core import bundle
from edgestill.core.errors import EdgestillError, PathError
from edgestill.core.jsonio import Fields
from edgestill.core.wire import Health
from edgestill.device.engines import Engines
from edgestill.device.events import (
    Assigned,
    Booted,
    Clear,
    Confirm,
    Download,
    Event,
    Probe,
    Retried,
    Serve,
    Stage,
    Verify,
    Watched,
)
from edgestill.device.quiet import CLOSELY, Quiet

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.agent import Agent
    from edgestill.device.events import Effect, Work
    from edgestill.device.frames import Frame
    from edgestill.device.installer import Installer
    from edgestill.device.outbox import Outbox
    from edgestill.device.processes import EngineProcess
    from edgestill.device.slots import Slots

log = logging.getLogger(__name__)

LONGEST_PAUSE: Final = 300.0
_TICK: Final = 0.1


class Hub(Protocol):
    """What the supervisor asks of the network; `device.courier.Courier` is the real one."""

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """What is assigned if that changed, and the seconds until the next poll.

        Raises:
            EdgestillError: no answer, or one that must not be trusted.
        """
        ...

    def forget(self) -> None:
        """Lets the next poll name the assignment again, even if it has not changed."""
        ...

    def deliver(self, outbox: Outbox) -> bool:
        """Hands over what waits; False where something still waits.

        Raises:
            EdgestillError: the hub was not reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a device speaks to its hub, in seconds.

    Attributes:
        poll: between polls, until the hub names another interval.
        health: between health figures.
        watch: between looks at a bundle in its trial.
    """

    poll: float
    health: float
    watch: float


@dataclass(frozen=True, slots=True)
class _Heard:
    """An engine child said something, or ended (None)."""

    engine: EngineProcess
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class _Worked:
    """The installer finished something."""

    event: Event | None


@dataclass(frozen=True, slots=True)
class _Stop:
    """It is time to end."""


@final
class Supervisor:
    """Runs a device.

    Args:
        home: the device's folder.
        agent: the machine's state and its reports.
        slots: opened.
        outbox: opened.
        installer: carries out slow work.
        hub: the network.
        clock: of this machine.
        quiet: is told when the device has something to do; None tells nobody.
    """

    def __init__(
        self,
        home: Path,
        *,
        agent: Agent,
        slots: Slots,
        outbox: Outbox,
        installer: Installer,
        hub: Hub,
        clock: Clock,
        quiet: Quiet | None = None,
    ) -> None:
        self._home = home
        self._quiet = quiet or Quiet(clock)
        self._agent = agent
        self._slots = slots
        self._outbox = outbox
        self._installer = installer
        self._hub = hub
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Heard | _Worked | Assigned | _Stop] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[Work | Confirm | Clear | None] = queue.SimpleQueue()
        self._outstanding = 0
        self._hindrances = 0
        self._retry_at: float | None = None
        self._waking = threading.Event()
        self._ending = threading.Event()

    def run(self, *, listener: socket.socket, pace: Pace, ready: Path | None = None) -> None:
        """Serves until a signal or `stop`.

        Args:
            listener: what applications connect to.
            pace: how often to speak to the hub.
            ready: written, with the path of the application socket, once the loop runs.
        """
        engines = Engines(
            self._home,
            self._slots,
            listener=listener,
            clock=self._clock,
            hear=lambda engine, frame: self._inbox.put(_Heard(engine, frame)),
        )
        threads = [
            threading.Thread(target=self._poll, args=(pace,), name="poller", daemon=True),
            threading.Thread(target=self._deliver, args=(pace,), name="courier", daemon=True),
            threading.Thread(target=self._install, name="installer", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._let(engines, Booted())
            if ready is not None:
                bundle.replace(ready, f"{listener.getsockname()}\n".encode())
            self._loop(engines, pace)
        finally:
            self._end(engines, threads)

    def stop(self) -> None:
        """Ends `run`, from another thread or from a signal handler."""
        self._inbox.put(_Stop())

    def stop_on_signals(self) -> None:
        """Lets SIGTERM and SIGINT end `run`; for the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    # the loop, which alone decides

    def _loop(self, engines: Engines, pace: Pace) -> None:
        while True:
            try:
                message = self._inbox.get(timeout=_TICK)
            except queue.Empty:
                message = None
            match message:
                case _Stop():
                    return
                case _Heard(engine, frame):
                    self._hear(engines, engine, frame)
                case _Worked(event):
                    self._worked(engines, event)
                case Assigned():
                    self._offer(engines, message)
                case None:
                    pass
            self._tick(engines, pace)

    def _end(self, engines: Engines, threads: list[threading.Thread]) -> None:
        self._ending.set()
        self._waking.set()
        self._work.put(None)
        engines.stop()
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Heard) and message.frame is not None:
                self._collected(engines, message.engine, message.frame)
        self._agent.flush()
        for thread in threads:
            # a poll may hang for long, but it writes nothing that an end could tear
            thread.join(0.1 if thread.name == "poller" else 3.0)

    def _tick(self, engines: Engines, pace: Pace) -> None:
        if self._retry_at is not None and self._clock.monotonic() >= self._retry_at:
            self._retry_at = None
            self._agent.flush()
            self._let(engines, Retried())
        self._say_how_busy(engines)
        state = self._agent.state
        pause = min(pace.health, pace.watch) if state.phase == "watching" else pace.health
        event = engines.tick(min(pause, CLOSELY) if self._quiet.is_watched else pause)
        if event is not None:
            self._let(engines, event)

    def _say_how_busy(self, engines: Engines) -> None:
        state = self._agent.state
        self._quiet.is_installing = state.wanted is not None or state.phase != "idle"
        if self._quiet.is_installing or (state.active is not None and engines.serving is None):
            self._quiet.disturb()

    def _let(self, engines: Engines, event: Event) -> None:
        """Lets an event happen and carries out what follows; what is installed but stuck is tried again later."""
        before = self._agent.state.phase
        for effect in self._agent.handle(event):
            self._carry_out(engines, effect)
        state = self._agent.state
        if state.phase != before:
            self._hindrances = 0
        if state.wanted is not None and not self._outstanding and self._retry_at is None:
            self._retry_at = self._clock.monotonic() + min(2.0**self._hindrances, LONGEST_PAUSE)
            self._hindrances += 1
        self._waking.set()

    def _carry_out(self, engines: Engines, effect: Effect) -> None:
        match effect:
            case Serve(slot, attempt):
                target = self._agent.state.held(slot)
                pause = 0.0 if attempt == 0 else min(0.2 * 2.0**attempt, 30.0)
                event = None if target is None else engines.serve(slot, target, pause=pause)
                if event is not None:
                    self._let(engines, event)
            case Download() | Verify() | Stage() | Probe():
                self._outstanding += 1
                self._retry_at = None
                self._work.put(effect)
            case Clear() | Confirm():
                self._work.put(effect)
            case _:
                pass

    def _offer(self, engines: Engines, assigned: Assigned) -> None:
        """What the machine does not take up now, in a trial, must be offered again."""
        self._let(engines, assigned)
        state = self._agent.state
        refused = state.failure is not None and state.failure.counter == assigned.counter
        if state.counter != assigned.counter and not refused:
            self._hub.forget()

    def _worked(self, engines: Engines, event: Event | None) -> None:
        if event is not None:
            self._outstanding -= 1
            self._let(engines, event)

    # what children say

    def _hear(self, engines: Engines, engine: EngineProcess, frame: Frame | None) -> None:
        event: Event | None = None
        if frame is None:
            event = engines.ended(engine)
        elif frame.header.get("op") == "ready":
            event = engines.ready(engine)
        elif frame.header.get("op") == "failed":
            log.warning("slot %s: %s", engine.slot, frame.header.get("reason"))
        else:
            event = self._collected(engines, engine, frame)
        if event is not None:
            self._let(engines, event)

    def _collected(self, engines: Engines, engine: EngineProcess, frame: Frame) -> Event | None:
        seconds = engines.answered(engine)
        try:
            fields = Fields(frame.header, "engine")
            health = Health.from_fields(fields.inner("health"))
            self._keep_statistics(frame, fields)
        except PathError as error:
            log.warning("%s", error)  # our disk refuses, which is not the child's fault
        except EdgestillError as error:
            log.warning("%s", error)
            engine.kill()  # its end will be heard, and counts as a death
            return None
        if health.answers or health.errors:
            self._quiet.disturb()
        if health != Health(drift=health.drift):
            # dated before its successor's first report, so that nobody takes it for what serves now
            at = self._clock.now() if engine.left_at is None else engine.left_at
            self._agent.tell_health(engine.target, health, id_=secrets.token_hex(16), at=at)
        if self._agent.state.held(engine.slot) != engine.target:
            return None
        return Watched(engine.slot, seconds, health.answers, health.errors)

    def _keep_statistics(self, frame: Frame, fields: Fields) -> None:
        tensor = frame.tensor("statistics")
        if tensor is not None:
            body = bytes(tensor.data)
            key = fields.text("statistics", at_most=200)
            self._outbox.put_statistics(key, body, at=self._clock.now())

    # threads that wait

    def _poll(self, pace: Pace) -> None:
        pause = pace.poll
        while not self._ending.is_set():
            try:
                assigned, pause = self._hub.poll(seen=self._agent.state.seen)
                if assigned is not None:
                    self._inbox.put(assigned)
            except Exception as error:  # noqa: BLE001  # a device that no longer polls could never be mended
                _tell(error)
                pause = min(max(2 * pause, 1.0), LONGEST_PAUSE)
            self._ending.wait(pause)

    def _deliver(self, pace: Pace) -> None:
        pause = 1.0
        while not self._ending.is_set():
            self._waking.wait(pace.health)
            self._waking.clear()
            try:
                while not self._ending.is_set() and not self._hub.deliver(self._outbox):
                    pass
                pause = 1.0
            except Exception as error:  # noqa: BLE001  # as above
                _tell(error)
                self._ending.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _install(self) -> None:
        while (work := self._work.get()) is not None:
            self._inbox.put(_Worked(self._installer.perform(work)))


def _tell(error: Exception) -> None:
    """One line for an error of ours; a bug is told with where it happened."""
    if isinstance(error, EdgestillError):
        log.warning("%s", error)
    else:
        log.error("a bug", exc_info=error)

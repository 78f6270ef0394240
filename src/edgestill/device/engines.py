"""Keeps one engine child serving, whatever happens to children.

- At most one child serves, one is coming up, and those that were replaced are on their way out.
- The one that serves is told to stop only when its successor has said that it is ready.
- A child that does not come up, or does not answer its supervisor, is killed; that counts as a death.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import EngineError
from edgestill.device.events import EngineDied, EngineReady
from edgestill.device.processes import EngineProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.events import Event
    from edgestill.device.frames import Frame
    from edgestill.device.slots import Slots
    from edgestill.device.state import SlotName, Target

log = logging.getLogger(__name__)

START_SECONDS: Final = 120.0
SILENT_SECONDS: Final = 60.0
LEAVE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    slot: SlotName
    target: Target
    at: float


@final
class Engines:
    """The children of a supervisor. Belongs to the supervisor's loop.

    Args:
        home: the device's folder.
        slots: where the bundles lie.
        listener: what applications connect to.
        clock: for pauses and patience.
        hear: is called from reader threads with what a child says, and with None at its end.
    """

    def __init__(
        self,
        home: Path,
        slots: Slots,
        *,
        listener: socket.socket,
        clock: Clock,
        hear: Callable[[EngineProcess, Frame | None], None],
    ) -> None:
        self._home = home
        self._slots = slots
        self._listener = listener
        self._clock = clock
        self._hear = hear
        self._wanted: _Wanted | None = None
        self._coming: EngineProcess | None = None
        self._serving: EngineProcess | None = None
        self._leaving: dict[EngineProcess, float] = {}
        self._started_at = 0.0
        self._heard_at = 0.0
        self._asked_at: float | None = None

    @property
    def serving(self) -> EngineProcess | None:
        """The child that serves."""
        return self._serving

    def serve(self, slot: SlotName, target: Target, *, pause: float) -> Event | None:
        """Wants this bundle served after `pause` seconds; says so at once where it is served already."""
        self._wanted = None
        if self._coming is not None and self._coming.target != target:
            self._dismiss(self._coming)
            self._coming = None
        if self._serving is not None and self._serving.target == target:
            return EngineReady(slot)
        if self._coming is None:
            self._wanted = _Wanted(slot, target, self._clock.monotonic() + pause)
        return None

    def tick(self, health_interval: float) -> Event | None:
        """Starts what is due, asks for figures, and kills what has been silent for too long."""
        now = self._clock.monotonic()
        if self._coming is not None and now - self._started_at > START_SECONDS:
            self._coming.kill()
        for engine, since in self._leaving.items():
            if now - since > LEAVE_SECONDS:
                engine.kill()
        if self._serving is not None:
            if self._asked_at is None and now - self._heard_at >= health_interval:
                self._asked_at = now
                self._serving.say("collect")
            elif self._asked_at is not None and now - self._asked_at > SILENT_SECONDS:
                self._serving.kill()
        if self._wanted is not None and now >= self._wanted.at:
            return self._start(self._wanted, now)
        return None

    def ready(self, engine: EngineProcess) -> Event | None:
        """A child says that it serves: it takes over."""
        if engine is not self._coming:
            return None
        if self._serving is not None:
            self._dismiss(self._serving)
        self._serving, self._coming = engine, None
        self._asked_at, self._heard_at = None, self._clock.monotonic()
        log.info("slot %s serves %s, process %d", engine.slot, engine.target.release, engine.pid)
        return EngineReady(engine.slot)

    def ended(self, engine: EngineProcess) -> Event | None:
        """A child is gone."""
        engine.stop(seconds=1.0)
        if self._leaving.pop(engine, None) is not None:
            return None
        if engine is self._coming:
            self._coming = None
        if engine is self._serving:
            self._serving = None
        reason = engine.epitaph()
        log.warning("the engine of slot %s ended: %s", engine.slot, reason)
        return EngineDied(engine.slot, reason)

    def answered(self, engine: EngineProcess) -> float:
        """A child handed in its figures; gives the seconds that they cover, 0 from one that is leaving."""
        if engine is not self._serving:
            return 0.0
        before, self._heard_at = self._heard_at, self._clock.monotonic()
        self._asked_at = None
        return self._heard_at - before

    def stop(self) -> None:
        """Ends all children; each hands in its last figures first."""
        self._wanted = None
        for engine in (self._coming, self._serving, *self._leaving):
            if engine is not None:
                engine.stop()
        self._coming = self._serving = None
        self._leaving.clear()

    def _dismiss(self, engine: EngineProcess) -> None:
        engine.left_at = self._clock.now()
        self._leaving[engine] = self._clock.monotonic()
        engine.say("stop")

    def _start(self, wanted: _Wanted, now: float) -> Event | None:
        self._wanted = None
        archive = self._slots.archive(wanted.slot, wanted.target)
        try:
            engine = EngineProcess.start(
                self._home, slot=wanted.slot, target=wanted.target, archive=archive, listener=self._listener
            )
        except EngineError as error:
            return EngineDied(wanted.slot, str(error))
        self._coming, self._started_at = engine, now
        engine.listen(self._hear)
        return None

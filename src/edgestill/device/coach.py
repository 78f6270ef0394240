"""When a device trains: a thread of the agent that looks whether it may, and lets a process of low priority work for a while.

    training.json   what training has cost today (device.effort)

- It trains only while the owner's settings allow it, nothing is asked, installed, timed or voted on, and a confirmed bundle serves that brings a
  training step. Any of these ends a spell soon: a question is known within seconds (`device.quiet.CLOSELY`), the rest at the next glance; the
  process is told then, and killed where it does not hear. What it had learned until its last written state stays.
- A spell is short, so that what it costs is written down often; what a spell cost that was cut off by a power cut is not.
- Samples, weights and states are the process's own business (`device.trainer_child`). This thread loads neither numpy nor an engine.
- A bundle on which the process fails again and again is left alone until the agent starts anew, or another bundle serves.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Protocol, final

from edgestill.core import bundle as bundles
from edgestill.core.errors import EdgestillError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.device.effort import No, Spent, may_train
from edgestill.device.sensors import joules_between

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.effort import Effort
    from edgestill.device.quiet import Quiet
    from edgestill.device.sensors import Sensors

log = logging.getLogger(__name__)

LOOK: Final = 5.0
SPELL: Final = 60.0
"""Seconds of a spell at most."""
GLANCE: Final = 0.25
"""Between two looks at whether a spell must end."""
MOST_FAILURES: Final = 3
_MOST_BYTES: Final = 4096


class Spell(Protocol):
    """A process that trains; `device.trainer.TrainerProcess` is the real one."""

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself within so many seconds."""
        ...

    def stop(self) -> None:
        """Ends it: it is told, and killed where it does not hear."""
        ...

    @property
    def cpu_seconds(self) -> float:
        """That it took; known once it has ended."""
        ...

    @property
    def failure(self) -> str:
        """Why it failed; empty where it did not."""
        ...


@final
class Coach:
    """Of one device.

    Args:
        path: of `training.json`.
        effort: that the owner allows.
        quiet: whether the device has nothing better to do.
        sensors: of the machine.
        clock: of this machine.
        archive: the bundle that serves and is confirmed, and brings a training step; None while there is none.
        start: begins a spell on a bundle, of at most so many seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        effort: Effort,
        quiet: Quiet,
        sensors: Sensors,
        clock: Clock,
        archive: Callable[[], Path | None],
        start: Callable[[Path, float], Spell],
    ) -> None:
        self._path = path
        self._effort = effort
        self._quiet = quiet
        self._sensors = sensors
        self._clock = clock
        self._archive = archive
        self._start = start
        self._spent = _spent(path)
        self._ticked = clock.monotonic()
        self._failed: tuple[Path | None, int] = (None, 0)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="coach", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread, and a spell with it."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def advance(self) -> float:
        """One look, with the spell that follows; seconds until the next."""
        self._tick()
        if self._quiet.is_installing or self._quiet.is_timing or self._quiet.is_voting:
            return LOOK
        found = may_train(self._effort, self._sensors.read(since_answer=self._quiet.seconds), self._spent)
        if isinstance(found, No):
            log.debug("no training: %s", found.reason)
            return max(found.again, LOOK)
        archive = self._archive()
        if archive is None or (self._failed[0] == archive and self._failed[1] >= MOST_FAILURES):
            return LOOK
        self._train(archive, min(found.seconds, SPELL))
        return LOOK

    def _train(self, archive: Path, seconds: float) -> None:
        energy, began = self._sensors.energy(), self._clock.monotonic()
        self._quiet.is_training = True
        try:
            spell = self._start(archive, seconds)
            while not spell.wait(GLANCE):
                late = self._clock.monotonic() - began >= seconds
                if late or self._is_disturbed():
                    break
            spell.stop()
        finally:
            self._quiet.is_training = False
        took = self._clock.monotonic() - began
        self._spent = self._spent.spend(
            now=self._clock.now(),
            seconds=took,
            cpu_seconds=min(spell.cpu_seconds, took),
            joules=joules_between(energy, self._sensors.energy()),
            watts=self._effort.watts,
        )
        bundles.replace(self._path, canonical(self._spent.as_json()))
        self._note(archive, spell.failure)

    def _is_disturbed(self) -> bool:
        busy = self._quiet.is_installing or self._quiet.seconds < self._effort.idle_seconds
        return busy or self._ending.is_set()

    def _note(self, archive: Path, failure: str) -> None:
        if not failure:
            self._failed = (None, 0)
            return
        log.warning("training failed: %s", failure)
        known, times = self._failed
        self._failed = (archive, times + 1 if known == archive else 1)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        self._spent = self._spent.after(now - self._ticked)
        self._ticked = now

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                pause = self.advance()
            except (EdgestillError, OSError) as error:
                log.warning("%s", error)
                pause = SPELL
            except Exception:
                log.exception("a bug")
                pause = 5 * SPELL
            self._ending.wait(pause)


def _spent(path: Path) -> Spent:
    """What was spent as far as is known; a damaged record counts as none."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        return Spent.from_fields(Fields(parse_object(data, where=path.name), path.name))
    except (OSError, EdgestillError):
        return Spent()

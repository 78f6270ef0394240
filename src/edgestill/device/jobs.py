"""Timing jobs as the courier meets them: a name that was verified, or none. Nothing of the rest is loaded before the first job.

A device that never had a job has no folder `timing`, and an agent on it pays for this page only.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.release import MAX_COUNTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.device.measuring import Measuring

STOP_SECONDS: Final = 3.0
_ARCHIVES: Final = "*.est*"
"""Whole or in part (`core.family.SUFFIX`, which is not loaded for this)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a verified measurement says, together with what the publisher lists under its name.

    Attributes:
        place: among all jobs that this device ever gets, `core.release.Measurement.place`.
        target: the name on the list.
        digest: of the archive.
        size: of it, in bytes.
        expires: seconds since 1970; from then on nothing is begun, and nothing goes on.
    """

    place: int
    target: str
    digest: Digest
    size: int
    expires: float

    @property
    def counter(self) -> int:
        """By which the hub knows it."""
        return self.place % (MAX_COUNTER + 1)


@final
class Jobs:
    """Hands jobs to `device.measuring`, in a thread of its own.

    Args:
        folder: for all that a job needs; made for the first one.
        start: opens it, and starts the thread.
    """

    def __init__(self, folder: Path, start: Callable[[], Measuring]) -> None:
        self._folder = folder
        self._start = start
        self._running: Measuring | None = None

    @property
    def seen(self) -> int:
        """The largest place that was ever taken; PathError where the folder cannot be written."""
        return self._opened().seen

    def offer(self, job: Job) -> None:
        """This is to be timed now, and nothing else."""
        self._opened().offer(job)

    def withdraw(self) -> None:
        """Nothing is to be timed; what an earlier run of the agent left is cleared away, and what it had to tell is told."""
        if self._running is not None or self._folder.exists():
            self._opened().offer(None)

    def give_way(self) -> bool:
        """A release finds no room: what is to be timed is removed, and fetched again later; whether there was something."""
        found = [*self._folder.glob(_ARCHIVES)]
        for path in found:
            with suppress(OSError):  # a disk that is broken says so elsewhere
                path.unlink(missing_ok=True)
        return bool(found)

    def stop(self) -> None:
        """Ends the thread; a job goes on in the next run of the agent."""
        if self._running is not None:
            self._running.stop(STOP_SECONDS)

    def _opened(self) -> Measuring:
        if self._running is None:
            self._running = self._start()
        return self._running

"""What a device does for its hub in idle hours, as the courier meets it: a name that was verified, or none. Nothing of the rest is loaded before the first.

- There are two kinds: models to be timed (`device.measuring`), and samples to be voted on (`device.voting`). A device that never had one of a kind
  has no folder for it, and an agent on it pays for this page only.
- Each comes beside the assignment, signed and counted by itself, and counts where the publisher itself lists it, whatever roles say. What is
  refused is judged again after a while, and neither kind, nor the assignment, holds another up.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

from edgestill.core.errors import EdgestillError
from edgestill.core.release import MAX_COUNTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 3.0
FAMILIES: Final = "*.est*"
"""Archives, whole or in part (`core.family.SUFFIX`, which is not loaded for this)."""
PROXY_SETS: Final = "*.esp*"
JUDGE_PAUSE: Final = 300.0
"""Seconds after which what was refused is judged again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a verified measurement or turn says, together with what the publisher lists under its name.

    Attributes:
        place: among all of its kind that this device ever gets, `core.release.Measurement.place` or `Turn.place`.
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


class Worker(Protocol):
    """Does one kind of job, in a thread of its own."""

    @property
    def seen(self) -> int:
        """The largest place that was ever taken."""
        ...

    def offer(self, job: Job | None) -> None:
        """A poll of the hub names this job, or none."""
        ...

    def stop(self, seconds: float) -> None:
        """Ends the thread."""
        ...


@final
class Jobs:
    """Hands jobs of one kind to what does them.

    Args:
        folder: for all that a job needs; made for the first one.
        start: opens it, and starts the thread.
        archives: pattern of the files there that can be fetched again.
    """

    def __init__(self, folder: Path, start: Callable[[], Worker], *, archives: str = FAMILIES) -> None:
        self._folder = folder
        self._start = start
        self._archives = archives
        self._running: Worker | None = None

    @property
    def seen(self) -> int:
        """The largest place that was ever taken; PathError where the folder cannot be written."""
        return self._opened().seen

    def offer(self, job: Job) -> None:
        """This is to be done now, and nothing else of the kind."""
        self._opened().offer(job)

    def withdraw(self) -> None:
        """Nothing is to be done; what an earlier run of the agent left is cleared away, and what it had to tell is told."""
        if self._running is not None or self._folder.exists():
            self._opened().offer(None)

    def give_way(self) -> bool:
        """A release finds no room: what was fetched is removed, and fetched again later; whether there was something."""
        found = [*self._folder.glob(self._archives)]
        for path in found:
            with suppress(OSError):  # a disk that is broken says so elsewhere
                path.unlink(missing_ok=True)
        return bool(found)

    def stop(self) -> None:
        """Ends the thread; a job goes on in the next run of the agent."""
        if self._running is not None:
            self._running.stop(STOP_SECONDS)

    def _opened(self) -> Worker:
        if self._running is None:
            self._running = self._start()
        return self._running


@final
class Errand:
    """One kind of word that comes beside the assignment: judged, and handed on.

    Args:
        jobs: takes what it names.
        judge: envelope and largest place seen -> the job; raises where it must not be believed.
        clock: of this machine.
        what: it is, for the log.
    """

    def __init__(
        self, jobs: Jobs, judge: Callable[[JsonObject, int], Job], *, clock: Clock, what: str
    ) -> None:
        self._jobs = jobs
        self._judge = judge
        self._clock = clock
        self._what = what
        self._unheard: tuple[JsonObject | None, float] | None = None  # and when to judge it again

    def hear(self, envelope: JsonObject | None, *, refresh: Callable[[], None]) -> None:
        """Hands on what is to be done, or that nothing is; what was refused a moment ago is not looked at.

        Args:
            envelope: what the poll names.
            refresh: brings the publisher's lists, unless they just were brought.
        """
        now = self._clock.monotonic()
        if self._unheard is not None and self._unheard[0] == envelope and now < self._unheard[1]:
            return
        try:
            if envelope is None:
                self._jobs.withdraw()
            else:
                refresh()
                self._jobs.offer(self._judge(envelope, self._jobs.seen))
        except EdgestillError as error:
            log.warning("%s is not taken up: %s", self._what, error)
            self._unheard = envelope, now + JUDGE_PAUSE
        else:
            self._unheard = None

    def hear_again(self, *, refresh: Callable[[], None]) -> None:
        """A poll brought nothing new: what was refused may be judged again."""
        if self._unheard is not None:
            self.hear(self._unheard[0], refresh=refresh)

    def give_way(self) -> bool:
        """As `Jobs.give_way`."""
        return self._jobs.give_way()

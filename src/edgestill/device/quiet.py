"""Whether a device has nothing better to do: the supervisor says what happens; a timing job, a vote and the trainer ask.

- A device is disturbed by answers that were asked for, by an installation, a trial, and an engine that is not up. It is quiet again
  some time after the last of these.
- While a job times something, a device votes, or training runs, the supervisor looks at the engine's figures more often (`CLOSELY`), so that a question is
  noticed soon. No two of them run at the same time.
- The load of the machine counts before a timing begins only: from then on it is the timing's own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock

CLOSELY: Final = 2.0
"""Seconds between two looks at the engine's figures while something is timed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When a device is quiet enough to time something.

    Attributes:
        seconds: without an answer or an installation.
        load: of the machine before it begins: processes that run or wait, of the last minute, over its processors. From 1 on
            it is not looked at.
    """

    seconds: float = 60.0
    load: float = 0.5


@final
class Quiet:
    """Of one device; one thread tells, another asks.

    Args:
        clock: of this machine.
        patience: how quiet is quiet.

    Attributes:
        is_timing: whether something is timed now.
        is_training: whether training runs.
        is_voting: whether samples are answered to vote on them.
        is_installing: whether a release is being brought in, or stands its trial.
    """

    def __init__(self, clock: Clock, patience: Patience | None = None) -> None:
        self._clock = clock
        self._patience = patience or Patience()
        self._disturbed_at = clock.monotonic()
        self.is_timing = False
        self.is_training = False
        self.is_voting = False
        self.is_installing = False

    def disturb(self) -> None:
        """The device has something to do."""
        self._disturbed_at = self._clock.monotonic()

    @property
    def is_watched(self) -> bool:
        """Whether questions must be noticed soon."""
        return self.is_timing or self.is_training or self.is_voting

    @property
    def seconds(self) -> float:
        """Since something happened."""
        return self._clock.monotonic() - self._disturbed_at

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has happened for long enough."""
        return self.seconds >= self._patience.seconds

    @property
    def may_begin(self) -> bool:
        """Whether the machine as a whole is quiet, too."""
        return (
            self.is_quiet
            and not self.is_watched
            and (self._patience.load >= 1 or load() <= self._patience.load)
        )


def load() -> float:
    """Processes that run or wait, of the last minute, over the processors; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0

"""A circuit breaker: whoever fails again and again is left alone for a while.

- Closed: calls go through. After `threshold` failures in a row it opens.
- Open: nothing goes through until a pause is over. Pauses double with every further failure, up to `longest`, and
  jitter spreads them over the upper half, so that a fleet does not come back in one moment.
- Half-open: one call goes through as a trial. It counts as failed until it succeeds, so a trial that never ends blocks
  nobody for ever. Success closes the breaker.
- `Breaker` is a value; time and chance are arguments. `Guard` is the same for threads that call one peer.

Source: M. Nygard, Release It!, 2nd edition, chapter 5, "Circuit Breaker".
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self, final

from edgestill.core.errors import SettingError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import Clock

State = Literal["closed", "open", "half-open"]

MAX_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is remembered of a peer.

    Attributes:
        threshold: failures in a row that open it, at least 1.
        pause: seconds of the first pause, above 0.
        longest: seconds of the longest pause.
        failures: in a row, until now.
        retry_at: monotonic seconds before which nothing goes through, while it is not closed.
    """

    threshold: int = 3
    pause: float = 1.0
    longest: float = 300.0
    failures: int = 0
    retry_at: float = -math.inf

    def __post_init__(self) -> None:
        if self.threshold < 1 or not 0 < self.pause <= self.longest < math.inf:
            raise SettingError(
                "a breaker is out of range",
                expected="threshold >= 1, 0 s < pause <= longest",
                got=(self.threshold, self.pause, self.longest),
                where="breaker",
                fix="correct it, or leave it out for the default",
            )

    def state(self, now: float) -> State:
        """What it does at `now`, in monotonic seconds."""
        if self.failures < self.threshold:
            return "closed"
        return "open" if now < self.retry_at else "half-open"

    def ask(self, now: float, *, jitter: float) -> Self | None:
        """The breaker once a call has gone through; None where none may.

        Args:
            now: monotonic seconds.
            jitter: uniform in [0, 1).
        """
        state = self.state(now)
        if state == "closed":
            return self
        return self._failed(now, jitter) if state == "half-open" else None

    def succeed(self) -> Self:
        """The breaker after a call that the peer answered."""
        return replace(self, failures=0, retry_at=-math.inf)

    def fail(self, now: float, *, jitter: float) -> Self:
        """The breaker after a call that the peer did not answer; arguments as `ask`.

        Only a closed one counts it: a trial was counted when it began, and calls that were under way when the breaker
        opened say nothing new.
        """
        return self._failed(now, jitter) if self.state(now) == "closed" else self

    @property
    def interval(self) -> float:
        """Seconds of the pause that this many failures bring, at most: jitter takes up to half of it; 0 while closed."""
        if self.failures < self.threshold:
            return 0.0
        doublings = min(self.failures - self.threshold, MAX_DOUBLINGS)
        return min(self.pause * 2.0**doublings, self.longest)

    def _failed(self, now: float, jitter: float) -> Self:
        failed = replace(self, failures=self.failures + 1)
        if not failed.interval:
            return failed
        return replace(failed, retry_at=now + failed.interval * (0.5 + jitter / 2))


@final
class Guard:
    """A breaker before one peer, for threads that share it.

    Args:
        breaker: where it starts.
        clock: for the pauses.
        random: uniform in [0, 1).
    """

    def __init__(self, breaker: Breaker, *, clock: Clock, random: Callable[[], float]) -> None:
        self._breaker = breaker
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """What it does now."""
        with self._lock:
            return self._breaker.state(self._clock.monotonic())

    @property
    def interval(self) -> float:
        """Seconds of the pause that is kept now, at most; 0 while it is closed."""
        with self._lock:
            return self._breaker.interval

    def enter(self, where: str) -> None:
        """Begins a call; `leave` must follow.

        Raises:
            UnreachableError: the breaker is open; the peer is not to be asked, and `leave` not to be called.
        """
        with self._lock:
            now = self._clock.monotonic()
            allowed = self._breaker.ask(now, jitter=self._random())
            if allowed is None:
                raise UnreachableError(
                    "the peer has failed too often and is left alone",
                    where=where,
                    got=f"{self._breaker.failures} failures in a row",
                    fix=f"ask again in {self._breaker.retry_at - now:.1f} s",
                    expected="a peer that answers",
                )
            self._breaker = allowed

    def leave(self, *, answered: bool | None) -> None:
        """Ends a call; `answered` tells whether the peer did its part, None that it was not asked in the end."""
        with self._lock:
            if answered is None:
                return
            if answered:
                self._breaker = self._breaker.succeed()
            else:
                self._breaker = self._breaker.fail(self._clock.monotonic(), jitter=self._random())

"""How often one caller may ask: a bucket of tokens for each, filled at a steady rate.

- `take` is pure: a bucket and a time in, a bucket and the seconds to wait out.
- A bounded number of callers is remembered. Whoever has been silent for longest is forgotten first; its bucket is the
  most likely to be full, and a full bucket is what a stranger gets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import RateError, SettingError

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock

MOST_CALLERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """How often.

    Attributes:
        per_second: questions on average, above 0.
        burst: questions at once after a silence, at least 1.
    """

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not 0 < self.per_second <= 1e6 or not 1 <= self.burst <= 10**6:
            raise SettingError(
                "a rate is out of range",
                where="rate",
                expected="more than 0 a second, at least 1 at once, at most a million",
                got=f"{self.per_second} a second, {self.burst} at once",
                fix="leave it out for the default",
            )


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a caller may still ask at once, as of a monotonic time."""

    level: float
    at: float


def take(bucket: Bucket | None, rate: Rate, now: float) -> tuple[Bucket, float]:
    """Takes one token.

    Args:
        bucket: of the caller; None for one that was not heard of.
        rate: that fills it.
        now: monotonic time.

    Returns:
        The bucket afterwards, and 0; or the bucket as it stands, and the seconds until it holds a token.
    """
    if bucket is None:
        bucket = Bucket(rate.burst, now)
    level = min(rate.burst, bucket.level + max(0.0, now - bucket.at) * rate.per_second)
    if level >= 1:
        return Bucket(level - 1, now), 0.0
    return Bucket(level, now), (1 - level) / rate.per_second


@final
class RateLimit:
    """The buckets of all callers; may be asked from several threads.

    Args:
        rate: of each.
        clock: that fills them.
        most_callers: that are remembered.
    """

    def __init__(self, rate: Rate, *, clock: Clock, most_callers: int = MOST_CALLERS) -> None:
        self._rate = rate
        self._clock = clock
        self._most_callers = most_callers
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def require(self, caller: str) -> None:
        """Counts a question.

        Raises:
            RateError: one too many.
        """
        with self._lock:
            bucket, seconds = take(self._buckets.get(caller), self._rate, self._clock.monotonic())
            self._buckets[caller] = bucket
            self._buckets.move_to_end(caller)
            if len(self._buckets) > self._most_callers:
                self._buckets.popitem(last=False)
        if seconds:
            error = RateError(
                "too many questions",
                where=caller,
                expected=f"at most {self._rate.per_second:g} a second, and {self._rate.burst} at once",
                got="one more",
            )
            error.seconds = seconds
            raise error

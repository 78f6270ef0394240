"""Making a day's bytes last the day: how many inputs are still to come before midnight UTC.

A device does not see as much at night as by day, so what is left must not be spread over the clock but over the inputs
that are expected. They are told from what was seen at each hour of the days before, an exponential average in which the
newest day counts for a third, times how today compares with it. An hour that was never lived through counts like the
mean of those that were, and on a first day like the rate until now.

Pure: standard library only; time comes in as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.errors import MessageError

if TYPE_CHECKING:
    from edgestill.core.jsonio import Fields, JsonObject

HOURS: Final = 24
NEWEST: Final = 1 / 3
"""Weight of the newest day in the average of an hour."""

_HOUR: Final = 3600.0
_SHORTEST: Final = 1 / 60  # of an hour: no rate is told from less
_UNKNOWN: Final = -1.0
_MOSTLY: Final = 0.5
_LATEST: Final = 1 - 1e-9
_MOST: Final = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What was seen, hour by hour.

    Attributes:
        hour: number of the hour since 1970 that `seen` belongs to; 0 before the first input.
        began: part of that hour that had passed when counting began, in [0, 1).
        seen: inputs in that hour until now.
        today: inputs in the hours of its day before it, as far as these have a `usual`.
        expected: inputs that were usual in those.
        usual: by hour of the UTC day, the average number of inputs; -1 where no such hour was lived through.
    """

    hour: int = 0
    began: float = 0.0
    seen: int = 0
    today: float = 0.0
    expected: float = 0.0
    usual: tuple[float, ...] = (_UNKNOWN,) * HOURS

    def after(self, now: float) -> Self:
        """The pace once an input has been seen at `now`, in seconds since 1970.

        A clock that goes back by an hour at most changes no hour; one that was further ahead begins another.
        """
        hour = int(now // _HOUR)
        if hour < self.hour - 1 or self.hour == 0:
            return replace(self, hour=hour, began=min(now % _HOUR / _HOUR, _LATEST), seen=1)
        if hour <= self.hour:
            return replace(self, seen=self.seen + 1)
        return self._turned(hour)

    def ahead(self, now: float) -> float:
        """Inputs still to come on the UTC day of `now`; at least 1."""
        passed = min(max(now / _HOUR - self.hour, self.began), 1.0)
        rate = self._rate(passed)
        current = (1 - passed) * (
            rate if self._of(self.hour) < 0 else self._level(passed) * self._of(self.hour)
        )
        known = [count for count in self.usual if count >= 0]
        elsewhere = sum(known) / len(known) if known else rate
        later = sum(elsewhere if count < 0 else count for count in self.usual[self.hour % HOURS + 1 :])
        return max(1.0, current + self._level(passed) * later)

    def as_json(self) -> JsonObject:
        """For the state that outlives a restart."""
        return {
            "hour": self.hour,
            "began": self.began,
            "seen": self.seen,
            "today": self.today,
            "expected": self.expected,
            "usual": list(self.usual),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` gave; MessageError where it is something else."""
        usual = fields.items("usual", at_most=HOURS)
        if len(usual) != HOURS or not all(_is_count(count) for count in usual):
            raise MessageError(
                "a field is not what it should be",
                where=f"{fields.where}: usual",
                expected=f"{HOURS} numbers, -1 or from 0 to {_MOST:g}",
                got=f"{len(usual)} values",
            )
        return cls(
            hour=fields.integer("hour", most=10**9),
            began=fields.number("began", least=0, most=_LATEST),
            seen=fields.integer("seen"),
            today=fields.number("today", least=0, most=_MOST),
            expected=fields.number("expected", least=0, most=_MOST),
            usual=tuple(float(str(count)) for count in usual),
        )

    def _of(self, hour: int) -> float:
        return self.usual[hour % HOURS]

    def _rate(self, passed: float) -> float:
        """Inputs an hour, in this one."""
        return self.seen / max(passed - self.began, _SHORTEST)

    def _level(self, passed: float) -> float:
        """How today compares with the days before, pulled towards 1 as by one usual hour."""
        known = [count for count in self.usual if count >= 0]
        pull = max(1.0, sum(known) / len(known)) if known else 1.0
        lived = self._of(self.hour) >= 0 and self.began == 0
        seen = self.today + (self.seen if lived else 0)
        expected = self.expected + (passed * self._of(self.hour) if lived else 0)
        return (seen + pull) / (expected + pull)

    def _turned(self, hour: int) -> Self:
        """At the first input of a later hour: the hours between have seen none."""
        pace = self
        for past in range(self.hour, min(hour, self.hour + HOURS)):
            pace = pace._closed(past)
        return replace(pace, hour=hour, began=0.0, seen=1)

    def _closed(self, hour: int) -> Self:
        """Once this hour is over."""
        began = self.began if hour == self.hour else 0.0
        seen = self.seen / (1 - began) if hour == self.hour else 0.0
        usual, place = self._of(hour), hour % HOURS
        mean = seen if usual < 0 else usual + NEWEST * (seen - usual)
        if began > _MOSTLY:  # too little of it was lived through
            mean = usual
        last = place == HOURS - 1
        counted = usual >= 0 and not began and not last
        return replace(
            self,
            usual=(*self.usual[:place], min(mean, _MOST), *self.usual[place + 1 :]),
            today=0.0 if last else self.today + (seen if counted else 0),
            expected=0.0 if last else self.expected + (usual if counted else 0),
        )


def _is_count(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value == _UNKNOWN or 0 <= value <= _MOST)
    )

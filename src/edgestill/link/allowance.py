"""The data budget: bytes per day, counted in one place.

- A day is a day of UTC. What was spent is forgotten when a later day begins.
- A clock that goes back gives nothing back, however far. One that goes back by more than a day was wrong before, or is now: from then on a
  new budget is given after each 24 hours that the other, monotonic clock has counted while the device ran. Otherwise a single wrong reading
  could shut a device off for years.
- `Allowance` is a value: `require` refuses what does not fit, `charge` counts what has happened, `spend` does both.
  `Meter` is the same for threads that share one; `link.ledger` for processes, and over restarts.
- What is counted are the bytes of bodies; heads and the layers below come on top.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from edgestill.core.errors import SettingError, SpentError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.units import format_size

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock

SECONDS_PER_DAY: Final = 86_400
MAX_DAY: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Bytes that may be sent and received per day, and how many were.

    Attributes:
        bytes_per_day: None allows any number; they are counted all the same.
        day: that `spent` is about, in days since 1970-01-01 UTC.
        spent: bytes of that day.
        given: how often a budget was given anew.
        ran: seconds that a monotonic clock has counted since then.
    """

    bytes_per_day: int | None = None
    day: int = 0
    spent: int = 0
    given: int = 0
    ran: float = 0.0

    def __post_init__(self) -> None:
        if min(self.spent, self.given, self.ran) < 0 or (
            self.bytes_per_day is not None and self.bytes_per_day < 0
        ):
            raise SettingError(
                "an allowance is out of range",
                expected="0 bytes or more",
                got=self,
                where="allowance",
                fix="give a number of bytes a day",
            )

    def on(self, now: float) -> Self:
        """The allowance as it stands at `now`, in seconds since 1970."""
        day = min(max(int(now // SECONDS_PER_DAY), 0), MAX_DAY)
        is_later = day > self.day
        was_wrong = day < self.day - 1 and self.ran >= SECONDS_PER_DAY
        if not is_later and not was_wrong:
            return self
        # the later day stays: whoever sets the clock to it again has had its budget
        return replace(self, day=max(day, self.day), spent=0, given=self.given + 1, ran=0.0)

    def after(self, seconds: float) -> Self:
        """The allowance when a monotonic clock has counted so many seconds more."""
        return replace(self, ran=min(self.ran + max(seconds, 0.0), 2.0 * SECONDS_PER_DAY))

    def left(self, now: float) -> int | None:
        """Bytes that may still be spent today; None for any number."""
        if self.bytes_per_day is None:
            return None
        return max(0, self.bytes_per_day - self.on(now).spent)

    def spend(self, count: int, now: float) -> Self:
        """The allowance after `count` bytes more.

        Raises:
            SpentError: they do not fit.
        """
        self.require(count, now)
        return self.charge(count, now)

    def require(self, count: int, now: float) -> None:
        """Refuses `count` bytes that do not fit, and counts nothing.

        Raises:
            SpentError: they do not fit.
        """
        left = self.left(now)
        if left is not None and count > left:
            raise SpentError(
                "the data budget of today is used up",
                where="allowance",
                expected=f"at most {format_size(left)} of {format_size(self.bytes_per_day or 0)}",
                got=format_size(count),
                fix="wait for tomorrow (UTC), or raise bytes_per_day",
            )

    def charge(self, count: int, now: float) -> Self:
        """The allowance after `count` bytes that have come or gone already, fit or not."""
        today = self.on(now)
        return replace(today, spent=today.spent + max(count, 0))

    def to_bytes(self) -> bytes:
        """For a file."""
        return canonical(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote; MessageError where it is something else."""
        return cls.from_fields(Fields(parse_object(data, where="allowance"), "allowance"))

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads its fields; MessageError where they are none."""
        return cls(
            bytes_per_day=fields.integer("bytes_per_day") if fields.has("bytes_per_day") else None,
            day=fields.integer("day", most=MAX_DAY),
            spent=fields.integer("spent"),
            given=fields.integer("given") if fields.has("given") else 0,
            ran=fields.number("ran", least=0, most=1e9) if fields.has("ran") else 0.0,
        )


@dataclass(slots=True)
class Held:
    """What was counted for one caller before it is spent.

    Attributes:
        count: bytes of it that are not spent yet.
        given: how many budgets had been given; what was held of another day is worth nothing today.
    """

    count: int
    given: int


class Budget(Protocol):
    """What is spent from: `Meter`, or `link.ledger.Ledger`."""

    @property
    def bytes_per_day(self) -> int | None:
        """Of a whole day; None for any number."""
        ...

    def left(self) -> int | None:
        """Bytes that may still be spent today; None for any number."""
        ...

    def require(self, count: int) -> None:
        """SpentError where `count` bytes do not fit; counts nothing."""
        ...

    def ahead(self, count: int) -> None:
        """Counts `count` bytes that may be spent next, as far as they fit, so that a kill after them forgets nothing."""
        ...

    def reserve(self, count: int) -> Held:
        """Counts `count` bytes for this caller alone, before they are spent; SpentError, and nothing counted, where they do not fit."""
        ...

    def charge(self, count: int, held: Held | None = None) -> None:
        """Counts `count` bytes that have come or gone, of those held for the caller and those ahead first."""
        ...

    def release(self, held: Held) -> None:
        """Gives back what was held and not spent."""
        ...

    def settle(self) -> None:
        """Gives back what was counted ahead and not spent."""
        ...


def taken_of(held: Held | None, count: int, given: int) -> int:
    """Takes up to `count` bytes of those held; none of those of another day's budget."""
    if held is None:
        return 0
    known = min(count, held.count) if held.given == given else 0
    held.count -= known
    return known


@final
class Meter:
    """An allowance that several threads spend from.

    Args:
        allowance: where it starts.
        clock: tells the day.
    """

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        self._allowance = allowance
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def bytes_per_day(self) -> int | None:
        """Of a whole day; None for any number."""
        return self._allowance.bytes_per_day

    @property
    def allowance(self) -> Allowance:
        """As it stands now; to be kept over a restart."""
        with self._lock:
            return self._allowance.on(self._clock.now())

    def left(self) -> int | None:
        """Bytes that may still be spent today; None for any number."""
        with self._lock:
            return self._allowance.left(self._clock.now())

    def spend(self, count: int) -> None:
        """Counts `count` bytes that are about to go; SpentError, and nothing counted, where they do not fit."""
        with self._lock:
            self._allowance = self._allowance.spend(count, self._clock.now())

    def require(self, count: int) -> None:
        """SpentError where `count` bytes do not fit; counts nothing."""
        with self._lock:
            self._allowance.require(count, self._clock.now())

    def reserve(self, count: int) -> Held:
        """As `spend`, until it is released."""
        with self._lock:
            self._allowance = self._allowance.spend(count, self._clock.now())
            return Held(count, self._allowance.given)

    def charge(self, count: int, held: Held | None = None) -> None:
        """Counts `count` bytes that have come or gone, of those held first."""
        with self._lock:
            today = self._allowance.on(self._clock.now())
            self._allowance = today.charge(count - taken_of(held, count, today.given), self._clock.now())

    def release(self, held: Held) -> None:
        """Gives back what was held and not spent."""
        with self._lock:
            today = self._allowance.on(self._clock.now())
            rest = taken_of(held, held.count, today.given)
            self._allowance = replace(today, spent=max(today.spent - rest, 0))

    def ahead(self, count: int) -> None:
        """Nothing: what is in memory only is gone with a kill anyway."""

    def settle(self) -> None:
        """Nothing, as `ahead`."""

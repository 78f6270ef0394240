"""Noticing that a stream of numbers has moved: a window that is as long as its mean has stood still.

ADWIN2 (Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SIAM Data Mining 2007, section 4).
The window of W values is cut into an older part of n0 and a newer one of n1 values wherever two buckets meet. Where

    |mean_0 - mean_1| > sqrt(2 / m * variance * L) + 2 / (3 m) * L,
    L = ln(2 ln W / delta),   1 / m = 1 / (n0 - least + 1) + 1 / (n1 - least + 1),

the oldest bucket is dropped, and all is looked at again (their eq. 3.1, theorem 3.2). `least` 1 gives the paper's
harmonic mean; 5 is what MOA and river take, so that parts of a few values say little.

- The values are kept as an exponential histogram: row i holds at most `buckets` buckets of 2^i values, each a sum and a
  sum of squared deviations from its own mean. A bucket more, and the two oldest become one of the next row. So W values
  take at most `buckets` * (log2(W / buckets) + 2) buckets, and cuts lie where buckets meet.
- Width, sum and variance of the window are worked out of the buckets when they are wanted, and kept nowhere else: no error
  of rounding grows with the length of a stream, and a state that was read back cannot contradict itself.
- The second term is for values within a range of 1, such as doubts; it assumes that they lie in one. Values of a larger range need a
  smaller `delta`, or are divided by their range first.
- Both directions count. An alarm stays until the state is started again, and the window goes on: its width then says how
  many values ago the last change was, as far as can be told.
- Neighbours that depend on each other make the variance too small, and the test loud: feed means over blocks.

There is no reference to choose and no warm-up to wait for; in return a change as slow as the window is long is cut away
bit by bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.learn.drift import Verdict

MAX_BUCKETS: Final = 32
MAX_ROWS: Final = 48
LARGEST: Final = 1e100
"""In size, of a value: what is larger is as good as not finite, since its square would not be."""
_SUSPECTED: Final = math.sqrt(0.5)
"""Of the bound: where the evidence, which grows with the square, is half of what an alarm needs."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some neighbours of a stream.

    Attributes:
        total: their sum.
        squares: sum of their squared deviations from their mean.
    """

    total: float
    squares: float = 0.0

    def joined(self, n: int, other: Bucket, m: int) -> Bucket:
        """The bucket of these n values and of the other's m (Chan, Golub and LeVeque 1979)."""
        apart = self.total / n - other.total / m
        squares = self.squares + other.squares + n * m / (n + m) * apart * apart
        return Bucket(self.total + other.total, squares)


Row = tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdwinState:
    """What the test remembers.

    Attributes:
        n: values seen that counted.
        rows: the window; row i holds buckets of 2^i values, the oldest first, and a later row is older than an earlier one.
        cuts: values after which the window was cut.
        strain: the largest difference of means, as a part of its bound, when it was last looked; above 1 just after a cut.
        ignored: values that were not finite, or too large.
    """

    n: int = 0
    rows: tuple[Row, ...] = ()
    cuts: int = 0
    strain: float = 0.0
    ignored: int = 0

    @property
    def alarm(self) -> bool:
        """Whether the window was cut, ever."""
        return self.cuts > 0

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(len(row) << size for size, row in enumerate(self.rows))

    @property
    def since(self) -> int:
        """Values since the last change, as far as can be told; 0 where there was none."""
        return self.width if self.cuts else 0

    @property
    def whole(self) -> Bucket:
        """The window as one bucket; of no values, zeros."""
        whole, width = Bucket(0.0), 0
        for n, bucket in self.oldest_first():
            whole = whole.joined(width, bucket, n) if width else bucket
            width += n
        return whole

    @property
    def mean(self) -> float:
        """Of the window; 0 where it is empty."""
        return self.whole.total / max(self.width, 1)

    def oldest_first(self) -> Iterator[tuple[int, Bucket]]:
        """The buckets, with the number of values in each."""
        for size in range(len(self.rows) - 1, -1, -1):
            for bucket in self.rows[size]:
                yield 1 << size, bucket

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        where = f"{fields.where}: rows"
        found = fields.items("rows", at_most=MAX_ROWS)
        rows = tuple(_row(row, size, where) for size, row in enumerate(found))
        state = cls(
            n=fields.integer("n"),
            rows=rows,
            cuts=fields.integer("cuts"),
            strain=fields.number("strain", least=0),
            ignored=fields.integer("ignored"),
        )
        if state.width > state.n or not all(rows[-1:]):
            raise MessageError(
                "a window that these values cannot have left",
                where=where,
                expected=f"at most {state.n} values, and none of its last row missing",
                got=f"{state.width} values",
                fix="leave it, and start again",
            )
        return state

    def as_json(self) -> JsonObject:
        """The state as JSON, to be kept over restarts."""
        rows: list[Json] = [[x for one in row for x in (one.total, one.squares)] for row in self.rows]
        return {
            "n": self.n,
            "rows": rows,
            "cuts": self.cuts,
            "strain": self.strain,
            "ignored": self.ignored,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Adwin:
    """The test's settings; the state goes in and comes out.

    Attributes:
        delta: chance of a false alarm at one look, at most, where the values are independent and within a range of 1; in (0, 1).
        clock: values between two looks; at least 1.
        buckets: of each size; at least 1. More make more places to cut at.
        least: values in a part of the window that is compared; at least 1.
        grace: values in the window that are too few to look; at least 0.
    """

    delta: float = 0.002
    clock: int = 32
    buckets: int = 5
    least: int = 5
    grace: int = 10

    def __post_init__(self) -> None:
        sizes = self.clock >= 1 and 1 <= self.buckets <= MAX_BUCKETS and self.least >= 1 and self.grace >= 0
        if not (0 < self.delta < 1 and sizes):
            raise SettingError(
                "a drift setting is out of range",
                expected=f"0 < delta < 1, clock >= 1, 1 <= buckets <= {MAX_BUCKETS}, least >= 1, grace >= 0",
                got=self,
                where="drift settings",
                fix="correct it, or leave it out for the default",
            )

    def start(self) -> AdwinState:
        """A fresh state."""
        return AdwinState()

    def update(self, state: AdwinState, value: float) -> AdwinState:
        """The state after one value; what is not finite, or larger than `LARGEST`, is counted and otherwise ignored."""
        if not abs(value) <= LARGEST:  # a NaN, too
            return replace(state, ignored=state.ignored + 1)
        state = replace(state, n=state.n + 1, rows=self._inserted(state.rows, Bucket(value)))
        if state.n % self.clock:
            return state
        return self._look(state)

    def verdict(self, state: AdwinState) -> Verdict:
        """`confirmed` after an alarm, `suspected` with half of the evidence of one, else `none`."""
        if state.alarm:
            return "confirmed"
        return "suspected" if state.strain > _SUSPECTED else "none"

    def _inserted(self, rows: tuple[Row, ...], bucket: Bucket) -> tuple[Row, ...]:
        """The window with one value more; where a row overflows, its two oldest buckets move on as one."""
        done: list[Row] = []
        for size, row in enumerate(rows):
            row = (*row, bucket)  # noqa: PLW2901  # the row as it is now
            if len(row) <= self.buckets:
                return (*done, row, *rows[size + 1 :])
            bucket = row[0].joined(1 << size, row[1], 1 << size)
            done.append(row[2:])
        return (*done, (bucket,))

    def _look(self, state: AdwinState) -> AdwinState:
        """Drops the oldest bucket as long as two parts of the window differ."""
        if state.width <= self.grace:
            return state
        strain = first = self._strain(state)
        rows = state.rows
        while strain > 1:
            rows = _without_oldest(rows)
            strain = self._strain(replace(state, rows=rows))
        return replace(state, rows=rows, strain=first, cuts=state.cuts + (first > 1))

    def _strain(self, state: AdwinState) -> float:
        """The largest difference between an older and a newer part of the window, over its bound."""
        width, whole = state.width, state.whole
        if width < 2 * self.least or width < 3:  # ln ln W is negative, or no number
            return 0.0
        evidence = math.log(2 * math.log(width) / self.delta)
        variance, strain = whole.squares / width, 0.0
        older, n0 = 0.0, 0
        for n, bucket in state.oldest_first():
            older, n0 = older + bucket.total, n0 + n
            n1 = width - n0
            if n0 < self.least:
                continue
            if n1 < self.least:
                break
            apart = abs(older / n0 - (whole.total - older) / n1)
            once = 1 / (n0 - self.least + 1) + 1 / (n1 - self.least + 1)
            bound = math.sqrt(2 * once * variance * evidence) + 2 / 3 * once * evidence
            strain = max(strain, apart / bound)
        return strain


def _without_oldest(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    rows = (*rows[:-1], rows[-1][1:])
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


def _row(value: Json, size: int, where: str) -> Row:
    """A row of buckets of 2^size values, of `as_json`: sums and squares in turn."""
    numbers = Fields({"row": value}, where).items("row", at_most=2 * MAX_BUCKETS)
    each = Fields(dict(zip(map(str, range(len(numbers))), numbers, strict=True)), f"{where}[{size}]")
    most = LARGEST * (1 << size)
    return tuple(
        Bucket(
            each.number(str(at), least=-most, most=most),
            each.number(str(at + 1), least=0, most=4 * most * LARGEST),
        )
        for at in range(0, len(numbers), 2)
    )

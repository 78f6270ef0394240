"""Noticing that a stream of numbers has moved: the cumulative sum test of Page and Hinkley.

With z_t = (x_t - mean) / deviation, each clipped to [-CLIP, CLIP], the statistic is

    g_t = max(0, g_{t-1} + z_t - slack),   g_0 = 0,   alarm once g_t > threshold + growth ln t

(Page, "Continuous inspection schemes", Biometrika 1954, eq. for a rise of the mean; Hinkley 1971). It equals
m_t - min m with m_t = sum (z_i - slack), the form of the Page-Hinkley test. `two_sided` runs the mirrored sum as well.

- Mean and deviation are given, or come from the first `reference` values and then stay: a mean that ran along for ever
  would learn a slow drift away. Testing begins earlier, after `warm_up` values: until the reference is complete, each is
  measured against those before it (a self-starting sum; Hawkins 1987). The n-th value then has

      t = (x_n - mean_{n-1}) / (deviation_{n-1} sqrt(n / (n - 1))),

  which is Student's t with n - 2 degrees of freedom where the values are normal, and z is the normal value of the same
  probability (Wallace's approximation, 1959). So a short reference makes the test slow, not loud.
- A reference that hardly varies counts as varying by a thousandth of its mean: a stream that stood still may move a
  little.
- One outlier is no drift: the clip makes at least `threshold / CLIP` values necessary.
- An alarm stays until the state is started again.
- Neighbours of a stream from the world depend on each other: overlapping windows, a person who does one thing for a
  while. The test then alarms at every change of activity. `block` makes one value out of so many, their mean (batch
  means; Schmeiser 1982): choose it as long as neighbours depend on each other, and a warm-up that sees all usual
  activities.
- Standard normal z, slack 0.5: the statistic passes h in a still stream about as often as e^-h, so that a growth above
  1 makes the sum of all chances finite. Without growth: expected length of a run until a false alarm about 1e6 blocks at threshold 12, 2e4 at
  threshold 8 (Siegmund's approximation); a shift of 1 deviation is found after about 25 blocks and 17, one of 2 after 9
  and 6. Blocks that are not independent shorten quiet runs.

A fall is found by feeding 1 - x, or `two_sided`. Skewed figures such as leverages are best fed as logarithms.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self

from edgestill.core.errors import SettingError

if TYPE_CHECKING:
    from edgestill.core.jsonio import Fields, JsonObject

CLIP: Final = 4.0
LEAST_WARM_UP: Final = 3
_SUSPECTED: Final = 0.5
_LEAST_DEVIATION: Final = 1e-3
_NO_DEVIATION: Final = 1e-9

Verdict = Literal["none", "suspected", "confirmed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What the test remembers.

    Attributes:
        n: finite values seen.
        blocks: of them that were completed, each one value of the test.
        partial: sum of the values in the open block.
        mean: of the reference, or of the blocks so far until it is complete.
        squares: sum of squared deviations from that mean until the reference is complete, then 0.
        deviation: standard deviation of the reference; 0 until it is complete.
        rise: the statistic for a rising mean.
        fall: the same for a falling one; stays 0 unless two-sided.
        since: values since both statistics were last 0: where a change is estimated to lie (Hinkley 1971).
        alarm: whether one of them has passed the threshold, ever.
        ignored: values that were not finite.
    """

    n: int = 0
    blocks: int = 0
    partial: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    deviation: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    since: int = 0
    alarm: bool = False
    ignored: int = 0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(
            n=fields.integer("n"),
            blocks=fields.integer("blocks"),
            partial=fields.number("partial"),
            mean=fields.number("mean"),
            squares=fields.number("squares", least=0),
            deviation=fields.number("deviation", least=0),
            rise=fields.number("rise", least=0),
            fall=fields.number("fall", least=0),
            since=fields.integer("since"),
            alarm=fields.boolean("alarm"),
            ignored=fields.integer("ignored"),
        )

    def as_json(self) -> JsonObject:
        """The state as JSON, to be kept over restarts."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageHinkley:
    """The test's settings; the state goes in and comes out.

    Attributes:
        slack: in deviations: half of the smallest shift worth finding; not negative.
        threshold: in deviations, positive: higher is quieter and slower.
        growth: by which the threshold grows with the logarithm of the number of blocks; not negative. 0 gives a constant
            rate of false alarms; above 1 the chance of one at any time in an endless still stream stays bounded.
        warm_up: blocks before testing begins, where no reference is given; at least 3.
        reference: blocks that make the reference, where none is given; at least `warm_up`.
        block: values whose mean is tested as one; at least 1.
        two_sided: whether a fall of the mean alarms as well.
    """

    slack: float = 0.5
    threshold: float = 12.0
    growth: float = 0.0
    warm_up: int = 25
    reference: int = 200
    block: int = 1
    two_sided: bool = False

    def __post_init__(self) -> None:
        sizes = self.reference >= self.warm_up >= LEAST_WARM_UP and self.block >= 1
        if not (self.slack >= 0 and self.threshold > 0 and self.growth >= 0 and sizes):
            raise SettingError(
                "a drift setting is out of range",
                expected=f"slack >= 0, threshold > 0, growth >= 0, reference >= warm_up >= {LEAST_WARM_UP}, block >= 1",
                got=self,
                where="drift settings",
                fix="correct it, or leave it out for the default",
            )

    def start(self, *, mean: float | None = None, deviation: float | None = None) -> DriftState:
        """A fresh state, with a reference where both figures are given.

        Raises:
            SettingError: one figure without the other, or a deviation that is not positive.
        """
        if mean is None and deviation is None:
            return DriftState()
        if mean is None or deviation is None or not math.isfinite(mean) or not 0 < deviation < math.inf:
            raise SettingError(
                "a drift reference is out of range",
                expected="a finite mean and a positive deviation",
                got=f"{mean}, {deviation}",
                where="drift reference",
                fix="measure it anew on samples that differ",
            )
        return DriftState(mean=mean, deviation=deviation)

    def update(self, state: DriftState, value: float) -> DriftState:
        """The state after one value; what is not finite is counted and otherwise ignored."""
        if not math.isfinite(value):
            return replace(state, ignored=state.ignored + 1)
        n, partial = state.n + 1, state.partial + value
        if n % self.block:
            return replace(state, n=n, partial=partial)
        state = replace(state, n=n, blocks=state.blocks + 1, partial=0.0)
        mean = partial / self.block
        if state.deviation:
            return self._test(state, (mean - state.mean) / state.deviation)
        if state.blocks > self.warm_up:
            state = self._test(state, _standing(state, mean))
        return self._measure(state, mean)

    def verdict(self, state: DriftState) -> Verdict:
        """`confirmed` after an alarm, `suspected` above half of the threshold of now, else `none`."""
        if state.alarm:
            return "confirmed"
        half = _SUSPECTED * self._threshold(state)
        return "suspected" if max(state.rise, state.fall) > half else "none"

    def _threshold(self, state: DriftState) -> float:
        return self.threshold + self.growth * math.log(max(state.blocks, 1))

    def _test(self, state: DriftState, z: float) -> DriftState:
        """Page's recursion, for one block that lies `z` deviations above the reference."""
        z = max(-CLIP, min(CLIP, z))
        rise = max(0.0, state.rise + z - self.slack)
        fall = max(0.0, state.fall - z - self.slack) if self.two_sided else 0.0
        return replace(
            state,
            rise=rise,
            fall=fall,
            since=state.since + self.block if rise or fall else 0,
            alarm=state.alarm or max(rise, fall) > self._threshold(state),
        )

    def _measure(self, state: DriftState, value: float) -> DriftState:
        """Welford's running mean and squares (1962), until the reference is complete; this block is counted already."""
        blocks = state.blocks
        mean = state.mean + (value - state.mean) / blocks
        squares = state.squares + (value - state.mean) * (value - mean)
        if blocks < self.reference:
            return replace(state, mean=mean, squares=squares)
        return replace(state, mean=mean, squares=0.0, deviation=_deviation(mean, squares, blocks))


def _standing(state: DriftState, value: float) -> float:
    """Where the newest of `state.blocks` blocks stands among those before it, as a standard normal value."""
    before = state.blocks - 1
    scale = _deviation(state.mean, state.squares, before) * math.sqrt(1 + 1 / before)
    freedom, t = before - 1, (value - state.mean) / scale
    size = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(size, t)


def _deviation(mean: float, squares: float, n: int) -> float:
    return max(math.sqrt(squares / (n - 1)), _NO_DEVIATION + _LEAST_DEVIATION * abs(mean))

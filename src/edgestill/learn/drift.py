"""Noticing that a stream of numbers has moved: the cumulative sum test of Page and Hinkley.

With z_t = (x_t - mean) / deviation, each clipped to [-CLIP, CLIP], the statistic is

    g_t = max(0, g_{t-1} + z_t - slack),   g_0 = 0,   alarm once g_t > threshold

(Page, "Continuous inspection schemes", Biometrika 1954, eq. for a rise of the mean; Hinkley 1971). It equals
m_t - min m with m_t = sum (z_i - slack), the form of the Page-Hinkley test. `two_sided` runs the mirrored sum as well.

- Mean and deviation come from a reference, or from the first `warm_up` values, and then stay: a mean that ran along
  would learn a slow drift away.
- A reference that hardly varies counts as varying by a thousandth of its mean: a stream that stood still may move a
  little.
- One outlier is no drift: the clip makes at least `threshold / CLIP` values necessary.
- An alarm stays until the state is started again.
- Standard normal z, slack 0.5, threshold 12: expected length of a run until a false alarm about 1e6 (Siegmund's
  approximation); a shift of 1 deviation is found after about 25 values, one of 2 after 8. An estimated reference
  (warm_up values) shortens quiet runs, and so do values that are not independent.

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
LEAST_WARM_UP: Final = 2
_SUSPECTED: Final = 0.5
_LEAST_DEVIATION: Final = 1e-3
_NO_DEVIATION: Final = 1e-9

Verdict = Literal["none", "suspected", "confirmed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What the test remembers.

    Attributes:
        n: values seen.
        mean: of the reference, or of the values so far while warming up.
        squares: sum of squared deviations from the mean while warming up, then 0.
        deviation: standard deviation of the reference; 0 while warming up.
        rise: the statistic for a rising mean.
        fall: the same for a falling one; stays 0 unless two-sided.
        alarm: whether one of them has passed the threshold, ever.
        ignored: values that were not finite.
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    deviation: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    alarm: bool = False
    ignored: int = 0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(
            n=fields.integer("n"),
            mean=fields.number("mean"),
            squares=fields.number("squares", least=0),
            deviation=fields.number("deviation", least=0),
            rise=fields.number("rise", least=0),
            fall=fields.number("fall", least=0),
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
        warm_up: values that make the reference, where none is given; at least 2.
        two_sided: whether a fall of the mean alarms as well.
    """

    slack: float = 0.5
    threshold: float = 12.0
    warm_up: int = 200
    two_sided: bool = False

    def __post_init__(self) -> None:
        if not (self.slack >= 0 and self.threshold > 0 and self.warm_up >= LEAST_WARM_UP):
            raise SettingError(
                "a drift setting is out of range",
                expected=f"slack >= 0, threshold > 0, warm_up >= {LEAST_WARM_UP}",
                got=self,
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
            )
        return DriftState(mean=mean, deviation=deviation)

    def update(self, state: DriftState, value: float) -> DriftState:
        """The state after one value; what is not finite is counted and otherwise ignored."""
        if not math.isfinite(value):
            return replace(state, ignored=state.ignored + 1)
        if not state.deviation:
            return self._warm(state, value)
        z = max(-CLIP, min(CLIP, (value - state.mean) / state.deviation))
        rise = max(0.0, state.rise + z - self.slack)
        fall = max(0.0, state.fall - z - self.slack) if self.two_sided else 0.0
        return replace(
            state,
            n=state.n + 1,
            rise=rise,
            fall=fall,
            alarm=state.alarm or max(rise, fall) > self.threshold,
        )

    def verdict(self, state: DriftState) -> Verdict:
        """`confirmed` after an alarm, `suspected` above half of the threshold, else `none`."""
        if state.alarm:
            return "confirmed"
        return "suspected" if max(state.rise, state.fall) > _SUSPECTED * self.threshold else "none"

    def _warm(self, state: DriftState, value: float) -> DriftState:
        """Welford's running mean and squares (1962), until there is a reference."""
        n = state.n + 1
        mean = state.mean + (value - state.mean) / n
        squares = state.squares + (value - state.mean) * (value - mean)
        if n < self.warm_up:
            return replace(state, n=n, mean=mean, squares=squares)
        least = _NO_DEVIATION + _LEAST_DEVIATION * abs(mean)
        deviation = max(math.sqrt(squares / (n - 1)), least)
        return replace(state, n=n, mean=mean, squares=0.0, deviation=deviation)

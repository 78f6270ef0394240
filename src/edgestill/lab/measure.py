"""Figures with their n and intervals.

The unit is the group (a person, a device, a recording): windows of one person stand or fall together, so an interval
rests on the spread between groups, not on the number of windows, and widens as groups get few (Student's t with
groups - 1 degrees of freedom). One group says nothing about others: its interval is everything.

- A mean has the interval `mean +- t * standard error`, the error from group sums (Cameron and Miller 2015, section II).
- A share has that of Korn and Graubard (1998): Clopper and Pearson's exact one, of as many independent samples as these
  are worth. It stays within [0, 1] and does not shrink to a point where everything is right.
- A ratio of two differences has Fieller's (1954). It is unbounded where the denominator may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Engine

_TAIL: Final = 0.025
_MOST_ROWS: Final = 256
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A share or mean with what it rests on.

    Attributes:
        value: the estimate.
        n: samples.
        groups: independent units among them.
        low: lower end of the 95 % interval; of a share 0, else minus infinity, where nothing bounds it.
        high: upper end; 1 or infinity.
    """

    value: float
    n: int
    groups: int
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether the interval says anything: more than one group, and both ends finite."""
        return self.groups > 1 and isfinite(self.low) and isfinite(self.high)

    def rests_on(self) -> str:
        """`1400 samples`, each its own group; `3422 samples of 10 groups`; `116 samples of 1 group`."""
        if self.n == self.groups:
            return f"{self.n} samples"
        return f"{self.n} samples of {self.groups} group{'' if self.groups == 1 else 's'}"

    def as_json(self) -> JsonObject:
        """As JSON; the interval is null where nothing bounds it."""
        ends: JsonObject = {"ci95": [self.low, self.high] if self.bounded else None}
        return {"value": self.value, "n": self.n, "groups": self.groups} | ends

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.bounded else f"{self.value:.3f}"


def run_model(engine: Engine, inputs: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits `[N, C]` and features `[N, D]` of an exported model."""
    parts = [engine.run({"input": batch}) for batch in in_batches(inputs)]
    logits = np.concatenate([part["logits"] for part in parts]).astype(np.float32)
    return logits, np.concatenate([part["features"] for part in parts]).astype(np.float32)


def in_batches(inputs: NDArray[np.generic], *, most: int = _MOST_ROWS) -> Iterator[NDArray[np.generic]]:
    """Rows `[N, ...]` in batches of about a megabyte: what a network computes of large pictures on the way is many times as large."""
    rows = min(most, max(1, _MOST_BYTES // max(1, inputs[:1].nbytes)))
    for start in range(0, len(inputs), rows):
        yield inputs[start : start + rows]


def accuracy(scores: NDArray[np.floating], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> Figure:
    """The share of samples whose largest score is at their label.

    Args:
        scores: `[N, C]`, logits or probabilities.
        labels: `[N]`.
        groups: `[N]`.
    """
    return share_figure(scores.argmax(1) == labels, groups)


def share_figure(hits: NDArray[np.bool_] | NDArray[np.float64], groups: NDArray[np.integer]) -> Figure:
    """The share of hits, with the interval of Korn and Graubard (1998, section 2); one group: [0, 1].

    They are worth `p (1 - p) / variance` independent samples, `N` at most, times `(t_(N-1) / t_(G-1))^2` for the few
    groups the variance is known from; where all or none are hits, which shows no variance, one for each group.

    Args:
        hits: `[N]` of 0 and 1.
        groups: `[N]`.

    Raises:
        DataError: no values.
    """
    sums, counts = _sums(np.asarray(hits, dtype=np.float64), groups)
    share, n, names = float(sums.sum() / counts.sum()), int(counts.sum()), len(sums)
    if names == 1:
        return Figure(value=share, n=n, groups=1, low=0.0, high=1.0)
    worth = float(names)
    if 0 < share < 1:
        variance = _covariance(_influence(sums, counts))
        worth = min(float(n), share * (1 - share) / variance) if variance > 0 else float(n)
        worth *= (_t(n - 1) / _t(names - 1)) ** 2
    low, high = _clopper_pearson(share * worth, worth)
    return Figure(value=share, n=n, groups=names, low=low, high=high)


def mean_figure(values: NDArray[np.float64], groups: NDArray[np.integer]) -> Figure:
    """The mean with Student's interval over groups; one group: no bounds.

    Args:
        values: `[N]`, any numbers.
        groups: `[N]`.

    Raises:
        DataError: no values.
    """
    sums, counts = _sums(values, groups)
    mean, names = float(sums.sum() / counts.sum()), len(sums)
    half = inf if names == 1 else _t(names - 1) * sqrt(_covariance(_influence(sums, counts)))
    return Figure(value=mean, n=len(values), groups=names, low=mean - half, high=mean + half)


def recovered_share(
    before: NDArray[np.float64],
    shifted: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    groups_before: NDArray[np.integer],
    groups_after: NDArray[np.integer],
) -> Figure | None:
    """How much of a loss was won back, `(after - shifted) / (before - shifted)` of means; None where nothing was lost.

    The interval holds every ratio `r` at which `(after - shifted) - r (before - shifted)` may be 0 (Fieller 1954). It has
    no bounds where the loss itself may be 0: then it is within the noise, and so is what was won back of it.

    Args:
        before: `[N]` of 0 and 1, right or wrong before the change.
        shifted: `[M]`, the same model after it.
        after: `[M]`, the next model.
        groups_before: `[N]`.
        groups_after: `[M]`, the same groups.

    Raises:
        DataError: no values, or different groups before and after.
    """
    names = np.unique(groups_before)
    if not np.array_equal(names, np.unique(groups_after)):
        raise DataError(
            "a loss needs the same groups before and after",
            expected=names[:8],
            got=np.unique(groups_after)[:8],
            where="groups",
            fix="measure the same people, devices or recordings",
        )
    known, lost, left = (
        _sums(values, groups)
        for values, groups in ((before, groups_before), (shifted, groups_after), (after, groups_after))
    )
    means = [float(sums.sum() / counts.sum()) for sums, counts in (known, lost, left)]
    loss, won = means[0] - means[1], means[2] - means[1]
    if loss <= 0:
        return None
    low, high = -inf, inf
    if len(names) > 1:
        base = _influence(*lost)
        low, high = _fieller(won, loss, _influence(*left) - base, _influence(*known) - base)
    return Figure(value=won / loss, n=len(shifted), groups=len(names), low=low, high=high)


def _sums(
    values: NDArray[np.float64], groups: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each group, `[G]`."""
    if len(values) == 0:
        raise DataError(
            "nothing to measure",
            expected="at least one value",
            where="values",
            got="none",
            fix="give at least one sample",
        )
    index = np.unique(groups, return_inverse=True)[1]
    sums: NDArray[np.float64] = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def _influence(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each group pulls the mean, `[G]`; they add up to 0."""
    pulls: NDArray[np.float64] = (sums - counts * (sums.sum() / counts.sum())) / counts.sum()
    return pulls


def _covariance(one: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> float:
    """Of the means of which these are the influences; of a mean with itself, its variance."""
    return float(len(one) / (len(one) - 1) * (one @ (one if other is None else other)))


def _fieller(
    top: float, bottom: float, pull_top: NDArray[np.float64], pull_bottom: NDArray[np.float64]
) -> tuple[float, float]:
    """The interval of `top / bottom`, from the influences of each group on both."""
    t2 = _t(len(pull_top) - 1) ** 2
    a = bottom**2 - t2 * _covariance(pull_bottom)
    b = top * bottom - t2 * _covariance(pull_top, pull_bottom)
    c = top**2 - t2 * _covariance(pull_top)
    if a <= 0:
        return -inf, inf
    root = sqrt(max(0.0, b**2 - a * c))
    return (b - root) / a, (b + root) / a


def _clopper_pearson(hits: float, n: float) -> tuple[float, float]:
    """Of `hits` of `n`, neither of which need be whole."""
    from scipy.special import betaincinv

    missed = n - hits
    low = 0.0 if hits <= 0 else float(betaincinv(hits, missed + 1, _TAIL))
    high = 1.0 if missed <= 0 else float(betaincinv(hits + 1, missed, 1 - _TAIL))
    return low, high


def _t(freedom: int) -> float:
    """Student's two-sided 95 % quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - _TAIL))

"""Figures with their n and intervals.

The unit is the group (a person, a device, a recording): windows of one person stand or fall together, so intervals
come from resampling groups (cluster bootstrap, Cameron, Gelbach and Miller 2008), not windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.protocols import Engine

_DRAWS: Final = 2000
_BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A share or mean with what it rests on.

    Attributes:
        value: the estimate.
        n: samples.
        groups: independent units among them.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    n: int
    groups: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def run_model(engine: Engine, inputs: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits `[N, C]` and features `[N, D]` of an exported model."""
    parts = [engine.run({"input": inputs[i : i + _BATCH]}) for i in range(0, len(inputs), _BATCH)]
    logits = np.concatenate([part["logits"] for part in parts]).astype(np.float32)
    return logits, np.concatenate([part["features"] for part in parts]).astype(np.float32)


def accuracy(scores: NDArray[np.floating], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> Figure:
    """The share of samples whose largest score is at their label.

    Args:
        scores: `[N, C]`, logits or probabilities.
        labels: `[N]`.
        groups: `[N]`.
    """
    return mean_figure((scores.argmax(1) == labels).astype(np.float64), groups)


def mean_figure(values: NDArray[np.float64], groups: NDArray[np.int64], *, seed: int = 0) -> Figure:
    """The mean with its cluster-bootstrap interval; with a single group the interval is the whole of [0, 1].

    Raises:
        DataError: no values.
    """
    if len(values) == 0:
        raise DataError(
            "nothing to measure",
            expected="at least one value",
            where="values",
            got="none",
            fix="give at least one sample",
        )
    names, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    low, high = 0.0, 1.0
    if len(names) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(names), (_DRAWS, len(names)))
        low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975)).tolist()
    return Figure(value=float(values.mean()), n=len(values), groups=len(names), low=low, high=high)


def recovered_share(
    before: NDArray[np.float64],
    shifted: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    groups_before: NDArray[np.int64],
    groups_after: NDArray[np.int64],
    seed: int = 0,
) -> Figure | None:
    """How much of a loss was won back: `(after - shifted) / (before - shifted)`, as means; None where nothing was lost.

    Args:
        before: `[N]` of 0 and 1, right or wrong before the change.
        shifted: `[M]`, the same model after it.
        after: `[M]`, the next model.
        groups_before: `[N]`.
        groups_after: `[M]`, the same groups.
        seed: of the resampling of groups.

    Raises:
        DataError: different groups before and after.
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
    parts = [
        _sums(values, groups)
        for values, groups in ((before, groups_before), (shifted, groups_after), (after, groups_after))
    ]
    whole = np.arange(len(names))[None]
    value = float(_won_back(parts, whole)[0])
    if not np.isfinite(value):
        return None
    drawn = np.random.default_rng(seed).integers(0, len(names), (_DRAWS, len(names)))
    shares = _won_back(parts, drawn)
    low, high = (
        np.nanquantile(shares, (0.025, 0.975)).tolist() if len(names) > 1 else (float("-inf"), float("inf"))
    )
    return Figure(value=value, n=len(shifted), groups=len(names), low=low, high=high)


def _sums(
    values: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    index = np.unique(groups, return_inverse=True)[1]
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.int64)


def _won_back(
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64]]], drawn: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The share for each row of drawn groups; NaN where nothing was lost."""
    before, shifted, after = (sums[drawn].sum(1) / counts[drawn].sum(1) for sums, counts in parts)
    lost = before - shifted
    shares: NDArray[np.float64] = np.where(
        lost > 0, (after - shifted) / np.where(lost > 0, lost, 1.0), np.nan
    )
    return shares

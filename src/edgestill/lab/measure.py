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
        raise DataError("nothing to measure", expected="at least one value")
    names, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    low, high = 0.0, 1.0
    if len(names) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(names), (_DRAWS, len(names)))
        low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975)).tolist()
    return Figure(value=float(values.mean()), n=len(values), groups=len(names), low=low, high=high)

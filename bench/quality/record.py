"""Scores of several ways to train, paired by seed and test sample, and their differences with intervals.

A gain is one only where both intervals leave out zero: over seeds (Student's t) and over test samples (bootstrap). The
rest is "no difference shown", whatever the mean is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgestill.lab.gain import gain_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS = 100.0


@dataclass(frozen=True, slots=True)
class Scores:
    """One way to train: what each seed's model scores on each test sample, 0 or 1."""

    title: str
    seeds: list[NDArray[np.float64]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Accuracy in per cent: of each seed, and their mean and standard deviation."""
        each = [POINTS * float(one.mean()) for one in self.seeds]
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        return {
            "title": self.title,
            "seeds": [round(one, 3) for one in each],
            "mean": round(float(np.mean(each)), 3),
            "spread": round(spread, 3),
        }


def gain_json(ours: Scores, theirs: Scores) -> dict[str, object]:
    """How many points the first is better, with intervals and what may be said of it."""
    gain = gain_of(np.stack(ours.seeds), np.stack(theirs.seeds))
    return {
        "of": ours.title,
        "over": theirs.title,
        "points": round(POINTS * gain.value, 3),
        "ci95_seeds": [round(POINTS * one, 3) for one in gain.seeds],
        "ci95_samples": [round(POINTS * one, 3) for one in gain.samples],
        "each_seed": [
            round(POINTS * float((one - other).mean()), 3)
            for one, other in zip(ours.seeds, theirs.seeds, strict=True)
        ],
        "verdict": gain.verdict,
    }

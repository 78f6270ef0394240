"""The difference of two ways to train, with its noise; what is within the noise is never called a gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgestill.core.errors import DataError, SettingError
from edgestill.lab.measure import mean_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

Verdict = Literal["helps", "hurts", "no difference shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A difference of two ways to train, with what is known of its noise.

    Attributes:
        value: mean over seeds and samples.
        spread: standard deviation over seeds.
        seeds: 95 % interval over seeds.
        samples: 95 % interval over the held-out groups; infinite where there is only one.
    """

    value: float
    spread: float
    seeds: tuple[float, float]
    samples: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        """Which way it goes, if both intervals agree."""
        if self.seeds[0] > 0 and self.samples[0] > 0:
            return "helps"
        if self.seeds[1] < 0 and self.samples[1] < 0:
            return "hurts"
        return "no difference shown"


def gain_of(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, groups: NDArray[np.int64] | None = None
) -> Gain:
    """The difference of two ways, paired by seed and by sample.

    Args:
        ours: scores `[seeds, N]`; at least two seeds. NaN: a sample without a label, which does not count.
        theirs: the same seeds and samples.
        groups: `[N]`, which samples belong together; by default each is its own group.

    Raises:
        SettingError: a single seed, which has no spread. DataError: no sample has a score.
    """
    if len(ours) < 2:
        raise SettingError(
            "one seed has no spread",
            where="seeds",
            expected="at least 2",
            got=len(ours),
            fix="give two seeds or more",
        )
    difference = ours - theirs
    labelled = ~np.isnan(difference).any(0)
    if not labelled.any():
        raise DataError(
            "nothing to measure",
            expected="at least one sample with a score in every seed",
            where="scores",
            got="none",
            fix="give at least one sample",
        )
    difference = difference[:, labelled]
    names = np.arange(difference.shape[1]) if groups is None else groups[labelled]
    over = mean_figure(difference.mean(0), names)
    each = difference.mean(1)
    seeds = mean_figure(each, np.arange(len(each)))
    return Gain(
        value=seeds.value,
        spread=float(each.std(ddof=1)),
        seeds=(seeds.low, seeds.high),
        samples=(over.low, over.high),
    )

"""What it gains to ask about the inputs that a student is least sure of, told from held-out answers.

An input's *gain* is 1 where the fused answer is right and the student's own wrong, -1 the other way round, otherwise 0.
Asking about a share of the inputs gains the mean over all of them of what was asked about. Measures of confidence differ
in which they ask about first; the oracle asks in the order of the gains, chance in none.

All of it describes the samples given; a measure that was chosen on them has to be judged on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import DataError, SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.policy import Measure

FIRST: Final[Measure] = "max_probability"
"""The measure that stays where none is shown to be better."""
SHARES: Final = 21
"""Around the budget's, over which gains are averaged."""
FEWEST: Final = 10
"""Independent units that a choice rests on: the error of fewer is a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One measure of confidence on held-out answers.

    Attributes:
        measure: its name.
        gained: mean gain of asking by it, about half to one and a half times the share, in [-1, 1].
        ahead: of `max_probability`, in the same unit.
        error: standard error of `ahead`; of groups where several samples hang together, and infinite for one.
        units: independent samples, or groups.
    """

    measure: Measure
    gained: float
    ahead: float
    error: float
    units: int

    def as_json(self) -> JsonObject:
        """For the evidence in `policy.json`; an error that is not known is null."""
        error = self.error if math.isfinite(self.error) else None
        return {"gained": self.gained, "ahead": self.ahead, "error": error, "units": self.units}


def gains(student_right: NDArray[np.bool_], fused_right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`[N]` of -1, 0 and 1: what asking about each input changes."""
    return fused_right.astype(np.int64) - student_right.astype(np.int64)


def gained(confidence: NDArray[np.floating], gain: NDArray[np.int64], share: float) -> float:
    """The mean gain where the least sure `share` of N inputs is asked about; of equally sure ones each as often.

    Args:
        confidence: `[N]`.
        gain: `[N]`, of `gains`.
        share: in [0, 1].

    Raises:
        SettingError, DataError: a share out of range, or arrays that do not fit.
    """
    _check(share, confidence, gain)
    return float((_taken(confidence, share) * gain).mean())


def oracle(gain: NDArray[np.int64], share: float) -> float:
    """The mean gain of whoever knew what asking would change, and asked about no more than `share`.

    Raises:
        SettingError, DataError: as `gained`.
    """
    _check(share, gain, gain)
    return min(float((gain > 0).sum()), share * len(gain)) / len(gain)


def compare_measures(
    confidences: Mapping[Measure, NDArray[np.floating]],
    gain: NDArray[np.int64],
    share: float,
    *,
    groups: NDArray[np.int64] | None = None,
) -> dict[Measure, Compared]:
    """What each measure gains around the share that the budget allows.

    A sample counts by how many of the shares between half and one and a half times the budget ask about it: told so, a
    measure is not chosen for the luck of one sample at the border.

    Args:
        confidences: `[N]` each; `max_probability` must be among them.
        gain: `[N]`, of `gains`.
        share: in (0, 1].
        groups: `[N]`, samples of the same number hang together; None where they are independent.

    Raises:
        SettingError, DataError: as `gained`.
    """
    for confidence in confidences.values():
        _check(share, confidence, gain)
    asked = {measure: _asked(confidence, share) for measure, confidence in confidences.items()}
    first = _Asked(asked[FIRST], gain)
    return {measure: _compared(measure, _Asked(one, gain), first, groups) for measure, one in asked.items()}


def best_measure(compared: Mapping[Measure, Compared]) -> Measure:
    """The one that gains most, if it is more than a standard error ahead of `max_probability`; otherwise that.

    Where fewer than `FEWEST` units were compared it is that as well.
    """
    ahead = [one for one in compared.values() if one.ahead > one.error and one.units >= FEWEST]
    return max(ahead, key=lambda one: one.gained).measure if ahead else FIRST


def _asked(confidence: NDArray[np.floating], share: float) -> NDArray[np.float64]:
    """`[N]` in [0, 1]: of the shares around this one, how many ask about each sample; equally sure ones each as often."""
    shares = np.linspace(share / 2, min(1.5 * share, 1.0), SHARES)
    asked: NDArray[np.float64] = np.mean([_taken(confidence, one) for one in shares], axis=0)
    return asked


def _taken(confidence: NDArray[np.floating], share: float) -> NDArray[np.float64]:
    """`[N]` in [0, 1]: how much of each sample is asked about where the least sure `share` is."""
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    taken: NDArray[np.float64] = np.clip((share * len(confidence) - before) / counts, 0, 1)[places]
    return taken


class _Asked:
    """What asking about each of N samples to some part gains.

    Whoever is asked about one takes the place of another at the border of what the share allows, so that a sample's
    influence on the gain is measured from the mean gain there.
    """

    def __init__(self, asked: NDArray[np.float64], gain: NDArray[np.int64]) -> None:
        self.gained = float((asked * gain).mean())
        border = (asked > 0) & (asked < 1)
        self.influence = asked * (gain - (gain[border].mean() if border.any() else 0.0))


def _compared(measure: Measure, one: _Asked, first: _Asked, groups: NDArray[np.int64] | None) -> Compared:
    differences = one.influence - first.influence
    if groups is not None:
        _, places = np.unique(groups, return_inverse=True)
        differences = np.bincount(places, weights=differences) * ((places.max() + 1) / len(places))
    error = float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else math.inf
    return Compared(
        measure=measure,
        gained=one.gained,
        ahead=one.gained - first.gained,
        error=error,
        units=len(differences),
    )


def _check(share: float, confidence: NDArray[np.generic], gain: NDArray[np.generic]) -> None:
    if not 0 <= share <= 1:
        raise SettingError(
            "a share is out of range",
            where="share",
            expected="0 to 1",
            got=share,
            fix="give a share, such as 0.2",
        )
    if confidence.ndim != 1 or confidence.shape != gain.shape or not len(gain):
        raise DataError(
            "confidences and gains do not fit",
            where="confidence",
            expected="one of each a sample, and at least one",
            got=f"{list(confidence.shape)} and {list(gain.shape)}",
            fix="give one of each a sample",
        )

"""The teacher's weight by how sure the student is, where that is better than one weight for all.

One weight is fitted to all samples, but mostly used on those that are escalated, which the student knows least about. Bands
of confidence around the escalated share may have weights of their own. Whether they should is asked by cross-validation:
the bands stay if what they predict of samples that they were not fitted on is more likely than under one weight, by more
than a standard error (the rule of Breiman et al. 1984, section 3.4.3, for the simpler model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.infer.calibration import fit_alpha
from edgestill.infer.fusion import fuse, weights
from edgestill.infer.policy import ALWAYS, Band, Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

FOLDS: Final = 5
FEWEST: Final = 40
"""Samples that a band rests on."""
_AT: Final = (0.5, 1.0, 2.0)
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Voices:
    """What both say about N labelled samples.

    Attributes:
        teacher: calibrated probabilities `[N, C]`.
        student: likewise.
        confidence: the student's, `[N]`.
        labels: `[N]`.
        groups: `[N]`, samples of the same number hang together.
    """

    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    confidence: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def units(self) -> int:
        """How many independent samples these are worth."""
        return len(np.unique(self.groups))

    def part(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Voices:
        """These samples only."""
        return Voices(
            teacher=self.teacher[index],
            student=self.student[index],
            confidence=self.confidence[index],
            labels=self.labels[index],
            groups=self.groups[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What was fitted.

    Attributes:
        alpha: for all, or from the last band on.
        bands: below it.
        better: by how much the bands raise the log-likelihood of a fresh sample, in nats; negative where they lower it.
        error: its standard error; infinite where there were too few samples to ask.
    """

    alpha: float
    bands: tuple[Band, ...]
    better: float
    error: float

    def as_json(self) -> JsonObject:
        """What the choice rests on, for the evidence in `policy.json`; an error that is not known is null."""
        return {"better": self.better, "error": self.error if math.isfinite(self.error) else None}


def fit_weights(voices: Voices, share: float) -> Weights:
    """One weight, or bands around the `share` of inputs that is escalated, where cross-validation favours them.

    Raises:
        DataError, ShapeError, ClassCountError, NotFiniteError: as `infer.calibration.fit_alpha`.
    """
    one = _alpha(voices)
    borders = _borders(voices, share)
    if not borders or voices.units < FOLDS:
        return Weights(alpha=one, bands=(), better=0.0, error=math.inf)
    better, error = _tried(voices, borders)
    if better <= error:
        return Weights(alpha=one, bands=(), better=better, error=error)
    alphas = _alphas(voices, borders, one)
    return Weights(alpha=alphas[-1], bands=_banded(borders, alphas), better=better, error=error)


def _borders(voices: Voices, share: float) -> list[float]:
    """Confidences between bands that rest on enough samples, and on enough independent ones, each."""
    ordered = np.sort(voices.confidence)
    found: list[float] = []
    for times in _AT:
        place = round(times * share * len(ordered))
        if place >= len(ordered):
            continue
        border = float(ordered[place])
        low = found[-1] if found else -math.inf
        below = (voices.confidence < border) & (voices.confidence >= low)
        rest = voices.confidence >= border
        if all(part.sum() >= FEWEST and voices.part(part).units >= FOLDS for part in (below, rest)):
            found.append(border)
    return found


def _alphas(voices: Voices, borders: list[float], one: float) -> list[float]:
    """The weight of each band; of a band without samples that of all."""
    index = np.searchsorted(borders, voices.confidence, side="right")
    return [
        _alpha(voices.part(index == band)) if (index == band).any() else one
        for band in range(len(borders) + 1)
    ]


def _banded(borders: list[float], alphas: list[float]) -> tuple[Band, ...]:
    return tuple(
        Band(below=min(border, ALWAYS), alpha=alpha) for border, alpha in zip(borders, alphas, strict=False)
    )


def _alpha(voices: Voices) -> float:
    return fit_alpha(voices.teacher, voices.student, voices.labels, units=voices.units)


def _tried(voices: Voices, borders: list[float]) -> tuple[float, float]:
    """By how much the bands are more likely on samples that they were not fitted on, and the standard error of that."""
    names, places = np.unique(voices.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[places] % FOLDS
    ahead = np.zeros(len(places))
    for held in range(FOLDS):
        rest, own = voices.part(fold != held), voices.part(fold == held)
        one = _alpha(rest)
        alphas = _alphas(rest, borders, one)
        ahead[fold == held] = _log_likelihood(own, alphas[-1], _banded(borders, alphas)) - _log_likelihood(
            own, one, ()
        )
    each = np.bincount(places, weights=ahead) * (len(names) / len(places))
    return float(ahead.mean()), float(each.std(ddof=1) / math.sqrt(len(names)))


def _log_likelihood(voices: Voices, alpha: float, bands: tuple[Band, ...]) -> NDArray[np.float64]:
    policy = Policy(labels=("any",), alpha=alpha, bands=bands)
    fused = fuse(voices.teacher, voices.student, weights(policy, voices.confidence))
    own = fused[np.arange(len(fused)), voices.labels].astype(np.float64)
    found: NDArray[np.float64] = np.log(np.maximum(own, _TINY))
    return found

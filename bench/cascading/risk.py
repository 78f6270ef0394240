"""Does the promise hold? On populations whose risk is known, and on random splits of real answers.

A population says how sure the student is, how often it loses at each confidence (the teacher is right, the student wrong),
and how often the fused answer does. Its risk at every threshold follows by summing over a fine grid of confidences. From it
`N` samples are drawn, a threshold is chosen and, where a promise is made, looked up: a violation is a promise at a threshold
whose risk exceeds epsilon. By the promise that happens in at most a share delta of the draws; `bound` is what a rate of
exactly delta stays below with 99.5 % probability, the upper end of the binomial interval of 99 %.

Real splits know no true risk. A promise is held against the mean loss of samples that it did not see, whose own noise
is added: at a risk close to epsilon half of these means lie above it, whatever the promise. So their rate is told, and
no target is set for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.infer.risk import choose_threshold, thresholds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

EPSILON: Final = 0.05
DELTA: Final = 0.1
SAMPLES: Final = (200, 1000)
DRAWS: Final = 1000
_FINE: Final = 2001


@dataclass(frozen=True, slots=True)
class Population:
    """What samples are drawn from.

    Attributes:
        title: in tables.
        weight: of each confidence of the grid, `[G]`, adding up to 1.
        loss: probability of a loss when the student answers, `[G]`.
        asked: probability of a loss of the fused answer, `[G]`.
    """

    title: str
    weight: NDArray[np.float64]
    loss: NDArray[np.float64]
    asked: NDArray[np.float64]

    def risk(self, threshold: float) -> float:
        """The true risk there."""
        below = _grid() < threshold
        return float((self.weight * np.where(below, self.asked, self.loss)).sum())


def _grid() -> NDArray[np.float64]:
    return np.linspace(0, 1, _FINE)


def populations() -> list[Population]:
    """Of several shapes; in the last two the risk is no falling function of the threshold, and lies at epsilon for most."""
    sure = _grid()

    def made(
        title: str,
        weight: NDArray[np.float64],
        loss: Callable[[NDArray[np.float64]], Any],
        asked: float | NDArray[np.float64],
    ) -> Population:
        return Population(
            title, weight / weight.sum(), np.clip(loss(sure), 0, 1), np.broadcast_to(asked, sure.shape)
        )

    flat, high = np.ones(_FINE), sure**5
    at_the_edge = EPSILON * np.ones(_FINE)
    return [
        made("calibrated, evenly sure", flat, lambda s: 1 - s, 0.0),
        made("calibrated, mostly sure", high, lambda s: 1 - s, 0.01),
        made("overconfident", high, lambda s: 1.5 * (1 - s) + 0.03, 0.02),
        made(
            "sure and wrong",
            high + 20 * (sure > 0.98),
            lambda s: np.where(s > 0.98, 0.06, 0.3 * (1 - s)),
            0.0,
        ),
        made("just above epsilon everywhere", flat, lambda _: at_the_edge + 1e-3, at_the_edge + 1e-3),
        made("asking harms", flat, lambda s: 0.2 * (1 - s), np.where(sure > 0.5, 0.08, 0.01)),
    ]


def measured(*, quick: bool) -> dict[str, Any]:
    """Violations of each population and number of samples."""
    draws = 50 if quick else DRAWS
    found = [
        _violations(population, n, draws, seed)
        for seed, (population, n) in enumerate((one, n) for one in populations() for n in SAMPLES)
    ]
    return {"epsilon": EPSILON, "delta": DELTA, "draws": draws, "bound": bound(draws), "populations": found}


def bound(draws: int) -> float:
    """The largest share of draws that a rate of delta gives with 99.5 % probability."""
    from scipy.stats import binom

    return float(binom.ppf(0.995, draws, DELTA)) / draws


def _violations(population: Population, n: int, draws: int, seed: int) -> dict[str, Any]:
    draw, sure = np.random.default_rng(seed), _grid()
    true = {threshold: population.risk(threshold) for threshold in thresholds().tolist()}
    promised = violated = 0
    for _ in range(draws):
        at = draw.choice(_FINE, n, p=population.weight)
        promise = choose_threshold(
            sure[at],
            draw.random(n) < population.loss[at],
            escalated_loss=draw.random(n) < population.asked[at],
            epsilon=EPSILON,
            delta=DELTA,
        )
        promised += promise.promised
        violated += promise.promised and true[promise.threshold] > EPSILON
    return {
        "title": population.title,
        "n": n,
        "promised": promised / draws,
        "violations": violated / draws,
        "least_risk": min(true.values()),
    }


def splits(
    confidence: NDArray[np.floating],
    loss: NDArray[np.bool_],
    asked: NDArray[np.bool_],
    *,
    quick: bool,
) -> dict[str, float]:
    """Promises on a random half of real answers, held against the mean loss of the other half."""
    draws, n = 20 if quick else DRAWS, len(loss) // 2
    promised = violated = 0
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(loss))
        ours, theirs = order[:n], order[n:]
        promise = choose_threshold(
            confidence[ours], loss[ours], escalated_loss=asked[ours], epsilon=EPSILON, delta=DELTA
        )
        found = np.where(confidence[theirs] < promise.threshold, asked[theirs], loss[theirs])
        promised += promise.promised
        violated += bool(promise.promised and found.mean() > EPSILON)
    return {"n": n, "draws": draws, "promised": promised / draws, "above_epsilon": violated / draws}

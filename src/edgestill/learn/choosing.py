"""Whether trained weights may serve, decided on samples that were kept back from training.

- Candidates are the trained weights fused with the shipped ones by several shares beta. Stretches of time are cut in two, each by its own
  number and for good: on one half the share is chosen, by the mean negative log-likelihood of its answers with a temperature of its own;
  on the other half the chosen one is compared with what serves. What chose does not judge.
- The unit is the stretch, since neighbours in time resemble each other: one that has more right answers than what serves has won the
  stretch. Won and lost stretches are compared by the sign test (exact binomial, one-sided; Dixon and Mood 1946); ties say nothing.
  Stretches are taken to be independent: choose them as long as neighbours depend on each other.
- A sign test counts no sizes. So the candidate must not be behind, either: neither in the share of right answers nor in the
  likelihood of its probabilities, over all samples of that half, each weighted by the inputs that it stands for.
- A device may ask again after more training. The k-th question may err with probability level / (k (k + 1)): together no more than the
  level until weights are let through for the first time. Later candidates have seen what that answer did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

BETAS: Final = (1.0, 0.6, 0.3)
LEVEL: Final = 0.05
_LEAST_PROBABILITY: Final = 1e-9
_GOLDEN: Final = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, odd: multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4)."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Samples that were kept back.

    Attributes:
        targets: `[N, C]`, probabilities or labels.
        stretches: `[N]` whole numbers, counted from one fixed moment; neighbours in time share one.
        weights: `[N]`, inputs that each stands for, positive.
    """

    targets: NDArray[np.floating]
    stretches: NDArray[np.integer]
    weights: NDArray[np.floating]

    def __post_init__(self) -> None:
        shapes = self.stretches.shape, self.weights.shape
        if self.targets.ndim != 2 or shapes != (self.targets.shape[:1],) * 2:  # [N, C]
            raise EvidenceError(
                "samples that were kept back are no samples",
                where="held back",
                expected="targets [N, C], stretches [N], weights [N]",
                got=f"{list(self.targets.shape)}, {list(shapes[0])}, {list(shapes[1])}",
            )

    @property
    def for_choice(self) -> NDArray[np.bool_]:
        """`[N]`: about every other stretch, by a hash of its number: what is forgotten elsewhere does not change its part."""
        mixed = self.stretches.astype(np.uint64) * np.uint64(_GOLDEN)
        mixed ^= mixed >> np.uint64(29)
        first: NDArray[np.bool_] = ((mixed * np.uint64(_GOLDEN)) >> np.uint64(63)) == 0
        return first

    def loss(self, probabilities: NDArray[np.floating], where: NDArray[np.bool_]) -> float:
        """Mean negative log-likelihood of some of them, weighted."""
        logs = np.log(np.maximum(probabilities[where], _LEAST_PROBABILITY))
        each = -(self.targets[where] * logs).sum(axis=1)
        return float(np.average(each, weights=self.weights[where]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        beta: the chosen share; 0 where no candidate was better than what serves on the half that chooses.
        temperature: fitted for its logits on that half.
        won, lost: stretches of the other half.
        right_before, right_after: shares of right answers there, weighted.
        loss_before, loss_after: mean negative log-likelihoods there, weighted.
        n: samples there.
        level: that this question was allowed.
    """

    beta: float
    temperature: float
    won: int = 0
    lost: int = 0
    right_before: float = 0.0
    right_after: float = 0.0
    loss_before: float = 0.0
    loss_after: float = 0.0
    n: int = 0
    level: float = LEVEL

    @property
    def chance(self) -> float:
        """The probability of as many won stretches, or more, if neither were better."""
        total = self.won + self.lost
        ways = sum(math.comb(total, k) for k in range(self.won, total + 1))
        return float(ways / 2**total)

    @property
    def may_serve(self) -> bool:
        """Whether the candidate is shown to be better, and is nowhere behind."""
        ahead = self.right_after >= self.right_before and self.loss_after <= self.loss_before
        return self.beta > 0 and ahead and self.chance <= self.level


def level_of(attempt: int, level: float = LEVEL) -> float:
    """Of the `attempt`-th question, the first being 1."""
    return level / (attempt * (attempt + 1))


def judged(
    held: Held,
    serving: NDArray[np.floating],
    candidates: Mapping[float, NDArray[np.floating]],
    *,
    temperature: Callable[[NDArray[np.floating], NDArray[np.floating], int], float],
    level: float = LEVEL,
) -> Verdict:
    """Chooses a share and judges it.

    Args:
        held: the samples.
        serving: `[N, C]`, probabilities that what serves now gave for them.
        candidates: share -> logits `[N, C]` of the written model.
        temperature: fits one to (logits, targets, how many independent samples these are worth).
        level: that this question may err by.

    Raises:
        EvidenceError: arrays of other shapes.
    """
    for one in (serving, *candidates.values()):
        if one.shape != held.targets.shape:
            raise EvidenceError(
                "answers for other samples",
                where="held back",
                expected=list(held.targets.shape),
                got=list(one.shape),
            )
    choosing = held.for_choice
    units = len(np.unique(held.stretches[choosing]))
    if not units:
        return Verdict(beta=0.0, temperature=1.0, level=level)
    best = held.loss(serving, choosing)
    chosen, fitted = 0.0, 1.0
    for beta, logits in candidates.items():
        if not np.isfinite(logits).all():
            continue
        own = temperature(logits[choosing], held.targets[choosing], units)
        loss = held.loss(_softmax(logits / own), choosing)
        if loss < best:
            best, chosen, fitted = loss, beta, own
    if not chosen or choosing.all():
        return Verdict(beta=chosen, temperature=fitted, level=level)
    return _compared(
        held, ~choosing, serving, candidates[chosen], Verdict(beta=chosen, temperature=fitted, level=level)
    )


def _compared(
    held: Held,
    there: NDArray[np.bool_],
    serving: NDArray[np.floating],
    logits: NDArray[np.floating],
    chosen: Verdict,
) -> Verdict:
    weights = held.weights[there]
    truth = held.targets[there].argmax(axis=1)
    before = serving[there].argmax(axis=1) == truth
    after = logits[there].argmax(axis=1) == truth
    _, order = np.unique(held.stretches[there], return_inverse=True)
    gained = np.bincount(order, after.astype(int) - before.astype(int))
    return Verdict(
        beta=chosen.beta,
        temperature=chosen.temperature,
        won=int((gained > 0).sum()),
        lost=int((gained < 0).sum()),
        right_before=float(np.average(before, weights=weights)),
        right_after=float(np.average(after, weights=weights)),
        loss_before=held.loss(serving, there),
        loss_after=held.loss(_softmax(logits / chosen.temperature), there),
        n=len(truth),
        level=chosen.level,
    )


def _softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.floating] = grown / grown.sum(axis=1, keepdims=True)
    return shares

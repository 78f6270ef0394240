"""A sum over a fleet in which no single device decides: what each adds is weighed down until none stands out.

The reference, a bundle's own statistics `A_r, B_r`, is believed: the publisher has signed it. It takes part as a device of its own
(`with_prior`), and it says what is large: `M = A_r / w_r`, so that `tr(D^T M D)` is the mean square, over the reference's samples, by
which a change D of the head changes the scores. With the messages `A_k, B_k`, one a device, and weights u_k from 1 down:

0. *Possible.* A sum whose A has negative eigenvalues, further down than its own noise reaches, is changed to the nearest that has none
   (Higham 1988): rounding to codes can make some, and a liar many, which would make every device's influence, and so the medians, large.
   *Noise.* Who claims more noise than `size` times the median device is left out: noise excuses sums that no samples have.
1. *Size.* `u_k tr((M + ridge)^-1 A_k)`, the sum of its samples' leverages, may be `size` times the median device's. So neither a
   large n nor long features buy weight.
2. *Influence.* The head without the device is known exactly: with `G = sum u A + ridge`, `W = G^-1 sum u B`,

       W - W_without_k = (G - u_k A_k)^-1 u_k (B_k - A_k W)

   (Cook 1977, for blocks of samples). Its size in M may be `influence` times the median device's; who is over it is weighed down
   by as much, and all is solved anew, `rounds` times at most.

From `_MANY` devices on the influence of most is told as an upper bound, that of those with the largest bounds exactly.

What is certain, whoever lies: `largest` is computed for the sum that is returned. So taking any one device out of it, the others weighed
as they are, changes the scores by no more than that (root mean square over the reference). And a head that went through
`within` is no further than its radius from the reference's own head, whoever and however many lie.

What is not: that the weights of the others would have been the same without the liar; that less than half of the devices lie, which the
medians need; that influence is harm. The only device that knows a class, or lives elsewhere, is weighed down, too.

From a change of the scores to answers: where the best and the second score of a head lie g apart, the answer changes only if the scores
move by `g / sqrt(2)`. So a change of r (root mean square) changes at most the share of samples nearer than g, and `2 r^2 / g^2` more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import EvidenceError, SettingError
from edgestill.learn.privacy import noise_reach, noise_ridge, possible
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_MANY: Final = 512
"""Devices from which on influence is bounded first, where they are also four times as many as features."""
_EXACT: Final = 16
"""Of so many, those with the largest bounds, it is computed exactly all the same, and of all that have no bound."""
_HALVINGS: Final = 60
_NEAR: Final = 1.01
"""Times what is allowed, that counts as within it."""
_TINY: Final = 1e-9
"""Of the mean square: an eigenvalue so little below 0 is rounding, and far less than the ridge."""
_WHERE: Final = "robust sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How far a device may stand out.

    Attributes:
        size: times the median's size, at least 1.
        influence: times the median's influence, at least 1.
        prior: of the weight of all devices together, what the reference counts for; at most its own weight, and positive.
        ridge: as a share, for `learn.statistics.usual_ridge`.
        rounds: of solving anew.
    """

    size: float = 3.0
    influence: float = 2.0
    prior: float = 1.0
    ridge: float = 1e-3
    rounds: int = 10

    def __post_init__(self) -> None:
        for name, least, most in (
            ("size", 1, 1e6),
            ("influence", 1, 1e6),
            ("prior", 1e-6, 1e6),
            ("ridge", 1e-12, 1e6),
            ("rounds", 1, 1_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise SettingError(
                    "a value of the robust sum is out of range",
                    where=f"robust: {name}",
                    expected=f"{least:g} to {most:g}",
                    got=getattr(self, name),
                    fix="leave it out where you are unsure",
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreed:
    """The weighed sum.

    Attributes:
        total: of the devices, without the reference.
        weights: of each device that counts, from 0 to 1.
        influences: of each: by how much the scores would change without it, root mean square over the reference.
        settled: whether none was over what it may have when the rounds ended.
    """

    total: Statistics
    weights: Mapping[str, float]
    influences: Mapping[str, float]
    settled: bool

    @property
    def largest(self) -> float:
        """The largest influence that any single device has."""
        return max(self.influences.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """`G [D+1, D+1]` and `W [D+1, C]` of some weights, as `learn.together.head_of` solves them."""

    g: NDArray[np.float64]
    w: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: Statistics, ridge: float) -> Self:
        pull = max(usual_ridge(statistics, ridge), noise_ridge(statistics))
        g = possible(statistics).matrix + pull * np.eye(statistics.features + 1)
        w = np.linalg.solve(g, statistics.b).astype(np.float64)
        return cls(g, w)


def agree(messages: Mapping[str, Statistics], reference: Statistics, rule: Rule | None = None) -> Agreed:
    """The sum of messages, one a device, in which none stands out.

    Args:
        messages: by device; of several windows their sum. Of the reference's backbone, width and classes.
        reference: the bundle's own statistics.
        rule: how far one may stand out.

    Raises:
        EvidenceError: no messages, other kinds, or sums that no samples have.
    """
    rule = rule or Rule()
    reference.require(1)
    if not messages:
        raise EvidenceError("nothing to sum", where=_WHERE, expected="a message", got="none")
    names = _as_noisy_as_others(messages, rule)
    sums = [_possible(messages[name]) for name in names]
    metric = reference.matrix / reference.weight
    weights = _by_size(sums, metric, rule)
    for _ in range(rule.rounds):
        influences = _influences(sums, weights, reference, rule)
        allowed = rule.influence * _median(influences)
        if influences.max() <= allowed * _NEAR:
            break
        weights = _lowered(weights, influences, allowed)
    else:
        influences = _influences(sums, weights, reference, rule)
    return Agreed(
        total=_weighed(sums, weights),
        weights=dict.fromkeys(messages, 0.0) | dict(zip(names, weights.tolist(), strict=True)),
        influences=dict.fromkeys(messages, 0.0) | dict(zip(names, influences.tolist(), strict=True)),
        settled=bool(influences.max() <= rule.influence * _median(influences) * _NEAR),
    )


def with_prior(total: Statistics, reference: Statistics, share: float = 1.0) -> Statistics:
    """The sum with the reference, which counts for so many times its weight, but for no more than it has."""
    times = share * total.weight / reference.weight
    # noise, or who claims it, can make a weight negative
    return total + reference.scaled(min(1.0, max(0.0, times)))


def within(total: Statistics, reference: Statistics, radius: float, *, ridge: float = 1e-3) -> Head:
    """A head that is no further than a radius from the reference's own head, whatever the sum is.

    The distance is the root mean square by which the scores differ on the reference's samples. Where the sum leads too far, the
    reference counts as often as it takes.

    Raises:
        SettingError: a radius that is not positive.
        EvidenceError: other kinds.
    """
    _ = total + reference
    if not radius > 0:
        raise SettingError(
            "a radius is out of range",
            where="within",
            expected="above 0",
            got=radius,
            fix="choose one below 1, such as 0.2",
        )
    metric, own = reference.matrix / reference.weight, _weights_of(reference, ridge)

    def far(times: float) -> bool:
        try:
            away = _weights_of(total + reference.scaled(times), ridge) - own
        except EvidenceError:  # no samples have such sums: there is no head, near or far
            return True
        return bool(_size(away, metric) > radius)

    if not far(0.0):
        return solve(total, ridge=usual_ridge(total, ridge))
    low, high = 0.0, max(1.0, total.weight / reference.weight)
    while far(high):
        high *= 4
        if high > 1e12:
            return solve(reference, ridge=usual_ridge(reference, ridge))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if far(middle) else (low, middle)
    both = total + reference.scaled(high)
    return solve(both, ridge=usual_ridge(both, ridge))


def distance(head: Head, reference: Statistics, *, ridge: float = 1e-3) -> float:
    """By how much a head's scores differ from those of the reference's own, root mean square over the reference's samples."""
    away = np.vstack([head.weight, head.bias]) - _weights_of(reference, ridge)
    return _size(away, reference.matrix / reference.weight)


def _possible(one: Statistics) -> Statistics:
    """The sums themselves, to the last bit, where samples with such noise may have them."""
    reach = noise_reach(one)
    tiny = max(_TINY * float(one.matrix.diagonal().mean()), float(np.finfo(np.float32).tiny))
    try:
        np.linalg.cholesky(one.matrix + (reach + tiny) * np.eye(one.features + 1))
    except np.linalg.LinAlgError:
        return possible(one, least=-reach)
    return one


def _as_noisy_as_others(messages: Mapping[str, Statistics], rule: Rule) -> list[str]:
    claimed = np.array([one.noise for one in messages.values()])
    allowed = rule.size * np.median(claimed, axis=0)
    return [name for name, is_fine in zip(messages, (claimed <= allowed).all(axis=1), strict=True) if is_fine]


def _by_size(sums: Sequence[Statistics], metric: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    ridge = rule.ridge * float(metric.diagonal().mean())
    inverse = np.linalg.inv(metric + ridge * np.eye(len(metric)))
    # noise, or who claims it, can make a size negative
    sizes = np.array([abs(float((one.matrix * inverse).sum())) for one in sums])
    return _lowered(np.ones(len(sums)), sizes, rule.size * _median(sizes))


def _median(found: NDArray[np.float64]) -> float:
    """Of those that have any: devices that sent nothing say nothing about what is usual."""
    some = found[found > 0]
    return float(np.median(some)) if len(some) else 0.0


def _lowered(weights: NDArray[np.float64], found: NDArray[np.float64], allowed: float) -> NDArray[np.float64]:
    lowered = weights.copy()
    np.divide(weights * allowed, found, out=lowered, where=found > allowed)
    return lowered


def _weighed(sums: Sequence[Statistics], weights: NDArray[np.float64]) -> Statistics:
    total = sums[0].scaled(float(weights[0]))
    for one, weight in zip(sums[1:], weights[1:], strict=True):
        total = total + one.scaled(float(weight))
    return total


def _influences(
    sums: Sequence[Statistics], weights: NDArray[np.float64], reference: Statistics, rule: Rule
) -> NDArray[np.float64]:
    """`[K]`: by how much the scores would change without each."""
    metric = reference.matrix / reference.weight
    both = with_prior(_weighed(sums, weights), reference, rule.prior)
    found = np.empty(len(sums))
    try:
        solved = _Solved.of(both, rule.ridge)
        is_many = len(sums) >= max(_MANY, 4 * len(metric))
        if is_many:
            found, first = _bounded(sums, weights, solved, metric)
            exactly: Sequence[int] = first
        else:
            exactly = range(len(sums))
        for place in exactly:
            matrix = weights[place] * sums[place].matrix
            force = weights[place] * sums[place].b - matrix @ solved.w
            found[place] = _size(np.linalg.solve(solved.g - matrix, force), metric)
    except np.linalg.LinAlgError as error:
        raise EvidenceError(
            "not the sums of any samples", where=_WHERE, expected="sums that have a solution", got="none"
        ) from error
    return found


def _bounded(
    sums: Sequence[Statistics], weights: NDArray[np.float64], solved: _Solved, metric: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[int]]:
    """`[K]` bounds of the influences, and the places of those with the largest, which are to be known exactly.

    With `L L^T = G^-1` and `R = L^T u A_k L` the change is `L (1 - R)^-1 L^T force`: what it is to first order, `L L^T force`, and
    `L R (1 - R)^-1 L^T force`, no longer than `|L| |R| / (1 - |R|) |L^T force|`. `|R|` is at most its Frobenius norm; where that is 1
    or more, only the exact change tells.
    """
    inverse = np.linalg.inv(solved.g)
    root = np.linalg.cholesky(inverse)
    found = np.empty(len(sums))
    # of a vector in the metric, at most, for its length in that of G
    longest = float(np.sqrt(max(0.0, np.linalg.eigvalsh(root.T @ metric @ root)[-1])))
    for place, (one, weight) in enumerate(zip(sums, weights, strict=True)):
        matrix = weight * one.matrix
        force = weight * one.b - matrix @ solved.w
        change, product = inverse @ force, matrix @ inverse
        share = float(np.sqrt(max(0.0, float((product * product.T).sum()))))
        length = float(np.sqrt(max(0.0, float((force * change).sum()))))
        rest = longest * length * share / (1 - share) if share < 1 else np.inf
        found[place] = _size(change, metric) + rest
    order = np.argsort(-found)
    return found, order[: max(_EXACT, int(np.isinf(found).sum()))].tolist()


def _weights_of(statistics: Statistics, ridge: float) -> NDArray[np.float64]:
    head = solve(statistics, ridge=usual_ridge(statistics, ridge))
    return np.vstack([head.weight, head.bias]).astype(np.float64)


def _size(change: NDArray[np.float64], metric: NDArray[np.float64]) -> float:
    return float(np.sqrt(max(0.0, float((change * (metric @ change)).sum()))))

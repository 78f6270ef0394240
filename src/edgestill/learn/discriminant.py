"""Another head from the same sums: the linear discriminant, of classes that lie around their means, all in one shape.

Sums of A and B hold all that it takes. With `n_c = sum y_c`, the class means `mu_c = B_c / n_c` and the scatter within classes
`S = (A - sum_c n_c mu_c mu_c^T) / n`, the head is `w_c = S^-1 mu_c`, `b_c = ln(n_c / n) - mu_c^T S^-1 mu_c / 2` (Fisher 1936; Hastie, Tibshirani and Friedman
2009, equation 4.10). Targets may be probabilities: that is the M step of a mixture whose parts share one covariance.

S is drawn towards a multiple of the identity, `(1 - shrink) S + shrink tr(S) / D I` (Friedman 1989, equation 18): a little steadies few samples, much of it compares
distances to the means. Its scores are logits, as far as the classes are as assumed; fit a temperature for them as for any.

Least squares (`learn.statistics.solve`) asks how far scores are from targets, which also punishes scores that are right beyond doubt. Which of the two is better is for data to
say; that costs a fleet no byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn.statistics import Head

if TYPE_CHECKING:
    from edgestill.learn.statistics import Statistics

SHRINKS: Final = (1e-3, 0.1, 0.5, 0.9)
"""Worth trying."""
_WHERE: Final = "statistics"
_RAREST: Final = 1e-6
"""Share of a class that has next to no samples, or fewer than none of noisy sums. It is taken to lie where the most frequent one does, which is
likelier there and everywhere: so it is never named."""


def discriminant(statistics: Statistics, *, shrink: float) -> Head:
    """The head.

    Args:
        statistics: of features; with noise, made possible first (`learn.privacy.possible`).
        shrink: above 0, at most 1.

    Raises:
        EvidenceError: a shrink out of range, no samples, or sums that have no such head.
    """
    if not 0 < shrink <= 1:
        raise EvidenceError(
            "shrink is out of range",
            where=_WHERE,
            expected="above 0, at most 1",
            got=shrink,
            fix="choose 0.1",
        )
    a, b = statistics.matrix, statistics.b
    n, each = a[-1, -1], b[-1]
    if not n > 0:
        raise EvidenceError("no samples", where=_WHERE, expected="a weight above 0", got=n)
    some = each > _RAREST * n
    means = b[:-1] / np.where(some, each, 1)  # [D, C]
    means[:, ~some] = means[:, [each.argmax()]]
    within = (a[:-1, :-1] - (means * np.where(some, each, 0)) @ means.T) / n
    size = max(float(np.trace(within)) / len(within), np.finfo(np.float64).tiny)
    shaped = (1 - shrink) * within + shrink * size * np.eye(len(within))
    try:
        factor = np.linalg.cholesky(shaped)
    except np.linalg.LinAlgError as error:
        raise EvidenceError(
            "not the sums of any samples",
            where=_WHERE,
            expected="a positive definite scatter within classes",
            got="one that is not",
            fix="shrink more, or send float64",
        ) from error
    half = np.linalg.solve(factor, means)
    weight = np.linalg.solve(factor.T, half)
    bias = np.log(np.maximum(each / n, _RAREST)) - np.square(half).sum(axis=0) / 2
    head = Head(weight.astype(np.float32), bias.astype(np.float32))
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise EvidenceError(
            "no finite solution",
            where=_WHERE,
            expected="finite weights",
            got="NaN or infinity",
            fix="shrink more",
        )
    return head

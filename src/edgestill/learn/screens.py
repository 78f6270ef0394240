"""What sums over a classifier's samples must look like, beyond being finite: cheap tests that honest messages pass by arithmetic.

Targets y are probabilities or one-hot labels: not negative, and 1 together. So, with s the last row of B (the constant's),

- `sum_c B_ic = A_i,last` for every feature i: both are `sum w phi_i`;
- `s_c >= 0`;
- `|B_ic| <= sqrt(A_ii s_c)`: by Cauchy and Schwarz, since `y_c^2 <= y_c`;
- A has no negative eigenvalue, of `int8` messages what is left of A without the means;
- noise that is told of can be seen: it is not a thousand times as large as every element that has it.

Each holds up to what the message's own rounding, and noise it tells of, can do; each row is tested at its own size, so that one long
feature excuses nothing in the others. Targets that came as half-precision probabilities are 1 together up to a thousandth. So a message
whose A was blown up or shrunken without its B, or whose B was made larger, is refused whoever sent it. What passes may still be a lie:
labels that are wrong, samples that never were. Against those there is `learn.robust`. Who claims noise gets a wider test, and no more
weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn.privacy import noise_reach
from edgestill.learn.statistics import MOST_NOISE, Statistics, dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.learn.encodings import Dtype

_EPSILON: Final[dict[Dtype, float]] = {"float64": 1e-9, "float32": 1e-6, "float16": 1e-3, "int8": 1e-6}
"""Relative error of an element."""
_LEAST: Final[dict[Dtype, float]] = {"float64": 0.0, "float32": 0.0, "float16": 6e-8, "int8": 0.0}
"""Error of an element however small it is, as a share of the largest: half precision has no smaller numbers."""
_TOGETHER: Final = 1e-3
"""By which a sample's probabilities may miss 1: `link.inference` takes a teacher's answer so, and older devices learned it so."""
_TURNED: Final = 1e-3
"""By which rounding a message to float32 may lower an eigenvalue, where every feature has a mean square of 1."""
_CANCELLED: Final = 1e-12
"""Of a square, what is lost where the mean is taken out of it."""
_UNSEEN: Final = 1_000.0
_WHERE: Final = "statistics"


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """A message's sums, cut: squares `diag(A)` at most, the constant's column of A, B, and what each row may be off `[D+1]`."""

    squares: NDArray[np.float64]
    last: NDArray[np.float64]
    b: NDArray[np.float64]
    slack: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: Statistics, dtype: Dtype) -> Self:
        matrix, b = statistics.matrix, statistics.b
        classes, spread = statistics.classes, MOST_NOISE * statistics.noise[0]
        least = [_LEAST[dtype] * float(np.abs(part).max()) for part in (matrix, b)]
        squares = np.maximum(matrix.diagonal(), 0.0) + least[0] + spread
        # what Cauchy and Schwarz allow each row's sum of weighed features
        longest = np.sqrt(squares) * np.sqrt(squares[-1])
        slack = (_TOGETHER + _EPSILON[dtype] * (1 + np.sqrt(classes))) * longest
        slack += least[0] + classes * least[1]
        if dtype == "int8":
            # half a code of each class, whose scales are together sqrt(C w) at most
            slack += np.sqrt(classes) * longest / 250
        slack += spread + MOST_NOISE * np.sqrt(classes) * statistics.noise[1]
        return cls(squares, matrix[:, -1], b, slack)


def read(data: bytes, *, backbone: Digest | None = None) -> Statistics:
    """A message from outside, over a classifier's samples.

    Raises:
        MessageError, EvidenceError: as `Statistics.from_bytes`, or nothing that samples of a classifier give.
    """
    statistics = Statistics.from_bytes(data, backbone=backbone)
    check(statistics, dtype_of(data))
    return statistics


def check(statistics: Statistics, dtype: Dtype = "float64") -> None:
    """Looks whether a classifier's samples can have these sums.

    Args:
        statistics: finite, as `Statistics.from_bytes` gives them.
        dtype: to which the message was rounded.

    Raises:
        EvidenceError: they cannot.
    """
    for noise, part in zip(statistics.noise, (statistics.a, statistics.b), strict=True):
        if noise > _UNSEEN * float(np.abs(part).max()):
            raise _impossible("noise that can be seen in the sums", "sums a thousandth of it")
    parts = _Parts.of(statistics, dtype)
    if (np.abs(parts.b.sum(axis=1) - parts.last) > parts.slack).any():
        raise _impossible("targets that are 1 together: sum_c B_ic = A_i,last", "another sum")
    targets = parts.b[-1]
    if (targets < -parts.slack[-1]).any():
        raise _impossible("targets that are not negative", "a negative sum of one class")
    spread = MOST_NOISE * statistics.noise[1]
    bound = np.sqrt(np.outer(parts.squares, np.maximum(targets, 0.0) + spread + parts.slack[-1]))
    if (np.abs(parts.b) > bound + parts.slack[:, None]).any():
        raise _impossible("|B_ic| <= sqrt(A_ii s_c) (Cauchy-Schwarz)", "larger ones")
    _check_definite(statistics, dtype)


def _check_definite(statistics: Statistics, dtype: Dtype) -> None:
    matrix, size = statistics.matrix, statistics.features + 1
    squares = np.maximum(matrix.diagonal(), 0.0)
    # errors that are as large in every element: of noise, and of small numbers in half precision
    even = noise_reach(statistics) + size * _LEAST[dtype] * float(np.abs(matrix).max())
    if dtype == "int8" and statistics.weight > 0:
        matrix = matrix - np.outer(matrix[:, -1], matrix[-1]) / statistics.weight
        squares = np.maximum(matrix.diagonal(), 0.0) + _CANCELLED * squares
    # a feature that is never there has a row of zeros, which the slack makes definite
    lengths = np.sqrt(squares + even) + np.finfo(np.float32).tiny
    related = (matrix + even * np.eye(size)) / np.outer(lengths, lengths)
    try:
        np.linalg.cholesky(related + _turned(related, dtype) * np.eye(size))
    except np.linalg.LinAlgError as error:
        raise _impossible("A without negative eigenvalues", "one that has some") from error


def _turned(related: NDArray[np.float64], dtype: Dtype) -> float:
    """By which rounding may lower an eigenvalue of the correlations `[D+1, D+1]`; errors of elements have no common direction."""
    size = len(related)
    if dtype == "float16":
        return float(_EPSILON[dtype] * np.sqrt(size)) + _TURNED
    if dtype == "int8":
        largest = min(1.0, float(np.abs(related - np.diag(related.diagonal())).max()))
        return float(np.sqrt(size)) * largest / 127 + _TURNED
    return _TURNED


def _impossible(expected: str, got: str) -> EvidenceError:
    return EvidenceError(
        "no classifier's samples have these sums",
        where=_WHERE,
        expected=expected,
        got=got,
        fix="send sums over samples whose targets are probabilities",
    )

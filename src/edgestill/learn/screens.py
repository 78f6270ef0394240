"""What sums over a classifier's samples must look like, beyond being finite: cheap tests that honest messages pass by arithmetic.

Targets y are probabilities or one-hot labels: not negative, and 1 together. So, with s the last row of B (the constant's),

- `sum_c B_ic = A_i,last` for every feature i: both are `sum w phi_i`;
- `s_c >= 0`;
- `|B_ic| <= sqrt(A_ii s_c)`: by Cauchy and Schwarz, since `y_c^2 <= y_c`;
- A has no negative eigenvalue. (Told of float32 and float64 messages only: coarser rounding can make one.)

Each holds up to what the message's own rounding, and noise it tells of, can do. So a message whose A was blown up or shrunken without
its B, or whose B was made larger, is refused whoever sent it. What passes may still be a lie: labels that are wrong, samples that never
were. Against those there is `learn.robust`. Who claims noise gets a wider test, and no more weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn.statistics import MOST_NOISE, Statistics, dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.learn.encodings import Dtype

_EPSILON: Final[dict[Dtype, float]] = {"float64": 1e-9, "float32": 1e-5, "float16": 2e-3, "int8": 1e-5}
_TURNED: Final = 1e-3
"""By which rounding a message to float32 may lower an eigenvalue, where every feature has a mean square of 1."""
_WHERE: Final = "statistics"


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """A message's sums, cut: squares `diag(A)`, the constant's column of A, B, and what each row may be off `[D+1]`."""

    squares: NDArray[np.float64]
    last: NDArray[np.float64]
    b: NDArray[np.float64]
    slack: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: Statistics, dtype: Dtype) -> Self:
        matrix, b = statistics.matrix, statistics.b
        squares = np.maximum(matrix.diagonal(), 0.0)
        classes = statistics.classes
        largest = max(float(np.abs(matrix).max()), classes * float(np.abs(b).max()))
        slack = np.full(len(squares), _EPSILON[dtype] * largest)
        if dtype == "int8":
            # half a code of each class, whose scales are together sqrt(C w) at most
            slack += np.sqrt(classes * squares * max(statistics.weight, 0.0)) / 250
        slack += MOST_NOISE * (statistics.noise[0] + np.sqrt(classes) * statistics.noise[1])
        return cls(squares + MOST_NOISE * statistics.noise[0], matrix[:, -1], b, slack)


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
    if dtype in {"float32", "float64"} and not any(statistics.noise):
        _check_definite(statistics.matrix, parts.squares)


def _check_definite(matrix: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
    # a feature that is never there has a row of zeros, which the slack makes definite
    lengths = np.sqrt(squares) + np.finfo(np.float32).tiny
    try:
        np.linalg.cholesky(matrix / np.outer(lengths, lengths) + _TURNED * np.eye(len(matrix)))
    except np.linalg.LinAlgError as error:
        raise _impossible("A without negative eigenvalues", "one that has some") from error


def _impossible(expected: str, got: str) -> EvidenceError:
    return EvidenceError(
        "no classifier's samples have these sums",
        where=_WHERE,
        expected=expected,
        got=got,
        fix="send sums over samples whose targets are probabilities",
    )

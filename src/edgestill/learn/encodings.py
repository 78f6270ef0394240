"""How the two sums of a message become bytes: rounded to a float, or to codes of eight bits.

Floats are the elements themselves; float16 are divided by the largest one, which the head carries.

`int8` is made for the *solution*, not for the elements. Rounding moves a head the more, the worse A is conditioned, so

- what nearly all of the head hangs on stays float32: the total weight w, the sums m of the features and s of the targets (the
  constant's row of A and B), and the squares `diag(S)` of the centred `S = A - m m^T / w`;
- of the rest only what is left is rounded: the correlations `S_ij / sqrt(S_ii S_jj)`, divided by the largest of them, and the
  centred `B - m s^T / w` over `sqrt(S_ii)`, each class divided by its own largest;
- to the nearest code. Rounding at random would be without bias, but was worse wherever it was measured.

What is read back obeys Cauchy and Schwarz by construction, and the total weight, means and squares are those of the sender.
The error of a head is small only where features are nearly uncorrelated: `learn.coordinates` makes them so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn import framing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import Fields, JsonObject

Dtype = Literal["float16", "float32", "float64", "int8"]

ROUNDING: Final = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-12, "int8": 1e-6}
"""What rounding may add to |a_ij| over what Cauchy and Schwarz allow, as a share of the largest element."""

_LEVELS: Final = 127
_USUAL: Final = 600
_SCALES: Final = (1e-300, 1e300)
_WHERE: Final = "statistics"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Both sums.

    Attributes:
        a: float64 `[(D+1)(D+2)/2]`, the upper triangle of A by rows.
        b: float64 `[D+1, C]`.
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]


def encode(pair: Pair, dtype: Dtype) -> tuple[JsonObject, list[NDArray[np.generic]]]:
    """What the head must say, and the arrays that follow it.

    Raises:
        EvidenceError: sums too large for the element type.
    """
    with np.errstate(over="ignore"):
        head, arrays = _codes(pair) if dtype == "int8" else _floats(pair, dtype)
    if not all(np.isfinite(array).all() for array in arrays):
        raise EvidenceError(
            "sums too large for their element type",
            where=_WHERE,
            got=dtype,
            expected="sums within its range",
            fix="send float64, or a shorter window",
        )
    return head, arrays


def decode(fields: Fields, rest: memoryview, *, dtype: Dtype, features: int, classes: int) -> Pair:
    """The sums of a message; they may still hold NaN, or be none that samples have.

    Args:
        fields: of the head.
        rest: the arrays' bytes.
        dtype: as the head names it.
        features: D, within its bounds.
        classes: C, within its bounds.

    Raises:
        MessageError: sizes that do not add up, or a scale out of range.
    """
    if dtype == "int8":
        return _read_codes(rest, features, classes)
    size = features + 1
    scales = [fields.number(name, least=_SCALES[0], most=_SCALES[1]) for name in ("scale_a", "scale_b")]
    a, b = framing.cut(rest, (size * (size + 1) // 2, size * classes), dtype, where=_WHERE)
    with np.errstate(over="ignore", invalid="ignore"):
        return Pair(a * scales[0], (b * scales[1]).reshape(size, classes))


def triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle of `[D, D]` by rows."""
    upper: NDArray[np.float64] = matrix[places(len(matrix))]
    return upper


def diagonal(upper: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The diagonal `[size]` of an upper triangle by rows."""
    rows = np.arange(size)
    found: NDArray[np.float64] = upper[rows * size - rows * (rows - 1) // 2]
    return found


def places(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of an upper triangle by rows; those of usual sizes are kept, as a hub asks for them ten thousand times."""
    return _kept_places(size) if size <= _USUAL else _made_places(size)


def _made_places(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.triu_indices(size)
    for one in (rows, columns):
        one.setflags(write=False)
    return rows, columns


_kept_places = lru_cache(maxsize=4)(_made_places)


def square(upper: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The symmetric matrix `[size, size]` of an upper triangle."""
    full = np.empty((size, size))
    rows, columns = places(size)
    full[rows, columns] = upper
    full[columns, rows] = upper
    return full


def _floats(pair: Pair, dtype: str) -> tuple[JsonObject, list[NDArray[np.generic]]]:
    scales = [1.0, 1.0]
    if dtype == "float16":
        scales = [float(np.abs(part).max()) or 1.0 for part in (pair.a, pair.b)]
    arrays: list[NDArray[np.generic]] = [
        (part.ravel() / scale).astype(dtype) for part, scale in zip((pair.a, pair.b), scales, strict=True)
    ]
    return {"scale_a": scales[0], "scale_b": scales[1]}, arrays


def _codes(pair: Pair) -> tuple[JsonObject, list[NDArray[np.generic]]]:
    size = len(pair.b)
    matrix = square(pair.a, size)
    weight, means = matrix[-1, -1], matrix[:-1, -1]
    # a weight of 0 has no samples, and no sums
    shares = means / weight if weight > 0 else np.zeros_like(means)
    centred = matrix[:-1, :-1] - np.outer(shares, means)
    squares = np.maximum(centred.diagonal(), 0.0).astype(np.float32)
    lengths = np.maximum(np.sqrt(squares.astype(np.float64)), np.finfo(np.float32).tiny)
    rows, columns = np.triu_indices(size - 1, k=1)
    correlations = np.clip(centred[rows, columns] / (lengths[rows] * lengths[columns]), -1, 1)
    correlations[(squares[rows] == 0) | (squares[columns] == 0)] = 0
    slopes = (pair.b[:-1] - np.outer(shares, pair.b[-1])) / lengths[:, None]
    slopes[squares == 0] = 0
    largest = np.abs(correlations).max(initial=0.0, keepdims=True).astype(np.float32)
    steepest = np.abs(slopes).max(axis=0).astype(np.float32)
    return {}, [
        *(part.astype(np.float32) for part in (matrix[:, -1], squares, pair.b[-1])),
        largest,
        steepest,
        _nearest(correlations, largest),
        _nearest(slopes, steepest).ravel(),
    ]


def _nearest(values: NDArray[np.float64], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """Codes from -127 to 127 of values within the scale."""
    codes = np.rint(_LEVELS * values / np.maximum(scale.astype(np.float64), np.finfo(np.float32).tiny))
    return np.clip(codes, -_LEVELS, _LEVELS).astype(np.int8)


def _read_codes(rest: memoryview, features: int, classes: int) -> Pair:
    floats = (features + 1, features, classes, 1, classes)
    codes = (features * (features - 1) // 2, features * classes)
    border = 4 * sum(floats)
    wanted = border + sum(codes)
    if wanted != len(rest):
        raise MessageError(
            "head and arrays disagree", where=_WHERE, expected=f"{wanted} bytes", got=len(rest)
        )
    last, squares, targets, largest, steepest = framing.cut(rest[:border], floats, "float32", where=_WHERE)
    if squares.min() < 0 or last[-1] < 0 or not 0 <= largest[0] <= 1 or steepest.min() < 0:
        raise EvidenceError(
            "not the sums of any samples",
            where=_WHERE,
            expected="squares, scales and a weight that are not negative, correlations of at most 1",
            got="others",
        )
    related, slopes = framing.cut(rest[border:], codes, "int8", where=_WHERE)
    with np.errstate(over="ignore", invalid="ignore"):
        return _whole(
            last,
            squares,
            targets,
            related * largest / _LEVELS,
            slopes.reshape(features, classes) * steepest / _LEVELS,
        )


def _whole(
    last: NDArray[np.float64],
    squares: NDArray[np.float64],
    targets: NDArray[np.float64],
    correlations: NDArray[np.float64],
    slopes: NDArray[np.float64],
) -> Pair:
    """The sums from their parts; codes of -128, which nobody writes, are cut to what a correlation may be."""
    features, lengths = len(squares), np.sqrt(squares)
    shares = last[:-1] / last[-1] if last[-1] > 0 else np.zeros(features)
    rows, columns = places(features)
    related = np.ones(len(rows))
    related[rows != columns] = np.clip(correlations, -1, 1)
    within = related * lengths[rows] * lengths[columns] + shares[rows] * last[columns]
    a = np.empty((features + 1) * (features + 2) // 2)
    # the same places in the triangle that has the constant, too; its column ends each row
    a[rows * (features + 1) - rows * (rows - 1) // 2 + columns - rows] = within
    starts = np.arange(features + 1)
    a[starts * (features + 1) - starts * (starts - 1) // 2 + features - starts] = last
    b = np.vstack([slopes * lengths[:, None] + np.outer(shares, targets), targets])
    return Pair(a, b)

"""Making probabilities mean what they say: temperature, alpha, and how far off they are.

- One number each, found where the derivative of a convex loss changes its sign, by bisection over stated bounds:
  no start, no step size, the same result every time.
- Labels are class numbers `[N]`, or distributions `[N, C]` such as a teacher's probabilities.
- Fit on data that nothing else was fitted on, and report on a third part.
- Samples that hang together say less than their number: a hundred windows of one person are one person. Told how many
  independent `units` there are, both fits weigh the likelihood as so many samples and add a prior (the mode of the
  posterior): for 1 / temperature the Gamma distribution with shape 3 and rate 2, whose mode is 1, for alpha the Beta
  distribution (2.8, 1.2), whose mode is 0.9: who is asked is believed until the data say otherwise. Few units stay near
  the mode; many speak for themselves; alpha is never quite 0 or 1. Both objectives stay convex.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, SettingError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TEMPERATURE_BOUNDS: Final = (0.01, 100.0)
_HALVINGS: Final = 60
BELIEVED: Final = 0.9
"""The teacher's weight where nothing is known of both."""
_PULL: Final = 2.0  # of the Gamma prior: shape - 1 and rate; of the Beta prior: both shapes - 2
_TINY: Final = 1e-12
_MATRIX: Final = 2
_MORE: Final = "hold some samples out of training"
_LOOK: Final = "look for the samples that make the model overflow"


def fit_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.generic], *, units: int | None = None
) -> float:
    """The temperature in [0.01, 100] that makes `softmax(logits / temperature)` most likely.

    The negative log-likelihood is convex in 1 / temperature; its derivative there is
    `mean(sum_c p_c z_c - sum_c y_c z_c)` (Guo et al. 2017, section 4.2).

    Args:
        logits: `[N, C]`.
        labels: `[N]` class numbers or `[N, C]` distributions.
        units: how many independent samples these N are worth, with the prior; None leaves the prior out.

    Raises:
        DataError, ShapeError, ClassCountError, NotFiniteError: nothing to fit on, or arrays that do not fit.
        SettingError: fewer than 1 unit.
    """
    _check_units(units)
    z = np.asarray(logits, dtype=np.float64)
    y = _distributions(labels, z, "logits")
    wanted = float((y * z).sum(axis=1).mean())

    def slope(log_beta: float) -> float:
        scaled = z * np.exp(log_beta)
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        likelihood = float((p * z).sum(axis=1).mean()) - wanted
        return likelihood if units is None else units * likelihood + _PULL * (1 - np.exp(-log_beta))

    low, high = TEMPERATURE_BOUNDS
    return float(np.exp(-_root(slope, -float(np.log(high)), -float(np.log(low)))))


def fit_alpha(
    teacher_probabilities: NDArray[np.floating],
    student_probabilities: NDArray[np.floating],
    labels: NDArray[np.generic],
    *,
    units: int | None = None,
) -> float:
    """The teacher's weight in [0, 1] that makes `alpha * teacher + (1 - alpha) * student` most likely.

    The negative log-likelihood is convex in alpha. Where both voices are the same everywhere, alpha is 0.

    Args:
        teacher_probabilities: calibrated, `[N, C]`.
        student_probabilities: calibrated, `[N, C]`.
        labels: `[N]` class numbers or `[N, C]` distributions.
        units: as of `fit_temperature`.

    Raises:
        DataError, ShapeError, ClassCountError, NotFiniteError, SettingError: as `fit_temperature`.
    """
    _check_units(units)
    s = np.asarray(student_probabilities, dtype=np.float64)
    t = np.asarray(teacher_probabilities, dtype=np.float64)
    y = _distributions(labels, s, "student's probabilities")
    _distributions(labels, t, "teacher's probabilities")
    gap = y * (t - s)

    def slope(alpha: float) -> float:
        likelihood = -float((gap / np.maximum(alpha * t + (1 - alpha) * s, _TINY)).sum(axis=1).mean())
        if units is None:
            return likelihood
        believed, doubted = _PULL * BELIEVED, _PULL * (1 - BELIEVED)
        return units * likelihood - believed / max(alpha, _TINY) + doubted / max(1 - alpha, _TINY)

    return _root(slope, 0.0, 1.0)


def negative_log_likelihood(probabilities: NDArray[np.floating], labels: NDArray[np.generic]) -> float:
    """The mean of `-ln p` of the labels, in nats; probabilities are taken as at least 1e-12.

    Raises:
        DataError, ShapeError, ClassCountError, NotFiniteError: as `fit_temperature`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = _distributions(labels, p, "probabilities")
    return -float((y * np.log(np.maximum(p, _TINY))).sum(axis=1).mean())


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.generic], *, bins: int = 15
) -> float:
    """The mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, eq. 3), in [0, 1].

    Args:
        probabilities: `[N, C]`.
        labels: `[N]` class numbers; of distributions the largest counts.
        bins: over [0, 1]; a confidence on a border belongs to the bin below.

    Raises:
        DataError, ShapeError, ClassCountError, NotFiniteError: as `fit_temperature`; DataError for no bins.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    right = p.argmax(axis=1) == _distributions(labels, p, "probabilities").argmax(axis=1)
    if bins < 1:
        raise DataError("no bins", where="bins", expected="at least 1", got=bins, fix="take 15, as is usual")
    confidence = p.max(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def _root(slope: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses 0; the nearer end where it does not."""
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check_units(units: int | None) -> None:
    if units is not None and units < 1:
        raise SettingError(
            "a number of units is out of range",
            where="units",
            expected="1 or more",
            got=units,
            fix="count the groups",
        )


def _distributions(
    labels: NDArray[np.generic], values: NDArray[np.float64], what: str
) -> NDArray[np.float64]:
    """Labels as `[N, C]` that fit `values`, all of it checked."""
    if values.ndim != _MATRIX:
        raise ShapeError(
            f"the {what} are no matrix",
            where=what,
            expected="[N, C]",
            got=list(values.shape),
            fix="give one row a sample",
        )
    n, classes = values.shape
    if n == 0:
        raise DataError(
            "nothing to calibrate on", where=what, expected="at least one sample", got=0, fix=_MORE
        )
    if not np.isfinite(values).all():
        raise NotFiniteError(
            f"the {what} hold NaN or infinity",
            where=what,
            expected="finite numbers",
            fix=_LOOK,
            got="NaN or infinity",
        )
    given = np.asarray(labels)
    if given.ndim == 1 and len(given) == n and given.dtype.kind in "iu":
        numbers = given.astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= classes:
            raise ClassCountError(
                f"labels and {what} disagree",
                where="labels",
                expected=f"0 to {classes - 1}",
                got=f"{numbers.min()} to {numbers.max()}",
                fix="give the labels this model was trained for",
            )
        return np.eye(classes)[numbers]
    if given.shape != (n, classes) or given.dtype.kind != "f":
        raise ShapeError(
            f"labels do not fit the {what}",
            where="labels",
            expected=f"[{n}] whole numbers, or [{n}, {classes}] floats",
            got=f"{list(given.shape)} {given.dtype}",
            fix="give one label, or one distribution, a sample",
        )
    soft = given.astype(np.float64)
    if not np.isfinite(soft).all():
        raise NotFiniteError(
            "the labels hold NaN or infinity",
            where="labels",
            expected="finite numbers",
            fix=_LOOK,
            got="NaN or infinity",
        )
    return soft

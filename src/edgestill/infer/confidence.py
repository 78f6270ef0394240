"""Logits, probabilities and one number that says how sure they are.

Three measures of confidence are told from the probabilities, each in [0, 1], each 1 where all is on one class:

- `max_probability`: of the best class; at least 1/C.
- `margin`: between the best and the second best class; 0 on a tie.
- `entropy`: 1 - H(p) / ln C, with H the Shannon entropy; 0 where all classes are as likely.

The fourth, `leverage`, is told from the student's features, by the model itself: 1 / (1 + h), h being how far they lie from
those of its training data. What has no such features, a fused answer, has its `max_probability` instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import MessageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.infer.policy import Measure


PROBABILITY_SLACK: Final = 1e-3
_ONE: Final = np.float32(1)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities `[N, C]` of logits `[N, C]` divided by `temperature` (Guo et al. 2017, eq. 9)."""
    # the ufuncs' own reductions: an array's methods cost a microsecond more each, and an answer is some tens
    scaled = logits / np.float32(temperature)
    scaled -= np.maximum.reduce(scaled, axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= np.add.reduce(scaled, axis=1, keepdims=True)
    return scaled.astype(np.float32, copy=False)


def confidence_of(probabilities: NDArray[np.float32], measure: Measure) -> NDArray[np.float32]:
    """Confidence `[N]`, in [0, 1], of probabilities `[N, C]`; with one class it is 1."""
    if measure in {"max_probability", "leverage"} or probabilities.shape[1] == 1:
        best: NDArray[np.float32] = np.minimum(np.maximum.reduce(probabilities, axis=1), _ONE)
        return best
    if measure == "margin":
        two = np.partition(probabilities, -2, axis=1)
        margin: NDArray[np.float32] = two[:, -1] - two[:, -2]
        return margin
    return _certainty(probabilities)


def require_probabilities(given: NDArray[np.floating], count: int, classes: int | None = None) -> None:
    """Looks whether a teacher's answer is what may be believed.

    Args:
        given: its probabilities.
        count: of the inputs that were asked about.
        classes: C; None takes any number.

    Raises:
        MessageError: they are not `[count, classes]`, or their rows are no distributions.
    """
    if given.ndim != 2 or len(given) != count or not given.size or classes not in {None, given.shape[1]}:
        raise MessageError(
            "the teacher answered another question",
            where="teacher",
            expected=[count, "C" if classes is None else classes],
            got=list(given.shape),
            fix="compare the versions of both sides",
        )
    if not (given.min() >= 0 and np.abs(given.sum(axis=1) - 1).max() <= PROBABILITY_SLACK):
        raise MessageError(
            "the teacher's answer is no set of probabilities",
            where="teacher",
            expected="rows of probabilities",
            fix="look at the teacher: its rows must sum to 1",
            got="other numbers",
        )


def require_voices(answer: Answer) -> None:
    """Looks whether an answer tells who decided about each of its inputs.

    Raises:
        MessageError: it tells of more or fewer inputs than it has.
    """
    teacher = answer.probabilities if answer.teacher is None else answer.teacher
    if len(answer.decided_by) != len(teacher) or teacher.shape != answer.probabilities.shape:
        raise MessageError(
            "the teacher answered another question",
            where="teacher",
            expected=list(answer.probabilities.shape),
            got=[len(answer.decided_by), *teacher.shape],
            fix="compare the versions of both sides",
        )


def certain_by(leverage: NDArray[np.floating]) -> NDArray[np.float32]:
    """Confidence `[N]`, `1 / (1 + h)` in (0, 1], of leverages `[N]`, not negative; what rounding made negative is 0."""
    sure: NDArray[np.float32] = (1 / (1 + np.maximum(leverage, 0))).astype(np.float32)
    return sure


def _certainty(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    logs = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    entropy = -(probabilities * logs).sum(axis=1)
    certainty: NDArray[np.float32] = np.clip(1 - entropy / math.log(probabilities.shape[1]), 0, 1)
    return certainty.astype(np.float32, copy=False)

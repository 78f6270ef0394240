"""Two voices, one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.infer.policy import Policy


def fuse(
    teacher: NDArray[np.float32], student: NDArray[np.float32], alpha: float | NDArray[np.float32]
) -> NDArray[np.float32]:
    """`alpha * teacher + (1 - alpha) * student`, on calibrated probabilities `[N, C]`.

    A linear opinion pool (Stone 1961): of two distributions it is one again.

    Args:
        teacher: `[N, C]`.
        student: `[N, C]`.
        alpha: in [0, 1], one for all or `[N]`.
    """
    weight = np.asarray(alpha, dtype=np.float32)
    if weight.ndim:
        weight = weight[:, None]
    return weight * teacher + (1 - weight) * student


def weights(policy: Policy, confidence: NDArray[np.floating]) -> NDArray[np.float32]:
    """The teacher's weight `[N]` in each answer, where the student's confidences are `[N]`."""
    if not policy.bands:
        return np.full(len(confidence), policy.alpha, dtype=np.float32)
    alphas = np.array([*(band.alpha for band in policy.bands), policy.alpha], dtype=np.float32)
    borders = [band.below for band in policy.bands]
    return alphas[np.searchsorted(borders, confidence, side="right")]

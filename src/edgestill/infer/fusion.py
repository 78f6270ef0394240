"""Two voices, one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fuse(teacher: NDArray[np.float32], student: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """`alpha * teacher + (1 - alpha) * student`, on calibrated probabilities `[N, C]`; alpha in [0, 1].

    A linear opinion pool (Stone 1961): of two distributions it is one again.
    """
    return np.float32(alpha) * teacher + np.float32(1 - alpha) * student

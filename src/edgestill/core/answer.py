"""The answer to a batch, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VOICES: Final = ("student", "teacher", "fused")
"""Who may decide about an input: either, or both together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What is believed about each of N inputs, and who says so.

    Attributes:
        probabilities: float32 `[N, C]`; calibrated, or fused from calibrated ones.
        confidence: float32 `[N]`, in [0, 1].
        decided_by: per input one of `VOICES`.
        features: float32 `[N, D]`, the layer before the head; None where the model gives none.
        alpha: float32 `[N]`, the weight in each answer of whoever was asked; 0 where nobody was heard.
        student: the student's own calibrated probabilities where another voice was heard too, else None.
        teacher: the teacher's calibrated probabilities `[N, C]`, NaN rows where it was not heard; None if it never was.
        tiers: names of the larger models that were turned to for this answer, in order, whether or not they answered.
        latency: seconds from asking to answering, for the whole batch.
    """

    probabilities: NDArray[np.float32]
    confidence: NDArray[np.float32]
    decided_by: tuple[str, ...]
    features: NDArray[np.float32] | None = None
    alpha: NDArray[np.float32] | None = None
    student: NDArray[np.float32] | None = None
    teacher: NDArray[np.float32] | None = None
    tiers: tuple[str, ...] = ()
    latency: float = 0.0

    def __len__(self) -> int:
        return len(self.decided_by)

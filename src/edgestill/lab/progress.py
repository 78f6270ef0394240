"""How far a run is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["comparing", "asking", "training", "profiling", "searching"]
"""With plain training, on a slice; the teacher, for answers that are kept; the student; models, for their latencies; students."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step further.

    Attributes:
        phase: what is done.
        done: of it.
        of: in all: trainings on the slice, samples asked about, epochs, models, students.
        loss: of the epoch, while training.
    """

    phase: Phase
    done: int
    of: int
    loss: float | None = None


Show = Callable[[Progress], None]
"""Called in the first process only."""


def shown(show: Show | None, phase: Phase) -> Callable[[int, int], None] | None:
    """As a function of how much is done, and of how much there is."""
    if show is None:
        return None
    return lambda done, of: show(Progress(phase=phase, done=done, of=of))

"""Who answers for the teacher while a student is trained.

A guide is asked about a batch and gives the teacher's answers to exactly that view of it. `lab.cache` remembers them,
`LiveGuide` asks the module itself each time, `OnnxGuide` an exported one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from edgestill.core.digest import Digest
    from edgestill.lab.source import Ask, Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the teacher says.

    Attributes:
        logits: float32 `[N, C]`; values where the task is regression.
        features: what the hinted layer gives, `[N, ...]`, or None where no hint is wanted.
    """

    logits: Tensor
    features: Tensor | None = None


class Guide(Protocol):
    """Answers for the teacher."""

    @property
    def views(self) -> int | None:
        """How many views it can speak of; None for any."""
        ...

    @property
    def digest(self) -> Digest:
        """Of the teacher: its weights, and how it is asked."""
        ...

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """The teacher's answers to `inputs`, which are `ask`'s view."""
        ...

"""The student, and while a hint is wanted, the projector that is thrown away afterwards, as one module to train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

from torch import nn

from edgestill.core.errors import ModelError
from edgestill.lab.forward import evaluating, forward
from edgestill.lab.loss.hint import projector_for, watching

if TYPE_CHECKING:
    from torch import Tensor

    from edgestill.lab.data.source import Inputs
    from edgestill.lab.loss.hint import Hint
    from edgestill.lab.teacher.guide import Answer


@final
class Learner(nn.Module):
    """A model with what its training needs beside it.

    Args:
        model: the student.
        layer: the student's hinted layer, or None.
        projector: from that layer's width to the teacher's, or None.
    """

    def __init__(
        self, model: nn.Module, layer: str | None = None, projector: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model, self.layer, self.projector = model, layer, projector

    @classmethod
    def for_hint(cls, model: nn.Module, hint: Hint, inputs: Inputs, answer: Answer) -> Self:
        """With a projector whose sizes one batch tells.

        Args:
            model: the student.
            hint: which layers.
            inputs: of that batch.
            answer: the teacher's, with features.

        Raises:
            ModelError: the student has no such layer, or the teacher's features are not there.
            ShapeError: two layers of different kinds.
        """
        if answer.features is None:
            raise ModelError(
                "the teacher's features are not there",
                where=hint.teacher_layer,
                expected="features of the hint's layer",
                got="none",
                fix="open the guide with the same hint as the recipe",
            )
        with watching(model, hint.student_layer) as features, evaluating(model):
            forward(model, inputs)
            ours = features.tensor.shape
        projector = projector_for(ours, answer.features.shape, channels=hint.channels)
        return cls(model, hint.student_layer, projector)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Logits `[N, C]`, and the projected features where there is a hint."""
        if self.layer is None or self.projector is None:
            return forward(self.model, inputs), None
        with watching(self.model, self.layer) as features:
            logits = forward(self.model, inputs)
            return logits, self.projector(features.tensor)

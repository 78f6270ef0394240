"""Who answers for the teacher while a student is trained.

A guide is asked about a batch and gives the teacher's answers to exactly that view of it. `lab.teacher.cache` remembers them,
`LiveGuide` asks the module itself each time, `OnnxGuide` (`lab.teacher.onnxguide`) an exported one.

- The teacher is never trained: it is asked in evaluation mode, whatever mode it was left in, so that its BatchNorm
  statistics stay as they are, and without gradients.
- Answers are ordinary float32 tensors that a loss may take part in, on the device the inputs came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

import torch
from torch import Tensor, nn

from edgestill.core.digest import Digest
from edgestill.lab.data.source import mapped, tensors
from edgestill.lab.forward import evaluating, forward, model_digest
from edgestill.lab.layout import lay_out_
from edgestill.lab.loss.hint import watching

if TYPE_CHECKING:
    from edgestill.lab.data.source import Ask, Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the teacher says.

    Attributes:
        logits: float32 `[N, C]`; values where the task is regression.
        features: float32, what the hinted layer gives, `[N, ...]`, or None where no hint is wanted.
    """

    logits: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device) -> Answer:
        """The same on another device."""
        return Answer(self.logits.to(device), None if self.features is None else self.features.to(device))


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


@final
class LiveGuide:
    """The teacher itself, asked anew each time.

    Args:
        teacher: any module; its mode is put back after each answer.
        hint: name of the layer whose output is wanted beside the logits.
        channels_last: whether the weights of its 2-D convolutions are laid out channels-last where `lab.layout` says so.

    Raises:
        ModelError: no layer of that name.
    """

    views: Final = None

    def __init__(self, teacher: nn.Module, *, hint: str | None = None, channels_last: bool = True) -> None:
        self.teacher, self.hint = teacher, hint
        if hint is not None:
            with watching(teacher, hint):
                pass  # a misspelt layer is an error now, not in the first step
        if channels_last:
            lay_out_(teacher)

    @property
    def digest(self) -> Digest:
        """Of all weights and buffers, the layers with their settings, and the hinted layer's name.

        What a `forward` does beside its layers cannot be seen in it.
        """
        return Digest.of(f"live|{self.hint}|{model_digest(self.teacher)}".encode())

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """The teacher's answers to `inputs`.

        Raises:
            ModelError: its outputs cannot be told, or the hinted layer was not used.
        """
        del ask
        there, here = _device_of(self.teacher), next(iter(tensors(inputs))).device
        with evaluating(self.teacher):
            if self.hint is None:
                logits, features = forward(self.teacher, mapped(inputs, lambda one: one.to(there))), None
            else:
                with watching(self.teacher, self.hint) as watched:
                    logits = forward(self.teacher, mapped(inputs, lambda one: one.to(there)))
                    features = watched.tensor
        # copied outside of inference mode, since a loss cannot keep an inference tensor for its gradient
        return Answer(_plain(logits, here), None if features is None else _plain(features, here))


def _device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _plain(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, torch.float32, copy=True)

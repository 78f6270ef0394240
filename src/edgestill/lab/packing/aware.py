"""Training that knows of the codes: the student's last epochs with its numbers rounded as int8 will round them.

- Weights of convolutions, linear layers and embeddings are rounded to the codes that the device will have, and so is what
  convolutions and linear layers take (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
  Integer-Arithmetic-Only Inference"). The gradient passes the rounding as if it were not there (Bengio et al. 2013).
- The teacher is asked as before: distilling while rounding keeps more than training on labels alone.
- What comes back are the weights before rounding, in a copy of the student; the quantiser then rounds them for good.
- A scale per output channel swallows whatever factor a norm gives that channel, so norms need not be folded first.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgestill.lab.forward import evaluating, forward
from edgestill.lab.packing.grid import LIMITS, saturates
from edgestill.lab.score import plain_batches
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.hardware import HardwareClass
    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.teacher.asking import Asking

_SHARE: Final = 0.2  # of the recipe's epochs
_RATE: Final = 0.1  # of its learning rate
_FOLLOW: Final = 0.01  # of a new batch's range in the running one
_LEAST: Final = 1e-8
_CODES: Final = 255
_CALIBRATION: Final = 8  # batches

_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def trained_for_codes(
    student: nn.Module,
    asking: Asking,
    source: Source,
    recipe: Recipe,
    hardware_class: HardwareClass,
) -> nn.Module:
    """A copy of the student that has been trained on with its numbers rounded.

    Args:
        student: trained; left as it is.
        asking: the teacher.
        source: what it was trained on.
        recipe: how; a fifth of its epochs at a tenth of its learning rate are spent.
        hardware_class: where it will run.

    Raises:
        TrainingError: a loss or weight that is not finite.
    """
    learner = copy.deepcopy(student)
    short = replace(
        recipe,
        epochs=max(1, round(recipe.epochs * _SHARE)),
        lr=recipe.lr * _RATE,
        schedule="cosine",
        average_tail=0.0,
    )
    with _rounding(learner, LIMITS[saturates(hardware_class)]) as inputs:
        _calibrate_(learner, source, inputs)
        with asking.guide(source, short) as guide:
            train_(learner, Lesson(source=source, guide=guide), short)
    return learner


@final
class WeightCodes(nn.Module):
    """Rounds a weight to `-limit .. limit` steps; one step for each channel along the first axis, or one for all."""

    def __init__(self, limit: int, *, per_channel: bool) -> None:
        super().__init__()
        self.limit, self.per_channel = limit, per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape."""
        largest = weight.detach().abs()
        if not self.per_channel:
            scale = largest.amax().clamp_min(_LEAST) / self.limit
            return torch.fake_quantize_per_tensor_affine(weight, float(scale), 0, -self.limit, self.limit)
        scale = largest.flatten(1).amax(1).clamp_min(_LEAST) / self.limit
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -self.limit, self.limit)


@final
class InputCodes(nn.Module):
    """Rounds what a layer takes to 255 steps of its range, which follows what the layer is shown while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.low: Tensor
        self.high: Tensor
        self.watches = True

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if self.watches:
            self.low.copy_(torch.minimum(self.low, x.detach().amin()))
            self.high.copy_(torch.maximum(self.high, x.detach().amax()))
            return x
        if self.training:
            self.low.lerp_(x.detach().amin().clamp_max(0), _FOLLOW)
            self.high.lerp_(x.detach().amax().clamp_min(0), _FOLLOW)
        scale = ((self.high - self.low) / _CODES).clamp_min(_LEAST)
        zero = int((-self.low / scale).round().clamp(0, _CODES))
        return torch.fake_quantize_per_tensor_affine(x, float(scale), zero, 0, _CODES)


@contextmanager
def _rounding(model: nn.Module, limit: int) -> Iterator[list[InputCodes]]:
    """Within, every layer rounds its weights and its input; afterwards nothing of it is left but trained weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, _Layer | nn.Embedding)]
    handles, inputs = [], []
    for layer in layers:
        per_channel = not isinstance(layer, nn.Embedding)
        parametrize.register_parametrization(layer, "weight", WeightCodes(limit, per_channel=per_channel))
        if per_channel:
            inputs.append(InputCodes())
            layer.add_module(_NAME, inputs[-1])
            handles.append(layer.register_forward_pre_hook(_rounded))
    yield inputs
    for handle in handles:
        handle.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer._modules.pop(_NAME, None)  # noqa: SLF001  # there is no public way to take a module away


_NAME: Final = "edgestill_input_codes"


def _rounded(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.get_submodule(_NAME)(inputs[0]), *inputs[1:])


def _calibrate_(model: nn.Module, source: Source, inputs: list[InputCodes]) -> None:
    """Finds the ranges that the layers' inputs have now."""
    with evaluating(model):
        for _, batch in zip(range(_CALIBRATION), plain_batches(source), strict=False):
            forward(model, batch.inputs)
    for codes in inputs:
        codes.watches = False

"""Which networks are laid out channels-last: up to twice as fast where 2-D convolutions run on a CPU.

The numbers are the same, in another order of memory. A 2-D convolution that is a 1-D one in truth (a kernel of 64 by 1,
say) is left as it is, and with it its network: with many channels whose number is no multiple of 16, PyTorch 2.13 and 2.14
on x86-64 then read memory that nobody has written, and answer NaN, or worse, figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


def lay_out_(model: nn.Module) -> None:
    """Lays the model's weights out channels-last where that pays and is safe; otherwise leaves it as it is."""
    if gains_from_channels_last(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads leave this one out


def gains_from_channels_last(model: nn.Module) -> bool:
    """Whether it has a 2-D convolution that is not depthwise, and none that is one-dimensional in truth."""
    layers = list(_convolutions(model))
    ordinary = any(layer.groups < layer.in_channels or layer.in_channels == 1 for layer in layers)
    return ordinary and not any(min(layer.kernel_size) == 1 < max(layer.kernel_size) for layer in layers)


def _convolutions(model: nn.Module) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            yield layer

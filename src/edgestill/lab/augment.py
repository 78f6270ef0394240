"""Augmentations: each a function of a batch and a generator (`lab.views.Augment`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class MotionJitter:
    """Scales each window and adds noise: nobody moves twice with the same force.

    Attributes:
        scale: standard deviation of the factor around 1.
        noise: standard deviation of what is added to each value, in the sensor's unit.
    """

    scale: float = 0.1
    noise: float = 0.02

    def __call__(self, inputs: Tensor, random: torch.Generator) -> Tensor:
        """`[N, T, C]` float32 -> the same shape."""
        factor = 1 + self.scale * torch.randn((len(inputs), 1, 1), generator=random)
        return inputs * factor + self.noise * torch.randn(inputs.shape, generator=random)


@final
@dataclass(frozen=True, slots=True)
class ImageShift:
    """Moves each image by up to `pixels` in both directions; what enters is black.

    Attributes:
        pixels: the largest move.
    """

    pixels: int = 2

    def __call__(self, inputs: Tensor, random: torch.Generator) -> Tensor:
        """`[N, H, W, C]` -> the same shape and dtype."""
        n, height, width, channels = inputs.shape
        span = 2 * self.pixels + 1
        padded = inputs.new_zeros((n, height + span - 1, width + span - 1, channels))
        padded[:, self.pixels : self.pixels + height, self.pixels : self.pixels + width] = inputs
        move = torch.randint(span, (n, 2), generator=random)
        rows = (move[:, :1] + torch.arange(height))[:, :, None]
        columns = (move[:, 1:] + torch.arange(width))[:, None, :]
        return padded[torch.arange(n)[:, None, None], rows, columns]

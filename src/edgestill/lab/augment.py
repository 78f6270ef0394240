"""Augmentations: each a function of samples and their seeds, so that teacher and student can see the same view.

A view of a sample depends on that sample and its seed alone, never on its neighbours in the batch: a cache, another
batch size, another rank or a resumed run meet the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

import numpy as np
import torch

from edgestill.lab.seeds import integers, normal

if TYPE_CHECKING:
    from torch import Tensor

    from edgestill.lab.seeds import Seeds


class Augment(Protocol):
    """Changes samples at random without changing what they are examples of."""

    @property
    def version(self) -> int:
        """Grows whenever the same seeds give other views; a cache names it."""
        ...

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """A changed copy of `inputs` `[N, ...]`; sample i depends on `inputs[i]` and `seeds[i]` alone."""
        ...


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
    version: ClassVar[int] = 1

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """`[N, T, C]` float32 -> the same shape."""
        factor = 1 + self.scale * normal(seeds, 1, stream=0)
        added = self.noise * normal(seeds, int(np.prod(inputs.shape[1:])), stream=1)
        return inputs * torch.from_numpy(factor)[:, :, None] + torch.from_numpy(added).view_as(inputs)


@final
@dataclass(frozen=True, slots=True)
class ImageShift:
    """Moves each image by up to `pixels` in both directions, and may mirror it; what enters is black.

    Attributes:
        pixels: the largest move.
        mirror: whether half of the images are turned left to right.
    """

    pixels: int = 2
    mirror: bool = False
    version: ClassVar[int] = 1

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """`[N, H, W, C]` -> the same shape and dtype."""
        n, height, width, channels = inputs.shape
        span = 2 * self.pixels + 1
        padded = inputs.new_zeros((n, height + span - 1, width + span - 1, channels))
        padded[:, self.pixels : self.pixels + height, self.pixels : self.pixels + width] = inputs
        move = torch.from_numpy(integers(seeds, span, 2))
        rows = (move[:, :1] + torch.arange(height))[:, :, None]
        columns = torch.arange(width).expand(n, width)
        if self.mirror:
            turned = torch.from_numpy(integers(seeds, 2, 1, stream=1)).bool()
            columns = torch.where(turned, columns.flip(1), columns)
        return padded[torch.arange(n)[:, None, None], rows, (move[:, 1:] + columns)[:, None, :]]

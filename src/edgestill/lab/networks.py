"""The networks that the demonstration, the benches and the examples share.

Each takes what its sensor gives and normalises inside: preprocessing travels with the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@final
class Standardise(nn.Module):
    """`(x * scale - mean) / deviation` along the last axis, with figures learned from data."""

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.mean: Tensor
        self.deviation: Tensor

    def fit_(self, inputs: NDArray[np.generic]) -> None:
        """Takes mean and deviation of each channel from `[N, ..., channels]`."""
        flat = torch.from_numpy(inputs.reshape(-1, inputs.shape[-1]).astype("float32")) * self.scale
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last axis is the channels."""
        return (x.float() * self.scale - self.mean) / self.deviation


@final
class ImageNet24(nn.Module):
    """The reference network: conv-pool-conv-pool-fc-fc on uint8 `[N, 24, 24, 3]`.

    `ImageNet24(64, 128, 512)` is the LargeModel of the original description, `ImageNet24(32, 64, 32)` its SmallModel.
    """

    def __init__(self, first: int, second: int, hidden: int, *, classes: int = 10) -> None:
        super().__init__()
        self.standardise = Standardise(3, scale=1 / 255)
        self.conv1 = nn.Conv2d(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.fc1 = nn.Linear(second * 6 * 6, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, classes]`."""
        x = self.standardise(x).permute(0, 3, 1, 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        logits: Tensor = self.head(torch.relu(self.fc1(x.flatten(1))))
        return logits


@final
class MotionNet(nn.Module):
    """Three strided 1-D convolutions and a mean over time, on float32 `[N, T, 6]` from a motion sensor."""

    def __init__(self, first: int, second: int, third: int, *, classes: int = 7) -> None:
        super().__init__()
        self.standardise = Standardise(6)
        self.conv1 = nn.Conv1d(6, first, 9, stride=2, padding=4)
        self.norm1 = nn.BatchNorm1d(first)
        self.conv2 = nn.Conv1d(first, second, 7, stride=2, padding=3)
        self.norm2 = nn.BatchNorm1d(second)
        self.conv3 = nn.Conv1d(second, third, 5, stride=2, padding=2)
        self.norm3 = nn.BatchNorm1d(third)
        self.head = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, classes]`."""
        x = self.standardise(x).transpose(1, 2)
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = torch.relu(self.norm3(self.conv3(x)))
        logits: Tensor = self.head(x.mean(2))
        return logits

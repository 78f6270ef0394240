"""The networks of the two pairs, on float32 `[N, 3, H, W]`: ordinary PyTorch that every library can train.

- `Reference24` is `edgestill.lab.networks.ImageNet24` without its normalisation. (That one takes uint8 `[N, H, W, 3]`
  from the camera, so that whoever trains it is channels-last without knowing; the plain loop would not be plain.)
- `CifarResNet` is the usual one of the distillation literature: a 3x3 stem, stages of basic blocks, the later ones
  halving the resolution, a global mean, a linear head (He et al. 2016, section 4.2; option B's 1x1 shortcuts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSES = 10
# Normalised before training, as everybody's pipeline does; timm wants to know of it.
NORMALISED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Reference24(nn.Module):
    """conv-pool-conv-pool-fc-fc on 24 x 24."""

    def __init__(self, first: int, second: int, hidden: int) -> None:
        super().__init__()
        self.pretrained_cfg = NORMALISED
        self.conv1 = nn.Conv2d(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.fc1 = nn.Linear(second * 6 * 6, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        logits: Tensor = self.head(torch.relu(self.fc1(x.flatten(1))))
        return logits


class CifarResNet(nn.Module):
    """Stages of basic blocks.

    Args:
        widths: channels of each stage.
        blocks: how many in a stage.
    """

    def __init__(self, widths: Sequence[int], *, blocks: int) -> None:
        super().__init__()
        self.pretrained_cfg = NORMALISED
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_Block(before, width, stride=2 if stage and not block else 1))
                before = width
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        x = self.stages(torch.relu(self.norm1(self.conv1(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet18() -> CifarResNet:
    """Four stages of two blocks, 64 to 512 channels: 11.2 million parameters."""
    return CifarResNet((64, 128, 256, 512), blocks=2)


def resnet8() -> CifarResNet:
    """Three stages of one block, 16 to 64 channels: 78 thousand parameters."""
    return CifarResNet((16, 32, 64), blocks=1)

"""Small separable data, tiny networks and one distillation that several tests of the lab look at."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.core.budget import Budget
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.distil import distill
from edgestill.lab.networks import ImageNet24, MotionNet
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.run import Run

torch.set_num_threads(1)  # for tensors this small a second thread costs more than it gives

CLASSES = 3
LABELS = ("rest", "lift", "turn")


def motions(n: int, *, seed: int = 0, noise: float = 0.5, per_group: int = 1) -> Samples:
    """`[n, 16, 6]` float32 of three classes, each a level on two of the six channels; every class is there."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    levels = np.repeat(np.eye(CLASSES), 2, axis=1)[labels] * 2 - 1
    inputs = levels[:, None, :] + noise * random.normal(size=(n, 16, 6))
    groups = np.arange(n) // (CLASSES * per_group) if per_group > 1 else np.arange(n)
    return Samples.of(inputs.astype(np.float32), labels, classes=CLASSES, groups=groups)


def images(n: int, *, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """`[n, 24, 24, 3]` of noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


def motion_net(*widths: int, seed: int = 0, classes: int = CLASSES) -> MotionNet:
    """A MotionNet whose weights depend on the seed only."""
    torch.manual_seed(seed)
    return MotionNet(*widths, classes=classes)


def image_net(first: int, second: int, hidden: int, *, seed: int = 0) -> ImageNet24:
    """An ImageNet24 whose weights depend on the seed only."""
    torch.manual_seed(seed)
    return ImageNet24(first, second, hidden)


def stir_(model: nn.Module, *, seed: int = 1) -> nn.Module:
    """Gives every float buffer and BatchNorm a figure of its own, as training would."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=random) + 0.5
            tensor.copy_(noise if name.endswith(("running_var", "deviation")) else noise - 1)
        else:
            tensor.fill_(7)
    return model.eval()


class Branches(nn.Module):
    """A stem, a residual branch, two branches that are concatenated, a depthwise layer, and a head."""

    def __init__(self, stem: int, left: int, right: int, deep: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, stem, 3, padding=1)
        self.norm = nn.BatchNorm2d(stem)
        self.branch = nn.Conv2d(stem, stem, 3, padding=1)
        self.left = nn.Conv2d(stem, left, 3, padding=1)
        self.right = nn.Conv2d(stem, right, 1)
        both = left + right
        self.depth = nn.Conv2d(both, both, 3, padding=1, groups=both)
        self.norm2 = nn.BatchNorm2d(both)
        self.point = nn.Conv2d(both, deep, 1)
        self.head = nn.Linear(deep, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 2, H, W]` -> logits `[N, 3]`."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.branch(x))
        x = torch.relu(self.norm2(self.depth(torch.cat([self.left(x), self.right(x)], 1))))
        logits: Tensor = self.head(torch.relu(self.point(x)).mean((2, 3)))
        return logits


def branches(*widths: int, seed: int = 0) -> Branches:
    """A Branches whose weights depend on the seed only."""
    torch.manual_seed(seed)
    return Branches(*widths)


class Straight(nn.Module):
    """Two linear layers on `[N, D]`; counts its forward passes and keeps what it saw."""

    def __init__(self, features: int = 4, hidden: int = 5, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.head = nn.Linear(hidden, classes)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.seen.append(x.detach().clone())
        self.modes.append(self.training)
        logits: Tensor = self.head(torch.relu(self.first(x)))
        return logits


def points(n: int, *, seed: int = 0) -> Samples:
    """`[n, 4]` float32 of three classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    inputs = 2 * np.eye(4)[labels] + 0.3 * random.normal(size=(n, 4))
    return Samples.of(inputs.astype(np.float32), labels, classes=CLASSES)


def straight(*, seed: int = 0, hidden: int = 5) -> Straight:
    """A Straight whose weights depend on the seed only."""
    torch.manual_seed(seed)
    return Straight(hidden=hidden)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether every parameter and buffer is bit-equal."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


TRAIN = motions(120, seed=1)
HELDOUT = motions(150, seed=2, noise=1.5)
POLICY = Policy(labels=LABELS, escalation_share=0.25, audit_share=0.05)


@cache
def teacher() -> MotionNet:
    """A trained teacher; tests must leave it as it is."""
    network = motion_net(8, 8, 12)
    train_(network, Lesson.of(TRAIN), Recipe(epochs=4, batch=32, lr=1e-2))
    return network


@cache
def run() -> Run:
    """A distillation into a student of half the widths."""
    recipe = Recipe(epochs=4, batch=32, lr=1e-2, soft_weight=0.7)
    student = motion_net(4, 4, 6, seed=5)
    return distill(teacher(), TRAIN, validation=HELDOUT, student=student, recipe=recipe, budget=Budget())


@cache
def packed() -> Packed:
    """Its bundle."""
    return run().pack(POLICY)

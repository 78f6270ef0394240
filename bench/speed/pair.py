"""What everybody trains: one teacher, one student, the same data in memory, in the same order, with the same optimiser.

Speed does not depend on what the pictures show, so they are invented; the figures then need no data set.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from edgestill.lab.training.plan import Plan
from speed.networks import CLASSES, Reference24, resnet8, resnet18

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

BATCH = 64
LEARNING_RATE = 0.02
MOMENTUM = 0.9
TAU = 2.0
SOFT_WEIGHT = 0.7
SEED = 0


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and the pictures.

    Attributes:
        name: in the results.
        title: for people.
        make_teacher: builds it.
        make_student: builds it.
        side: of a picture, in pixels.
        samples: pictures an epoch.
    """

    name: str
    title: str
    make_teacher: Callable[[], nn.Module]
    make_student: Callable[[], nn.Module]
    side: int
    samples: int

    @cached_property
    def inputs(self) -> Tensor:
        """float32 `[samples, 3, side, side]`, each channel with mean 0 and deviation 1."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(self.samples, 3, self.side, self.side, generator=generator)

    @cached_property
    def labels(self) -> Tensor:
        """int64 `[samples]`."""
        return torch.randint(CLASSES, (self.samples,), generator=torch.Generator().manual_seed(SEED + 1))

    @cached_property
    def _models(self) -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.make_teacher().eval(), self.make_student()

    def teacher(self) -> nn.Module:
        """A copy of its own for each contestant, in evaluation mode: nobody changes another's memory layout."""
        return copy.deepcopy(self._models[0])

    def student(self) -> nn.Module:
        """As everybody's begins."""
        return copy.deepcopy(self._models[1]).train()

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, int64 indices: the order in which edgestill itself goes."""
        plan = Plan(samples=self.samples, batch=BATCH, seed=SEED)
        return [torch.from_numpy(share.ask.index) for share in plan.epoch(epoch)]


def pairs(*, quick: bool) -> list[Pair]:
    """Both pairs; `quick` ones have so few samples that the figures mean little."""
    return [
        Pair(
            "reference",
            "reference pair, 24 x 24",
            lambda: Reference24(64, 128, 512),
            lambda: Reference24(32, 64, 32),
            side=24,
            samples=BATCH * (1 if quick else 8),
        ),
        Pair(
            "resnet",
            "ResNet-18 to ResNet-8, 32 x 32",
            resnet18,
            resnet8,
            side=32,
            samples=BATCH * (1 if quick else 2),
        ),
    ]

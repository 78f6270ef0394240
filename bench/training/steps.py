"""Steps of training: ours on onnxruntime beside eager torch, on the same batches, one thread each.

Both take a batch of 16 from arrays, and give the next parameters and momentum: of torch `zero_grad`, forward, `cross_entropy` with soft
targets, backward and `SGD.step`. Norms are folded into weights on both sides, so that the networks are equal. They take turns; ratios are
of CPU time, and within a round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from speed.networks import resnet8
from speed.rounds import Moment, summary
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgestill.core.digest import Digest
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.gradient.step import Training, training_step
from edgestill.lab.networks import ImageNet24, MotionNet
from edgestill.lab.packing.export import export_onnx
from edgestill.learn.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgestill.learn.trainer import TrainState

BATCH, RATE, MOMENTUM, STEPS = 16, 0.01, 0.9, 50
ROUNDS, LAPS = 60, 5


@dataclass(frozen=True, slots=True)
class Student:
    """A network, and what it is shown.

    Attributes:
        make: a new one.
        shape: of one input.
        pixels: whether inputs are bytes.
        classes: C.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    pixels: bool
    classes: int = 10


STUDENTS: Final = {
    "reference": Student(lambda: ImageNet24(32, 64, 32), (24, 24, 3), pixels=True),
    "watch": Student(lambda: MotionNet(16, 24, 32), (100, 6), pixels=False, classes=7),
    "resnet8": Student(resnet8, (3, 32, 32), pixels=False),
}


@dataclass(slots=True)
class Ours:
    """The step on onnxruntime."""

    trainer: Trainer
    state: TrainState

    def step(self, inputs: NDArray[Any], targets: NDArray[np.float32]) -> float:
        """One step; the loss before it."""
        self.state, loss = self.trainer.step(self.state, inputs, targets, rate=RATE)
        return loss


@dataclass(slots=True)
class Torch:
    """The step in torch."""

    model: nn.Module
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        learning = [one for one in self.model.parameters() if one.requires_grad]
        self.optimiser = torch.optim.SGD(learning, lr=RATE, momentum=MOMENTUM)

    def step(self, inputs: NDArray[Any], targets: NDArray[np.float32]) -> float:
        """One step; the loss before it."""
        self.optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.model(torch.from_numpy(inputs)), torch.from_numpy(targets))
        loss.backward()
        self.optimiser.step()
        return loss.item()


def pair(student: Student, trainable: str) -> tuple[Ours, Torch]:
    """Both, from the same first weights."""
    torch.manual_seed(0)
    model = folded(student.make())
    inputs, _ = batch(student, 0)
    step = training_step(export_onnx(model, torch.from_numpy(inputs[:2])), Training(trainable=trainable))
    trainer = Trainer(OnnxEngine(step.model), step.file, step=Digest.of(step.model))
    if trainable == "head":
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    return Ours(trainer, trainer.start(inputs)), Torch(model)


def folded(model: nn.Module) -> nn.Module:
    """With every norm a part of the convolution before it."""
    for inner in model.modules():
        for name, norm in list(inner.named_children()):
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                before = name.replace("norm", "conv") if name.startswith("norm") else "0"
                setattr(inner, before, fuse_conv_bn_eval(getattr(inner, before).eval(), norm.eval()))
                setattr(inner, name, nn.Identity())
    return model.eval()


def batch(student: Student, seed: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Inputs, and soft targets."""
    random = np.random.default_rng(seed)
    shape = (BATCH, *student.shape)
    inputs = random.integers(0, 256, shape).astype(np.uint8) if student.pixels else random.normal(size=shape)
    targets = random.dirichlet(np.full(student.classes, 0.3), BATCH).astype(np.float32)
    return inputs if student.pixels else inputs.astype(np.float32), targets


def times(*, quick: bool) -> dict[str, Any]:
    """Milliseconds a step of either, and their ratio, by student and what is trained."""
    return {
        f"{name}, {trainable}": _raced(student, trainable, 3 if quick else ROUNDS)
        for name, student in STUDENTS.items()
        for trainable in ("all", "head")
    }


def _raced(student: Student, trainable: str, rounds: int) -> dict[str, Any]:
    ours, theirs = pair(student, trainable)
    batches = [batch(student, seed) for seed in range(LAPS)]
    laps: dict[str, list[Moment]] = {"ours": [], "torch": []}
    for number in range(rounds + 1):
        for name, one in (("ours", ours), ("torch", theirs)):
            before = Moment.now()
            for inputs, targets in batches:
                one.step(inputs, targets)
            if number:  # the first round warms up
                laps[name].append(Moment.now() - before)
    ratios = [a.cpu / b.cpu for a, b in zip(laps["ours"], laps["torch"], strict=True)]
    return {
        "ratio": summary(ratios),
        **{f"{name}_ms": summary([1000 * one.cpu / LAPS for one in found]) for name, found in laps.items()},
    }


def errors(*, quick: bool) -> dict[str, Any]:
    """The largest difference of a loss and of a parameter over 50 steps, by student, all parameters trained."""
    return {name: _apart(student, 5 if quick else STEPS) for name, student in STUDENTS.items()}


def _apart(student: Student, steps: int) -> dict[str, Any]:
    ours, theirs = pair(student, "all")
    losses = []
    for seed in range(steps):
        inputs, targets = batch(student, seed)
        losses.append(abs(ours.step(inputs, targets) - theirs.step(inputs, targets)))
    names = {f"model.{name}": one for name, one in theirs.model.state_dict().items()} | {
        name: one for name, one in theirs.model.state_dict().items() if name.startswith("head.")
    }
    compared = [name for name in ours.state.values if name in names]
    return {
        "steps": steps,
        "loss": max(losses),
        "parameters": max(
            float(np.abs(ours.state.values[one] - names[one].numpy()).max()) for one in compared
        ),
        "compared": len(compared),
    }

"""Training steps beside torch's own training, for the tests of the training graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgestill.core.digest import Digest
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.gradient.step import Step, Training, training_step
from edgestill.lab.packing.export import export_onnx
from edgestill.learn.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

STEPS = 50


@dataclass(frozen=True, eq=False)
class Outcome:
    """How far apart the two are after the steps.

    Attributes:
        loss: largest difference of a loss, over all steps.
        parameters: largest difference of a parameter, of those that have their own name in the file.
        compared: names of these.
        learned: how many tensors the file trains.
    """

    loss: float
    parameters: float
    compared: list[str] = field(default_factory=list)
    learned: int = 0


def named(model: nn.Module) -> set[str]:
    """The parameters' names as the export has them."""
    return {f"model.{name}" for name, _ in model.named_parameters()}


def step_of(model: nn.Module, inputs: Tensor, training: Training, *, folded: bool = True) -> Step:
    """The training step of a model."""
    return training_step(export_onnx(model.eval(), inputs[:2], folded=folded), training, named=named(model))


def trainer_of(step: Step) -> Trainer:
    """What runs it."""
    return Trainer(OnnxEngine(step.model), step.file, step=Digest.of(step.model))


def stirred(model: nn.Module) -> nn.Module:
    """With numbers of its own everywhere: an export joins tensors that are equal, and drops biases that are 0."""
    generator = torch.Generator().manual_seed(3)
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return made


def beside_torch(
    model: nn.Module,
    inputs: Tensor,
    classes: int,
    *,
    training: Training,
    optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    in_training_mode: bool = False,
    fewest: int = 2,
) -> Outcome:
    """Trains both on the same batches of changing sizes, from `fewest` on, with soft targets and weights."""
    model = stirred(model)
    step = step_of(model, inputs, training, folded=not in_training_mode)
    trainer, random = trainer_of(step), np.random.default_rng(0)
    model.train(in_training_mode)
    optimise, state, worst = optimiser(model.parameters()), trainer.start(inputs[:2].numpy()), 0.0
    for _ in range(STEPS):
        chosen = random.permutation(len(inputs))[: random.integers(fewest, len(inputs) + 1)]
        targets = random.dirichlet(np.ones(classes), len(chosen)).astype(np.float32)
        weights = random.uniform(0.5, 2, len(chosen)).astype(np.float32)
        state, loss = trainer.step(state, inputs[chosen].numpy(), targets, weights, rate=training.rate)
        optimise.zero_grad()
        each = nn.functional.cross_entropy(model(inputs[chosen]), torch.from_numpy(targets), reduction="none")
        theirs = (each * torch.from_numpy(weights)).mean()
        theirs.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        if training.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimise.step()
        worst = max(worst, abs(loss - theirs.item()))
    return _outcome(model, step, state.values, worst)


def _outcome(
    model: nn.Module, step: Step, values: Mapping[str, NDArray[np.float32]], worst: float
) -> Outcome:
    apart, compared = 0.0, []
    for name, tensor in model.state_dict().items():
        ours = values.get(f"model.{name}", values.get(name))  # the head is named by itself
        if ours is not None and ours.shape == tuple(tensor.shape):
            apart = max(apart, float(np.abs(ours - tensor.numpy()).max()))
            compared.append(name)
    return Outcome(worst, apart, compared, len(step.file.tensors))

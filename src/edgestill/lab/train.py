"""One training loop, for teachers and students alike.

- The same seed gives the same weights: order, views and dropout come from generators seeded by the recipe.
- A loss that is not finite stops the run at once and says at which step; nothing is patched over.
- Convolution weights are kept channels-last, which is about twice as fast on the CPUs we measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgestill.core.errors import SettingError, TrainingError
from edgestill.lab.losses import distillation_loss
from edgestill.lab.views import view

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.recipe import Recipe
    from edgestill.lab.samples import Samples
    from edgestill.lab.views import Augment, SoftLabels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """What a model is shown.

    Attributes:
        samples: inputs with labels.
        soft: the teacher's answers, where the recipe's `soft_weight` is above 0.
        augment: how views are made; the one `soft` was made with.
    """

    samples: Samples
    soft: SoftLabels | None = None
    augment: Augment | None = None


def train_(
    model: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    *,
    progress: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Trains the model in place and returns it in evaluation mode.

    Args:
        model: takes a batch of `lesson.samples.inputs`, gives logits `[N, C]`.
        lesson: what it is shown.
        recipe: how.
        progress: called after each epoch with (epochs done, epochs, mean loss).

    Raises:
        SettingError: soft labels are asked for and missing, or an average over weights with BatchNorm.
        TrainingError: the loss is not finite.
    """
    if recipe.soft_weight > 0 and lesson.soft is None:
        raise SettingError(
            "a recipe with soft labels needs a teacher", where="soft_weight", got=recipe.soft_weight
        )
    moving = any(name.endswith("running_mean") for name, _ in model.named_buffers())
    if recipe.average_tail > 0 and moving:
        raise SettingError(
            "averaged weights would not fit the statistics of BatchNorm",
            where="average_tail",
            expected="0 for this network",
            got=recipe.average_tail,
        )
    torch.manual_seed(recipe.seed)
    run = _Run(model, lesson, recipe)
    model.train()
    for epoch in range(recipe.epochs):
        loss = run.epoch(epoch)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, loss)
    run.finish_()
    return model.eval()


class _Run:
    def __init__(self, model: nn.Module, lesson: Lesson, recipe: Recipe) -> None:
        self.recipe, self.lesson = recipe, lesson
        self.model = _channels_last(model)
        self.inputs = torch.from_numpy(lesson.samples.inputs)
        self.labels = torch.from_numpy(lesson.samples.labels)
        self.order = torch.Generator().manual_seed(recipe.seed)
        self.steps = recipe.epochs * -(-len(self.inputs) // recipe.batch)
        self.optimiser = _optimiser(self.model, recipe)
        self.schedule = _schedule(self.optimiser, recipe, self.steps)
        self.average = _TailAverage(self.model, after=round(self.steps * (1 - recipe.average_tail)))
        self.step = 0

    def epoch(self, epoch: int) -> float:
        """One pass; the mean loss."""
        seed, soft = self.recipe.seed + epoch, None
        if self.recipe.soft_weight > 0 and self.lesson.soft is not None:
            seed, soft = self.lesson.soft.of(epoch)
        shown = view(self.inputs, self.lesson.augment, seed)
        total = 0.0
        for chosen in torch.split(torch.randperm(len(shown), generator=self.order), self.recipe.batch):
            logits = self.model(shown[chosen])
            loss = self._loss(logits, chosen, soft)
            total += self._advance(loss) * len(chosen)
        return total / len(shown)

    def _loss(self, logits: Tensor, chosen: Tensor, soft: Tensor | None) -> Tensor:
        labels, recipe = self.labels[chosen], self.recipe
        if soft is None:
            return nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        return distillation_loss(
            logits,
            labels,
            soft[chosen],
            tau=recipe.tau,
            soft_weight=recipe.soft_weight,
            label_smoothing=recipe.label_smoothing,
        )

    def _advance(self, loss: Tensor) -> float:
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            raise TrainingError(
                "the loss is not finite",
                where=f"step {self.step + 1} of {self.steps}",
                got=value,
                fix="lower the learning rate, or look for bad samples",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.optimiser.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        self.average.see(self.step)
        return value

    def finish_(self) -> None:
        self.average.apply_()


class _TailAverage:
    """The mean of the weights after each of the last steps."""

    def __init__(self, model: nn.Module, *, after: int) -> None:
        self.parameters, self.after, self.count = list(model.parameters()), after, 0
        self.means: list[Tensor] = []

    @torch.no_grad()
    def see(self, step: int) -> None:
        if step <= self.after:
            return
        self.count += 1
        if self.count == 1:
            self.means = [parameter.clone() for parameter in self.parameters]
            return
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            mean.lerp_(parameter, 1 / self.count)

    @torch.no_grad()
    def apply_(self) -> None:
        for mean, parameter in zip(self.means, self.parameters, strict=False):
            parameter.copy_(mean)


def _channels_last(model: nn.Module) -> nn.Module:
    if any(parameter.ndim == 4 for parameter in model.parameters()):
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's overloads leave this one out
    return model


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def _schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if recipe.schedule == "constant":
        return None
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        recipe.lr,
        total_steps=steps + 1,
        cycle_momentum=recipe.optimiser == "adamw",  # SGD keeps the recipe's momentum
    )

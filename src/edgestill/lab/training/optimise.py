"""Optimiser, learning-rate schedule and weight average, as a recipe names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from edgestill.lab.recipe import Recipe


def optimiser_for(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The fused form, which updates all parameters in one call."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def schedule_for(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """How the learning rate goes over the steps; None where it stays."""
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


class TailAverage:
    """The mean of the weights after each of the last steps (Polyak and Juditsky 1992).

    Args:
        model: whose parameters.
        after: the step after which averaging begins.
    """

    def __init__(self, model: nn.Module, *, after: int) -> None:
        self.parameters, self.after, self.count = list(model.parameters()), after, 0
        self.means: list[Tensor] = []

    @torch.no_grad()
    def see_(self, step: int) -> None:
        """Takes in the weights after `step` steps."""
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
        """Puts the mean into the model, if there is one."""
        for mean, parameter in zip(self.means, self.parameters, strict=False):
            parameter.copy_(mean)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"count": self.count, "means": self.means}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        count, means = state["count"], state["means"]
        assert isinstance(count, int)
        assert isinstance(means, list)
        self.count, self.means = count, means

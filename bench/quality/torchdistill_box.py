"""The same student trained by torchdistill: its box, its loss, driven by the loop of its examples."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler

if TYPE_CHECKING:
    from edgestill.lab.recipe import Recipe
    from quality.intent_views import SeenSource


class _Questions(Dataset[object]):
    """A dataset as torchdistill wants it; where there are views, each question is shown in one that is drawn."""

    def __init__(self, source: SeenSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> tuple[tuple[Tensor, ...], int]:
        """Inputs and label."""
        seen = self.source.seen
        view = int(torch.randint(len(seen.ids), ()))
        return (seen.ids[view, place].long(), seen.embeddings[view, place].float()), int(seen.labels[place])


class _Both(nn.Module):
    """A network that takes both inputs as one, which is how torchdistill hands them on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(*inputs)
        return logits


def torchdistill(teacher: nn.Module, student: nn.Module, source: SeenSource, recipe: Recipe) -> nn.Module:
    """Trains the student in place and returns it in evaluation mode."""
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    torch.manual_seed(recipe.seed)
    data, device = {"train": _Questions(source)}, torch.device("cpu")
    steps = recipe.epochs * -(-len(source) // recipe.batch)
    box = get_distillation_box(
        _Both(teacher.eval()), _Both(student), data, _settings(recipe, steps), device, None, False, 1
    )
    for epoch in range(recipe.epochs):
        box.pre_epoch_process(epoch=epoch)
        for x, y, more in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(x, y, more))
        box.post_epoch_process()
    box.clean_modules()
    return student.eval()


def _settings(recipe: Recipe, steps: int) -> dict[str, Any]:
    logits = {"module_path": ".", "module_io": "output"}
    loss = {
        "key": "KDLoss",
        "kwargs": {f"{who}_{what}": value for who in ("student", "teacher") for what, value in logits.items()}
        | {"temperature": recipe.tau, "alpha": 1 - recipe.soft_weight, "reduction": "batchmean"},
    }
    return {
        "num_epochs": recipe.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": recipe.batch, "num_workers": 0},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": recipe.lr, "weight_decay": recipe.weight_decay}},
        "scheduler": {
            "key": "OneCycleLR",
            "kwargs": {"max_lr": recipe.lr, "total_steps": steps + 1},
            "scheduling_step": 1,
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }

"""Networks are laid out channels-last where that pays, and never where PyTorch would read what nobody wrote."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgestill.lab.data.source import ArraySource
from edgestill.lab.layout import gains_from_channels_last
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.train import Lesson, train_


@pytest.mark.parametrize(
    ("layers", "gains"),
    [
        ([nn.Conv2d(3, 8, 3)], True),
        ([nn.Conv2d(1, 8, 3)], True),
        ([nn.ConvTranspose2d(4, 4, 2)], True),
        ([nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)], True),
        ([nn.Conv2d(8, 8, 3, groups=8)], False),
        ([nn.Conv1d(4, 4, 3)], False),
        ([nn.Linear(4, 4)], False),
        ([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (64, 1))], False),
        ([nn.Conv2d(3, 8, (1, 9))], False),
    ],
)
def test_ordinary_convolutions_gain_and_one_dimensional_ones_do_not(
    layers: list[nn.Module], gains: bool
) -> None:
    """Whatever stands beside them."""
    assert gains_from_channels_last(nn.Sequential(*layers)) is gains


def test_a_tall_kernel_never_meets_memory_that_nobody_wrote() -> None:
    """102 channels under a kernel of 64 by 1, which gave NaN where the memory held one: trained among NaN, it stays finite."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 191, 1)),
        nn.Conv2d(1, 102, 1),
        nn.Conv2d(102, 12, (64, 1)),
        nn.Flatten(),
        nn.Linear(1536, 2),
    )

    def soil(*_: object) -> None:
        for size in torch.randint(1, 300_000, (6,)).tolist():
            torch.full((size,), float("nan"))

    network[2].register_forward_pre_hook(soil)
    data = ArraySource(torch.randn(96, 191), torch.arange(96) % 2, "classes", 2)
    train_(network, Lesson(source=data), Recipe(epochs=4, batch=32))
    assert all(one.isfinite().all() for one in network.parameters())

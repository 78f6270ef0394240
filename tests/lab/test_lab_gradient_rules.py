"""Whatever a network is made of, a step of its training graph does what torch does.

Inputs and weights are the same each time. Where a sum lies so near a kink (of a ReLU, or two numbers of a pool) that rounding decides its side, two right
ways of training part: torch in single and in double precision did so by up to 6e-4 in four of 24 trainings on inputs drawn at random.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from training_worlds import beside_torch

from edgestill.lab.gradient.optimisers import Adam, Sgd
from edgestill.lab.gradient.rules import RULES
from edgestill.lab.gradient.step import Training
from edgestill.lab.networks import ImageNet24, MotionNet

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 3
TOLERANCE = 1e-4


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    """A network of layers one after the other, whose weights depend on the seed of the test alone."""

    def made() -> nn.Module:
        network = nn.Sequential(*copy.deepcopy(layers))
        for layer in network:
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
        return network

    return made


class Blocks(nn.Module):
    """Branches, parts, padding, gates and a norm of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        left = self.first(x)
        moved = functional.pad(left, (1, 0, 0, 1))[:, :, 1:, :-1]
        y = self.second(torch.cat([left, moved], 1))
        y = self.norm(y) + left * torch.sigmoid(moved)
        logits: Tensor = self.head((y / (1 + y.abs())).flatten(1))
        return logits


class Attention(nn.Module):
    """Self-attention over tokens with positions, from torch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.places = nn.Parameter(torch.randn(12, 16) * 0.1)
        self.layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, activation="gelu", norm_first=True, dropout=0
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.layer(self.words(x) + self.places).mean(1))
        return logits


class Heads(nn.Module):
    """Attention of one's own, of one product that is cut in three."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, of the first token."""
        query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        logits: Tensor = self.head(self.norm(x + self.out(y))[:, 0])
        return logits


class Steps(nn.Module):
    """Arithmetic that is no layer: powers, roots, quotients, every second number, the last first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, 12), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.first(x).exp().log1p() ** 2 / (2 + x.mean(1, keepdim=True).abs())
        y = torch.sqrt(y + 0.1) - y.sum(1, keepdim=True).mul(0.01)
        logits: Tensor = self.head(y[:, ::2] + y.flip(1)[:, 1::2] * torch.erf(y[:, :6]))
        return logits


def folded(model: MotionNet) -> nn.Module:
    """As an export has it: norms that are part of the weights before them."""
    for number in (1, 2, 3):
        layer, norm = getattr(model, f"conv{number}"), getattr(model, f"norm{number}")
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        setattr(model, f"conv{number}", fuse_conv_bn_eval(layer.eval(), norm.eval()))
        setattr(model, f"norm{number}", nn.Identity())
    return model


IMAGES = torch.randn(8, 2, 11, 11, generator=torch.Generator().manual_seed(1))
RANDOM = torch.Generator().manual_seed(7)
GRID: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "reference": (
        partial(ImageNet24, 4, 6, 16, classes=CLASSES),
        torch.randint(0, 256, (8, 24, 24, 3), generator=RANDOM).byte(),
    ),
    "motion": (lambda: folded(MotionNet(4, 6, 8, classes=CLASSES)), torch.randn(8, 40, 6, generator=RANDOM)),
    "groups and strides": (
        chain(
            nn.Conv2d(2, 8, 3, groups=2, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, CLASSES),
        ),
        IMAGES,
    ),
    "depthwise and dilated": (
        chain(
            nn.Conv2d(2, 12, 3, groups=2, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(12, 12, 3, groups=12, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, CLASSES),
        ),
        IMAGES,
    ),
    "strides that leave a rest": (
        chain(
            nn.Conv2d(2, 4, (3, 2), stride=(3, 2), bias=False),
            nn.Tanh(),
            nn.Conv2d(4, 5, 2, stride=2),
            nn.Flatten(),
            nn.Linear(10, CLASSES),
        ),
        IMAGES,
    ),
    "one axis": (
        chain(
            nn.Conv1d(3, 6, 5, stride=2, dilation=2, padding=3),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(18, CLASSES),
        ),
        torch.randn(8, 3, 31, generator=RANDOM),
    ),
    "pointwise": (
        chain(
            nn.Conv2d(2, 8, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 1, groups=4),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ),
        IMAGES,
    ),
    "pools that overlap": (
        chain(
            nn.Conv2d(2, 6, 3),
            nn.LeakyReLU(0.2),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(6, 6, 1),
            nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(54, CLASSES),
        ),
        IMAGES,
    ),
    "pools that leave a rest": (
        chain(
            nn.Conv2d(2, 6, 1),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 1),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(36, CLASSES),
        ),
        IMAGES,
    ),
    "adaptive pools": (
        chain(
            nn.Conv2d(2, 6, 1),
            nn.Mish(),
            nn.AdaptiveAvgPool2d((6, 4)),
            nn.ELU(0.7),
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(36, CLASSES),
        ),
        torch.randn(8, 2, 12, 12, generator=RANDOM),
    ),
    "norms and bends": (
        chain(
            nn.Linear(10, 16),
            nn.LayerNorm(16),
            nn.GELU(approximate="tanh"),
            nn.Linear(16, 16, bias=False),
            nn.PReLU(16),
            nn.Hardsigmoid(),
            nn.Softplus(),
            nn.Linear(16, CLASSES),
        ),
        torch.randn(8, 10, generator=RANDOM),
    ),
    "arithmetic": (Steps, torch.randn(8, 10, generator=RANDOM)),
    "branches": (Blocks, torch.randn(8, 2, 6, 6, generator=RANDOM)),
    "attention of torch": (Attention, torch.randint(0, 50, (8, 12), generator=RANDOM)),
    "attention of one's own": (Heads, torch.randn(8, 5, 8, generator=RANDOM)),
}


@pytest.mark.parametrize("name", GRID)
def test_fifty_steps_with_momentum_are_those_of_torch(name: str) -> None:
    """Losses and parameters stay within 1e-4, over batches of changing sizes with soft targets and weights."""
    make, inputs = GRID[name]
    torch.manual_seed(0)
    found = beside_torch(
        make(),
        inputs,
        CLASSES,
        training=Training(optimiser=Sgd(momentum=0.9), rate=0.02),
        optimiser=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    )
    assert found.loss < TOLERANCE
    assert found.compared
    assert found.parameters < TOLERANCE


@pytest.mark.parametrize("name", ["reference", "pools that overlap", "attention of one's own", "branches"])
def test_fifty_steps_of_adam_with_clipping_are_those_of_torch(name: str) -> None:
    """So with AdamW and a bound on the gradients' norm; epsilon is large enough that rounding does not decide a direction."""
    make, inputs = GRID[name]
    torch.manual_seed(0)
    adam = Adam(weight_decay=0.01, decoupled=True, epsilon=1e-4)
    found = beside_torch(
        make(),
        inputs,
        CLASSES,
        training=Training(optimiser=adam, clip=0.5, rate=2e-3),
        optimiser=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.01, eps=1e-4),
    )
    assert found.loss < TOLERANCE
    assert found.parameters < TOLERANCE


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(momentum=0.0, weight_decay=0.1), partial(torch.optim.SGD, lr=0.02, weight_decay=0.1)),
        (Adam(weight_decay=0.1), partial(torch.optim.Adam, lr=0.02, weight_decay=0.1)),
    ],
    ids=["plain descent", "Adam"],
)
def test_weight_decay_is_that_of_torch(
    ours: Sgd | Adam, theirs: Callable[..., torch.optim.Optimizer]
) -> None:
    """It goes through the gradient where it is not decoupled."""
    make, inputs = GRID["norms and bends"]
    torch.manual_seed(0)
    found = beside_torch(
        make(), inputs, CLASSES, training=Training(optimiser=ours, rate=0.02), optimiser=theirs
    )
    assert max(found.loss, found.parameters) < TOLERANCE


@pytest.mark.parametrize("axes", [1, 2])
def test_batch_normalisation_trains_with_the_statistics_of_its_batches(axes: int) -> None:
    """Its running mean and variance follow as torch's do, and gradients go through the batch's own."""
    torch.manual_seed(0)
    convolution, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[axes - 1]
    model = nn.Sequential(
        convolution(3, 6, 3),
        norm(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )
    inputs = torch.randn(12, 3, *[7] * axes) * 2 + 1
    model(inputs)
    found = beside_torch(
        model,
        inputs,
        CLASSES,
        training=Training(statistics="batch", rate=0.02),
        optimiser=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        in_training_mode=True,
        fewest=8,  # of two samples alone, what is normalised is 1 and -1, and rounding decides the rest
    )
    assert {"1.running_mean", "1.running_var", "5.running_mean"} <= set(found.compared)
    assert found.loss < TOLERANCE
    assert found.parameters < TOLERANCE


def test_batch_normalisation_may_be_frozen_without_being_folded() -> None:
    """Scale and shift learn, mean and variance stay."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(486, CLASSES)
    )
    model.train()
    model(IMAGES * 2 + 1)
    found = beside_torch(
        FrozenNorm(model),
        IMAGES,
        CLASSES,
        training=Training(rate=0.02),
        optimiser=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        in_training_mode=True,
    )
    assert found.learned == 6
    assert found.parameters < TOLERANCE


class FrozenNorm(nn.Module):
    """A network that stays in evaluation mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> FrozenNorm:  # torch's own signature
        """Whatever is asked for, statistics stay."""
        super().train(mode)
        self.inner.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.inner(x)
        return logits


def test_equal_numbers_in_a_window_give_the_gradient_to_the_first() -> None:
    """As torch does it; a plain background makes many of them."""
    torch.manual_seed(0)
    flat = torch.ones(8, 2, 8, 8)
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d(3, 2)):
        size = 4 if pool.kernel_size == 2 else 3
        found = beside_torch(
            nn.Sequential(nn.Conv2d(2, 3, 1), pool, nn.Flatten(), nn.Linear(3 * size**2, CLASSES)),
            flat,
            CLASSES,
            training=Training(rate=0.05),
            optimiser=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        )
        assert max(found.loss, found.parameters) < TOLERANCE


def test_a_tensor_that_two_layers_share_learns_from_both() -> None:
    """Its gradients add up, and it is there once."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.bend = nn.Embedding(20, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 20)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.bend(self.words(x).mean(1))))
            return logits

    torch.manual_seed(0)
    found = beside_torch(
        Tied(),
        torch.randint(0, 20, (8, 5)),
        20,
        training=Training(rate=0.05),
        optimiser=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    )
    assert found.learned == 4
    assert max(found.loss, found.parameters) < TOLERANCE


def test_every_rule_says_what_it_computes_or_has_a_name_that_does() -> None:
    """The table is complete: each operator has one rule, and no rule is there for an operator that ONNX does not have."""
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert set(RULES) <= known
    assert len(RULES) > 45

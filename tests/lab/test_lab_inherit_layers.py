"""One kind of layer after the other: cut where it can be, whole where it cannot, and never inconsistent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from inherit_worlds import answer, silenced, tensor
from lab_worlds import stir_
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from edgestill.lab.inherit import carve

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.inherit.trace import Example


class Through(nn.Module):
    """A function of some layers."""

    def __init__(self, call: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function says."""
        return self.call(*inputs, *self.layers)


class Weights(nn.Module):
    """A parameter without a layer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        """Itself."""
        return self.value


def row(*layers: nn.Module) -> nn.Module:
    """One after the other."""
    return nn.Sequential(*layers)


def double(first: int, last: int) -> tuple[nn.Module, nn.Module]:
    """A layer before and a layer behind."""
    return nn.Linear(4, first), nn.Linear(last, 3)


def deep(first: int, last: int) -> tuple[nn.Module, nn.Module]:
    """A layer before and two behind, so that one of them can be cut."""
    return nn.Linear(4, first), row(nn.Linear(last, 4), nn.Linear(4, 3))


@dataclass(frozen=True, slots=True)
class Kind:
    """A small network round one kind of layer.

    Attributes:
        make: the network.
        example: a batch.
        cut: tensor -> its shape in a student of half the widths.
        exact: whether silencing the dropped units in the teacher gives the student's answers.
    """

    make: Callable[[], nn.Module]
    example: Example
    cut: dict[str, tuple[int, ...]]
    exact: bool = True


IMAGE, SERIES, ROWS = tensor(2, 3, 6, 6), tensor(2, 3, 8), tensor(2, 4)
SEQUENCE = tensor(2, 5, 4)

KINDS = {
    "conv1d": Kind(
        lambda: row(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 1)), SERIES, {"2.weight": (4, 3, 1)}
    ),
    "conv3d": Kind(
        lambda: row(nn.Conv3d(1, 6, 1), nn.MaxPool3d(2), nn.Conv3d(6, 4, 1)),
        tensor(1, 1, 2, 2, 2),
        {"2.weight": (4, 3, 1, 1, 1)},
    ),
    "flattened": Kind(
        lambda: row(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        IMAGE,
        {"4.weight": (3, 8)},
    ),
    "depthwise, two for each": Kind(
        lambda: row(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"1.weight": (4, 1, 3, 3), "2.weight": (2, 4, 1, 1)},
    ),
    "grouped": Kind(
        lambda: row(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"0.weight": (6, 3, 1, 1), "1.weight": (4, 3, 3, 3), "2.weight": (2, 4, 1, 1)},
    ),
    "transposed": Kind(
        lambda: row(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        IMAGE,
        {"1.weight": (3, 2, 2, 2), "3.weight": (2, 2, 1, 1)},
    ),
    "transposed, grouped": Kind(
        lambda: row(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, groups=4), nn.Conv2d(12, 2, 1)),
        IMAGE,
        {"1.weight": (4, 3, 2, 2), "2.weight": (2, 6, 1, 1)},
    ),
    "batch norm": Kind(
        lambda: row(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        ROWS,
        {"1.weight": (3,), "1.running_var": (3,)},
    ),
    "layer norm": Kind(
        lambda: row(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), ROWS, {"1.bias": (3,)}, exact=False
    ),
    "layer norm without weights": Kind(
        lambda: row(nn.Linear(4, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 3)),
        ROWS,
        {"2.weight": (3, 3)},
        exact=False,
    ),
    "layer norm over a map": Kind(
        lambda: row(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 6, 6]), nn.Conv2d(4, 2, 1)),
        IMAGE,
        {"1.weight": (2, 6, 6)},
        exact=False,
    ),
    "rms norm": Kind(
        lambda: row(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3)), ROWS, {"1.weight": (3,)}, exact=False
    ),
    "group norm": Kind(
        lambda: row(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"1.weight": (4,), "2.weight": (2, 4, 1, 1)},
    ),
    "group norm without weights": Kind(
        lambda: row(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8, affine=False), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"2.weight": (2, 4, 1, 1)},
    ),
    "instance norm": Kind(
        lambda: row(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"2.weight": (2, 4, 1, 1)},
    ),
    "prelu": Kind(
        lambda: row(nn.Linear(4, 6), nn.PReLU(6), nn.PReLU(), nn.Linear(6, 3)),
        ROWS,
        {"1.weight": (3,), "2.weight": (1,)},
    ),
    "residual": Kind(
        lambda: Through(
            lambda x, a, b, c: c(a(x) + torch.relu(b(x))), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        ),
        ROWS,
        {"layers.0.weight": (3, 4), "layers.1.weight": (3, 4), "layers.2.weight": (3, 3)},
    ),
    "concatenation": Kind(
        lambda: Through(
            lambda x, a, b, c: c(torch.cat([a(x), b(x), a(x)], -1)),
            nn.Linear(4, 6),
            nn.Linear(4, 4),
            nn.Linear(16, 3),
        ),
        ROWS,
        {"layers.2.weight": (3, 8)},
    ),
    "halves": Kind(
        lambda: Through(lambda x, a, b: b(F.glu(a(x)) * torch.relu(a(x).chunk(2, -1)[1])), *double(12, 6)),
        ROWS,
        {"layers.0.weight": (6, 4), "layers.1.weight": (3, 3)},
    ),
    "stacked": Kind(
        lambda: Through(
            lambda x, a, b, c: c(torch.stack([a(x), b(x)], 1).flatten(1)),
            nn.Linear(4, 6),
            nn.Linear(4, 6),
            nn.Linear(12, 3),
        ),
        ROWS,
        {"layers.0.weight": (3, 4), "layers.2.weight": (3, 6)},
    ),
    "unflattened": Kind(
        lambda: row(nn.Linear(4, 24), nn.Unflatten(1, (6, 2, 2)), nn.Conv2d(6, 2, 1)),
        ROWS,
        {"0.weight": (12, 4), "2.weight": (2, 3, 1, 1)},
    ),
    "pixel shuffle": Kind(
        lambda: row(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1)),
        IMAGE,
        {"0.weight": (8, 3, 1, 1), "2.weight": (2, 2, 1, 1)},
    ),
    "channel shuffle": Kind(
        lambda: row(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 2, 1)),
        IMAGE,
        {"2.weight": (2, 4, 1, 1)},
    ),
    "attention": Kind(
        lambda: Through(
            lambda x, a, m, b: b(m(a(x), a(x), a(x))[0]),
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 4),
            nn.Linear(8, 3),
        ),
        SEQUENCE,
        {"layers.1.in_proj_weight": (12, 4), "layers.1.out_proj.weight": (4, 4), "layers.2.weight": (3, 4)},
    ),
    "attention with other keys": Kind(
        lambda: Through(
            lambda x, a, m, k, v, b: b(m(a(x), k(x), v(x))[0]),
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 4, kdim=6, vdim=2, add_bias_kv=True, batch_first=True),
            nn.Linear(4, 6),
            nn.Linear(4, 2),
            nn.Linear(8, 3),
        ),
        SEQUENCE,
        {"layers.1.k_proj_weight": (4, 3), "layers.1.v_proj_weight": (4, 1), "layers.1.bias_k": (1, 1, 4)},
    ),
    "embedding": Kind(
        lambda: row(nn.Embedding(9, 6), nn.Linear(6, 3)), torch.tensor([[1, 2]]), {"0.weight": (9, 3)}
    ),
    "embedding bag": Kind(
        lambda: row(nn.EmbeddingBag(9, 6), nn.Linear(6, 3)), torch.tensor([[1, 2]]), {"0.weight": (9, 3)}
    ),
    "lstm": Kind(
        lambda: Through(lambda x, r, b: b(r(x)[0]), nn.LSTM(4, 6), nn.Linear(6, 3)),
        SEQUENCE,
        {"layers.0.weight_ih_l0": (12, 4), "layers.0.weight_hh_l0": (12, 3), "layers.1.weight": (3, 3)},
    ),
    "lstm with projection": Kind(
        lambda: Through(
            lambda x, r, b: b(r(x)[1][0][-1]),
            nn.LSTM(4, 6, 2, proj_size=4, batch_first=True),
            nn.Linear(4, 3),
        ),
        SEQUENCE,
        {"layers.0.weight_hr_l0": (2, 3), "layers.0.weight_ih_l1": (12, 2), "layers.1.weight": (3, 2)},
    ),
    "gru": Kind(
        lambda: Through(lambda x, r, b: b(r(x)[0]), nn.GRU(4, 6), nn.Linear(6, 3)),
        SEQUENCE,
        {"layers.0.weight_hh_l0": (9, 3)},
    ),
    "rnn": Kind(
        lambda: Through(lambda x, r, b: b(r(x)[0]), nn.RNN(4, 6), nn.Linear(6, 3)),
        SEQUENCE,
        {"layers.0.weight_hh_l0": (3, 3)},
    ),
    "cells": Kind(
        lambda: Through(
            lambda x, a, c, g, b: b(g(c(a(x))[0])),
            nn.Linear(4, 6),
            nn.LSTMCell(6, 8),
            nn.GRUCell(8, 4),
            nn.Linear(4, 3),
        ),
        ROWS,
        {"layers.1.weight_ih": (16, 3), "layers.1.weight_hh": (16, 4), "layers.2.weight_hh": (6, 2)},
    ),
    "a parameter that is added": Kind(
        lambda: Through(
            lambda x, a, w, b: b(torch.relu(a(x) + w())), nn.Linear(4, 6), Weights(6), nn.Linear(6, 3)
        ),
        ROWS,
        {"layers.1.value": (3,)},
    ),
    "a parameter for each head": Kind(
        lambda: Through(
            lambda x, a, w, b: b((a(x).unflatten(-1, (-1, 2)) * w()).flatten(-2)),
            nn.Linear(4, 8),
            Weights(4, 1),
            nn.Linear(8, 3),
        ),
        ROWS,
        {"layers.0.weight": (4, 4), "layers.1.value": (2, 1), "layers.2.weight": (3, 4)},
    ),
    "a norm by length": Kind(
        lambda: Through(lambda x, a, b: b(F.normalize(a(x), dim=-1)), *double(6, 6)),
        ROWS,
        {"layers.1.weight": (3, 3)},
    ),
    "einsum": Kind(
        lambda: Through(
            lambda x, a, c, b: b(torch.einsum("nc,nc->nc", a(x), c(x))),
            nn.Linear(4, 6),
            nn.Linear(4, 6),
            nn.Linear(6, 3),
        ),
        ROWS,
        {"layers.0.weight": (3, 4), "layers.1.weight": (3, 4)},
    ),
    "sorted: whole": Kind(
        lambda: Through(lambda x, a, b: b(a(x).sort(-1).values), *deep(6, 6)),
        ROWS,
        {"layers.0.weight": (6, 4)},
    ),
    "flipped: whole": Kind(
        lambda: Through(lambda x, a, b: b(a(x).flip(-1)), *deep(6, 6)), ROWS, {"layers.0.weight": (6, 4)}
    ),
    "picked by position: whole": Kind(
        lambda: Through(lambda x, a, b: b(a(x)[:, [0, 2]]), *deep(6, 2)), ROWS, {"layers.0.weight": (6, 4)}
    ),
    "every second unit: whole": Kind(
        lambda: Through(lambda x, a, b: b(a(x)[:, ::2]), *deep(6, 3)), ROWS, {"layers.0.weight": (6, 4)}
    ),
    "bilinear: whole": Kind(
        lambda: Through(
            lambda x, a, m, b: b(m(a(x), a(x))),
            nn.Linear(4, 6),
            nn.Bilinear(6, 6, 4),
            row(nn.Linear(4, 4), nn.Linear(4, 3)),
        ),
        ROWS,
        {"layers.0.weight": (6, 4), "layers.1.weight": (4, 6, 6)},
    ),
    "joined and cut elsewhere: whole": Kind(
        lambda: Through(
            lambda x, a, b, c: c(torch.cat([a(x), b(x)], -1).view(-1, 5, 2).flatten(1)),
            nn.Linear(4, 3),
            nn.Linear(4, 7),
            row(nn.Linear(10, 4), nn.Linear(4, 3)),
        ),
        ROWS,
        {"layers.2.0.weight": (2, 10)},
    ),
    "what is not used: whole": Kind(
        lambda: Through(lambda x, a, b, c: b(a(x)), nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 6)),
        ROWS,
        {"layers.0.weight": (3, 4), "layers.2.weight": (6, 6)},
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_of_layer_is_cut_as_it_can_be(name: str) -> None:
    """Shapes are those expected, and the student answers as the teacher whose dropped units are silent."""
    kind = KINDS[name]
    torch.manual_seed(0)
    teacher = stir_(kind.make())
    student, index_map = carve(teacher, kind.example, ratio=0.5, seed=1)
    found = student.state_dict()
    assert {one: tuple(found[one].shape) for one in kind.cut} == kind.cut
    if kind.exact:
        torch.testing.assert_close(
            answer(student, kind.example),
            answer(silenced(teacher, index_map), kind.example),
            rtol=1e-4,
            atol=1e-5,
        )

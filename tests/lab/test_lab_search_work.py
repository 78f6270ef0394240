"""What a model has to do, counted by hand beside it."""

from __future__ import annotations

import pytest
import torch
from lab_worlds import TRAIN, image_net, images, motion_net, stir_
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.core.hardware import HardwareClass
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.quantise import quantise
from edgestill.lab.searching.work import Work, work_of

VNNI = HardwareClass("x86_64-vnni-onnxruntime")


def of(model: bytes, *kinds: str) -> list[Work]:
    """The operators of these kinds."""
    return [one for one in work_of(model) if one.kind in kinds]


def test_an_image_network_is_counted_by_hand() -> None:
    """Two convolutions of 3 by 3 on 24 x 24 and 12 x 12 pixels, two matrices; the first layer's scaling is elementwise."""
    model = export_onnx(stir_(image_net(3, 4, 5)), torch.from_numpy(images(2)))
    assert of(model, "Conv") == [
        Work(kind="Conv", products=24 * 24 * 3 * 27, weights=3 * 27 + 3, outputs=24 * 24 * 3),
        Work(kind="Conv", products=12 * 12 * 4 * 27, weights=4 * 27 + 4, outputs=12 * 12 * 4),
    ]
    assert of(model, "Gemm") == [
        Work(kind="Gemm", products=5 * 144, weights=5 * 144 + 5, outputs=5),
        Work(kind="Gemm", products=50, weights=50 + 10, outputs=10),
    ]
    assert [one.outputs for one in of(model, "Sub", "Mul", "Cast")] == [24 * 24 * 3] * 3


def test_the_same_network_in_int8_does_the_same() -> None:
    """Rounding is left to the engine, and codes are weights."""
    model = export_onnx(stir_(motion_net(4, 4, 6)), torch.from_numpy(TRAIN.inputs[:2]))
    kinds = ("Conv", "Gemm", "ReduceMean")
    assert of(quantise(model, TRAIN.inputs, VNNI), *kinds) == of(model, *kinds)


class Odd(nn.Module):
    """A depthwise and a transposed convolution, and a bare matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv1d(6, 6, 3, groups=6)
        self.back = nn.ConvTranspose1d(6, 2, 4)
        self.matrix = nn.Parameter(torch.randn(17, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6, 16]`."""
        logits: Tensor = self.head((self.back(self.deep(x)) @ self.matrix).flatten(1))
        return logits


def test_groups_and_turned_convolutions_are_counted_by_hand() -> None:
    """A depthwise one sums a kernel an output; a transposed one spreads each input over kernel and channels."""
    model = export_onnx(Odd(), torch.randn(2, 6, 16))
    assert of(model, "depthwise") == [Work(kind="depthwise", products=6 * 14 * 3, weights=24, outputs=6 * 14)]
    assert of(model, "ConvTranspose") == [
        Work(kind="ConvTranspose", products=6 * 14 * 2 * 4, weights=6 * 2 * 4 + 2, outputs=2 * 17)
    ]
    assert of(model, "MatMul") == [Work(kind="MatMul", products=2 * 3 * 17, weights=51, outputs=6)]


def test_what_is_no_model_is_refused() -> None:
    """By the same error as everywhere."""
    with pytest.raises(ModelError, match="not an ONNX model"):
        work_of(b"no model")

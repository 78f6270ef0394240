"""What is written down as TFLite answers as the ONNX file does: floats nearly alike, int8 to the code."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_worlds import image_net, images, motion_net, motions, stir_
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgestill.core.errors import EngineError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.litert.engine import LiteRtEngine
from edgestill.infer.litert.table import lowered
from edgestill.lab.networks import Standardise
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HERE = HardwareClass.here("litert")
ROWS = 24


def apart(model: bytes, inputs: NDArray[np.generic]) -> dict[str, float]:
    """How far the two engines' answers are apart, by output, as a share of the largest answer."""
    ours, theirs = LiteRtEngine(model).run({"input": inputs}), OnnxEngine(model).run({"input": inputs})
    assert list(ours) == list(theirs)
    found = {}
    for name, one in theirs.items():
        wanted, got = one.astype(np.float64), ours[name].astype(np.float64)
        assert got.shape == wanted.shape, name
        found[name] = float(np.abs(got - wanted).max() / max(1e-6, np.abs(wanted).max()))
    return found


class Mobile(nn.Module):
    """Depthwise convolutions, several rectifiers, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()

        def block(taken: int, given: int, stride: int, act: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(taken, taken, 3, stride, 1, groups=taken, bias=False),
                nn.BatchNorm2d(taken),
                act,
                nn.Conv2d(taken, given, 1),
                act,
            )

        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU6(),
            block(8, 12, 1, nn.ReLU6()),
            block(12, 16, 2, nn.Hardswish()),
            block(16, 16, 1, nn.SiLU()),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 3, 20, 20]` to logits."""
        x = self.body(x)
        logits: torch.Tensor = self.head((x * self.gate(x)).mean((2, 3)))
        return logits


class Paths(nn.Module):
    """Two convolutions over time side by side, put together, averaged, flattened with channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.fine = nn.Conv1d(4, 6, 5, 2, 2), nn.Conv1d(4, 6, 3, 2, 1)
        self.leaky, self.pool = nn.LeakyReLU(0.1), nn.AvgPool1d(2)
        self.head = nn.Linear(12 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 32, 4]` to logits."""
        x = x.transpose(1, 2)
        y = torch.cat([torch.relu(self.wide(x)), self.leaky(self.fine(x))], 1)
        logits: torch.Tensor = self.head(torch.tanh(self.pool(y)).flatten(1))
        return logits


class Residual(nn.Module):
    """A camera's bytes, a mean for each channel, shortcuts by slices and zeros, odd strides."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise(3, scale=1 / 255)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, padding=1)
        self.third = nn.Conv2d(6, 6, (3, 2), dilation=(2, 1), padding=(2, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, 9, 11, 3]` to logits."""
        x = torch.relu(self.first(self.standardise(x).permute(0, 3, 1, 2)))
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = torch.relu(self.second(x) + short)
        x = nn.functional.max_pool2d(self.third(x), 2)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


class Rows(nn.Module):
    """Numbers of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 7]` to logits."""
        logits: torch.Tensor = self.head(self.body(x))
        return logits


def floats(*shape: int) -> NDArray[np.float32]:
    """Readings."""
    return np.random.default_rng(1).normal(size=(ROWS, *shape)).astype(np.float32)


NETWORKS: dict[str, tuple[nn.Module, NDArray[np.generic]]] = {
    "image": (image_net(5, 6, 7), images(ROWS)),
    "motion": (motion_net(4, 5, 6), motions(ROWS).inputs),
    "mobile": (Mobile(), floats(3, 20, 20)),
    "paths": (Paths(), floats(32, 4)),
    "residual": (Residual(), np.random.default_rng(0).integers(0, 256, (ROWS, 9, 11, 3), dtype=np.uint8)),
    "rows": (Rows(), floats(7)),
}
EXACT = {"image", "motion", "mobile", "residual", "rows"}
"""Whose int8 layers LiteRT and onnxruntime round alike; another engine may round a tie or a mean to the next code."""


@cache
def file_of(name: str, *, int8: bool) -> bytes:
    """Of a network, as it is shipped."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]
    model = export_onnx(stir_(network), torch.from_numpy(inputs[:2]))
    return shippable(quantise(model, inputs, HERE) if int8 else model, 1.5)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_floats_are_answered_alike(name: str) -> None:
    """Logits, features, probabilities and the temperature, for every row of a batch."""
    found = apart(file_of(name, int8=False), NETWORKS[name][1])
    assert set(found) == {"logits", "features", "probabilities", "temperature"}
    assert max(found.values()) < 1e-4


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_int8_is_answered_to_the_code(name: str) -> None:
    """The same integers: what differs is the last digit of the floats behind them, or one code where a network rounds elsewhere."""
    found = apart(file_of(name, int8=True), NETWORKS[name][1])
    assert max(found.values()) < (1e-5 if name in EXACT else 0.03)


def test_int8_layers_stay_int8() -> None:
    """Their weights are not made floats of: what is run is a third of what it is in floats."""
    network, inputs = stir_(image_net(16, 24, 32)), images(ROWS)
    model = export_onnx(network, torch.from_numpy(inputs[:2]))
    sizes = [len(lowered(one)[0]) for one in (quantise(model, inputs, HERE), model)]
    assert 3 * sizes[0] < sizes[1]


# any network of these operators


def layer(
    kind: str, taken: str, given: str, shape: list[int], draw: Any
) -> tuple[list[Any], list[Any], list[int]]:
    """Nodes and constants of one layer on `[1, C, H, W]`, and the shape after it."""
    channels, height, width = shape
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if kind in {"Conv", "Depthwise"}:
        high, wide = draw(st.integers(1, min(3, height))), draw(st.integers(1, min(3, width)))
        pads = [draw(st.integers(0, size - 1)) for size in (high, wide, high, wide)]
        strides = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
        deep = kind == "Depthwise"
        count = channels * draw(st.integers(1, 2)) if deep else draw(st.integers(1, 6))
        weight = random.normal(size=(count, 1 if deep else channels, high, wide)).astype(np.float32)
        bias = random.normal(size=count).astype(np.float32)
        node = helper.make_node(
            "Conv", [taken, f"{given}_w", f"{given}_b"], [given], pads=pads, strides=strides,
            group=channels if deep else 1,
        )  # fmt: skip
        after = [
            count,
            (height + pads[0] + pads[2] - high) // strides[0] + 1,
            (width + pads[1] + pads[3] - wide) // strides[1] + 1,
        ]
        constants = [
            numpy_helper.from_array(weight, f"{given}_w"),
            numpy_helper.from_array(bias, f"{given}_b"),
        ]
        return [node], constants, after
    if kind in {"MaxPool", "AveragePool"} and min(height, width) >= 2:
        node = helper.make_node(kind, [taken], [given], kernel_shape=[2, 2], strides=[2, 2])
        return [node], [], [channels, height // 2, width // 2]
    if kind == "Scale":
        by = random.normal(size=(channels, 1, 1)).astype(np.float32)
        node = helper.make_node(draw(st.sampled_from(["Mul", "Add", "Sub"])), [taken, f"{given}_c"], [given])
        return [node], [numpy_helper.from_array(by, f"{given}_c")], shape
    if kind == "Double":
        return [helper.make_node("Add", [taken, taken], [given])], [], shape
    operator = kind if kind in UNARY else "Relu"
    return [helper.make_node(operator, [taken], [given])], [], shape


UNARY = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")
KINDS = ("Conv", "Depthwise", "MaxPool", "AveragePool", "Scale", "Double", *UNARY)


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_network_of_known_layers_is_answered_alike(data: st.DataObject) -> None:
    """A law, in floats and in int8: whatever the order of layers, pads, strides and the way to the head."""
    draw = data.draw
    shape = [draw(st.integers(1, 4)), draw(st.integers(2, 9)), draw(st.integers(2, 9))]
    first = list(shape)
    nodes: list[Any] = []
    constants: list[Any] = []
    value = "input"
    for at, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))):
        made, known, shape = layer(kind, value, f"v{at}", shape, draw)
        nodes, constants, value = nodes + made, constants + known, f"v{at}"
    if draw(st.booleans()):
        nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
        value, width = "pooled", shape[0]
    else:
        width = int(np.prod(shape))
    weight = np.random.default_rng(7).normal(size=(3, width)).astype(np.float32)
    nodes += [
        helper.make_node("Flatten", [value], ["features"]),
        helper.make_node("Gemm", ["features", "weight"], ["logits"], transB=1),
    ]
    model = of_nodes(nodes, [*constants, numpy_helper.from_array(weight, "weight")], first, width)
    inputs = np.random.default_rng(2).normal(size=(6, *first)).astype(np.float32)
    assert max(apart(model, inputs).values()) < 1e-4
    assert max(apart(quantise(model, inputs, HERE), inputs).values()) < 0.06


def of_nodes(nodes: Sequence[Any], constants: Sequence[Any], shape: Sequence[int | str], width: int) -> bytes:
    """A model from `input` to `logits` and `features`."""
    graph = helper.make_graph(
        nodes,
        "any",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def refused(node: Any, *constants: Any, shape: Sequence[int] = (4, 6, 6)) -> str:
    """What the engine says of a model with this operator."""
    tail = [
        helper.make_node("GlobalAveragePool", ["made"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight"], ["logits"], transB=1),
    ]
    weight = numpy_helper.from_array(np.zeros((3, 4), dtype=np.float32), "weight")
    model = of_nodes([node, *tail], [*constants, weight], shape, 4)
    with pytest.raises(EngineError, match="cannot load the model; at litert") as caught:
        LiteRtEngine(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def constant(name: str, *shape: int) -> Any:
    """Zeros."""
    return numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name)


def test_operators_that_are_not_known_are_named() -> None:
    """With the value that they make."""
    assert "litert: Erf made; expected one of Abs" in refused(helper.make_node("Erf", ["input"], ["made"]))


def test_ways_of_using_an_operator_that_are_not_known_are_named() -> None:
    """Groups, ceilings, averages that count pads: each would be another answer if it were passed over."""
    grouped = helper.make_node("Conv", ["input", "w"], ["made"], group=2)
    assert "one group, or one for each channel; got 2 groups" in refused(grouped, constant("w", 4, 2, 3, 3))
    ceiling = helper.make_node(
        "MaxPool", ["input"], ["made"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
    )
    assert "ceil_mode" in refused(ceiling, shape=(4, 5, 5))
    counted = helper.make_node(
        "AveragePool", ["input"], ["made"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    )
    assert "left out of account" in refused(counted)
    asymmetric = helper.make_node("MaxPool", ["input"], ["made"], kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    assert "left out of account" in refused(asymmetric)
    itself = helper.make_node("Conv", ["input", "w"], ["made"], auto_pad="SAME_LOWER")
    assert "pads in numbers; got SAME_LOWER" in refused(itself, constant("w", 4, 4, 2, 2))
    turned = helper.make_node("Transpose", ["input"], ["made"], perm=[1, 0, 2, 3])
    assert "rows that stay the first axis" in refused(turned)


def test_free_axes_behind_the_first_are_refused() -> None:
    """A TFLite file has fixed shapes."""
    model = of_nodes([helper.make_node("Flatten", ["input"], ["features"])], [], ["T", 2], 4)
    with pytest.raises(EngineError, match="all axes but the first fixed"):
        LiteRtEngine(model)

"""ONNX files as people bring them: made here by hand, without torch, and by torch's exporters."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgestill.infer.engine import OnnxEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CHANNELS, SIDE, CLASSES, WIDTH = 3, 8, 4, 6


@cache
def image_weights() -> dict[str, NDArray[np.float32]]:
    """Of a convolution, and of a linear layer behind the mean over places; no class is favoured where pixels are noise."""
    random = np.random.default_rng(5)
    kernel = random.normal(size=(WIDTH, CHANNELS, 3, 3)).astype(np.float32)
    weight = (4 * random.normal(size=(WIDTH, CLASSES))).astype(np.float32)
    noise = torch.from_numpy(random.normal(size=(500, CHANNELS, SIDE, SIDE)).astype(np.float32))
    usual = nn.functional.conv2d(noise, torch.from_numpy(kernel)).relu().mean((0, 2, 3)).numpy()
    return {"kernel": kernel, "weight": weight, "bias": (-1.15 * usual @ weight).astype(np.float32)}


def image_model(
    *,
    batch: int | str = "N",
    opset: int = 17,
    end: Sequence[str] = (),
    output: str = "scores",
    more: Sequence[str] = (),
    initializers_as_inputs: bool = False,
    head: str = "MatMul",
) -> bytes:
    """`[N, 3, 8, 8]` to scores of 4 classes.

    Args:
        batch: the first dimension, as exported.
        opset: the operator set.
        end: operators behind the scores, such as Softmax.
        output: its name.
        more: names of values inside that are outputs as well.
        initializers_as_inputs: as files were written before 2019.
        head: `MatMul` with an `Add`, or `Gemm`.
    """
    weights = image_weights()
    reshape = batch if isinstance(batch, int) else 0
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "flat"], ["flattened"]),
    ]
    if head == "Gemm":
        nodes.append(helper.make_node("Gemm", ["flattened", "weight", "bias"], ["last"]))
    else:
        nodes.append(helper.make_node("MatMul", ["flattened", "weight"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "bias"], ["last"]))
    for operator in end:
        node = helper.make_node(operator, [nodes[-1].output[0]], [f"after_{operator}"])
        if operator in {"Softmax", "LogSoftmax"}:
            node.attribute.append(helper.make_attribute("axis", 1))
        nodes.append(node)
    nodes[-1].output[0] = output
    arrays = weights | {"flat": np.array([reshape, WIDTH], dtype=np.int64)}
    known = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    taken = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, CHANNELS, SIDE, SIDE])]
    if initializers_as_inputs:
        taken += [helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in known]
    given = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, CLASSES])]
    given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in more]
    graph = helper.make_graph(nodes, "brought", taken, given, known)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if initializers_as_inputs else 8
    )
    data: bytes = model.SerializeToString()
    return data


def image_logits(pictures: NDArray[np.floating]) -> NDArray[np.float32]:
    """What `image_model` computes for `[N, 3, 8, 8]`, by torch."""
    weights = {name: torch.from_numpy(one) for name, one in image_weights().items()}
    maps = nn.functional.conv2d(torch.from_numpy(pictures.astype(np.float32)), weights["kernel"])
    found: NDArray[np.float32] = (maps.relu().mean((2, 3)) @ weights["weight"] + weights["bias"]).numpy()
    return found


def answer(model: bytes, inputs: NDArray[np.generic], name: str = "input") -> dict[str, NDArray[np.float32]]:
    """All outputs, as floats."""
    found = OnnxEngine(model).run({name: inputs})
    return {output: one.astype(np.float32) for output, one in found.items()}


@cache
def exported(*, free: bool, legacy: bool) -> tuple[nn.Sequential, bytes]:
    """A network with BatchNorm, two ways of flattening and a softmax at its end, by either exporter of torch."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(CHANNELS, 5, 3, 2),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(45, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
        nn.Softmax(1),
    ).eval()
    example = torch.randn(2 if free else 1, CHANNELS, SIDE, SIDE)
    if legacy:
        axes = {"picture": {0: "N"}, "probabilities": {0: "N"}} if free else None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            torch.onnx.export(
                network,
                (example,),
                path,
                dynamo=False,
                input_names=["picture"],
                output_names=["probabilities"],
                dynamic_axes=axes,
            )
            return network, path.read_bytes()
    shapes = ({0: torch.export.Dim("N")},) if free else None
    program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return network, proto.SerializeToString()

"""What a model has to do for one answer, operator by operator: what a latency is predicted from.

The figures are read off the file (its shapes are inferred for a batch of one), so that they are the same on every machine. An
operator of the same kind takes the longer, the more products it sums, the more numbers it reads, and the more it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import onnx

from edgestill.core.errors import ModelError
from edgestill.lab.packing.graph import read, written

if TYPE_CHECKING:
    import onnx_ir as ir

_CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
_MATRICES: Final = frozenset({"Gemm", "MatMul"})
_FREE: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"})
"""What engines fold into their neighbours, or do before the first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one operator.

    Attributes:
        kind: the operator's; `depthwise` for a convolution of as many groups as channels.
        products: that it sums; 0 of an operator that sums none.
        weights: numbers that it reads of the file.
        outputs: numbers that it writes.
    """

    kind: str
    products: int
    weights: int
    outputs: int


def work_of(model: bytes) -> list[Work]:
    """Of each operator for an answer to one input, in their order.

    Raises:
        ModelError: not an ONNX file, or one whose shapes depend on more than the batch.
    """
    known = read(model)
    for taken in known.graph.inputs:
        if taken.shape is not None:
            taken.shape = type(taken.shape)([dim if isinstance(dim, int) else 1 for dim in taken.shape])
    try:
        inferred = onnx.shape_inference.infer_shapes(
            onnx.load_from_string(written(known)), strict_mode=True, data_prop=True
        )
    except onnx.shape_inference.InferenceError as error:
        raise _unknown(str(error)) from error
    graph = read(inferred.SerializeToString()).graph
    return [_work(node) for node in graph if node.op_type not in _FREE]


def _work(node: ir.Node) -> Work:
    outputs = sum(prod(_shape(one)) for one in node.outputs if one.name)
    weights = sum(prod(_shape(one)) for one in node.inputs if one is not None and _is_kept(one))
    kind, products = node.op_type, 0
    if node.op_type in _CONVOLUTIONS:
        weight = _shape(node.inputs[1])
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        spread = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        products = prod(_shape(spread)) * prod(weight[1:])
        kind = "depthwise" if 1 < groups == weight[0] else kind
    elif node.op_type in _MATRICES:
        inner = _shape(node.inputs[0])
        turned = "transA" in node.attributes and node.attributes["transA"].as_int()
        products = outputs * (inner[0] if turned else inner[-1])
    return Work(kind=kind, products=products, weights=weights, outputs=outputs)


def _is_kept(value: ir.Value) -> bool:
    """Whether it stands in the file, as it is or in codes."""
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear":
        source = node.inputs[0]
        return source is not None and source.const_value is not None
    return value.const_value is not None


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        raise _unknown(
            "an operand of no known shape" if value is None else f"{value.name} has no known shape"
        )
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]  # all are whole numbers


def _unknown(got: str) -> ModelError:
    return ModelError(
        "what the model has to do cannot be told",
        where="model.onnx",
        expected="shapes that follow from the input's",
        got=got,
        fix="export it with fixed sizes but for the batch",
    )

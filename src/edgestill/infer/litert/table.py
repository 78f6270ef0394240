"""Which operators can be written down as TFLite, and a whole model of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edgestill.infer.litert import layers, pointwise, shapes
from edgestill.infer.litert.lowering import Lowering, unsupported
from edgestill.infer.onnxgraph import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgestill.infer.onnxgraph import Node

OPERATORS: Final[dict[str, Callable[[Lowering, Node], None]]] = {
    "Abs": pointwise.unary,
    "Add": pointwise.binary,
    "AveragePool": layers.pool,
    "BatchNormalization": pointwise.batch_norm,
    "Cast": pointwise.cast,
    "Clip": pointwise.clip,
    "Concat": shapes.concat,
    "Conv": layers.conv,
    "DequantizeLinear": pointwise.dequantize,
    "Div": pointwise.binary,
    "Dropout": pointwise.identity,
    "Exp": pointwise.unary,
    "Flatten": shapes.reshape,
    "Gemm": layers.linear,
    "GlobalAveragePool": layers.mean,
    "HardSigmoid": pointwise.hard_sigmoid,
    "HardSwish": pointwise.unary,
    "Identity": pointwise.identity,
    "LeakyRelu": pointwise.leaky,
    "MatMul": layers.linear,
    "MaxPool": layers.pool,
    "Mul": pointwise.binary,
    "Neg": pointwise.unary,
    "Pad": shapes.pad,
    "QuantizeLinear": pointwise.quantize,
    "ReduceMean": layers.mean,
    "Relu": pointwise.unary,
    "Reshape": shapes.reshape,
    "Sigmoid": pointwise.unary,
    "Slice": shapes.cut,
    "Softmax": pointwise.softmax,
    "Sqrt": pointwise.unary,
    "Squeeze": shapes.reshape,
    "Sub": pointwise.binary,
    "Tanh": pointwise.unary,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.reshape,
}


def lowered(model: bytes) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """An ONNX model of one row as a TFLite file, and the outputs that are constants.

    Raises:
        EngineError: an operator, or a way of using it, that is not written down as TFLite; it is named.
        ModelError: the file cannot be read.
    """
    low = Lowering(read_graph(model))
    low.take_input()
    for node in low.graph.nodes:
        if node.kind not in OPERATORS:
            raise unsupported(node, f"one of {', '.join(OPERATORS)}")
        OPERATORS[node.kind](low, node)
    return low.file()

"""ONNX files as graphs that can be changed, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx_ir as ir

from edgestill.core.errors import ModelError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

_SHOWN: Final = 4
_WIDE: Final = 32
"""Of free axes behind the first."""


def read(model: bytes) -> ir.Model:
    """The model as a graph.

    Raises:
        ModelError: not an ONNX file.
    """
    try:
        return ir.from_proto(onnx.load_from_string(model))
    except Exception as error:  # protobuf's classes share no other base
        raise ModelError(
            "not an ONNX model",
            where="model.onnx",
            expected="a serialised ModelProto",
            got=type(error).__name__,
            fix="export it again",
        ) from error


def written(model: ir.Model) -> bytes:
    """The file, without initial values that nothing reads any more, and without notes on the shapes of what is computed.

    Every tensor's numbers stand in one piece, so that they can be found and replaced there (`learn.codes`, `delta.tensors`).
    """
    graph = model.graph
    used = {id(value) for node in graph.all_nodes() for value in node.inputs} | {
        id(value) for value in graph.outputs
    }
    for name in [name for name, value in graph.initializers.items() if id(value) not in used]:
        del graph.initializers[name]
    proto = ir.to_proto(model)
    for one in proto.graph.initializer:
        if not one.raw_data:
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one), one.name))
    del proto.graph.value_info[:]  # every engine infers them; they are a tenth of a small file
    return bytes(proto.SerializeToString())


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers that stand in the file for this value; None where they are computed or given."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def inputs_for(model: bytes) -> dict[str, NDArray[np.generic]]:
    """Some of each input: any byte, floats around 0, and of wider integers those that any table of embeddings has."""
    graph = read(model).graph
    random = np.random.default_rng(0)
    given: dict[str, NDArray[np.generic]] = {}
    for taken in graph.inputs:
        dims = list(taken.shape or ())
        shape = [dim if isinstance(dim, int) else _WIDE if at else _SHOWN for at, dim in enumerate(dims)]
        kind = np.dtype((taken.dtype or ir.DataType.FLOAT).numpy())
        if kind.kind in "iu":
            most = np.iinfo(kind).max if kind.itemsize == 1 else 1
            given[str(taken.name)] = random.integers(0, most, shape, endpoint=True).astype(kind)
        else:
            given[str(taken.name)] = random.normal(size=shape).astype(kind)
    return given


def values_of(graph: ir.Graph) -> list[ir.Value]:
    """All that are given, computed, or stand in the file."""
    computed = [value for node in graph.all_nodes() for value in node.outputs]
    return [*graph.inputs, *computed, *graph.initializers.values()]


def free_name(graph: ir.Graph, name: str) -> str:
    """The name, with as many underscores as nobody else has."""
    taken = {one.name for one in values_of(graph)}
    while name in taken:
        name += "_"
    return name

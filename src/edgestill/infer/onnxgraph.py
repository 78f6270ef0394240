"""An ONNX file as nodes and arrays, read without the onnx package: a device has none.

Walks the protobuf wire format (`onnx.proto3`: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto). What is read was looked at by
`infer.modelfile` before; sizes are compared with what is there before anything is allocated. Sub-graphs are not read: who comes
across one finds an attribute of None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import ModelError
from edgestill.core.protobuf import fields_of, varint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_TYPES: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""TensorProto.DataType, as far as numpy has it."""
_MAX_RANK: Final = 8
_SIGN: Final = 1 << 63

Attribute = Any
"""An int, a float, a text, an array, a list of ints or floats, or None for what is not read."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        kind: its type, such as `Conv`.
        inputs: names; empty where one is left out.
        outputs: names.
        attributes: by name.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """A model.

    Attributes:
        nodes: in the order in which they can be computed.
        constants: arrays that stand in the file.
        inputs: name -> (numpy's type, shape with None where free), without constants.
        outputs: names.
        opset: of the standard operators.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, NDArray[Any]]
    inputs: dict[str, tuple[str, tuple[int | None, ...]]]
    outputs: tuple[str, ...]
    opset: int


def read_graph(model: bytes) -> Graph:
    """The graph of a file that `infer.modelfile.check_self_contained` has let through.

    Raises:
        ModelError: a field that is none, or arrays that do not fit their shapes.
    """
    graph, opset = memoryview(b""), 1
    for number, value in _parts(memoryview(model)):
        if number == 7:  # graph
            graph = value
        elif number == 8:  # opset_import
            domain, version = "", 1
            for inner, one in fields(value):
                domain = _text(one) if inner == 1 else domain
                version = one if inner == 2 and isinstance(one, int) else version
            opset = version if domain in {"", "ai.onnx"} else opset
    nodes, inputs, outputs = [], [], []
    constants: dict[str, NDArray[Any]] = {}
    for number, value in _parts(graph):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, array = _tensor(value)
            constants[name] = array
        elif number == 11:
            inputs.append(_value_info(value))
        elif number == 12:
            outputs.append(_value_info(value)[0])
    return Graph(
        nodes=tuple(nodes),
        constants=constants,
        inputs={name: (kind, shape) for name, kind, shape in inputs if name not in constants},
        outputs=tuple(outputs),
        opset=opset,
    )


def fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message."""
    for number, _, value in fields_of(view):
        yield number, value


def _parts(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that are messages, texts or bytes."""
    for number, value in fields(view):
        if not isinstance(value, int):
            yield number, value


def _node(view: memoryview) -> Node:
    inputs, outputs, kind = [], [], ""
    attributes: dict[str, Attribute] = {}
    for number, value in _parts(view):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            name, found = _attribute(value)
            attributes[name] = found
    return Node(kind, tuple(inputs), tuple(outputs), attributes)


def _attribute(view: memoryview) -> tuple[str, Attribute]:
    name = ""
    found: Attribute = None
    many: list[Any] = []
    for number, kind, value in fields_of(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            found = _float(value)
        elif number == 3:
            found = _signed(value)
        elif number == 4:
            found = _text(value)
        elif number == 5 and not isinstance(value, int):
            found = _tensor(value)[1]
        elif number in {7, 8}:
            many += _numbers(value, floats=number == 7)
            found = many
        elif number == 20 and kind == 0 and found is None:  # of a list without elements
            found = many if value in {6, 7} else None
    return name, found


def _numbers(value: int | memoryview, *, floats: bool) -> list[Any]:
    """One number of a list, or all of them where they are packed."""
    if isinstance(value, int):
        return [_signed(value)]
    if floats:
        return list(struct.unpack(f"<{len(value) // 4}f", value[: len(value) // 4 * 4]))
    found, offset = [], 0
    while offset < len(value):
        one, offset = varint(value, offset)
        found.append(_signed(one))
    return found


def _tensor(view: memoryview) -> tuple[str, NDArray[Any]]:
    name, kind, raw = "", 0, memoryview(b"")
    dims: list[int] = []
    listed: list[Any] = []
    for number, value in fields(view):
        if number == 1:
            dims += _numbers(value, floats=False)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
        elif number in {4, 5, 7, 10, 11}:
            listed += _listed(value, number)
    return name, _array(name, kind, dims, listed, raw)


def _array(name: str, kind: int, dims: list[int], listed: list[Any], raw: memoryview) -> NDArray[Any]:
    """The numbers of a tensor, from either place where they may stand."""
    if kind not in _TYPES or len(dims) > _MAX_RANK or any(dim < 0 for dim in dims):
        raise _damaged(name, "numbers of at most 8 axes", f"type {kind}, {dims[:9]}")
    dtype, count = np.dtype(_TYPES[kind]), prod(dims)
    if listed:
        if len(listed) != count:
            raise _damaged(name, f"{count} numbers", len(listed))
        if dtype == np.float16:  # whose bits stand there as whole numbers
            return np.array(listed, dtype=np.uint16).view(np.float16).reshape(dims)
        return np.array(listed).astype(dtype).reshape(dims)
    if len(raw) != count * dtype.itemsize:
        raise _damaged(name, f"{count * dtype.itemsize} bytes", len(raw))
    return np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype).reshape(dims)


def _listed(value: int | memoryview, number: int) -> list[Any]:
    """Of `float_data` (4), `int32_data` (5), `int64_data` (7), `double_data` (10) or `uint64_data` (11)."""
    if number == 10 and not isinstance(value, int):
        return list(struct.unpack(f"<{len(value) // 8}d", value[: len(value) // 8 * 8]))
    return _numbers(value, floats=number == 4)


def _value_info(view: memoryview) -> tuple[str, str, tuple[int | None, ...]]:
    """Name, numpy's type (empty where it is no tensor of numbers) and shape."""
    name, kind = "", 0
    dims: list[int | None] = []
    for number, value in _parts(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, tensor in _parts(value):
                if inner == 1:
                    kind, dims = _tensor_type(tensor)
    return name, _TYPES.get(kind, ""), tuple(dims)


def _tensor_type(view: memoryview) -> tuple[int, list[int | None]]:
    kind = 0
    dims: list[int | None] = []
    for number, value in fields(view):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and not isinstance(value, int):
            for _, dim in _parts(value):
                sizes = [one for inner, one in fields(dim) if inner == 1 and isinstance(one, int)]
                dims.append(_signed(sizes[0]) if sizes else None)
    return kind, dims


def _float(value: int | memoryview) -> float:
    return float(struct.unpack("<f", value)[0]) if not isinstance(value, int) and len(value) == 4 else 0.0


def _signed(value: int | memoryview) -> int:
    """A varint as the two's complement that it is of."""
    if not isinstance(value, int):
        raise _damaged("a number", "a whole number", "bytes")
    return value - 2 * _SIGN if value & _SIGN else value


def _text(value: int | memoryview) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def _damaged(where: str, expected: str, got: object) -> ModelError:
    return ModelError(
        "a model that cannot be read",
        where=f"model.onnx: {where}",
        expected=expected,
        got=got,
        fix="export it again, or fetch it again",
    )

"""The device's own reader of ONNX files sees what the onnx package sees, and refuses what is damaged."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_models import model_bytes, tiny_model
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgestill.core.errors import ModelError
from edgestill.infer.onnxgraph import Graph, read_graph

KINDS = (
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "bool",
)


def with_constant(tensor: TensorProto, **attributes: Any) -> bytes:
    """A model that holds this tensor, and an operator with these attributes."""
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["N", 2]) for one in ("x", "y")]
    node = helper.make_node("Add", ["x", "w"], ["y"], **attributes)
    return model_bytes(helper.make_graph([node], "g", ends[:1], ends[1:], [tensor]))


def test_nodes_inputs_and_outputs_are_those_of_the_file() -> None:
    """In their order, with shapes and types, and the constants apart from the inputs."""
    graph = read_graph(tiny_model(kind=TensorProto.UINT8))
    assert [node.kind for node in graph.nodes] == ["Cast", "MatMul", "Relu", "MatMul", "Add"]
    assert graph.nodes[1].inputs == ("real", "first")
    assert graph.nodes[0].attributes == {"to": TensorProto.FLOAT}
    assert graph.inputs == {"input": ("uint8", (None, 4))}
    assert graph.outputs == ("logits", "features")
    assert set(graph.constants) == {"first", "second", "bias"}
    assert graph.opset == 18


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "listed"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_numbers_are_read_from_either_place(kind: str, shape: tuple[int, ...], *, raw: bool) -> None:
    """Bytes as they lie, or one after the other in the field of their kind."""
    array = (np.arange(np.prod(shape)).reshape(shape) * 3 - 4).astype(kind)
    if raw:
        tensor = numpy_helper.from_array(array, "w")
    else:
        tensor = helper.make_tensor(
            "w", helper.np_dtype_to_tensor_dtype(array.dtype), shape, array.ravel().tolist()
        )
    found = read_graph(with_constant(tensor)).constants["w"]
    assert (found.dtype, found.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(found, array)


@given(
    whole=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(width=32, allow_nan=False),
    wholes=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    reals=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    text=st.text(max_size=8),
)
@settings(deadline=None, max_examples=50)
def test_attributes_of_every_kind_are_read(
    whole: int, real: float, wholes: list[int], reals: list[float], text: str
) -> None:
    """A law: numbers of any sign, lists of them, texts, arrays."""
    array = np.array([[1, 2], [3, 4]], dtype=np.int64)
    made = {"a": whole, "b": real, "c": wholes, "d": reals, "e": text, "f": numpy_helper.from_array(array)}
    (node,) = read_graph(with_constant(numpy_helper.from_array(array, "w"), **made)).nodes
    np.testing.assert_array_equal(node.attributes.pop("f"), array)
    assert node.attributes == {"a": whole, "b": real, "c": wholes, "d": reals, "e": text}


def test_packed_lists_are_read_as_well() -> None:
    """Writers may put all numbers of a list into one field."""
    packed = bytes([0x0A, 1]) + b"p" + bytes([0x42, 3, 1, 2, 0x7F]) + bytes([0xA0, 1, 7])  # name, ints, type
    reals = bytes([0x0A, 1]) + b"r" + bytes([0x3A, 8]) + struct.pack("<2f", 0.5, -2.0) + bytes([0xA0, 1, 6])
    node = b"".join(bytes([0x2A, len(one)]) + one for one in (packed, reals)) + bytes([0x22, 3]) + b"Odd"
    graph = bytes([0x0A, len(node)]) + node
    (read,) = read_graph(bytes([0x3A, len(graph)]) + graph).nodes
    assert (read.kind, read.attributes) == ("Odd", {"p": [1, 2, 127], "r": [0.5, -2.0]})


def test_a_list_without_elements_is_one() -> None:
    """Its kind is told, though no number is."""
    proto = ModelProto.FromString(with_constant(numpy_helper.from_array(np.zeros(2, np.float32), "w")))
    attribute = proto.graph.node[0].attribute.add(name="none")
    attribute.type = 7
    (node,) = read_graph(proto.SerializeToString()).nodes
    assert node.attributes == {"none": []}


def tensor_of(**changes: Any) -> bytes:
    """A model whose constant is not what it says."""
    tensor = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    for name, value in changes.items():
        field = getattr(tensor, name)
        if name == "dims":
            del field[:]
            field.extend(value)
        else:
            setattr(tensor, name, value)
    return with_constant(tensor)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"raw_data": b"123"}, "expected 24 bytes; got 3"),
        ({"dims": [2**40, 2**40]}, "bytes; got 24"),
        ({"dims": [-1, 3]}, "numbers of at most 8 axes"),
        ({"dims": [1] * 9}, "numbers of at most 8 axes"),
        ({"data_type": 8}, "numbers of at most 8 axes"),
        ({"data_type": 99}, "type 99"),
    ],
    ids=["too short", "too large", "negative", "too many axes", "texts", "unknown"],
)
def test_attack_arrays_that_are_not_what_they_say(changes: dict[str, Any], said: str) -> None:
    """Sizes are compared with what is there before anything is made of them."""
    with pytest.raises(ModelError, match=said):
        read_graph(tensor_of(**changes))


def test_attack_too_few_listed_numbers() -> None:
    """Six are promised, five are there."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, (2, 3), [0.0] * 6)
    del tensor.float_data[5:]
    with pytest.raises(ModelError, match="expected 6 numbers; got 5"):
        read_graph(with_constant(tensor))


@given(position=st.integers(0, 400), value=st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_gives_our_errors_only(position: int, value: int) -> None:
    """Whatever byte is changed."""
    data = bytearray(tiny_model())
    data[position % len(data)] = value
    with contextlib.suppress(ModelError):
        assert isinstance(read_graph(bytes(data)), Graph)

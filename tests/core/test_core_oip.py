"""The Open Inference Protocol codec: examples by hand, round trips, and attacks on every size."""

from __future__ import annotations

import json
import math
import struct
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Json, JsonObject, canonical
from edgestill.core.oip import (
    DATATYPE_OF,
    DATATYPES,
    MAX_RANK,
    MAX_TENSORS,
    NUMPY_NAMES,
    InferRequest,
    InferResponse,
    Tensor,
)

FINITE = {
    "e": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "f": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "d": st.floats(width=64, allow_nan=False, allow_infinity=False),
}
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12)


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False) -> Tensor:
    """A tensor of any datatype and small shape; its bytes are those of finite numbers where asked."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = tuple(draw(st.lists(st.integers(min_value=0, max_value=4), max_size=4)))
    code, width = DATATYPES[datatype]
    count = prod(shape)
    if datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    elif finite and code in "efd":
        data = struct.pack(f"<{count}{code}", *draw(st.lists(FINITE[code], min_size=count, max_size=count)))
    else:
        data = draw(st.binary(min_size=count * width, max_size=count * width))
    return Tensor(draw(NAMES), datatype, shape, data)


def several(*, finite: bool = False) -> st.SearchStrategy[tuple[Tensor, ...]]:
    """One to three tensors of different names."""
    return st.lists(tensors(finite=finite), min_size=1, max_size=3, unique_by=lambda tensor: tensor.name).map(
        tuple
    )


def plain(found: tuple[Tensor, ...]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Tensors as values that compare."""
    return [(one.name, one.datatype, one.shape, bytes(one.data)) for one in found]


def infer(**changes: Any) -> bytes:
    """A JSON request with one FP32 input of two numbers, with the input's fields changed."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]} | changes
    return json.dumps(
        {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}
    ).encode()


# By hand


def test_a_request_in_json_reads_as_the_specification_shows() -> None:
    """A request with nested rows, as in the protocol's examples, gives little-endian row-major bytes."""
    body = b"""{
      "id": "42", "parameters": {"purpose": "audit"},
      "inputs": [{"name": "input", "shape": [2, 2], "datatype": "UINT32", "data": [[1, 2], [3, 4]]}],
      "outputs": [{"name": "logits"}]
    }"""
    request = InferRequest.decode(body, None)
    assert request.id == "42"
    assert request.parameters == {"purpose": "audit"}
    assert request.outputs == ("logits",)
    assert not request.binary
    assert plain(request.inputs) == [("input", "UINT32", (2, 2), struct.pack("<4I", 1, 2, 3, 4))]


def test_a_binary_request_is_json_followed_by_raw_tensors() -> None:
    """The length of the JSON part is handed out for the header, and the tensors follow in order."""
    first = Tensor("a", "UINT8", (3,), b"\1\2\3")
    second = Tensor("b", "INT16", (1,), b"\xff\xff")
    body, length = InferRequest(inputs=(first, second)).encode()
    assert length is not None
    assert body[length:] == b"\1\2\3\xff\xff"
    assert json.loads(body[:length]) == {
        "inputs": [
            {"name": "a", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
            {"name": "b", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
        ],
        "parameters": {"binary_data_output": True},
    }


def test_a_response_in_json_names_model_and_numbers() -> None:
    """A JSON answer carries its numbers as JSON numbers."""
    answer = InferResponse(
        model="teacher",
        version="3",
        id="42",
        outputs=(Tensor("y", "FP32", (2,), struct.pack("<2f", 0.5, -2)),),
    )
    body, length = answer.encode(binary=False)
    assert length is None
    assert json.loads(body) == {
        "model_name": "teacher",
        "model_version": "3",
        "id": "42",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [0.5, -2.0]}],
    }


@pytest.mark.parametrize(
    ("text", "binary"),
    [
        ('"parameters": {"binary_data_output": true}', True),
        ('"parameters": {"binary_data_output": false}', False),
        ('"parameters": {"binary_data_output": 1}', False),
        ('"outputs": [{"name": "y", "parameters": {"binary_data": true}}]', True),
        ('"outputs": [{"name": "y", "parameters": {"binary_data": false}}]', False),
        ('"outputs": [{"name": "y"}]', False),
        ('"id": "1"', False),
    ],
)
def test_raw_answers_are_given_only_to_who_asks(text: str, binary: bool) -> None:
    """A client asks for raw tensors for the whole answer or for one output; otherwise it gets JSON."""
    body = (
        b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}], ' + text.encode() + b"}"
    )
    assert InferRequest.decode(body, None).binary is binary


def test_datatypes_are_numpys() -> None:
    """Every datatype has numpy's name and numpy's width, both ways."""
    for oip, name in NUMPY_NAMES.items():
        assert np.dtype(name).itemsize == DATATYPES[oip][1]
        assert DATATYPE_OF[name] == oip
        assert np.dtype(name).newbyteorder("<") == np.dtype("<" + np.dtype(DATATYPES[oip][0]).str[1:])


# Round trips


@given(several(), st.booleans(), st.text("abc-", max_size=5), st.lists(NAMES, max_size=2))
def test_a_binary_request_survives(
    inputs: tuple[Tensor, ...], binary: bool, identity: str, outputs: list[str]
) -> None:
    """Every tensor, NaN bits included, and every field come back from the binary form."""
    request = InferRequest(
        inputs=inputs, id=identity, parameters={"purpose": "audit"}, outputs=tuple(outputs), binary=binary
    )
    again = InferRequest.decode(*request.encode())
    assert plain(again.inputs) == plain(inputs)
    assert (again.id, again.parameters, again.outputs, again.binary) == (
        identity,
        {"purpose": "audit"},
        tuple(outputs),
        binary,
    )


@given(several(finite=True))
def test_a_json_request_survives(inputs: tuple[Tensor, ...]) -> None:
    """Every finite tensor comes back bit for bit from JSON."""
    again = InferRequest.decode(*InferRequest(inputs=inputs).encode(binary=False))
    assert plain(again.inputs) == plain(inputs)


@given(several(finite=True), st.booleans(), st.dictionaries(NAMES, st.integers() | NAMES, max_size=2))
def test_a_response_survives(outputs: tuple[Tensor, ...], binary: bool, parameters: dict[str, Any]) -> None:
    """Every answer comes back from both forms, its parameters included."""
    response = InferResponse(model="teacher", version="1", id="7", outputs=outputs, parameters=parameters)
    again = InferResponse.decode(*response.encode(binary=binary))
    assert plain(again.outputs) == plain(outputs)
    assert (again.model, again.version, again.id, again.parameters) == ("teacher", "1", "7", parameters)


@given(several())
def test_a_view_of_the_body_is_enough(inputs: tuple[Tensor, ...]) -> None:
    """Raw tensors are views into the body: decoding copies no tensor."""
    body, length = InferRequest(inputs=inputs).encode()
    for tensor in InferRequest.decode(body, length).inputs:
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is body


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_spell_go_raw_or_not_at_all(value: float) -> None:
    """NaN and infinity survive the binary form and are refused in the JSON form."""
    response = InferResponse(model="m", outputs=(Tensor("y", "FP32", (1,), struct.pack("<f", value)),))
    assert plain(InferResponse.decode(*response.encode()).outputs) == plain(response.outputs)
    with pytest.raises(MessageError, match="cannot be written as JSON"):
        response.encode(binary=False)


def test_an_empty_batch_is_a_batch() -> None:
    """A tensor with a zero in its shape has no bytes and survives both forms."""
    request = InferRequest(inputs=(Tensor("x", "FP32", (0, 128, 6), b""),))
    for binary in (True, False):
        assert InferRequest.decode(*request.encode(binary=binary)).inputs[0].shape == (0, 128, 6)


def test_a_scalar_is_a_tensor() -> None:
    """A tensor of rank 0 has one element."""
    request = InferRequest(inputs=(Tensor("x", "INT8", (), b"\7"),))
    assert bytes(InferRequest.decode(*request.encode(binary=False)).inputs[0].data) == b"\7"


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, r"a field is missing; at body: inputs\[0\]: name"),
        ({"name": "x" * 201}, "at most 200 characters"),
        ({"datatype": "FP8"}, "unknown datatype; at x; expected BOOL, UINT8"),
        ({"datatype": "STRING"}, "unknown datatype"),
        ({"datatype": None}, "datatype"),
        ({"shape": None}, r"a field is missing; at body: inputs\[0\]: shape"),
        ({"shape": [3]}, "tensor and shape disagree; at x; expected 3 numbers; got 2"),
        ({"shape": [-2]}, "shape: 0; expected a whole number from 0"),
        ({"shape": [2.0]}, "shape: 0; expected a whole number"),
        ({"shape": ["2"]}, "shape: 0; expected a whole number"),
        ({"shape": [2**31 + 1]}, "shape: 0; expected a whole number"),
        ({"shape": [1] * (MAX_RANK + 1)}, "a list of at most 8 items"),
        ({"data": None}, r"a field is missing; at body: inputs\[0\]: data"),
        ({"data": "AAAA"}, "a list of at most"),
        ({"data": [1, "2"]}, "not numbers of this datatype; at x; expected FP32"),
        ({"data": [1, None]}, "not numbers of this datatype"),
        ({"data": [1, {"2": 2}]}, "not numbers of this datatype"),
        ({"data": [1, True]}, "not numbers of this datatype"),
        ({"data": [1, 1e39]}, "not numbers of this datatype"),
        ({"data": [1, 10**400]}, "not numbers of this datatype"),
        ({"datatype": "INT8", "data": [1, 128]}, "not numbers of this datatype"),
        ({"datatype": "INT8", "data": [1, 1.5]}, "not numbers of this datatype"),
        ({"datatype": "UINT64", "data": [1, -1]}, "not numbers of this datatype"),
        ({"datatype": "FP16", "data": [1, 70000]}, "not numbers of this datatype"),
        ({"datatype": "BOOL", "data": [True, 2]}, "not numbers of this datatype; at x; expected BOOL"),
        ({"datatype": "BOOL", "data": [True, "yes"]}, "not numbers of this datatype"),
        ({"datatype": "BOOL", "data": [True, None]}, "not numbers of this datatype"),
        ({"parameters": []}, "not a JSON object"),
        ({"parameters": {"binary_data_size": 8}}, "a whole number from 0 to 0"),
        ({"parameters": {"binary_data_size": -1}}, "a whole number from 0"),
    ],
)
def test_a_tensor_that_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    """Names, datatypes, shapes and numbers must agree; the refusal says which does not."""
    with pytest.raises(MessageError, match=message):
        InferRequest.decode(infer(**changes), None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object; at body"),
        (b"{}", r"a field is missing; at body: inputs"),
        (b'{"inputs": []}', "a request without inputs; at inputs; expected at least one tensor"),
        (b'{"inputs": [1]}', r"not a JSON object; at body: inputs\[0\]"),
        (b'{"inputs": {}}', "a list of at most 16 items"),
        (b'{"inputs": [], "inputs": []}', "a repeated key"),
        (b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, message: str) -> None:
    """Something else than an object with inputs is refused."""
    with pytest.raises(MessageError, match=message):
        InferRequest.decode(body, None)


def test_a_response_without_a_model_is_refused() -> None:
    """An answer names its model."""
    with pytest.raises(MessageError, match="at body: model_name"):
        InferResponse.decode(b'{"outputs": []}', None)


def test_attack_a_tensor_named_twice_is_refused() -> None:
    """Two tensors of one name, of which a reader would silently lose one, are refused."""
    one: JsonObject = {"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}
    with pytest.raises(
        MessageError, match="a tensor is there twice; at inputs; expected each name once; got 'x'"
    ):
        InferRequest.decode(canonical({"inputs": [one, one]}), None)


def test_attack_too_many_tensors_are_refused() -> None:
    """A message has at most 16 tensors."""
    many: list[Json] = [
        {"name": str(i), "datatype": "INT8", "shape": [1], "data": [1]} for i in range(MAX_TENSORS + 1)
    ]
    assert len(InferRequest.decode(canonical({"inputs": many[:-1]}), None).inputs) == MAX_TENSORS
    with pytest.raises(MessageError, match="a list of at most 16 items"):
        InferRequest.decode(canonical({"inputs": many}), None)


@pytest.mark.parametrize(
    "shape", [[2**31], [2**31] * 8, [2**31, 0, 2**31], [0, 2**20, 2**20, 2**20], [65_536, 65_536, 0]]
)
@pytest.mark.parametrize("datatype", ["INT8", "FP64"])
@pytest.mark.parametrize("raw", [True, False])
def test_attack_huge_shapes_are_refused_before_anything_is_allocated(
    shape: list[int], datatype: str, raw: bool
) -> None:
    """A shape of exabytes is refused, also when a zero hides it, because numpy could not hold it either."""
    changes: dict[str, Any] = {"shape": shape, "datatype": datatype, "data": []}
    if raw:
        changes |= {"data": None, "parameters": {"binary_data_size": 0}}
    body = infer(**changes)
    try:
        decoded = InferRequest.decode(body, len(body) if raw else None)
    except MessageError:
        return
    array = np.frombuffer(decoded.inputs[0].data, NUMPY_NAMES[datatype]).reshape(decoded.inputs[0].shape)
    assert array.size == 0


@given(st.lists(st.integers(min_value=0, max_value=2**31), max_size=MAX_RANK))
def test_every_accepted_shape_is_one_that_numpy_takes(shape: list[int]) -> None:
    """A tensor without elements whose shape is accepted can be made into an array."""
    try:
        tensor = Tensor("x", "FP64", tuple(shape), b"")
    except MessageError:
        return
    assert np.frombuffer(tensor.data, "float64").reshape(tensor.shape).size == 0


@pytest.mark.parametrize("depth", [20, 40, 1_000, 100_000])
def test_attack_deeply_nested_data_is_refused_or_read_but_never_overflows(depth: int) -> None:
    """Nested numbers are read within the depth that JSON may have, and refused beyond."""
    body = infer(shape=[1], data="@").replace(b'"@"', b"[" * depth + b"7" + b"]" * depth)
    if depth < 30:
        assert bytes(InferRequest.decode(body, None).inputs[0].data) == struct.pack("<f", 7)
    else:
        with pytest.raises(MessageError, match="nested too deeply"):
            InferRequest.decode(body, None)


@pytest.mark.parametrize("length", [-1, 10**9])
def test_attack_a_header_length_outside_the_body_is_refused(length: int) -> None:
    """The JSON part lies within the body."""
    with pytest.raises(MessageError, match="the JSON part is longer than the body"):
        InferRequest.decode(infer(), length)


def test_attack_raw_tensors_beyond_the_body_are_refused() -> None:
    """A raw tensor cannot reach past the end of the body, and no bytes may be left over."""
    tensor = Tensor("x", "UINT8", (4,), b"abcd")
    body, length = InferRequest(inputs=(tensor,)).encode()
    with pytest.raises(MessageError, match="binary_data_size; expected a whole number from 0 to 3"):
        InferRequest.decode(body[:-1], length)
    with pytest.raises(MessageError, match="bytes nobody named; at body"):
        InferRequest.decode(body + b"!", length)


def test_attack_raw_tensors_cannot_overlap() -> None:
    """Two tensors that both claim the same bytes do not fit."""
    tensor = Tensor("x", "UINT8", (4,), b"abcd")
    body, length = InferRequest(inputs=(tensor, Tensor("y", "UINT8", (4,), b"efgh"))).encode()
    with pytest.raises(MessageError, match="a whole number from 0 to 0"):
        InferRequest.decode(body[:-4], length)


def test_a_raw_tensor_of_the_wrong_size_is_refused() -> None:
    """The bytes must be those of the shape."""
    with pytest.raises(MessageError, match=r"expected 8 bytes for FP32 \[2\]; got 7"):
        Tensor("x", "FP32", (2,), b"1234567")


def test_attack_a_boolean_that_is_neither_true_nor_false_is_refused() -> None:
    """A raw boolean other than 0 or 1, which numpy would compute nonsense with, is refused."""
    body = InferRequest(inputs=(Tensor("x", "BOOL", (3,), b"\0\1\1"),)).encode()[0]
    length = len(body) - 3
    assert bytes(InferRequest.decode(body, length).inputs[0].data) == b"\0\1\1"
    with pytest.raises(MessageError, match="not booleans; at x; expected bytes of 0 and 1"):
        InferRequest.decode(body[:length] + b"\0\2\1", length)


@given(several(), st.data())
def test_attack_a_cut_message_is_refused(inputs: tuple[Tensor, ...], data: st.DataObject) -> None:
    """Wherever a binary message is cut, it is refused."""
    body, length = InferRequest(inputs=inputs).encode()
    assert length is not None
    cut = data.draw(st.integers(min_value=0, max_value=len(body) - 1))
    with pytest.raises(MessageError):
        InferRequest.decode(body[:cut], length)
    with pytest.raises(MessageError):
        InferRequest.decode(body[: min(cut, length - 1)], None)


@given(st.binary(max_size=80), st.none() | st.integers(min_value=-2, max_value=90))
def test_any_bytes_give_a_message_or_a_message_error(body: bytes, length: int | None) -> None:
    """No body makes the codec fail in another way."""
    with pytest.raises(MessageError):
        InferRequest.decode(body, length)


# Strings of bytes

strings = st.lists(st.binary(max_size=20), max_size=6)


@given(strings, st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2))
def test_strings_of_bytes_survive(parts: list[bytes], parameters: dict[str, Any]) -> None:
    """A BYTES tensor beside another one, raw, has its elements and its parameters on the other side."""
    told = {name: value for name, value in parameters.items() if name != "binary_data_size"}
    sent = InferRequest(
        inputs=(Tensor.of_strings("input", parts, told), Tensor("more", "UINT8", (2,), b"ab"))
    )
    body, length = sent.encode()
    came = InferRequest.decode(body, length)
    assert came.inputs[0].strings() == tuple(parts)
    assert came.inputs[0].parameters == told
    assert bytes(came.inputs[1].data) == b"ab"


def test_strings_begin_with_their_lengths() -> None:
    """As the binary tensor extension has it: four bytes, little-endian, before each."""
    tensor = Tensor.of_strings("input", [b"abc", b""])
    assert (tensor.datatype, tensor.shape) == ("BYTES", (2,))
    assert tensor.data == b"\x03\0\0\0abc\0\0\0\0"


@given(st.lists(st.text(max_size=9), max_size=5))
def test_texts_go_as_json(parts: list[str]) -> None:
    """Where tensors are JSON, strings that are text are text."""
    try:
        raw = [part.encode() for part in parts]
    except UnicodeEncodeError:
        return
    body, length = InferRequest(inputs=(Tensor.of_strings("input", raw),)).encode(binary=False)
    assert length is None
    assert json.loads(body)["inputs"][0]["data"] == parts
    assert InferRequest.decode(body, None).inputs[0].strings() == tuple(raw)


def test_bytes_that_are_no_text_do_not_go_as_json() -> None:
    """They are refused, rather than sent as something else."""
    with pytest.raises(MessageError, match="no text"):
        InferRequest(inputs=(Tensor.of_strings("input", [b"\xff"]),)).encode(binary=False)


@pytest.mark.parametrize("data", [[1], [["a", 2]], [None], [{}]])
def test_what_is_no_string_is_refused(data: list[Any]) -> None:
    """Numbers and objects are no strings."""
    body = {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [len(data)], "data": data}]}
    with pytest.raises(MessageError):
        InferRequest.decode(json.dumps(body).encode(), None)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1,), b""),
        ((1,), b"\x01\0\0"),
        ((1,), b"\x02\0\0\0a"),
        ((1,), b"\xff\xff\xff\xff"),
        ((2,), b"\x01\0\0\0a"),
        ((0,), b"\x01\0\0\0a"),
        ((1,), b"\x01\0\0\0a\0\0\0\0"),
        ((2**31, 2**31), b"\x01\0\0\0a"),
        ((1,) * 9, b"\x01\0\0\0a"),
    ],
)
def test_attack_strings_that_do_not_add_up_are_refused(shape: tuple[int, ...], data: bytes) -> None:
    """Too few, too many, cut, longer than the body, or of a shape out of bounds."""
    with pytest.raises(MessageError, match="disagree"):
        Tensor("input", "BYTES", shape, data)


@given(st.binary(max_size=60), st.lists(st.integers(0, 4), max_size=3))
def test_attack_any_bytes_are_strings_or_refused(data: bytes, shape: list[int]) -> None:
    """Nothing else happens, and what is accepted are exactly as many strings as the shape says."""
    try:
        tensor = Tensor("input", "BYTES", tuple(shape), data)
    except MessageError:
        return
    found = tensor.strings()
    assert len(found) == prod(shape)
    assert sum(map(len, found)) + 4 * len(found) == len(data)

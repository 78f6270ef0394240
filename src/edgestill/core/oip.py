"""The Open Inference Protocol v2 over REST, with its binary tensor extension: a codec without arrays.

Tensors are bytes, shape and datatype name; little-endian, row-major. A message is JSON, or JSON followed by raw
tensors, in which case the `Inference-Header-Content-Length` header gives the JSON's length and every raw tensor's
`binary_data_size` stands in its parameters. Sizes are checked before anything is cut or allocated.

A tensor of datatype BYTES holds strings of bytes: each begins with its length, four bytes. In JSON they are text.

Sources: the Open Inference Protocol specification (rest), and its binary tensor data extension.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, Json, JsonObject, canonical, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_JSON_BYTES: Final = 16_000_000
MAX_TENSORS: Final = 16
MAX_RANK: Final = 8
MAX_STRINGS: Final = 65_536
MAX_TENSOR_BYTES: Final = (
    2**40
)  # of a shape with its zeros left out: numpy refuses to count further even for no elements
HEADER: Final = "inference-header-content-length"

BYTES: Final = "BYTES"
# parameters of inputs that are coded (`infer.payload`), and of the metadata that offer to take such
CODEC: Final = "codec"
SHAPE: Final = "shape"
CODECS: Final = "codecs"
LENGTH: Final = struct.Struct("<I")
"""What each string of a BYTES tensor begins with."""

# datatype -> (struct code, bytes per element); BYTES stands apart.
DATATYPES: Final[dict[str, tuple[str, int]]] = {
    "BOOL": ("?", 1),
    "UINT8": ("B", 1),
    "UINT16": ("H", 2),
    "UINT32": ("I", 4),
    "UINT64": ("Q", 8),
    "INT8": ("b", 1),
    "INT16": ("h", 2),
    "INT32": ("i", 4),
    "INT64": ("q", 8),
    "FP16": ("e", 2),
    "FP32": ("f", 4),
    "FP64": ("d", 8),
}
NUMPY_NAMES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPE_OF: Final[dict[str, str]] = {numpy: oip for oip, numpy in NUMPY_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array as bytes: little-endian, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
    parameters: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.datatype == BYTES:
            _check_strings(self.name, self.shape, self.data)
            return
        _check_size(self.name, self.datatype, self.shape, len(self.data))
        if self.datatype == "BOOL" and bytes(self.data).strip(b"\0\1"):
            raise MessageError(
                "not booleans", where=self.name, expected="bytes of 0 and 1", got="other bytes"
            )

    @classmethod
    def of_strings(cls, name: str, strings: Iterable[bytes], parameters: JsonObject | None = None) -> Self:
        """A BYTES tensor `[N]`."""
        parts = list(strings)
        data = b"".join(piece for part in parts for piece in (LENGTH.pack(len(part)), part))
        return cls(name, BYTES, (len(parts),), data, parameters or {})

    def strings(self) -> tuple[bytes, ...]:
        """The elements of a BYTES tensor."""
        assert self.datatype == BYTES
        return tuple(bytes(self.data[start:end]) for start, end in _places(self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request to infer.

    Attributes:
        inputs: at least one.
        id: echoed in the answer.
        parameters: of the request, such as who asks and why.
        outputs: names wanted; empty for all.
        binary: whether the answer may carry raw tensors.
    """

    inputs: tuple[Tensor, ...]
    id: str = ""
    parameters: JsonObject = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    binary: bool = True

    def encode(self, *, binary: bool = True) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON part where raw tensors follow."""
        head: JsonObject = {"parameters": self.parameters | {"binary_data_output": self.binary}}
        if self.id:
            head["id"] = self.id
        if self.outputs:
            head["outputs"] = [
                {"name": name, "parameters": {"binary_data": self.binary}} for name in self.outputs
            ]
        return _encode(head, "inputs", self.inputs, binary=binary)

    @classmethod
    def decode(cls, body: bytes, json_length: int | None) -> Self:
        """Reads a body.

        Args:
            body: uncompressed.
            json_length: the header's value, None where it is absent.

        Raises:
            MessageError: not a request, over a bound, or sizes that do not add up.
        """
        fields, tensors = _decode(body, json_length, "inputs")
        parameters = dict(fields.inner("parameters").unknown(())) if fields.has("parameters") else {}
        outputs = fields.objects("outputs", at_most=MAX_TENSORS) if fields.has("outputs") else []
        binary = parameters.pop("binary_data_output", False) is True or any(
            one.has("parameters") and one.inner("parameters").unknown(()).get("binary_data") is True
            for one in outputs
        )
        if not tensors:
            raise MessageError(
                "a request without inputs", where="inputs", expected="at least one tensor", got="none"
            )
        return cls(
            inputs=tensors,
            id=fields.text("id", at_most=200, plain=True) if fields.has("id") else "",
            parameters=parameters,
            outputs=tuple(one.text("name", at_most=200) for one in outputs),
            binary=binary,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """An answer: outputs, the model's name and version, and the request's id."""

    model: str
    outputs: tuple[Tensor, ...]
    version: str = ""
    id: str = ""
    parameters: JsonObject = field(default_factory=dict)

    def encode(self, *, binary: bool = True) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON part where raw tensors follow."""
        head: JsonObject = {"model_name": self.model}
        if self.version:
            head["model_version"] = self.version
        if self.id:
            head["id"] = self.id
        if self.parameters:
            head["parameters"] = self.parameters
        return _encode(head, "outputs", self.outputs, binary=binary)

    @classmethod
    def decode(cls, body: bytes, json_length: int | None) -> Self:
        """Reads a body; arguments and errors as `InferRequest.decode`."""
        fields, tensors = _decode(body, json_length, "outputs")
        return cls(
            model=fields.text("model_name", at_most=200),
            version=fields.text("model_version", at_most=200) if fields.has("model_version") else "",
            id=fields.text("id", at_most=200) if fields.has("id") else "",
            parameters=dict(fields.inner("parameters").unknown(())) if fields.has("parameters") else {},
            outputs=tensors,
        )


def _encode(
    head: JsonObject, key: str, tensors: tuple[Tensor, ...], *, binary: bool
) -> tuple[bytes, int | None]:
    described: list[Json] = []
    for tensor in tensors:
        one: JsonObject = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.parameters:
            one["parameters"] = tensor.parameters
        if binary:
            one["parameters"] = tensor.parameters | {"binary_data_size": len(tensor.data)}
        else:
            one["data"] = _texts(tensor) if tensor.datatype == BYTES else _numbers(tensor)
        described.append(one)
    text = canonical(head | {key: described})
    if not binary:
        return text, None
    return b"".join((text, *(tensor.data for tensor in tensors))), len(text)


def _decode(body: bytes, json_length: int | None, key: str) -> tuple[Fields, tuple[Tensor, ...]]:
    length = len(body) if json_length is None else json_length
    if not 0 <= length <= len(body):
        raise MessageError(
            "the JSON part is longer than the body", where=HEADER, expected=f"<= {len(body)}", got=length
        )
    fields = Fields(parse_object(body[:length], where="body", max_bytes=MAX_JSON_BYTES), "body")
    view, offset = memoryview(body), length
    tensors: list[Tensor] = []
    for one in fields.objects(key, at_most=MAX_TENSORS):
        name, datatype = one.text("name", at_most=200), one.text("datatype", at_most=16)
        if any(tensor.name == name for tensor in tensors):
            raise MessageError(
                "a tensor is there twice", where=key, expected="each name once", got=repr(name)
            )
        shape = _shape(one)
        parameters = one.inner("parameters") if one.has("parameters") else None
        if parameters is not None and parameters.has("binary_data_size"):
            size = parameters.integer("binary_data_size", most=len(body) - offset)
            data: bytes | memoryview = view[offset : offset + size]
            offset += size
        elif datatype == BYTES:
            data = _strings(one, name)
        else:
            data = _packed(one, name, datatype, shape)
        told = {} if parameters is None else dict(parameters.unknown(("binary_data_size",)))
        tensors.append(Tensor(name, datatype, shape, data, told))
    if offset != len(body):
        raise MessageError("bytes nobody named", where="body", expected=f"{offset} bytes", got=len(body))
    return fields, tuple(tensors)


def _shape(one: Fields) -> tuple[int, ...]:
    dims = one.items("shape", at_most=MAX_RANK)
    numbered = Fields({str(index): dim for index, dim in enumerate(dims)}, f"{one.where}: shape")
    return tuple(numbered.integer(str(index), most=2**31) for index in range(len(dims)))


def _check_size(name: str, datatype: str, shape: tuple[int, ...], size: int) -> None:
    if datatype not in DATATYPES:
        raise MessageError("unknown datatype", where=name, expected=", ".join(DATATYPES), got=datatype)
    width = DATATYPES[datatype][1]
    if len(shape) > MAX_RANK or prod(max(dim, 1) for dim in shape) * width > MAX_TENSOR_BYTES:
        raise MessageError(
            "a shape out of bounds",
            where=name,
            expected=f"at most {MAX_RANK} dimensions and {MAX_TENSOR_BYTES} bytes",
            got=list(shape),
        )
    wanted = prod(shape) * width
    if size != wanted:
        raise MessageError(
            "tensor and shape disagree",
            where=name,
            expected=f"{wanted} bytes for {datatype} {list(shape)}",
            got=size,
        )


def _check_strings(name: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
    """Raises MessageError where the strings are not as many as the shape says, or do not end with the data."""
    wanted, count, end = prod(shape), 0, 0
    if len(shape) > MAX_RANK or wanted > MAX_STRINGS or wanted * LENGTH.size > len(data):
        raise MessageError(
            "tensor and shape disagree", where=name, expected=f"{wanted} strings", got=f"{len(data)} bytes"
        )
    for _start, end in _places(data):
        count += 1
        if end > len(data) or count > wanted:
            break
    if count != wanted or end != len(data):
        raise MessageError(
            "tensor and shape disagree",
            where=name,
            expected=f"{wanted} whole strings",
            got=f"{count}, to byte {end}",
        )


def _places(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Where each string begins and ends; the last may end beyond the data."""
    start = 0
    while start < len(data):
        start += LENGTH.size
        if start > len(data):
            yield start, start
            return
        (length,) = LENGTH.unpack_from(data, start - LENGTH.size)
        yield start, start + length
        start += length


def _strings(one: Fields, name: str) -> bytes:
    flat: list[Json] = []
    _flatten(one.items("data", at_most=MAX_JSON_BYTES), flat)
    try:
        parts = [text.encode() for text in flat if isinstance(text, str)]
    except UnicodeEncodeError as error:
        raise MessageError("halves of characters", where=name, expected="text", got=error.reason) from error
    if len(parts) != len(flat):
        raise MessageError("not strings", where=name, expected=f"{BYTES} as text", got="other values")
    return bytes(Tensor.of_strings(name, parts).data)


def _texts(tensor: Tensor) -> list[Json]:
    try:
        return [part.decode() for part in tensor.strings()]
    except UnicodeDecodeError as error:
        raise MessageError(
            "bytes that are no text cannot be sent as JSON",
            where=tensor.name,
            expected="UTF-8",
            got=error.reason,
        ) from error


def _packed(one: Fields, name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    if datatype not in DATATYPES:
        raise MessageError("unknown datatype", where=name, expected=", ".join(DATATYPES), got=datatype)
    flat: list[Json] = []
    _flatten(one.items("data", at_most=MAX_JSON_BYTES), flat)
    if len(flat) != prod(shape):
        raise MessageError(
            "tensor and shape disagree", where=name, expected=f"{prod(shape)} numbers", got=len(flat)
        )
    # struct would take any object for a boolean, and a boolean for a number
    boolean = datatype == "BOOL"
    if any(isinstance(item, bool) is not boolean for item in flat):
        raise MessageError("not numbers of this datatype", where=name, expected=datatype, got="other values")
    code = DATATYPES[datatype][0]
    try:
        return struct.pack(f"<{len(flat)}{code}", *flat)
    except (struct.error, OverflowError, TypeError) as error:
        raise MessageError(
            "not numbers of this datatype", where=name, expected=datatype, got=error
        ) from error


def _flatten(items: list[Json], flat: list[Json]) -> None:
    for item in items:
        if isinstance(item, list):
            _flatten(item, flat)
        else:
            flat.append(item)


def _numbers(tensor: Tensor) -> list[Json]:
    code = DATATYPES[tensor.datatype][0]
    return list(struct.unpack(f"<{prod(tensor.shape)}{code}", tensor.data))

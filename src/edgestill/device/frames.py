"""Frames over a Unix socket: a JSON header and raw tensors, bounded before anything is allocated.

    4 bytes  length of the header, big-endian
    4 bytes  length of the body, big-endian
    header   a JSON object; its field `tensors` lists name, datatype and shape of each tensor
    body     the tensors' bytes one after the other: little-endian, row-major

There is no pickle and no type that could carry code. The reader refuses lengths over its bounds, sizes that do not
add up, and a stream that ends within a frame; a stream that ends between frames is an end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import MessageError, UnreachableError
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.core.oip import DATATYPES, MAX_RANK, MAX_TENSORS, Tensor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from edgestill.core.jsonio import Json

MAX_HEADER_BYTES: Final = 1_000_000
MAX_BODY_BYTES: Final = 256_000_000
_HEAD: Final = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a reader takes at most.

    Attributes:
        header: bytes.
        body: bytes; 0 for frames without tensors.
    """

    header: int = MAX_HEADER_BYTES
    body: int = MAX_BODY_BYTES


_ANY: Final = Bounds()


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    Attributes:
        header: without the field `tensors`, which the codec owns.
        tensors: at most 16.
    """

    header: JsonObject
    tensors: tuple[Tensor, ...] = field(default=())

    def tensor(self, name: str) -> Tensor | None:
        """The tensor of that name, or None."""
        return next((one for one in self.tensors if one.name == name), None)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        MessageError: it is larger than a reader takes.
    """
    described: list[Json] = [
        {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in frame.tensors
    ]
    header = canonical(frame.header | {"tensors": described})
    size = sum(len(one.data) for one in frame.tensors)
    _check_lengths(len(header), size, _ANY)
    return b"".join((_HEAD.pack(len(header), size), header, *(one.data for one in frame.tensors)))


def decode(header: bytes, body: bytes) -> Frame:
    """Reads a frame's two parts.

    Raises:
        MessageError: not a header, or tensors that do not fill the body exactly.
    """
    value = parse_object(header, where="frame", max_bytes=MAX_HEADER_BYTES)
    fields = Fields(value, "frame")
    described = fields.objects("tensors", at_most=MAX_TENSORS)
    tensors, offset, view = [], 0, memoryview(body)
    for one in described:
        tensor = _tensor(one, view, offset)
        tensors.append(tensor)
        offset += len(tensor.data)
    if offset != len(body):
        raise MessageError("bytes nobody named", where="frame", expected=f"{offset} bytes", got=len(body))
    return Frame(fields.unknown(("tensors",)), tuple(tensors))


def send(stream: socket.socket, frame: Frame) -> None:
    """Writes a frame.

    Raises:
        UnreachableError: nobody reads at the other end, or not in time.
    """
    data = encode(frame)
    try:
        stream.sendall(data)
    except OSError as error:
        raise UnreachableError(
            "a local process hung up", where="socket", got=error, expected="an open connection"
        ) from error


def receive(
    stream: socket.socket, *, left: Callable[[], float] | None = None, within: Bounds = _ANY
) -> Frame | None:
    """Reads a frame; None where the stream ended before one began.

    Args:
        stream: with a timeout of its own for each piece, or none.
        left: seconds left for the whole frame, asked before each piece; by default only the stream's timeout holds.
        within: longer frames are refused before their parts are read.

    Raises:
        MessageError: not a frame, or one that ends within.
        UnreachableError: the stream broke.
        TimeoutError: the socket's timeout passed, or no time is left.
    """
    head = _exactly(stream, _HEAD.size, left)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise MessageError(
            "a frame that ends too early", where="frame", expected="a whole frame", got="its beginning"
        )
    header_length, body_length = _HEAD.unpack(head)
    _check_lengths(header_length, body_length, within)
    header = _exactly(stream, header_length, left)
    body = _exactly(stream, body_length, left)
    if len(header) < header_length or len(body) < body_length:
        raise MessageError(
            "a frame that ends too early", where="frame", expected="a whole frame", got="its beginning"
        )
    return decode(header, body)


def _check_lengths(header: int, body: int, most: Bounds) -> None:
    if header > most.header or body > most.body:
        raise MessageError(
            "a frame is too long",
            where="frame",
            expected=f"at most {most.header} + {most.body} bytes",
            got=f"{header} + {body}",
        )


def _tensor(one: Fields, body: memoryview, offset: int) -> Tensor:
    name, datatype = one.text("name", at_most=64), one.text("datatype", at_most=16)
    dims = one.items("shape", at_most=MAX_RANK)
    numbered = Fields({str(index): dim for index, dim in enumerate(dims)}, f"{one.where}: shape")
    shape = tuple(numbered.integer(str(index), most=2**31) for index in range(len(dims)))
    if datatype not in DATATYPES:
        raise MessageError("unknown datatype", where=name, expected=", ".join(DATATYPES), got=datatype)
    size = prod(shape) * DATATYPES[datatype][1]
    return Tensor(name, datatype, shape, body[offset : offset + size])


def _exactly(stream: socket.socket, length: int, left: Callable[[], float] | None) -> bytes:
    """That many bytes, fewer where the stream ends."""
    pieces: list[bytes] = []
    missing = length
    while missing:
        if left is not None:
            stream.settimeout(_some(left()))
        try:
            piece = stream.recv(min(missing, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise UnreachableError(
                "a local process hung up", where="socket", got=error, expected="an open connection"
            ) from error
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _some(left: float) -> float:
    """Seconds that a socket may wait; TimeoutError where there are none, as 0 would mean not to wait at all."""
    if left <= 0:
        raise TimeoutError
    return left

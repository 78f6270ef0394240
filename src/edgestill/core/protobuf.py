"""The protobuf wire format, as far as an ONNX file has it, read without building objects.

Lengths are compared with what is there before anything is taken; contents are passed on as views, never copied.

Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT: Final = 0
BYTES: Final = 2

_SIZES: Final = {1: 8, 5: 4}
"""Wire type -> bytes, of those that have always as many."""
_MAX_VARINT: Final = 10
_CONTINUED: Final = 0x80


def fields_of(view: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of one message; a number for a varint, else the bytes.

    Raises:
        ModelError: not the wire format, or a field that ends beyond the message.
    """
    for number, kind, value, start, end in spans_of(view, 0, len(view)):
        yield number, kind, view[start:end] if value is None else value


def spans_of(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int | None, int, int]]:
    """(field number, wire type, value of a varint, first byte of the content, byte after it) of the message that stands there.

    Raises:
        ModelError: as `fields_of`.
    """
    offset = start
    while offset < end:
        tag, offset = varint(view, offset)
        number, kind = tag >> 3, tag & 7
        value, size = None, _SIZES.get(kind)
        first = offset
        if kind == VARINT:
            value, offset = varint(view, offset)
            size = 0
        elif kind == BYTES:
            size, offset = varint(view, offset)
            first = offset
        if size is None:
            raise not_onnx(f"wire type {kind}")
        if size > end - offset:
            raise not_onnx(f"field {number} ends beyond the file")
        offset += size
        yield number, kind, value, first, offset


def varint(view: memoryview, offset: int) -> tuple[int, int]:
    """The number at this offset, and the offset behind it; ModelError where it does not end."""
    value = 0
    for index, byte in enumerate(view[offset : offset + _MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < _CONTINUED:
            return value, offset + index + 1
    raise not_onnx("an unfinished number")


def not_onnx(got: str) -> ModelError:
    """What stands there is no model."""
    return ModelError(
        "not an ONNX model",
        where="model.onnx",
        expected="a serialised ModelProto",
        got=got,
        fix="export it again, or fetch it again",
    )

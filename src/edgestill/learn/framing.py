"""Arrays behind a small JSON head: the one layout of what this room sends and stores.

    magic (8 bytes) | length of the head (u32, little-endian) | head (canonical JSON) | arrays, raw, little-endian

The head names nothing that is not checked: whoever reads it computes from its counts how many bytes must follow, and
any other number is refused before an array is made.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MAX_HEAD_BYTES: Final = 4096
MAGIC_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_LENGTH: Final = struct.Struct("<I")
_START: Final = MAGIC_BYTES + _LENGTH.size
MAX_FRAME_BYTES: Final = _START + MAX_HEAD_BYTES
"""Of all that stands before the arrays."""


def pack(magic: bytes, head: JsonObject, arrays: Iterable[NDArray[np.generic]]) -> bytes:
    """The message; arrays are written in their own element type."""
    text = canonical(head)
    parts = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays]
    return b"".join((magic, _LENGTH.pack(len(text)), text, *parts))


def sealed(body: bytes) -> bytes:
    """A file: the message and its digest, so that a part of it is never taken for the whole."""
    return body + hashlib.sha256(body).digest()


def opened(data: bytes, *, max_bytes: int) -> bytes | None:
    """The message of a file that `sealed` made; None where it is damaged, or longer than that."""
    if len(data) > max_bytes:
        return None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return body if hashlib.sha256(body).digest() == digest else None


def unpack(data: bytes, *, magic: bytes, where: str, max_bytes: int) -> tuple[Fields, memoryview]:
    """The head's fields and the bytes after it.

    Raises:
        MessageError: another magic, over a bound, or a head that is no JSON object.
    """
    if len(data) > max_bytes:
        raise MessageError(
            "a message is too long", where=where, expected=f"at most {max_bytes} bytes", got=len(data)
        )
    if len(data) < _START or data[:MAGIC_BYTES] != magic:
        raise MessageError(
            "another kind of message", where=where, expected=repr(magic), got=repr(bytes(data[:MAGIC_BYTES]))
        )
    (length,) = _LENGTH.unpack_from(data, MAGIC_BYTES)
    if length > min(MAX_HEAD_BYTES, len(data) - _START):
        raise MessageError(
            "the head is too long", where=where, expected=f"at most {MAX_HEAD_BYTES} bytes", got=length
        )
    head = parse_object(data[_START : _START + length], where=where, max_bytes=MAX_HEAD_BYTES, max_depth=4)
    return Fields(head, where), memoryview(data)[_START + length :]


def cut(rest: memoryview, counts: Iterable[int], dtype: str, *, where: str) -> list[NDArray[np.float64]]:
    """Arrays of `counts` elements each, as float64; together they must be exactly what is there.

    Raises:
        MessageError: fewer or more bytes.
    """
    sizes = list(counts)
    wanted = sum(sizes) * np.dtype(dtype).itemsize
    if wanted != len(rest):
        raise MessageError("head and arrays disagree", where=where, expected=f"{wanted} bytes", got=len(rest))
    with np.errstate(invalid="ignore"):  # a signalling NaN, which whoever reads this refuses as any other
        flat = np.frombuffer(rest, dtype=np.dtype(dtype).newbyteorder("<")).astype(np.float64)
    ends = np.cumsum(sizes)[:-1]
    return list(np.split(flat, ends))

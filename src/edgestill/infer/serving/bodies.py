"""Bodies of questions, bounded before they are read and while they are unpacked.

- A body that says it is too long is refused unread; a compressed one is unpacked no further than its bound.
- Half a compressed stream is none, and neither are one and a half.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, NoReturn

from edgestill.core.errors import MessageError, TooLongError
from edgestill.core.oip import HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

ENCODINGS: Final = frozenset({"identity", "gzip", "deflate"})

_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32
_MAX_DIGITS: Final = 15


def encoding_of(headers: Mapping[str, str]) -> str:
    """How a body is compressed: `identity`, `gzip` or `deflate`.

    Raises:
        MessageError: in another way.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise MessageError(
            "an encoding that is not spoken here",
            where="content-encoding",
            got=encoding[:40],
            expected="gzip, deflate, or none",
        )
    return encoding


def check_length(said: str | None, at_most: int) -> None:
    """Looks at a `content-length`, None where there is none.

    Raises:
        MessageError: not a length.
        TooLongError: above the bound.
    """
    if said is None:
        return
    if _number(said, "content-length", "a whole number of bytes") > at_most:
        refuse(at_most)


def json_length(headers: Mapping[str, str]) -> int | None:
    """Bytes of JSON before raw tensors, as the protocol's header tells them; None where all is JSON.

    Raises:
        MessageError: not a length.
    """
    said = headers.get(HEADER)
    return None if said is None else _number(said, HEADER, "a whole number")


def inflated(data: bytes | bytearray, at_most: int) -> bytes:
    """What a gzip or zlib stream holds.

    Raises:
        MessageError: not exactly one whole stream.
        TooLongError: more than `at_most` bytes.
    """
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        result = inflater.decompress(data, at_most + 1)
    except zlib.error as error:
        raise MessageError(
            "a damaged body", where="content-encoding", got=error, expected="one complete stream"
        ) from error
    if len(result) > at_most:
        refuse(at_most)
    if not inflater.eof or inflater.unused_data:
        raise MessageError(
            "a damaged body",
            where="content-encoding",
            expected="one complete stream",
            got="a part of one, or more than one",
        )
    return result


def refuse(at_most: int) -> NoReturn:
    """Raises TooLongError."""
    raise TooLongError(
        f"a body is longer than {at_most} bytes",
        where="body",
        expected=f"at most {at_most} bytes",
        got="more",
    )


def _number(said: str, where: str, expected: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) <= _MAX_DIGITS):
        raise MessageError("not a length", where=where, got=said[:40], expected=expected)
    return int(said)

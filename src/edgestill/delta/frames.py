"""Zstandard frames with bounds, with a base as their dictionary or without one.

Source: RFC 8878 (Zstandard); a base as a raw-content dictionary is what the compressor calls `--patch-from`.
"""

from __future__ import annotations

from io import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, cast, final

import zstandard

from edgestill.core.errors import PatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEVEL: Final = 19
CHUNK: Final = 65_536
MAX_BASE_BYTES: Final = 2**26
MAX_WINDOW_LOG: Final = 27
MAX_WINDOW_BYTES: Final = 2**MAX_WINDOW_LOG
REFETCH: Final = "fetch the whole file"

_MIN_WINDOW_LOG: Final = 10
_MAGIC: Final = bytes.fromhex("28b52ffd")


def compressed(data: bytes, base: bytes | None = None) -> bytes:
    """One frame; a base must be one that `suits`."""
    # the window spans base and data: every byte of the base stays in reach to the end
    reach = max(len(data) + len(base or b"") - 1, 1).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=len(data),
        window_log=min(max(reach, _MIN_WINDOW_LOG), MAX_WINDOW_LOG),
        write_checksum=False,  # the digest of the result is a better one
    )
    dictionary = None if base is None else _raw(base)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(data)


def suits(base: bytes, size: int) -> bool:
    """Whether a base may be the dictionary of so many bytes."""
    return 0 < len(base) <= MAX_BASE_BYTES and len(base) + size <= MAX_WINDOW_BYTES


def base_size(old: BinaryIO) -> int:
    """Bytes of a base, which is at its beginning afterwards.

    Raises:
        PatchError: too few or too many for a dictionary.
    """
    size = old.seek(0, SEEK_END)
    old.seek(0)
    if not 0 < size <= MAX_BASE_BYTES:
        raise PatchError(
            "a base out of bounds",
            expected=f"1 to {MAX_BASE_BYTES} bytes",
            got=size,
            fix=REFETCH,
            where="base",
        )
    return size


def opened(payload: BinaryIO, base: bytes | None = None) -> BinaryIO:
    """What a frame holds, as a stream.

    Reading raises `zstandard.ZstdError` where it is damaged, and PatchError where it is no frame, or something follows it.
    """
    decompressor = zstandard.ZstdDecompressor(
        dict_data=None if base is None else _raw(base), max_window_size=MAX_WINDOW_BYTES
    )
    # it reads its source, and asks for no more; across frames, so that the source is asked once more after its frame, and can say that something follows
    return decompressor.stream_reader(
        cast("BinaryIO", _OneFrame(payload)), read_across_frames=True, closefd=False
    )


@final
class _OneFrame:
    """The bytes of a stream as long as they are one frame (RFC 8878, 3.1.1); what follows it is refused, were it an empty frame.

    Only lengths are read here. What is cut off ends early, which the decompressor notices.

    Args:
        source: at the beginning of the frame.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._left = 0
        self._next: Callable[[], bytes] = self._head
        self._has_checksum = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes of it; none at its end."""
        if not self._left:
            return self._next()
        data = self._source.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def _head(self) -> bytes:
        """Magic number and frame header (3.1.1.1)."""
        head = self._source.read(5)
        if head[:4] != _MAGIC[: len(head)]:
            raise _damaged("a frame of Zstandard", "other bytes")
        if len(head) < 5:
            return head
        descriptor = head[4]
        is_single = bool(descriptor & 0x20)
        content = (int(is_single), 2, 4, 8)[descriptor >> 6]
        self._has_checksum = bool(descriptor & 0x04)
        self._left = (not is_single) + (0, 1, 2, 4)[descriptor & 0x03] + content
        self._next = self._block
        return head

    def _block(self) -> bytes:
        """A block's header, which says how long it is (3.1.1.2)."""
        head = self._source.read(3)
        if len(head) == 3:
            said = int.from_bytes(head, "little")
            is_run = (said >> 1) & 0x03 == 1
            self._left = 1 if is_run else said >> 3
            if said & 1:
                self._next = self._checksum
        return head

    def _checksum(self) -> bytes:
        self._next = self._end
        return self._source.read(4) if self._has_checksum else self._end()

    def _end(self) -> bytes:
        if self._source.read(1):
            raise _damaged("nothing after the frame", "more bytes")
        return b""


def _damaged(expected: str, got: str) -> PatchError:
    return PatchError("a damaged patch", where="frame", expected=expected, got=got, fix=REFETCH)


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """A stream in pieces, to its end."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _raw(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)

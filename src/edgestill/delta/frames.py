"""Zstandard frames with bounds, with a base as their dictionary or without one.

Source: RFC 8878 (Zstandard); a base as a raw-content dictionary is what the compressor calls `--patch-from`.
"""

from __future__ import annotations

from io import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final

import zstandard

from edgestill.core.errors import PatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVEL: Final = 19
CHUNK: Final = 65_536
MAX_BASE_BYTES: Final = 2**26
MAX_WINDOW_LOG: Final = 27
MAX_WINDOW_BYTES: Final = 2**MAX_WINDOW_LOG
REFETCH: Final = "fetch the whole file"

_MIN_WINDOW_LOG: Final = 10


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
    """What a frame holds, as a stream; raises `zstandard.ZstdError` where it is none."""
    decompressor = zstandard.ZstdDecompressor(
        dict_data=None if base is None else _raw(base), max_window_size=MAX_WINDOW_BYTES
    )
    # frames beyond the first are read, so that bytes after it are damage or too much; a few that yield nothing pass
    return decompressor.stream_reader(payload, read_across_frames=True, closefd=False)


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """A stream in pieces, to its end."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _raw(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)

"""The frame of a bundle's archive: POSIX ustar reduced to what one regular file after another needs.

- Every field that could differ between two builds (mode, owner, time) has one fixed value, and every free byte is zero.
- Written out here because the standard library's own writer has filled the device fields in two ways over the years.

Source: POSIX.1-2017, utility pax, "ustar Interchange Format".
"""

from __future__ import annotations

from typing import Final

BLOCK: Final = 512
RECORD: Final = 20 * BLOCK
SIZE_FIELD: Final = slice(124, 136)

_NAME_LENGTH: Final = 100
_CHECKSUM_FIELD: Final = slice(148, 156)


def header(name: str, size: int) -> bytes:
    """The block that comes before a regular file.

    Args:
        name: ASCII, at most 100 characters.
        size: bytes, less than 8 GiB.
    """
    assert len(name) <= _NAME_LENGTH
    assert 0 <= size < 8**11
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode("ascii")
    block[100:108] = b"0000644\0"  # mode
    block[108:116] = block[116:124] = b"0000000\0"  # user, group
    block[SIZE_FIELD] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"  # time
    block[_CHECKSUM_FIELD] = b" " * 8
    block[156:157] = b"0"  # a regular file
    block[257:265] = b"ustar\x0000"  # magic and version
    block[_CHECKSUM_FIELD] = b"%06o\0 " % sum(block)
    return bytes(block)


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a file of `size` bytes."""
    return bytes(-size % BLOCK)


def total(end: int) -> int:
    """The length of an archive whose last file ends at `end`: two empty blocks more, then up to a whole record."""
    return -(-(end + 2 * BLOCK) // RECORD) * RECORD

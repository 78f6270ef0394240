"""The frame of a `.swu` image: a cpio archive in the portable form with checksums ("newc", magic 070702), reduced to plain files.

- Every field that could differ between two builds (owner, time, device) has one fixed value; files are numbered in their order.
- Written out here because the standard library has no cpio, and images must have the same bytes wherever they are made.

Source: cpio(5), "New ASCII Format" and "New CRC Format".
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"070702"
HEAD: Final = 110
"""Bytes of a header before the name: the magic and thirteen numbers of eight hex digits."""
MAX_SIZE: Final = 2**32 - 1
TRAILER: Final = "TRAILER!!!"

_BLOCK: Final = 512
_SIZE: Final = slice(54, 62)
_CHECK: Final = slice(102, 110)
_PLAIN_FILE: Final = 0o100_644
_MASK: Final = 2**32 - 1


def header(name: str, size: int, *, check: int, number: int) -> bytes:
    """What comes before a file's bytes, the padded name included.

    Args:
        name: ASCII.
        size: bytes, less than 4 GiB.
        check: the sum of all bytes, as `checksum` gives it.
        number: of the file within the archive, from 1; 0 for the trailer.
    """
    assert 0 <= size <= MAX_SIZE
    mode = _PLAIN_FILE if number else 0
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, check)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name.encode("ascii") + b"\0"
    return head + padding(len(head))


def numbers(head: bytes) -> tuple[int, int] | None:
    """Size and checksum that a header tells; None where there are none. The rest of it is for who compares.

    Args:
        head: `HEAD` bytes.
    """
    try:
        return int(head[_SIZE].decode("ascii"), 16), int(head[_CHECK].decode("ascii"), 16)
    except ValueError:
        return None


def checksum(data: bytes, before: int = 0) -> int:
    """The sum of all bytes, modulo 2^32, going on from `before`."""
    return (before + sum(data)) & _MASK


def padding(size: int) -> bytes:
    """The zeros after a header or a file of `size` bytes."""
    return bytes(-size % 4)


def end(size: int) -> bytes:
    """What follows the last file of an archive that has `size` bytes so far: the trailer, then zeros up to a whole block."""
    trailer = header(TRAILER, 0, check=0, number=0)
    return trailer + bytes(-(size + len(trailer)) % _BLOCK)

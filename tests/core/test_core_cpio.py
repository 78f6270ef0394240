"""The frame of an image, byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import cpio


def test_a_header_is_what_the_format_says() -> None:
    """Magic, thirteen numbers of eight hex digits, the name with its zero, and zeros up to a multiple of four."""
    head = cpio.header("ab", 16, check=255, number=3)
    assert head == (
        b"070702"
        b"00000003"
        b"000081A4"
        b"00000000"
        b"00000000"
        b"00000001"
        b"00000000"
        b"00000010"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000003"
        b"000000FF"
        b"ab\0" + bytes(3)
    )
    assert len(head) % 4 == 0


@given(st.integers(0, cpio.MAX_SIZE), st.integers(0, 2**32 - 1), st.integers(0, 99))
def test_the_numbers_of_a_header_come_back(size: int, check: int, number: int) -> None:
    """Size and checksum are read where they were written."""
    assert cpio.numbers(cpio.header("name", size, check=check, number=number)[: cpio.HEAD]) == (size, check)


def test_what_are_no_numbers_are_none() -> None:
    """Letters, signs and spaces in their places."""
    head = bytearray(cpio.header("name", 1, check=1, number=1)[: cpio.HEAD])
    for wrong in (b"GGGGGGGG", b"\xff" * 8, b"        "):
        head[54:62] = wrong
        assert cpio.numbers(bytes(head)) is None


@given(st.binary(), st.binary())
def test_a_checksum_goes_on(one: bytes, other: bytes) -> None:
    """In pieces as in one, and never more than 32 bits."""
    assert cpio.checksum(other, cpio.checksum(one)) == cpio.checksum(one + other)
    assert cpio.checksum(b"\x02", 2**32 - 1) == 1


@given(st.integers(0, 10_000).map(lambda size: 4 * size))
def test_an_archive_ends_with_a_whole_block(size: int) -> None:
    """The trailer, then zeros: always a multiple of 512."""
    end = cpio.end(size)
    assert (size + len(end)) % 512 == 0
    assert end.startswith(b"070702")
    assert b"TRAILER!!!" in end

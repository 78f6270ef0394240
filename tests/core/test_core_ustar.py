"""The archive's frame: against the standard library's own tar."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import ustar

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,40}(/[a-z0-9_.-]{1,50})?", fullmatch=True)


@given(NAMES, st.integers(min_value=0, max_value=8**11 - 1))
def test_a_header_is_read_by_the_standard_library(name: str, size: int) -> None:
    """Every header is a regular file of that name and size, with no time and no owner."""
    entry = tarfile.TarInfo.frombuf(ustar.header(name, size), "ascii", "strict")
    assert (entry.name, entry.size, entry.mode, entry.mtime) == (name, size, 0o644, 0)
    assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")


def test_a_header_is_laid_out_as_the_specification_page_says() -> None:
    """The bytes of one header, worked out by hand."""
    block = ustar.header("bundle.json", 1234)
    assert len(block) == 512
    assert block[0:100] == b"bundle.json" + bytes(89)
    assert block[100:124] == b"0000644\x000000000\x000000000\x00"
    assert block[124:136] == b"00000002322\x00"
    assert block[136:148] == b"00000000000\x00"
    assert block[148:156] == b"010110\x00 "
    assert block[156:157] == b"0"
    assert block[157:257] == bytes(100)
    assert block[257:265] == b"ustar\x0000"
    assert block[265:512] == bytes(247)


def test_the_checksum_is_the_sum_of_the_block_with_spaces_in_its_place() -> None:
    """Summing the block with eight spaces for the checksum gives the checksum."""
    block = ustar.header("blobs/" + "a" * 64, 7)
    assert int(block[148:154], 8) == sum(block[:148]) + 8 * 32 + sum(block[156:])


@pytest.mark.parametrize(("size", "zeros"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)])
def test_files_are_filled_up_to_whole_blocks(size: int, zeros: int) -> None:
    """Padding brings a file to the next multiple of 512 bytes."""
    assert ustar.padding(size) == bytes(zeros)


@pytest.mark.parametrize(
    ("end", "length"), [(512, 10_240), (9_216, 10_240), (9_728, 20_480), (10_240, 20_480)]
)
def test_an_archive_is_whole_records_with_two_empty_blocks(end: int, length: int) -> None:
    """After the last file come at least 1024 zeros, then zeros to a multiple of 10240 bytes."""
    assert ustar.total(end) == length


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1100)), max_size=4, unique_by=lambda file: file[0]))
def test_the_frame_is_byte_for_byte_the_standard_librarys(files: list[tuple[str, bytes]]) -> None:
    """An archive put together of this frame is what `tarfile` writes for the same files."""
    buffer = io.BytesIO()
    pieces = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
            pieces += [ustar.header(name, len(data)), data, ustar.padding(len(data))]
    ours = b"".join(pieces)
    assert ours + bytes(ustar.total(len(ours)) - len(ours)) == buffer.getvalue()


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 0), ("a", -1), ("a", 8**11)])
def test_what_the_header_cannot_hold_is_not_written(name: str, size: int) -> None:
    """A name over 100 characters or a size over 8 GiB has no place in a header."""
    with pytest.raises(AssertionError):
        ustar.header(name, size)

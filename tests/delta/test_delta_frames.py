"""One Zstandard frame, and nothing after it."""

from __future__ import annotations

import contextlib
import io
import random
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import PatchError
from edgestill.delta import frames
from edgestill.delta.codec import Header, apply

EMPTY = zstandard.ZstdCompressor().compress(b"")
SKIPPABLE = struct.pack("<II", 0x184D2A50, 3) + b"abc"


def unpacked(frame: bytes, base: bytes | None = None) -> bytes:
    """What a frame holds."""
    return b"".join(frames.chunks(frames.opened(io.BytesIO(frame), base)))


def data_of(size: int, seed: int) -> bytes:
    """Some of it compresses, some does not."""
    generator = random.Random(seed)
    return bytes(size // 3) + generator.randbytes(size // 3) + b"abc" * (size // 9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400_000), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_every_kind_of_frame_is_read_to_its_end(
    size: int, seed: int, has_size: bool, has_checksum: bool, is_small: bool
) -> None:
    """Of one block and of several; with and without a checksum, a size in its head, and a window."""
    data = data_of(min(size, 300) if is_small else size, seed)
    frame = zstandard.ZstdCompressor(
        level=3, write_content_size=has_size, write_checksum=has_checksum
    ).compress(data)
    assert unpacked(frame) == data
    for more in (b"\0", b"x" * 70_000, EMPTY, SKIPPABLE, frame):
        with pytest.raises(PatchError, match="a damaged patch; at frame; expected nothing after the frame"):
            unpacked(frame + more)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200_000), st.integers(0, 9))
def test_frames_of_ours_are_read_with_their_base(size: int, seed: int) -> None:
    """As a patch has them; what follows is refused all the same."""
    base = data_of(size, seed) or b"base"
    data = base[: size // 2] + b"new" + base[size // 2 :]
    frame = frames.compressed(data, base)
    assert unpacked(frame, base) == data
    with pytest.raises(PatchError):
        unpacked(frame + EMPTY, base)


@pytest.mark.parametrize("hidden", [b"\0", b"\x28", EMPTY, EMPTY * 3, SKIPPABLE])
def test_attack_a_patch_with_something_behind_its_frame(hidden: bytes) -> None:
    """What nobody reads and no digest covers would be carried along: the patch is refused."""
    old, new = b"old" * 1_000, b"new" * 1_000
    header = Header(Digest.of(old), Digest.of(new), len(new), 0).to_bytes()
    good, out = header + frames.compressed(new), io.BytesIO()
    apply(io.BytesIO(old), io.BytesIO(good), out, expected=Digest.of(new), max_size=len(new))
    assert out.getvalue() == new
    with pytest.raises(PatchError):
        apply(
            io.BytesIO(old),
            io.BytesIO(good + hidden),
            io.BytesIO(),
            expected=Digest.of(new),
            max_size=len(new),
        )


@pytest.mark.parametrize("begin", [SKIPPABLE, b"PK\3\4", b"x"])
def test_attack_what_is_no_frame(begin: bytes) -> None:
    """A skippable frame before the real one neither."""
    with pytest.raises(PatchError, match="expected a frame of Zstandard; got other bytes"):
        unpacked(begin + frames.compressed(b"data"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.data())
def test_attack_a_frame_that_is_cut_off_never_gives_it_all(seed: int, data: st.DataObject) -> None:
    """It ends early, or is told as damage; it never hangs."""
    whole = data_of(3_000, seed)
    frame = frames.compressed(whole)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with contextlib.suppress(PatchError, zstandard.ZstdError):
        assert len(unpacked(frame[:cut])) < len(whole)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_attack_any_bytes_as_a_frame(rest: bytes) -> None:
    """Whatever they are, with the right beginning and without it."""
    for data in (rest, frames.compressed(b"")[:4] + rest):
        try:
            for count, _ in enumerate(frames.chunks(frames.opened(io.BytesIO(data)))):
                if count > 50:
                    break
        except (PatchError, zstandard.ZstdError):
            pass

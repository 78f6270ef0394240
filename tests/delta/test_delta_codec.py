"""Patches: small, true, and harmless whatever is in them."""

from __future__ import annotations

import contextlib
import io
import random
import tracemalloc
from typing import BinaryIO

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import PatchError
from edgestill.delta import frames
from edgestill.delta.codec import HEADER_BYTES, MAGIC, Header, apply, diff


def _weights(size: int, seed: int = 0) -> bytes:
    """Bytes that look like the integer codes of a quantised model."""
    generator = random.Random(seed)
    return bytes(round(generator.gauss(0, 20)) & 0xFF for _ in range(size))


def _changed(data: bytes, count: int, seed: int = 1) -> bytes:
    generator, changed = random.Random(seed), bytearray(data)
    for _ in range(count):
        changed[generator.randrange(len(changed))] ^= 1
    return bytes(changed)


def _apply(old: bytes, patch: bytes, new: bytes, *, max_size: int | None = None) -> bytes:
    out = io.BytesIO()
    apply(
        io.BytesIO(old),
        io.BytesIO(patch),
        out,
        expected=Digest.of(new),
        max_size=len(new) if max_size is None else max_size,
    )
    return out.getvalue()


def _forged(old: bytes, new: bytes, payload: bytes, *, number: int = 0, size: int | None = None) -> bytes:
    """A patch whose header is right and whose payload is the attacker's."""
    header = Header(Digest.of(old), Digest.of(new), len(new) if size is None else size, number)
    return header.to_bytes() + payload


OLD = _weights(20_000)
NEW = _changed(OLD, 100)
PATCH = diff(OLD, NEW)

# a busy machine is no failure
_unhurried = settings(deadline=None)

_PIECES = st.lists(st.binary(max_size=40), max_size=12)


@_unhurried
@given(pieces=_PIECES, order=st.randoms(use_true_random=False), extra=st.binary(max_size=200))
@example(pieces=[], order=random.Random(0), extra=b"")
def test_a_patch_leads_from_the_old_to_the_new(
    pieces: list[bytes], order: random.Random, extra: bytes
) -> None:
    """Whatever was moved, added or removed, empty files included."""
    old = b"".join(pieces)
    order.shuffle(pieces)
    new = b"".join(pieces[1:]) + extra
    assert _apply(old, diff(old, new), new) == new


@_unhurried
@given(old=st.binary(max_size=500), new=st.binary(max_size=500))
def test_a_patch_is_never_much_larger_than_the_new_file_compressed(old: bytes, new: bytes) -> None:
    """A base that does not help costs the header, and the few bytes by which a frame's own head may differ."""
    assert len(diff(old, new)) <= len(zstandard.ZstdCompressor(level=19).compress(new)) + HEADER_BYTES + 8


def test_a_small_change_is_a_small_patch() -> None:
    """A hundred bytes of 20,000 changed: a few per cent of the new file compressed."""
    whole = len(zstandard.ZstdCompressor(level=19).compress(NEW))
    assert len(PATCH) < whole / 20
    assert Header.read(io.BytesIO(PATCH)).codec == 1


def test_what_has_nothing_in_common_is_sent_whole() -> None:
    """The base is not used where it does not help."""
    other = _weights(5_000, seed=7)
    patch = diff(b"nothing", other)
    assert Header.read(io.BytesIO(patch)).codec == 0
    assert _apply(b"nothing", patch, other) == other


def test_the_whole_base_stays_in_reach() -> None:
    """Also its first bytes, for the last bytes of a new file that is longer than it."""
    generator = random.Random(3)
    head = generator.randbytes(50_000)
    old = head + generator.randbytes(400_000)
    new = generator.randbytes(600_000) + head
    whole = len(zstandard.ZstdCompressor(level=19).compress(new))
    assert len(diff(old, new)) < whole - 49_000


def test_a_base_over_the_bound_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device could not hold it; the new file goes whole."""
    monkeypatch.setattr(frames, "MAX_BASE_BYTES", 1_000)
    patch = diff(OLD, NEW)
    assert Header.read(io.BytesIO(patch)).codec == 0
    assert _apply(OLD, patch, NEW) == NEW
    with pytest.raises(
        PatchError, match=r"a base out of bounds; at base; expected 1 to 1000 bytes; got 20000"
    ):
        _apply(OLD, PATCH, NEW)


def test_the_header_stands_as_documented() -> None:
    """Magic, base, result, size and codec, big-endian, in 81 bytes."""
    assert HEADER_BYTES == 81
    assert PATCH[:8] == MAGIC == b"esdelta1"
    assert PATCH[8:40].hex() == Digest.of(OLD).hex
    assert PATCH[40:72].hex() == Digest.of(NEW).hex
    assert int.from_bytes(PATCH[72:80], "big") == len(NEW)
    assert PATCH[80] == 1
    header = Header.read(io.BytesIO(PATCH))
    assert header == Header(Digest.of(OLD), Digest.of(NEW), len(NEW), 1)
    assert header.to_bytes() == PATCH[:81]


def test_making_a_patch_twice_gives_the_same_bytes() -> None:
    """So that caches and mirrors agree."""
    assert diff(OLD, NEW) == PATCH


# Attacks


def test_attack_wrong_base() -> None:
    """A patch for another base is refused before it is unpacked."""
    with pytest.raises(
        PatchError, match=r"a patch for another base; at header: base; expected sha256:.*fetch the whole file"
    ):
        _apply(NEW, PATCH, NEW)


def test_attack_another_result() -> None:
    """A true patch for a file that nobody asked for is refused."""
    with pytest.raises(PatchError, match="a patch for another file"):
        _apply(OLD, PATCH, OLD)


def test_attack_result_over_the_bound() -> None:
    """A size that the caller did not allow is refused before a byte is unpacked."""
    with pytest.raises(
        PatchError, match=r"yields too much; at result; expected at most 19999 bytes; got 20000"
    ):
        _apply(OLD, PATCH, NEW, max_size=19_999)


@pytest.mark.parametrize("number", [0, 1])
def test_attack_decompression_bomb(number: int) -> None:
    """Gigabytes in a few kilobytes: unpacking stops at the size that was stated."""
    frame = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
    assert len(frame) < 50_000
    patch = _forged(OLD, NEW, frame, number=number)
    tracemalloc.start()
    with pytest.raises(PatchError, match=r"a patch that yields too much; at result; expected 20000 bytes"):
        _apply(OLD, patch, NEW)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_attack_window_bomb() -> None:
    """A frame that asks for more memory than any patch needs is refused."""
    parameters = zstandard.ZstdCompressionParameters(window_log=29)
    pusher = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = pusher.compress(NEW) + pusher.flush()
    with pytest.raises(PatchError, match=r"a damaged patch.*memory"):
        _apply(OLD, _forged(OLD, NEW, frame), NEW)


@_unhurried
@given(cut=st.integers(min_value=0, max_value=len(PATCH) - 1))
def test_attack_truncated_patch(cut: int) -> None:
    """A patch that ends anywhere too early is refused."""
    with pytest.raises(PatchError):
        _apply(OLD, PATCH[:cut], NEW)


@_unhurried
@given(at=st.integers(min_value=0, max_value=len(PATCH) - 1), flip=st.integers(min_value=1, max_value=255))
def test_attack_altered_patch(at: int, flip: int) -> None:
    """A patch with any byte altered is refused, or still leads to the file that was asked for."""
    altered = bytearray(PATCH)
    altered[at] ^= flip
    with contextlib.suppress(PatchError):
        assert _apply(OLD, bytes(altered), NEW) == NEW


@_unhurried
@given(data=st.binary(max_size=300))
def test_attack_anything_as_a_payload(data: bytes) -> None:
    """Any bytes behind a true header are refused, or are the new file."""
    for number in (0, 1, 2):
        with pytest.raises(PatchError):
            _apply(OLD, _forged(OLD, NEW, data, number=number), NEW)


@pytest.mark.parametrize("extra", [b"x", b"\0" * 4, b"more than a few bytes", PATCH[HEADER_BYTES:]])
def test_attack_bytes_after_the_end(extra: bytes) -> None:
    """Nothing may hang on behind."""
    with pytest.raises(PatchError, match=r"a damaged patch|yields too much"):
        _apply(OLD, PATCH + extra, NEW)


def test_attack_a_result_of_the_right_length() -> None:
    """Another file of the same length is found out by its digest."""
    patch = _forged(OLD, NEW, zstandard.compress(OLD))
    with pytest.raises(
        PatchError, match=r"another file; at result; expected 20000 bytes of sha256:.*got 20000 bytes of"
    ):
        _apply(OLD, patch, NEW)


def test_attack_a_result_that_is_too_short() -> None:
    """A payload that yields less than was stated is another file."""
    patch = _forged(OLD, NEW, zstandard.compress(NEW[:100]))
    with pytest.raises(PatchError, match="got 100 bytes of"):
        _apply(OLD, patch, NEW)


def test_attack_unknown_codec() -> None:
    """A number of a later version is named, with what to do."""
    with pytest.raises(
        PatchError,
        match=r"unknown codec; at header: codec; expected one of \[0, 1, 2\]; got 9; update edgestill",
    ):
        _apply(OLD, _forged(OLD, NEW, b"", number=9), NEW)


def test_attack_not_a_patch() -> None:
    """Any other file of sufficient length is refused by its first bytes."""
    with pytest.raises(PatchError, match="not a patch; at header; expected b'esdelta1'"):
        _apply(OLD, OLD, NEW)


class _Counting(io.BytesIO):
    """Remembers the longest piece that was asked of it, and how far it was read."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        got = super().read(size)
        self.longest = max(self.longest, len(got))
        return got


def test_applying_streams_the_patch_and_the_result() -> None:
    """Neither is ever held as a whole."""
    old, new = b"", random.Random(0).randbytes(1_000_000)
    patch = _Counting(diff(old, new))

    class Out(io.BytesIO):
        longest = 0

        def write(self, data: object, /) -> int:
            assert isinstance(data, bytes)
            Out.longest = max(Out.longest, len(data))
            return super().write(data)

    out: BinaryIO = Out()
    apply(io.BytesIO(old), patch, out, expected=Digest.of(new), max_size=len(new))
    assert patch.longest <= 2**18
    assert Out.longest <= frames.CHUNK

"""Inputs as few bytes: every number comes back, and strangers' bytes are bounded before they are decoded."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgestill.core.errors import MessageError, SettingError
from edgestill.infer.payload import (
    CODECS,
    LOOK_AGAIN,
    LOSSLESS,
    Coder,
    Payload,
    available,
    decode,
    encode,
    works,
)
from edgestill.testing.clock import FakeClock

PICTURE = np.dtype("uint8")


def smooth(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Numbers like a sensor's: near their neighbours, with a little noise."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(size=shape), axis=1)
    return (100 + 3 * walk).clip(0, 255).astype(dtype)


def picture(seed: int) -> np.ndarray:
    """A coloured gradient with a little noise, uint8 `[64, 64, 3]`."""
    random = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 200, 64), np.linspace(0, 50, 64))
    colours = np.stack([across + down, across, 250 - across], axis=-1)
    return (colours + random.normal(size=(64, 64, 1)) * 2).clip(0, 255).astype(np.uint8)


KINDS = [
    ("uint8", (9, 7, 3)),
    ("uint8", (9, 7)),
    ("uint8", (9, 7, 1)),
    ("uint8", (5,)),
    ("int16", (400,)),
    ("int16", (400, 2)),
    ("float32", (128, 6)),
    ("int64", (32,)),
    ("bool", (9,)),
]
CODED = [
    (name, dtype, shape)
    for name in LOSSLESS
    for dtype, shape in KINDS
    if name in available(np.dtype(dtype), shape)
]


@pytest.mark.parametrize(("name", "dtype", "shape"), CODED)
def test_every_number_comes_back(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """What a lossless codec takes, it gives back to the bit."""
    batch = smooth(2, *shape, dtype=dtype) if dtype != "bool" else smooth(2, *shape) > 100
    parts = tuple(CODECS[name].encode(np.ascontiguousarray(one)) for one in batch)
    back = decode(Payload(codec=name, parts=parts), batch.dtype, shape)
    assert back.dtype == batch.dtype
    assert back.tobytes() == batch.tobytes()


def test_each_kind_of_input_has_a_codec() -> None:
    """Pictures have three, everything has one."""
    assert {name for name, dtype, shape in CODED if (dtype, shape) == KINDS[0]} == {"deflate", "webp", "png"}
    assert {(dtype, shape) for name, dtype, shape in CODED if name == "deflate"} == set(KINDS)


@given(
    st.sampled_from(["uint8", "int16", "float32", "int64", "float16", "bool"]),
    st.lists(st.integers(0, 6), min_size=0, max_size=3),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_smallest_comes_back(dtype: str, shape: list[int], seed: int) -> None:
    """A law: any batch in any type, coded by whichever codec, is the same batch again; or it stays as it is."""
    random = np.random.default_rng(seed)
    raw = random.integers(
        0, 2 if dtype == "bool" else 256, (2, *shape, np.dtype(dtype).itemsize), dtype=np.uint8
    )
    batch = np.ascontiguousarray(raw).view(dtype)[..., 0]
    made = encode(batch, LOSSLESS)
    if made is not None:
        assert made.size < batch.nbytes
        assert decode(made, batch.dtype, batch.shape[1:]).tobytes() == batch.tobytes()


def test_pictures_become_smaller_without_loss_and_much_smaller_with() -> None:
    """The smallest lossless codec of a picture is one for pictures, and JPEG halves it again."""
    batch = np.stack([picture(seed) for seed in range(3)])
    lossless, lossy = encode(batch, LOSSLESS), encode(batch, (*LOSSLESS, "jpeg"))
    assert lossless is not None
    assert lossy is not None
    assert lossless.codec in {"webp", "png"}
    assert lossy.codec == "jpeg"
    assert lossy.size < lossless.size < batch.nbytes
    back = decode(lossy, batch.dtype, batch.shape[1:]).astype(np.int64)
    assert np.abs(back - batch).mean() < 12


def test_ids_of_words_become_a_quarter() -> None:
    """Rows of int64 that are mostly padding shrink to less than a quarter without any codec of their own."""
    ids = np.zeros((8, 32), np.int64)
    ids[:, :9] = np.random.default_rng(0).integers(1_000, 30_000, (8, 9))
    made = encode(ids, LOSSLESS)
    assert made is not None
    assert made.codec == "deflate"
    assert made.size < ids.nbytes / 4


def test_noise_stays_as_it_is() -> None:
    """Where no codec is smaller than the numbers, there is no payload."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 4_000), dtype=np.uint8)
    assert encode(noise, LOSSLESS) is None


def test_what_is_not_allowed_is_not_used() -> None:
    """Without a lossy codec among the allowed nothing is lost, and without any there is no payload."""
    batch = smooth(2, 32, 32, 3)
    assert encode(batch, ()) is None
    made = encode(batch, ("png",))
    assert made is not None
    assert made.codec == "png"


def test_big_endian_numbers_are_the_same_numbers() -> None:
    """A batch in the other byte order comes back with the same values."""
    batch = np.arange(64, dtype=">i4").reshape(2, 32)
    made = encode(batch, ("deflate",))
    assert made is not None
    np.testing.assert_array_equal(decode(made, np.dtype("int32"), (32,)), batch)


def test_a_codec_nobody_knows_is_refused_by_name() -> None:
    """On both ends."""
    with pytest.raises(SettingError, match="unknown codec"):
        encode(smooth(1, 4), ("zip",))
    with pytest.raises(SettingError, match="unknown codec"):
        decode(Payload(codec="zip", parts=(b"",)), PICTURE, (4,))


# Attacks


def refused(codec: str, part: bytes, shape: tuple[int, ...], dtype: str = "uint8") -> str:
    """What is said about one part."""
    with pytest.raises(MessageError) as caught:
        decode(Payload(codec=codec, parts=(part,)), np.dtype(dtype), shape)
    return str(caught.value)


def test_attack_a_deflate_bomb_is_not_inflated() -> None:
    """A thousandfold of zeros stops one byte beyond the input's size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(50_000_000)) + packer.flush()
    assert "not 12 bytes" in refused("deflate", bomb, (12,))


def test_attack_bytes_behind_the_end_are_refused() -> None:
    """A whole stream with a tail is no payload."""
    batch = smooth(1, 12)
    made = encode(np.zeros_like(batch), ("deflate",))
    assert made is not None
    assert "not 12 bytes" in refused("deflate", made.parts[0] + b"x", (12,))


def test_attack_a_picture_bomb_is_not_unpacked() -> None:
    """A PNG that says it is 60,000 pixels wide is refused by its head, before a row of it is decoded."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    idat = b"IDAT" + zlib.compress(b"")
    file += struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    assert "payload" in refused("png", file, (8, 8, 3))


@pytest.mark.parametrize("given_format", ["GIF", "BMP", "TIFF", "JPEG"])
def test_attack_another_decoder_is_not_reached(given_format: str) -> None:
    """A file of another format under the name of PNG is refused: only the named decoder sees strangers' bytes."""
    file = io.BytesIO()
    Image.fromarray(smooth(8, 8, 3)).save(file, given_format)
    assert "damaged" in refused("png", file.getvalue(), (8, 8, 3))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1"])
def test_attack_a_picture_of_other_channels_is_refused(mode: str) -> None:
    """Grey, palettes and transparency are no RGB input."""
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    assert "damaged" in refused("png", file.getvalue(), (8, 8, 3))


def test_attack_inputs_too_large_are_refused_before_anything_is_decoded() -> None:
    """A shape of gigabytes is refused, whatever the part says."""
    assert "coded so" in refused("deflate", b"", (2**31,))


def test_attack_a_codec_for_other_inputs_is_refused() -> None:
    """Numbers that are no picture are not given to a decoder of pictures."""
    assert "coded so" in refused("png", b"", (8,), "float32")


@pytest.mark.parametrize("name", sorted(filter(works, CODECS)))
@given(data=st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_attack_garbage_is_a_coded_error(name: str, data: bytes) -> None:
    """Bytes from anywhere are refused by every codec with a message, never with anything else."""
    dtype, shape = ("int16", (16,)) if name == "flac" else ("uint8", (8, 8, 3))
    refused(name, data, shape, dtype)


@pytest.mark.parametrize("name", sorted(filter(works, CODECS)))
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_attack_a_flipped_bit_gives_an_input_of_the_right_kind_or_an_error(
    name: str, place: int, bit: int
) -> None:
    """A damaged payload never becomes an array of another shape or type."""
    batch: np.ndarray[Any, Any] = smooth(1, 64, dtype="int16") if name == "flac" else smooth(1, 8, 8, 3)
    part = bytearray(CODECS[name].encode(np.ascontiguousarray(batch[0])))
    part[place % len(part)] ^= 1 << bit
    try:
        back = decode(Payload(codec=name, parts=(bytes(part),)), batch.dtype, batch.shape[1:])
    except MessageError:
        return
    assert (back.dtype, back.shape) == (batch.dtype, batch.shape)


def test_a_codec_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that raises, whatever it raises, costs the device no answer: the next codec is taken."""

    class Broken:
        lossless = True

        def takes(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
            return True

        def encode(self, sample: np.ndarray) -> bytes:
            raise OSError("library not found")

        def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
            raise OSError("library not found")

    monkeypatch.setitem(CODECS, "png", Broken())
    works.cache_clear()
    made = encode(np.zeros((2, 8, 8, 3), np.uint8), ("png", "deflate"))
    assert made is not None
    assert made.codec == "deflate"
    works.cache_clear()
    try:
        assert "png" not in available(np.dtype(np.uint8), (8, 8, 3))
    finally:
        monkeypatch.undo()
        works.cache_clear()


def test_the_best_codec_is_remembered_and_looked_for_again() -> None:
    """Between two looks the codec of the first is taken, whether or not another would be smaller by now."""
    clock = FakeClock()
    coder = Coder(("deflate", "png"), clock=clock)
    flat, drawn = np.zeros((1, 64, 64, 3), np.uint8), picture(0)[None]

    def taken(batch: np.ndarray) -> str:
        made = coder(batch, ("deflate", "png"), clock.monotonic() + 5)
        assert made is not None
        return made[0]

    first = taken(flat)
    assert [taken(drawn) for _ in range(LOOK_AGAIN - 2)] == [first] * (LOOK_AGAIN - 2)
    assert taken(drawn) == "png" != first


def test_where_the_time_is_short_no_further_codec_is_tried() -> None:
    """Half of what is left may go into coding."""
    clock = FakeClock()
    assert (
        Coder(("deflate", "png"), clock=clock)(picture(0)[None], ("deflate", "png"), clock.monotonic())
        is None
    )

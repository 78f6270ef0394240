"""Files of sensors become inputs of a model, or are refused with what would fit; strangers' bytes never more than that."""

from __future__ import annotations

import io
import struct
import wave
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgestill.core.errors import DataError, EdgestillError, PathError, ShapeError
from edgestill.infer.recordings import read_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

U8, F32, I16 = np.dtype("uint8"), np.dtype("float32"), np.dtype("int16")


def pixels(height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    """`[H, W, 3]` of noise."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(path: Path, array: NDArray[np.uint8]) -> Path:
    """A file without loss."""
    Image.fromarray(array).save(path)
    return path


def wav(path: Path, samples: NDArray[np.generic], *, width: int = 2) -> Path:
    """`[T, C]` as a file."""
    with wave.open(str(path), "wb") as made:
        made.setnchannels(samples.shape[1])
        made.setsampwidth(width)
        made.setframerate(16_000)
        made.writeframes(samples.tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
def test_a_picture_is_what_the_camera_saw(tmp_path: Path, suffix: str) -> None:
    """Channels last or first, bytes or shares of one; free sizes take any."""
    seen, path = pixels(), png(tmp_path / f"seen{suffix}", pixels())
    assert np.array_equal(read_inputs(path, U8, (None, 4, 6, 3)), seen[None])
    assert np.array_equal(read_inputs(path, U8, (None, None, None, 3)), seen[None])
    assert np.array_equal(read_inputs(path, U8, (None, 3, 4, 6)), seen.transpose(2, 0, 1)[None])
    shares = read_inputs(path, F32, (None, 4, 6, 3))
    assert shares.dtype == F32
    assert np.allclose(shares, seen[None] / 255)


def test_a_grey_picture_has_one_channel_or_none(tmp_path: Path) -> None:
    """As the model wants it; colours become grey."""
    path = png(tmp_path / "grey.png", pixels()[:, :, 0])
    for shape in ((None, 4, 6), (None, 4, 6, 1), (None, 1, 4, 6)):
        found = read_inputs(path, U8, shape)
        assert found.shape == (1, *shape[1:])
        assert np.array_equal(found.reshape(4, 6), pixels()[:, :, 0])
    assert read_inputs(png(tmp_path / "colours.png", pixels()), U8, (None, 4, 6)).shape == (1, 4, 6)


def test_a_picture_of_another_size_is_not_scaled_in_silence(tmp_path: Path) -> None:
    """The error tells both sizes; a model of no pictures says what it takes."""
    path = png(tmp_path / "seen.png", pixels())
    with pytest.raises(ShapeError, match=r"a picture of another size.*expected 24 x 24.*got 4 x 6"):
        read_inputs(path, U8, (None, 24, 24, 3))
    with pytest.raises(ShapeError, match=r"expected \[N, 16\] \(the model's\); got a picture"):
        read_inputs(path, F32, (None, 16))


def test_a_sound_is_cut_into_windows(tmp_path: Path) -> None:
    """One after the other; a rest that is too short is left out; whole numbers, or shares of the loudest."""
    samples = np.arange(-5, 6, dtype=np.int16)[:, None] * 3000
    path = wav(tmp_path / "heard.wav", samples)
    assert np.array_equal(read_inputs(path, I16, (None, 4)), samples[:8, 0].reshape(2, 4))
    assert np.allclose(read_inputs(path, F32, (None, 4)), samples[:8, 0].reshape(2, 4) / 32768)
    assert read_inputs(path, F32, (None, None)).shape == (1, 11)
    two = wav(tmp_path / "two.wav", np.stack([samples[:, 0], -samples[:, 0]], 1))
    last, first = read_inputs(two, I16, (None, 5, 2)), read_inputs(two, I16, (None, 2, 5))
    assert last.shape == (2, 5, 2)
    assert np.array_equal(first, last.transpose(0, 2, 1))


def test_eight_bits_of_sound_have_no_sign(tmp_path: Path) -> None:
    """128 is silence."""
    path = wav(tmp_path / "quiet.wav", np.array([[0], [128], [255]], np.uint8), width=1)
    assert np.allclose(read_inputs(path, F32, (None, 3)), [[-1, 0, 127 / 128]])


def test_a_sound_that_does_not_fit_says_why(tmp_path: Path) -> None:
    """Too short, too many channels, other numbers."""
    mono = wav(tmp_path / "mono.wav", np.zeros((3, 1), np.int16))
    stereo = wav(tmp_path / "stereo.wav", np.zeros((8, 2), np.int16))
    with pytest.raises(ShapeError, match=r"too short for one input.*at least 4"):
        read_inputs(mono, I16, (None, 4))
    with pytest.raises(ShapeError, match="a sound of several channels"):
        read_inputs(stereo, I16, (None, 4))
    with pytest.raises(ShapeError, match="a sound of 1 channels"):
        read_inputs(mono, I16, (None, 3, 6))
    with pytest.raises(DataError, match=r"a sound of other numbers.*expected uint8"):
        read_inputs(mono, U8, (None, 3))


def test_a_table_is_rows_or_windows_of_rows(tmp_path: Path) -> None:
    """A first row of names is left out; a byte order mark and empty lines do not matter."""
    path = tmp_path / "told.csv"
    path.write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n\r\n3,4\r\n5,6\r\n")
    assert np.array_equal(read_inputs(path, F32, (None, 2)), [[1, 2], [3, 4], [5, 6]])
    assert np.array_equal(read_inputs(path, F32, (None, 2, 2)), [[[1, 2], [3, 4]]])
    assert read_inputs(path, U8, (None, 2)).dtype == U8
    with pytest.raises(ShapeError, match="a table of 2 columns"):
        read_inputs(path, F32, (None, 5))


@pytest.mark.parametrize(
    "text",
    ["", "x,y\n", "1,2\n3\n", "1,a\n", "1,nan\n", "1,1e400\n", "1,\n", '"1', "\x00,1\n", "1,2\n3,4,5\n"],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Nothing at all, names alone, ragged rows, words, what is no number."""
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises((DataError, ShapeError)):
        read_inputs(path, F32, (None, 2))


@pytest.mark.parametrize("number", ["1.5", "-1", "256"])
def test_a_table_keeps_to_the_models_numbers(tmp_path: Path, number: str) -> None:
    """What a byte cannot hold is not rounded or wrapped."""
    path = tmp_path / "bytes.csv"
    path.write_text(f"1,{number}\n")
    with pytest.raises(DataError, match="expected whole numbers from 0 to 255"):
        read_inputs(path, U8, (None, 2))


def test_a_kind_that_is_not_known_names_those_that_are(tmp_path: Path) -> None:
    """By its ending."""
    path = tmp_path / "x.tiff"
    path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"expected \.npy, \.wav, \.csv, \.png"):
        read_inputs(path, U8, (None, 4, 6, 3))
    with pytest.raises(PathError):
        read_inputs(tmp_path / "none.png", U8, (None, 4, 6, 3))


def test_a_free_length_is_the_time_whichever_axis_it_is(tmp_path: Path) -> None:
    """Channels first or last, as many as the sound has."""
    path = wav(tmp_path / "two.wav", np.stack([np.arange(6), np.arange(6) + 10], 1).astype(np.int16))
    assert read_inputs(path, I16, (None, 2, None)).tolist() == [[list(range(6)), list(range(10, 16))]]
    assert read_inputs(path, I16, (None, None, 2)).shape == (1, 6, 2)


def test_numbers_that_would_change_are_refused(tmp_path: Path) -> None:
    """Sixteen bits a pixel, a byte with a sign, a number that floats of the model cannot hold."""
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 6), 30_000, np.uint16)).save(deep)
    with pytest.raises(DataError, match="eight bits a channel"):
        read_inputs(deep, F32, (None, 4, 6))
    with pytest.raises(DataError, match="do not fit the model's"):
        read_inputs(png(tmp_path / "seen.png", pixels()), np.dtype("int8"), (None, 4, 6, 3))
    table = tmp_path / "large.csv"
    table.write_text("1e300,1\n")
    with pytest.raises(DataError):
        read_inputs(table, F32, (None, 2))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM"])
def test_attack_another_decoder_is_not_reached_by_a_name(tmp_path: Path, kind: str) -> None:
    """A file of another format that calls itself .png."""
    path = tmp_path / "seen.png"
    Image.fromarray(pixels()).save(path, format=kind)
    with pytest.raises(DataError, match="a file that cannot be read"):
        read_inputs(path, U8, (None, 4, 6, 3))


def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    """A header of 60,000 by 60,000 pixels in a file of some bytes."""
    good = io.BytesIO()
    Image.fromarray(pixels()).save(good, "PNG")
    data = bytearray(good.getvalue())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(DataError):
        read_inputs(path, U8, (None, None, None, 3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.sampled_from([".png", ".wav", ".csv", ".jpg", ".npy"]), st.binary(max_size=200), st.data())
def test_strangers_bytes_are_refused_with_a_code(
    tmp_path: Path, suffix: str, noise: bytes, data: st.DataObject
) -> None:
    """Noise, and real files with some bytes changed: an input of the right shape comes of them, or one of our errors."""
    real = {
        ".png": png(tmp_path / "a.png", pixels()).read_bytes(),
        ".jpg": png(tmp_path / "a.jpg", pixels()).read_bytes(),
        ".wav": wav(tmp_path / "a.wav", np.zeros((8, 1), np.int16)).read_bytes(),
        ".csv": b"1,2\n3,4\n",
        ".npy": b"",
    }[suffix]
    changed = bytearray(real)
    for at in data.draw(st.lists(st.integers(0, max(0, len(real) - 1)), max_size=6)):
        if at < len(changed):
            changed[at] ^= data.draw(st.integers(1, 255))
    path, shape = (
        tmp_path / f"bad{suffix}",
        {".wav": (None, 4), ".csv": (None, 2)}.get(suffix, (None, 4, 6, 3)),
    )
    for content in (noise, bytes(changed)):
        path.write_bytes(content)
        try:
            found = read_inputs(path, F32, shape)
        except EdgestillError:
            continue
        assert found.ndim == len(shape)

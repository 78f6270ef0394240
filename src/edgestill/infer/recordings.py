"""What a sensor wrote into a file, as a model takes it: a picture, a sound, a table.

A bundle's model takes what the sensor gives, so that little is left to do here, and nothing is guessed: a file is cut into inputs
of the model's shape, numbers keep their meaning, and what does not fit is refused with what would.

    .png .jpg .bmp   one picture: [N, H, W, 3] or [N, 3, H, W] of uint8, or of floats in 0 to 1; [N, H, W], [N, H, W, 1] and [N, 1, H, W] are grey
    .wav             windows of a sound, one after the other: [N, T] of one channel, [N, T, C], or [N, C, T]; int16, or floats in -1 to 1
    .csv             [N, D]: a row is an input; [N, T, C]: T rows are one, a column is a channel; a first row of names is left out
    .npy             the array itself

A rest that is shorter than a window is left out. Sizes are bounded before anything is decoded.
"""

from __future__ import annotations

import csv
import io
import warnings
import wave
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import DataError, ShapeError
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.infer.arrayfile import read_npy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES: Final = 500_000_000
MAX_TABLE_BYTES: Final = 100_000_000
MAX_PIXELS: Final = 100_000_000
Shape = tuple[int | None, ...]
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS: Final = ("PNG", "JPEG", "BMP")
"""Decoders that strangers' bytes are given to, whatever a file calls itself."""
_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"})
_COLOURS: Final = 3
_PICTURES_OF_CHANNELS: Final = 4
"""Axes of a batch of them; pictures without an axis for channels have one less."""
_WIDTHS: Final[dict[int, Any]] = {1: np.dtype("u1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


def read_inputs(path: Path, dtype: np.dtype[Any], shape: Shape) -> NDArray[np.generic]:
    """`[N, ...]` inputs of a file.

    Args:
        path: whose ending says what it is.
        dtype: of the model's input.
        shape: of the model's input; None where an axis is free, as the first is.

    Raises:
        PathError: it cannot be read. DataError: damaged, or of a kind that is not known. ShapeError: no input of this shape is in it.
        MissingExtraError: pictures are read with Pillow, which is not installed.
    """
    kind = path.suffix.lower()
    if kind in {"", ".npy", ".npz"}:
        return read_npy(path, what="the input")
    readers: dict[str, Callable[[Path, np.dtype[Any], Shape], NDArray[np.generic]]] = {
        ".wav": _sound,
        ".csv": _table,
        **dict.fromkeys(_PICTURES, _picture),
    }
    if kind not in readers:
        raise DataError(
            "a file of a kind that is not known",
            where=path,
            expected=", ".join((".npy", *readers)),
            got=kind or "no ending",
            fix="save it as one of these",
        )
    return readers[kind](path, dtype, shape)


def _picture(path: Path, dtype: np.dtype[Any], shape: Shape) -> NDArray[np.generic]:
    grey, first, size = _layout(path, shape)
    pixels = _pixels(path, "L" if grey else "RGB")
    if any(want not in (None, got) for want, got in zip(size, pixels.shape, strict=False)):
        raise ShapeError(
            "a picture of another size",
            where=path,
            expected=" x ".join("any" if one is None else str(one) for one in size) + " (height, width)",
            got=f"{pixels.shape[0]} x {pixels.shape[1]}",
            fix="give it as the camera does that the model was made for, or scale it",
        )
    if grey and len(shape) == _PICTURES_OF_CHANNELS:
        pixels = pixels[:, :, None]
    batch = np.ascontiguousarray((pixels.transpose(2, 0, 1) if first else pixels)[None])
    if dtype.kind == "f":
        return (batch / np.float32(255)).astype(dtype)
    if dtype != batch.dtype and np.iinfo(dtype).max < np.iinfo(batch.dtype).max:
        raise DataError(
            "a picture's numbers do not fit the model's",
            where=path,
            expected=dtype.name,
            got="0 to 255",
            fix="give an npy file of what the sensor gives",
        )
    return batch.astype(dtype)


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    """`[H, W]` or `[H, W, 3]`, looked at before it is decoded."""
    image = require("PIL.Image", extra="cli", purpose="to read pictures")
    data = read_plain(path, what="the picture", at_most=MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at here
            opened = image.open(io.BytesIO(data), formats=_FORMATS)
            count = opened.width * opened.height
            known = opened.mode in _MODES
            pixels = np.asarray(opened.convert(mode)) if count <= MAX_PIXELS and known else None
    except Exception as error:  # whatever the decoder makes of strangers' bytes
        raise _damaged(path, f"{type(error).__name__}: {error}", "a picture") from error
    if not known:
        raise _damaged(path, f"numbers of another kind ({opened.mode})", "eight bits a channel")
    if pixels is None:
        raise _damaged(path, f"{count} pixels", f"at most {MAX_PIXELS} pixels")
    return pixels


def _layout(path: Path, shape: Shape) -> tuple[bool, bool, Shape]:
    """Whether the model's pictures are grey, whether the channels come first, and their height and width."""
    known = (1, _COLOURS)
    if len(shape) == _PICTURES_OF_CHANNELS - 1:
        return True, False, shape[1:]
    if len(shape) == _PICTURES_OF_CHANNELS and shape[3] in known:
        return shape[3] == 1, False, shape[1:3]
    if len(shape) == _PICTURES_OF_CHANNELS and shape[1] in known:
        return shape[1] == 1, True, shape[2:]
    raise _no_input(path, "a picture", shape)


def _sound(path: Path, dtype: np.dtype[Any], shape: Shape) -> NDArray[np.generic]:
    data = read_plain(path, what="the sound", at_most=MAX_BYTES)
    try:
        with wave.open(io.BytesIO(data)) as opened:
            width, channels = opened.getsampwidth(), opened.getnchannels()
            raw = opened.readframes(opened.getnframes())
        samples: NDArray[Any] = np.frombuffer(raw, _WIDTHS[width]).reshape(-1, channels)
    except KeyError as error:
        raise _damaged(path, f"samples of {width} bytes", "8, 16 or 32 bits a sample") from error
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(
            path, f"{type(error).__name__}: {error}", "a WAV file of whole numbers (PCM)"
        ) from error
    if dtype.kind == "f":
        half = 128 if width == 1 else 0  # eight bits have no sign
        samples = ((samples.astype(np.float64) - half) / 2 ** (8 * width - 1)).astype(dtype)
    elif samples.dtype.itemsize != dtype.itemsize or samples.dtype.kind != dtype.kind:
        raise DataError(
            "a sound of other numbers",
            where=path,
            expected=f"{dtype.name} (the model's)",
            got=samples.dtype.name,
            fix="save it with as many bits a sample",
        )
    if len(shape) == 2:  # [N, T]
        if channels != 1:
            raise ShapeError(
                "a sound of several channels",
                where=path,
                expected="one (the model's)",
                got=channels,
                fix="mix them, or take one",
            )
        return _windows(path, samples, shape[1], 1)[:, :, 0]
    if len(shape) == 3 and shape[2] == channels:  # [N, T, C]
        return _windows(path, samples, shape[1], channels)
    if len(shape) == 3 and shape[1] == channels:  # [N, C, T]
        return np.ascontiguousarray(_windows(path, samples, shape[2], channels).transpose(0, 2, 1))
    raise _no_input(path, f"a sound of {channels} channels", shape)


def _table(path: Path, dtype: np.dtype[Any], shape: Shape) -> NDArray[np.generic]:
    text = read_plain(path, what="the table", at_most=MAX_TABLE_BYTES)
    try:
        rows = csv.reader(io.StringIO(text.decode("utf-8-sig")))
        numbers = _numbers(row for row in rows if row)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise _damaged(path, str(error), "rows of as many numbers each, with commas between") from error
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    whole = dtype.kind in "iu"
    fits = (numbers >= limits.min) & (numbers <= limits.max)  # which NaN does not
    if not fits.all() or (whole and (numbers != np.floor(numbers)).any()):
        kind = "whole numbers" if whole else "finite numbers"
        raise _damaged(path, "other numbers", f"{kind} from {limits.min} to {limits.max}")
    columns = numbers.shape[1]
    if len(shape) == 2 and shape[1] in (columns, None):  # [N, D]
        return _windows(path, numbers, 1, columns)[:, 0].astype(dtype)
    if len(shape) == 3 and shape[2] in (columns, None):  # [N, T, C]
        return _windows(path, numbers, shape[1], columns).astype(dtype)
    raise _no_input(path, f"a table of {columns} columns", shape)


def _numbers(rows: Iterator[list[str]]) -> NDArray[np.float64]:
    """`[T, C]`, row by row, so that a long table is never there as text cell by cell."""
    found: list[NDArray[np.float64]] = []
    for at, row in enumerate(rows):
        if at == 0 and not _is_number(row[0]):
            continue
        found.append(np.array(row, dtype=np.float64))
        if len(found[-1]) != len(found[0]):
            msg = f"{len(found[-1])} numbers in a row, {len(found[0])} in the first"
            raise ValueError(msg)
    return np.stack(found) if found else np.empty((0, 1))


def _windows(path: Path, rows: NDArray[np.generic], length: int | None, width: int) -> NDArray[np.generic]:
    """`[T, C]` as `[N, length, C]`, one window after the other; all of it where the length is free."""
    length = length or len(rows)
    count = len(rows) // length if length else 0
    if count == 0:
        raise ShapeError(
            "too short for one input",
            where=path,
            expected=f"at least {max(1, length)} rows or samples",
            got=len(rows),
            fix="record longer",
        )
    return rows[: count * length].reshape(count, length, width)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _no_input(path: Path, what: str, shape: Shape) -> ShapeError:
    told = ", ".join(["N", *("any" if one is None else str(one) for one in shape[1:])])
    return ShapeError(
        "a file that is no input of this model",
        where=path,
        expected=f"[{told}] (the model's)",
        got=what,
        fix="give what the model's sensor writes, or an npy file",
    )


def _damaged(path: Path, got: str, expected: str) -> DataError:
    return DataError(
        "a file that cannot be read", where=path, expected=expected, got=got[:200], fix="save it again"
    )

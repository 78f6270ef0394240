"""What was learned, written into a copy of the model's file: floats as they are, codes on the grid that the file has.

A number x of a tensor with scale s and zero point z becomes the code `round(x / s) + z`, halves to the even one as
QuantizeLinear rounds (ONNX operator set 19), cut to the codes that may be had. The file keeps its length: nothing but these bytes changes, so
that the engine, the golden answers' tolerances and a later patch know it as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import OverlayError
from edgestill.learn.stepfile import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from edgestill.learn.stepfile import Place, Tensor

_LIMITS: Final = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}


def written_into(
    model: bytes, tensors: Iterable[Tensor], weights: Mapping[str, NDArray[np.float32]]
) -> tuple[bytes, float]:
    """The model with these weights, and the share of them that lay beyond the grid and were cut.

    Args:
        model: the bundle's `model.onnx`.
        tensors: of its `train.json`.
        weights: for each tensor that has a place, its numbers.

    Raises:
        OverlayError: a weight is missing, of another shape or not finite; or a place lies outside of the file.
    """
    changed = bytearray(model)
    cut = total = 0
    for tensor in tensors:
        if tensor.place is None:
            continue
        numbers = _checked(tensor, weights.get(tensor.name))
        _check_place(tensor, tensor.place, len(model))
        codes, beyond = _codes(tensor.place, numbers, model)
        data = codes.tobytes()
        changed[tensor.place.start : tensor.place.start + len(data)] = data
        cut += beyond
        total += tensor.size
    return bytes(changed), cut / total if total else 0.0


def read_from(model: bytes, tensors: Iterable[Tensor]) -> dict[str, NDArray[np.float32]]:
    """What the model's file itself has in these places, as floats.

    Raises:
        OverlayError: a place lies outside of the file.
    """
    found = {}
    for tensor in tensors:
        place = tensor.place
        if place is None:
            continue
        _check_place(tensor, place, len(model))
        stored = np.frombuffer(model, _little(place.kind), tensor.size, place.start).reshape(tensor.shape)
        if place.scale is not None:
            scale, zero = _grid(place, model, len(tensor.shape))
            stored = (stored.astype(np.float32) - zero) * scale
        found[tensor.name] = stored.astype(np.float32)
    return found


def range_of(model: bytes, tensor: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest number that a tensor may have in the file, to be broadcast over it; infinite for floats.

    Raises:
        OverlayError: it has no place, or one that lies outside of the file.
    """
    if tensor.place is None:
        raise _refused("a tensor with a place", "none", tensor.name)
    _check_place(tensor, tensor.place, len(model))
    if tensor.place.scale is None:
        return np.array(-np.inf), np.array(np.inf)
    scale, zero = _grid(tensor.place, model, len(tensor.shape))
    low, high = _bounds(tensor.place)
    return (low - zero) * scale, (high - zero) * scale


def _bounds(place: Place) -> tuple[int, int]:
    return _LIMITS.get(place.kind, (-place.limit, place.limit))


def _codes(place: Place, numbers: NDArray[np.float32], model: bytes) -> tuple[NDArray[np.generic], int]:
    """As they are written, and how many were cut."""
    if place.scale is None:
        return numbers.astype(_little(place.kind)), 0
    scale, zero = _grid(place, model, numbers.ndim)
    low, high = _bounds(place)
    rounded = np.rint(numbers.astype(np.float64) / scale) + zero
    return np.clip(rounded, low, high).astype(_little(place.kind)), int(
        ((rounded < low) | (rounded > high)).sum()
    )


def _grid(place: Place, model: bytes, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scale and zero point, to be broadcast over the tensor."""
    assert place.scale is not None
    shape = [place.channels if at == place.axis else 1 for at in range(rank)]
    scale = np.frombuffer(model, "<f4", place.channels, place.scale)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _refused("positive scales", "others", f"byte {place.scale}")
    zero = np.zeros(place.channels)
    if place.zero is not None:
        zero = np.frombuffer(model, _little(place.kind), place.channels, place.zero).astype(np.float64)
    return scale.reshape(shape), zero.reshape(shape)


def _checked(tensor: Tensor, numbers: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if numbers is None or numbers.shape != tensor.shape:
        raise _refused(list(tensor.shape), "nothing" if numbers is None else list(numbers.shape), tensor.name)
    if not np.isfinite(numbers).all():
        raise _refused("finite numbers", "NaN or infinity", tensor.name)
    return numbers


def _check_place(tensor: Tensor, place: Place, length: int) -> None:
    width = WIDTHS[place.kind]
    ends = [place.start + tensor.size * width]
    ends += [] if place.scale is None else [place.scale + 4 * place.channels]
    ends += [] if place.zero is None else [place.zero + width * place.channels]
    if max(ends) > length:
        raise _refused(f"places within {length} bytes", f"byte {max(ends)}", tensor.name)


def _little(kind: str) -> np.dtype[np.generic]:
    return np.dtype(kind).newbyteorder("<")


def _refused(expected: object, got: object, where: str) -> OverlayError:
    return OverlayError("weights that the model has no place for", where=where, expected=expected, got=got)

"""What was learned goes into a copy of the model: on its codes, at its places, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import OverlayError
from edgestill.learn.codes import read_from, written_into
from edgestill.learn.stepfile import Place, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALES = np.array([0.5, 0.25, 2.0], "<f4")
ZEROS = np.array([3, 128, 255], np.uint8)
HEAD = b"head----"
MODEL = HEAD + SCALES.tobytes() + ZEROS.tobytes() + bytes(100)
AT_SCALE, AT_ZERO, AT_CODES = len(HEAD), len(HEAD) + 12, len(HEAD) + 15


def of(place: Place | None, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, ...]:
    """The one tensor of a file."""
    return (Tensor(name="weight", shape=shape, role="weight", place=place),)


INT8 = Place(kind="int8", start=AT_CODES, scale=AT_SCALE, channels=3, axis=1)
UINT8 = replace(INT8, kind="uint8", zero=AT_ZERO)
INT32 = replace(INT8, kind="int32")
FLOAT = Place(kind="float32", start=AT_CODES)


@given(codes=st.lists(st.integers(-127, 127), min_size=6, max_size=6))
def test_numbers_on_the_grid_come_back(codes: list[int]) -> None:
    """What can be written exactly is."""
    weight = (np.array(codes).reshape(2, 3) * SCALES).astype(np.float32)
    model, cut = written_into(MODEL, of(INT8), {"weight": weight})
    assert cut == 0
    assert np.array_equal(read_from(model, of(INT8))["weight"], weight)
    assert np.frombuffer(model, np.int8, 6, AT_CODES).tolist() == codes


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6),
    place=st.sampled_from([INT8, replace(INT8, limit=64), UINT8, INT32, FLOAT]),
)
def test_any_number_becomes_the_nearest_that_may_be_had(values: list[float], place: Place) -> None:
    """Within half a step where it is on the grid, at its end where it is beyond, and told how many were."""
    weight = np.array(values, np.float32).reshape(2, 3)
    model, cut = written_into(MODEL, of(place), {"weight": weight})
    found = read_from(model, of(place))["weight"]
    if place is FLOAT:
        assert np.array_equal(found, weight)
        return
    low, high = bounds(place)
    inside = (weight >= low - SCALES / 2) & (weight <= high + SCALES / 2)
    error = np.abs(found.astype(np.float64) - weight)
    assert (error[inside] <= np.broadcast_to(SCALES * 0.5001 + 1e-6 * np.abs(high), (2, 3))[inside]).all()
    assert (found >= low - 1e-3).all()
    assert (found <= high + 1e-3).all()
    assert cut == pytest.approx((~inside).mean(), abs=0.34)


def bounds(place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest number of each channel."""
    ends = {"int8": (-place.limit, place.limit), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
    low, high = (np.array(end) - (ZEROS.astype(int) if place.zero else 0) for end in ends[place.kind])
    return low * SCALES.astype(np.float64), high * SCALES.astype(np.float64)


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
    st.sampled_from([INT8, UINT8, INT32, FLOAT]),
)
def test_no_other_byte_changes(values: list[float], place: Place) -> None:
    """The file keeps its length, and all of it but the tensor's own bytes."""
    model, _ = written_into(MODEL, of(place), {"weight": np.array(values, np.float32).reshape(2, 3)})
    size = 6 * (4 if place.kind in {"int32", "float32"} else 1)
    assert len(model) == len(MODEL)
    assert model[:AT_CODES] == MODEL[:AT_CODES]
    assert model[AT_CODES + size :] == MODEL[AT_CODES + size :]


def test_what_lies_beyond_the_grid_is_cut_and_counted() -> None:
    """Two of six here."""
    weight = np.array([[1e4, 0, 0], [0, -1e4, 0]], np.float32)
    model, cut = written_into(MODEL, of(replace(INT8, limit=64)), {"weight": weight})
    assert cut == pytest.approx(2 / 6)
    assert np.frombuffer(model, np.int8, 6, AT_CODES).tolist() == [64, 0, 0, 0, -64, 0]


def test_halves_are_rounded_to_the_even_code() -> None:
    """As the quantiser does."""
    weight = np.array([[0.25, 0.125, 1.0], [0.75, 0.375, 3.0]], np.float32)
    model, _ = written_into(MODEL, of(INT8), {"weight": weight})
    assert np.frombuffer(model, np.int8, 6, AT_CODES).tolist() == [0, 0, 0, 2, 2, 2]


def test_a_tensor_without_a_place_is_left_out() -> None:
    """As running figures are."""
    assert written_into(MODEL, of(None), {}) == (MODEL, 0.0)
    assert read_from(MODEL, of(None)) == {}


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        (replace(INT8, start=len(MODEL) - 5), (2, 3)),
        (replace(INT8, start=2**31), (2, 3)),
        (replace(INT8, scale=len(MODEL) - 11), (2, 3)),
        (replace(UINT8, zero=len(MODEL) - 2), (2, 3)),
        (replace(FLOAT, start=len(MODEL) - 23), (2, 3)),
        (replace(INT8, channels=1, axis=None), (2**27,)),
    ],
)
def test_attack_a_place_outside_of_the_file_is_refused(place: Place, shape: tuple[int, ...]) -> None:
    """Nothing is read or written there, whatever the signed file says."""
    weight = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(OverlayError, match="within"):
        written_into(MODEL, of(place, shape), {"weight": weight})
    with pytest.raises(OverlayError, match="within"):
        read_from(MODEL, of(place, shape))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_attack_scales_that_are_none_are_refused(scale: float) -> None:
    """Where the file has other bytes than scales, nothing is divided by them."""
    model = HEAD + np.array([scale, 1, 1], "<f4").tobytes() + bytes(100)
    with pytest.raises(OverlayError, match="positive scales"):
        written_into(model, of(INT8), {"weight": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    "weights",
    [{}, {"weight": np.zeros((3, 2), np.float32)}, {"weight": np.full((2, 3), np.nan, np.float32)}],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, NDArray[np.float32]]) -> None:
    """None, of another shape, or not finite."""
    with pytest.raises(OverlayError, match="weight"):
        written_into(MODEL, of(INT8), weights)

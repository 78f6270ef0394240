"""Records of Flower on their way in: arrays, values and counts that are read, and what is refused of them.

They need Flower: `tests/federated/test_federated_environment.py` runs them where it is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip(
    "flwr", reason="Flower is not in this environment; test_federated_environment.py makes one"
)

from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as some

from edgestill.core.errors import EdgestillError, MessageError
from edgestill.federated.records import counts, one_array, one_value, read_array

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3, dtype=np.int64),
        np.zeros((0, 4), dtype=np.uint8),
        np.arange(4, dtype=">f8"),
        np.array([True, False]),
    ],
)
def test_arrays_come_in_as_they_were_sent(array: np.ndarray) -> None:
    """Any shape, order and byte order of plain numbers."""
    found = read_array(Array(array), where="here")
    assert found.shape == array.shape
    assert np.array_equal(found, array)
    assert found.dtype.isnative


def spoilt(array: np.ndarray, change: Callable[[bytes], bytes], stype: str = "numpy.ndarray") -> Array:
    """An array whose bytes are others."""
    made = Array(array)
    return Array(made.dtype, made.shape, stype, change(made.data))


@pytest.mark.parametrize(
    "array",
    [
        spoilt(np.zeros(4), lambda data: data[:-1]),
        spoilt(np.zeros(4), lambda data: data + b"\0"),
        spoilt(np.zeros(4), lambda _: b""),
        spoilt(np.zeros(4), lambda data: data.replace(b"(4,)", b"(4000000000000,)"[:4])),
        spoilt(np.zeros((1, 4)), lambda data: data.replace(b"(1, 4)", b"(9, 9)")),
        spoilt(np.zeros((11, 44)), lambda data: data.replace(b"(11, 44)", b"(-11,-44")),
        spoilt(np.zeros((11, 44)), lambda data: data.replace(b"(11, 44)", b"(-2,-242")),
        spoilt(np.zeros(4), lambda data: data.replace(b"<f8", b"|O ")),
        spoilt(np.zeros(4), lambda data: data.replace(b"<f8", b"<M8")),
        spoilt(np.zeros(4), lambda data: data, "torch.Tensor"),
    ],
)
def test_attack_a_damaged_array_is_refused_before_it_is_made(array: Array) -> None:
    """Bytes that are cut or many, shapes of other sizes, objects, dates, and other kinds of tensors."""
    with pytest.raises(MessageError):
        read_array(array, where="here")


def promising(shape: str, data: bytes = b"") -> Array:
    """An array whose header says this shape, of doubles, with these bytes behind it."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    head = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + "\n"
    packed = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data
    return Array("float64", (), "numpy.ndarray", packed)


UNFORESEEN = {
    "no bytes, beyond any size": promising(f"(0, {2**70})"),
    "no bytes, beyond any size together": promising(f"(0, {2**27}, {2**27}, {2**27})"),
    "a hundred axes": promising(str((1,) * 100), bytes(8)),
    "an empty axis among large ones": promising(f"({2**62}, 0, 4)"),
    "an axis that is a truth": promising("(True,)", bytes(8)),
    "a size of more digits than are printed": promising(str((10**300,) * 20), bytes(8)),
}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_attack_an_array_of_impossible_axes_is_a_message_error(name: str) -> None:
    """Axes that numpy itself trips over are refused by an error of ours."""
    with pytest.raises(MessageError):
        read_array(UNFORESEEN[name], where="here")


@given(some.lists(some.integers(-3, 2**64) | some.booleans(), max_size=40), some.binary(max_size=64))
def test_attack_any_axes_are_an_array_or_an_error(shape: list[int], data: bytes) -> None:
    """Whatever shape a header names, what comes of it is an array of the bytes that are there, or an error of ours."""
    try:
        found = read_array(promising(str(tuple(shape)), data), where="here")
    except EdgestillError:
        return
    assert list(found.shape) == shape
    assert found.tobytes() == data


@given(some.binary(max_size=60), some.integers(0, 150))
def test_attack_any_bytes_are_an_array_or_an_error(noise: bytes, at: int) -> None:
    """Noise anywhere in the file gives an array of as many bytes, or an error of ours."""

    def change(data: bytes) -> bytes:
        return data[:at] + noise + data[at + len(noise) :]

    try:
        found = read_array(spoilt(np.arange(8.0), change), where="here")
    except EdgestillError:
        return
    assert found.nbytes <= 64 + 150


def test_records_without_what_is_looked_for_are_named() -> None:
    """What is missing, and what is there instead."""
    content = RecordDict({"metrics": MetricRecord({"num-examples": 3}), "config": ConfigRecord({"a": 1})})
    assert counts(content, "num-examples") == [3]
    with pytest.raises(MessageError, match="count is missing"):
        counts(content, "num-examples", "right")
    with pytest.raises(MessageError, match="count is missing"):
        counts(RecordDict({"metrics": MetricRecord({"num-examples": -1})}), "num-examples")
    with pytest.raises(MessageError, match="value is missing") as caught:
        one_value(content, "config", "a", str)
    assert "got a" in str(caught.value)
    with pytest.raises(MessageError, match="array is missing"):
        one_array(content, "config", "a")

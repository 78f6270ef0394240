"""Frames: read as written, and refused when they are anything else."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgestill.core.answer import Answer
from edgestill.core.errors import DtypeError, MessageError, UnreachableError
from edgestill.core.jsonio import canonical
from edgestill.core.oip import NUMPY_NAMES, Tensor
from edgestill.device import frames
from edgestill.device.arrays import answer_from_frame, answer_to_frame, to_array, to_tensor
from edgestill.device.frames import Frame, decode, encode, receive, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

TENSOR = Tensor("input", "FP32", (2, 3), b"\0" * 24)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        yield ours, theirs


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header and body of an encoded frame."""
    length, _ = struct.unpack(">II", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    """Header and tensors, several frames on one stream, then the end."""
    first, second = Frame({"op": "predict", "within": 1.5}, (TENSOR,)), Frame({"op": "status"})
    send(pair[0], first)
    send(pair[0], second)
    pair[0].close()
    one, two = receive(pair[1]), receive(pair[1])
    assert one is not None
    assert one.header == first.header
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in one.tensors] == [
        ("input", "FP32", (2, 3), b"\0" * 24)
    ]
    assert two == second
    assert receive(pair[1]) is None


@pytest.mark.parametrize("cut", [1, 7, 8, 20, -1])
def test_a_stream_that_ends_within_a_frame_is_refused(pair: Pair, cut: int) -> None:
    """Half a frame is never taken for a whole one, nor for an end."""
    pair[0].sendall(encode(Frame({"op": "x"}, (TENSOR,)))[:cut])
    pair[0].close()
    with pytest.raises(MessageError, match="ends too early"):
        receive(pair[1])


@pytest.mark.parametrize(
    ("header", "body"), [(frames.MAX_HEADER_BYTES + 1, 0), (2, frames.MAX_BODY_BYTES + 1)]
)
def test_attack_endless_lengths_are_refused_before_anything_is_allocated(
    pair: Pair, header: int, body: int
) -> None:
    """Only eight bytes are read."""
    pair[0].sendall(struct.pack(">II", header, body))
    with pytest.raises(MessageError, match="a frame is too long"):
        receive(pair[1])


def test_a_frame_too_large_for_a_reader_is_not_written() -> None:
    """The writer keeps the same bounds."""
    with pytest.raises(MessageError, match="a frame is too long"):
        encode(Frame({"text": "x" * frames.MAX_HEADER_BYTES}))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"name": "x", "datatype": "FP32", "shape": [3]}, "tensor and shape disagree"),
        ({"name": "x", "datatype": "FP32", "shape": [1]}, "bytes nobody named"),
        ({"name": "x", "datatype": "PICKLE", "shape": [8]}, "unknown datatype"),
        ({"name": "x", "datatype": "UINT8", "shape": [-8]}, "shape"),
        ({"name": "x", "datatype": "UINT8", "shape": [2**31, 2**31, 2**31]}, "out of bounds|disagree"),
        ({"name": "x", "datatype": "UINT8"}, "shape"),
        ({"name": 7, "datatype": "UINT8", "shape": [8]}, "name"),
    ],
)
def test_attack_sizes_that_do_not_add_up_are_refused(described: dict[str, object], reason: str) -> None:
    """Shape, datatype and body must tell the same story."""
    header = json.dumps({"tensors": [described]}).encode()
    with pytest.raises(MessageError, match=reason):
        decode(header, b"\0" * 8)


def test_a_header_must_name_its_tensors() -> None:
    """Even if there are none."""
    with pytest.raises(MessageError, match="tensors"):
        decode(b"{}", b"")
    with pytest.raises(MessageError, match="at most 16"):
        decode(canonical({"tensors": [{"name": "x", "datatype": "UINT8", "shape": [0]}] * 17}), b"")


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_random_bytes_are_refused_as_a_message(header: bytes, body: bytes) -> None:
    """No input makes the reader fail in any other way."""
    with pytest.raises(MessageError):
        decode(header, body + b"x")


@given(st.integers(0, 200), st.integers(0, 255))
def test_altered_frames_are_read_or_refused(position: int, value: int) -> None:
    """A changed byte never leads to anything but a frame or a refusal."""
    data = bytearray(encode(Frame({"op": "predict", "within": 1.5}, (TENSOR,))))
    position = 8 + position % (len(data) - 8)
    data[position] = value
    try:
        frame = decode(*split(bytes(data)))
    except MessageError:
        return
    assert len(frame.tensors) <= 1


def test_a_peer_that_is_gone_is_told_in_our_words(pair: Pair) -> None:
    """Broken pipes are UnreachableError."""
    pair[1].close()
    with pytest.raises(UnreachableError, match="a local process hung up"):
        send(pair[0], Frame({"op": "x"}, (TENSOR,)))


def test_a_timeout_is_left_to_the_caller(pair: Pair) -> None:
    """The caller knows what it waited for."""
    pair[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive(pair[1])


def test_a_tensor_is_found_by_name() -> None:
    """Or it is None."""
    frame = Frame({}, (TENSOR,))
    assert frame.tensor("input") is TENSOR
    assert frame.tensor("labels") is None


@given(
    hnp.arrays(
        st.sampled_from(sorted(NUMPY_NAMES.values())), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_arrays_arrive_as_they_were(array: NDArray[np.generic]) -> None:
    """Every datatype, every shape, empty ones included."""
    frame = decode(*split(encode(Frame({}, (to_tensor("x", array),)))))
    again = to_array(frame.tensors[0])
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable


def test_big_endian_and_strided_arrays_are_sent_as_little_endian_rows() -> None:
    """The wire has one order."""
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    assert to_array(to_tensor("x", array)).tolist() == array.tolist()


def test_strings_are_not_sent() -> None:
    """No model of ours takes any."""
    with pytest.raises(DtypeError, match="cannot be sent"):
        to_tensor("x", np.array(["a"]))


def test_an_answer_arrives_as_it_was() -> None:
    """With all its parts, or with the few that a lone student gives."""
    full = Answer(
        probabilities=np.full((2, 3), 1 / 3, np.float32),
        confidence=np.array([0.2, 0.9], np.float32),
        decided_by=("student", "fused"),
        features=np.ones((2, 4), np.float32),
        alpha=np.array([0, 0.5], np.float32),
        student=np.full((2, 3), 1 / 3, np.float32),
        teacher=np.array([[np.nan] * 3, [1, 0, 0]], np.float32),
        tiers=("gateway", "cloud"),
        latency=0.25,
    )
    again = answer_from_frame(decode(*split(encode(answer_to_frame(full)))))
    assert (again.decided_by, again.tiers, again.latency) == (full.decided_by, full.tiers, 0.25)
    for name in ("probabilities", "confidence", "features", "alpha", "student", "teacher"):
        np.testing.assert_array_equal(getattr(again, name), getattr(full, name))
    lone = Answer(probabilities=full.probabilities, confidence=full.confidence, decided_by=full.decided_by)
    assert answer_from_frame(answer_to_frame(lone)).teacher is None


def test_an_answer_that_is_none_is_refused() -> None:
    """Missing parts, other datatypes, other lengths."""
    parts = (
        to_tensor("probabilities", np.zeros((1, 2), np.float32)),
        to_tensor("confidence", np.zeros(1, np.float32)),
    )
    header: JsonObject = {"decided_by": ["student"], "latency": 0.0}
    with pytest.raises(MessageError, match="without probabilities"):
        answer_from_frame(Frame(dict(header), parts[1:]))
    with pytest.raises(MessageError, match="do not fit"):
        answer_from_frame(Frame(header | {"decided_by": []}, parts))
    wrong = to_tensor("confidence", np.zeros(1, np.float64))
    with pytest.raises(MessageError, match="another datatype"):
        answer_from_frame(Frame(dict(header), (parts[0], wrong)))


def test_strings_are_no_array() -> None:
    """A tensor of the protocol's strings is refused where an array is wanted."""
    with pytest.raises(MessageError, match="no array"):
        to_array(Tensor.of_strings("input", [b"a"]))


@pytest.mark.parametrize("pieces", [0, 1, 2, 3])
def test_a_frame_that_takes_longer_than_it_may_is_given_up(
    pieces: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Time is asked for before each piece: a reader waits no longer than for the whole frame, however it is cut."""
    ours, theirs = pair
    whole = encode(Frame({"op": "x"}, (Tensor("t", "UINT8", (4,), b"abcd"),)))
    theirs.sendall(whole)
    times = [5.0] * pieces + [0.0]
    if pieces < 3:
        with pytest.raises(TimeoutError):
            receive(ours, left=lambda: times.pop(0))
    else:
        assert receive(ours, left=lambda: times.pop(0)) is not None
        assert times == [0.0]

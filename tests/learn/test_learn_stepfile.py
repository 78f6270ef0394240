"""`train.json`: what was written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from softmax_engine import FILE

from edgestill.core.errors import EdgestillError, MessageError
from edgestill.learn.stepfile import MAX_BYTES, MAX_TENSORS, Place, StepFile, Tensor


@st.composite
def places(draw: st.DrawFn, shape: tuple[int, ...]) -> Place | None:
    """A place for a tensor of this shape, or none."""
    start = draw(st.integers(0, 2**31))
    kind = draw(st.sampled_from(["none", "float32", "int8", "uint8", "int32"]))
    if kind == "none":
        return None
    if kind == "float32":
        return Place(kind="float32", start=start)
    axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
    return Place(
        kind=kind,  # type: ignore[arg-type]  # drawn from the kinds
        start=start,
        scale=draw(st.integers(0, 2**31)),
        channels=1 if axis is None else shape[axis],
        axis=axis,
        zero=draw(st.none() | st.integers(0, 2**31)),
        limit=draw(st.integers(1, 127)),
    )


@st.composite
def files(draw: st.DrawFn) -> StepFile:
    """Any such file."""
    names = draw(
        st.lists(st.text("abc.xyz_0é", min_size=1, max_size=20), min_size=1, max_size=5, unique=True)
    )
    tensors = []
    for name in names:
        shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
        role = draw(st.sampled_from(["weight", "bias", "running"]))
        tensors.append(Tensor(name=name, shape=shape, role=role, place=draw(places(shape))))
    return StepFile(
        optimiser=draw(st.sampled_from(["sgd", "adam"])),
        slots=tuple(draw(st.lists(st.sampled_from(["velocity", "mean"]), unique=True))),
        counts=draw(st.booleans()),
        classes=draw(st.integers(1, 1000)),
        rate=draw(st.floats(0, 10)),
        batch=draw(st.integers(1, 512)),
        tensors=tuple(tensors),
    )


@given(files())
def test_what_was_written_is_read(file: StepFile) -> None:
    """Every file survives being bytes, and its bytes are one."""
    data = file.to_bytes()
    assert StepFile.from_bytes(data) == file
    assert StepFile.from_bytes(data).to_bytes() == data


def test_running_figures_have_no_optimiser() -> None:
    """States are those of parameters, and the count where steps are counted."""
    running = Tensor(name="mean", shape=(3,), role="running")
    file = replace(FILE, tensors=(*FILE.tensors, running))
    assert file.states == (("velocity.weight", (4, 3)), ("step", ()))


def changed(**fields: Any) -> bytes:
    """A file with other fields."""
    return json.dumps({**json.loads(FILE.to_bytes()), **fields}).encode()


def with_tensor(**fields: Any) -> bytes:
    """A file with one other tensor."""
    return changed(tensors=[{"name": "weight", "shape": [4, 3], "role": "weight", **fields}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        changed(version=2),
        changed(optimiser="SGD!"),
        changed(slots=["velocity"] * 5),
        changed(slots=[3]),
        changed(classes=0),
        changed(rate=-1),
        changed(rate="fast"),
        changed(batch=0),
        changed(tensors=[]),
        changed(tensors=[{"name": "a", "shape": [], "role": "weight"}] * 2),
        with_tensor(shape=[0]),
        with_tensor(shape=[2**20, 2**20]),
        with_tensor(shape=[1] * 9),
        with_tensor(shape="4"),
        with_tensor(name="a\nb"),
        with_tensor(role="Weight 1"),
        with_tensor(place={"kind": "int4", "start": 0}),
        with_tensor(place={"kind": "int8", "start": 0}),
        with_tensor(place={"kind": "float32", "start": 0, "scale": 4}),
        with_tensor(place={"kind": "float32", "start": -1}),
        with_tensor(place={"kind": "int8", "start": 0, "scale": 4, "limit": 0}),
        with_tensor(place={"kind": "int8", "start": 0, "scale": 4, "axis": 0, "channels": 3}),
        with_tensor(place={"kind": "int8", "start": 0, "scale": 4, "axis": 7, "channels": 3}),
        with_tensor(place={"kind": "int8", "start": 0, "scale": 4, "channels": 2}),
        with_tensor(place=3),
    ],
)
def test_attack_what_is_no_such_file_is_refused(data: bytes) -> None:
    """With the field that is wrong; nothing is made of it."""
    with pytest.raises(MessageError, match="train"):
        StepFile.from_bytes(data)


def test_attack_a_file_without_end_is_refused() -> None:
    """Before it is parsed, and before its tensors are counted."""
    with pytest.raises(EdgestillError):
        StepFile.from_bytes(b" " * (MAX_BYTES + 1))
    many = [{"name": str(at), "shape": [1], "role": "weight"} for at in range(MAX_TENSORS + 1)]
    with pytest.raises(EdgestillError):
        StepFile.from_bytes(changed(tensors=many))


@given(st.binary(max_size=300))
def test_attack_any_bytes_are_refused_with_a_code(data: bytes) -> None:
    """No other exception than ours comes out."""
    with pytest.raises(EdgestillError):
        StepFile.from_bytes(data)

"""A trainer's state is a value: it can be kept anywhere, and training goes on from it exactly."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from softmax_engine import CLASSES, FILE, FIRST, STEP, WIDTH, SoftmaxEngine, batch, trainer

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError, OverlayError, SettingError, TrainingError
from edgestill.learn.stepfile import Tensor
from edgestill.learn.trainer import Trainer, TrainState


def kept(state: TrainState) -> TrainState:
    """The state after it was a file."""
    return TrainState.from_bytes(state.to_bytes(), step=STEP, steps=FILE)


def same(one: TrainState, other: TrainState) -> bool:
    """Whether two states are equal bit by bit."""
    return (
        one.done == other.done
        and one.values.keys() == other.values.keys()
        and all(np.array_equal(one.values[name], other.values[name]) for name in one.values)
    )


@given(stops=st.lists(st.booleans(), min_size=1, max_size=20))
def test_training_that_is_stopped_anywhere_goes_on_exactly(stops: list[bool]) -> None:
    """Whatever the steps after which the state went through a file, the end is the same bit by bit."""
    one = trainer()
    straight = broken = one.start(batch(0)[0])
    for number, stopped in enumerate(stops):
        straight, loss = one.step(straight, *batch(number), rate=0.1)
        if stopped:
            broken = kept(broken)
        broken, again = trainer().step(broken, *batch(number), rate=0.1)
        assert loss == again
    assert same(straight, broken)
    assert straight.done == len(stops)


def test_it_begins_with_the_numbers_of_the_file() -> None:
    """And an optimiser that has seen nothing."""
    state = trainer().start(batch(0)[0])
    assert np.array_equal(state.values["weight"], FIRST)
    assert not state.values["velocity.weight"].any()
    assert state.values["step"] == 0
    assert state.done == 0


def test_a_step_changes_no_state_that_went_in() -> None:
    """So that one that fails can be forgotten."""
    one = trainer()
    state = one.start(batch(0)[0])
    before = state.to_bytes()
    after, _ = one.step(state, *batch(1), rate=0.5)
    assert state.to_bytes() == before
    assert not same(state, after)


def test_training_lowers_the_loss() -> None:
    """On one batch, step after step."""
    one = trainer()
    state, losses = one.start(batch(0)[0]), []
    for _ in range(30):
        state, loss = one.step(state, *batch(3), rate=0.1)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0]
    assert state.values["step"] == 30


def test_weights_count_samples_more_or_not_at_all() -> None:
    """A sample of weight 0 is as if it were not there, but for the mean."""
    one = trainer()
    state, (inputs, targets) = one.start(batch(0)[0]), batch(5)
    half = np.array([2.0] * 4 + [0.0] * 4)
    some, _ = one.step(state, inputs, targets, half, rate=0.1)
    first, _ = one.step(state, inputs[:4], targets[:4], rate=0.1)
    assert some.values["weight"] == pytest.approx(first.values["weight"], abs=1e-6)


def test_a_step_to_infinity_is_refused_and_the_state_before_it_stays_good() -> None:
    """With the rate, and what to do."""
    one = trainer()
    state, (inputs, targets) = one.start(batch(0)[0]), batch(1)
    with pytest.raises(TrainingError, match=r"NaN or infinity.*smaller learning rate"):
        one.step(state, inputs * np.float32(1e38), targets, rate=1e3)
    _, loss = one.step(state, inputs, targets, rate=0.1)
    assert np.isfinite(loss)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    """Before the engine runs."""
    one = trainer()
    with pytest.raises(SettingError, match="learning rate"):
        one.step(one.start(batch(0)[0]), *batch(1), rate=rate)


def test_attack_a_state_of_another_step_is_refused() -> None:
    """Of another `train.onnx`, even where the shapes are the same."""
    data = trainer().start(batch(0)[0]).to_bytes()
    with pytest.raises(OverlayError, match="cannot be used"):
        TrainState.from_bytes(data, step=Digest.of(b"another"), steps=FILE)


def test_attack_a_state_of_other_shapes_is_refused() -> None:
    """As many numbers as the tensors have, no more and no less."""
    data = trainer().start(batch(0)[0]).to_bytes()
    other = replace(FILE, tensors=(Tensor(name="weight", shape=(WIDTH, CLASSES + 1), role="weight"),))
    with pytest.raises(OverlayError, match=r"numbers; got"):
        TrainState.from_bytes(data, step=STEP, steps=other)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), end=st.integers(1, 100))
def test_attack_an_altered_or_shortened_state_is_refused(at: int, bit: int, end: int) -> None:
    """Whatever the byte: the digest at the end tells."""
    data = bytearray(trainer().start(batch(0)[0]).to_bytes())
    short = bytes(data[:-end])
    data[at % len(data)] ^= 1 << bit
    for wrong in (bytes(data), short):
        with pytest.raises(OverlayError):
            TrainState.from_bytes(wrong, step=STEP, steps=FILE)


@given(st.binary(max_size=200))
def test_attack_any_bytes_with_a_right_digest_are_refused(body: bytes) -> None:
    """A digest is no proof that they are a state."""
    with pytest.raises(OverlayError):
        TrainState.from_bytes(body + hashlib.sha256(body).digest(), step=STEP, steps=FILE)


def test_attack_a_state_with_nan_is_refused() -> None:
    """Even with a right digest."""
    state = trainer().start(batch(0)[0])
    values = {**state.values, "weight": np.full_like(state.values["weight"], np.nan)}
    with pytest.raises(OverlayError, match="NaN"):
        TrainState.from_bytes(TrainState(STEP, 0, values).to_bytes(), step=STEP, steps=FILE)


def test_a_file_that_does_not_fit_the_engine_is_refused() -> None:
    """The engine's inputs are the step's own and one more."""
    with pytest.raises(ModelError, match="one input beside its own"):
        Trainer(SoftmaxEngine(), replace(FILE, slots=()), step=STEP)

"""Trained weights as a file beside the bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from softmax_engine import CLASSES, FILE, FIRST, STEP, WIDTH

from edgestill.core.digest import Digest
from edgestill.core.errors import OverlayError
from edgestill.learn import framing
from edgestill.learn.stepfile import Place, Tensor
from edgestill.learn.tuned import Tuned, fused, placed_names

BUNDLE = Digest.of(b"bundle.json")
STEPS = replace(
    FILE,
    tensors=(
        Tensor(name="weight", shape=(WIDTH, CLASSES), role="weight", place=Place(kind="float32", start=0)),
        Tensor(name="mean", shape=(2,), role="running"),
    ),
)
TUNED = Tuned(
    bundle=BUNDLE,
    step=STEP,
    weights={"weight": FIRST},
    beta=0.6,
    temperature=1.5,
    n=200,
    created=1_800_000_000.0,
    agreement_before=0.7,
    agreement_after=0.9,
)


def read(data: bytes, **changes: object) -> Tuned:
    """As a device reads it."""
    return Tuned.from_bytes(data, **({"bundle": BUNDLE, "step": STEP, "steps": STEPS} | changes))  # type: ignore[arg-type]  # one of them changed


def test_what_was_written_is_read() -> None:
    """Every number, and what speaks for them; only what has a place in the model is there."""
    found = read(TUNED.to_bytes())
    assert np.array_equal(found.weights["weight"], FIRST)
    assert (found.beta, found.temperature, found.n) == (0.6, 1.5, 200)
    assert (found.agreement_before, found.agreement_after) == (0.7, 0.9)
    assert placed_names(STEPS) == ["weight"]


@pytest.mark.parametrize("name", ["bundle", "step"])
def test_attack_weights_of_another_bundle_or_step_are_refused(name: str) -> None:
    """Even where the shapes are the same."""
    with pytest.raises(OverlayError, match="cannot be used"):
        read(TUNED.to_bytes(), **{name: Digest.of(b"another")})


def test_attack_weights_of_another_shape_are_refused() -> None:
    """No more and no fewer numbers than the tensors have."""
    grown = replace(STEPS, tensors=(replace(STEPS.tensors[0], shape=(WIDTH, CLASSES + 1)),))
    with pytest.raises(OverlayError, match="bytes"):
        read(TUNED.to_bytes(), steps=grown)


@given(at=st.integers(0, 5_000), bit=st.integers(0, 7), end=st.integers(1, 200))
def test_attack_an_altered_or_shortened_file_is_refused(at: int, bit: int, end: int) -> None:
    """Wherever it was altered."""
    data = bytearray(TUNED.to_bytes())
    short = bytes(data[:-end])
    data[at % len(data)] ^= 1 << bit
    for wrong in (bytes(data), short):
        with pytest.raises(OverlayError):
            read(wrong)


@given(st.binary(max_size=300))
def test_attack_any_bytes_with_a_right_digest_are_refused(body: bytes) -> None:
    """A digest is no proof of anything but wholeness."""
    with pytest.raises(OverlayError):
        read(framing.sealed(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 1.5},
        {"beta": -0.1},
        {"temperature": 0.0},
        {"temperature": 1e9},
        {"agreement_after": 2.0},
        {"weights": {"weight": np.full((WIDTH, CLASSES), np.inf, np.float32)}},
    ],
)
def test_figures_out_of_range_are_refused(changes: dict[str, object]) -> None:
    """Whoever wrote them."""
    with pytest.raises(OverlayError):
        read(replace(TUNED, **changes).to_bytes())  # type: ignore[arg-type]  # out of range is what is tried


@given(beta=st.floats(0, 1))
def test_fusing_lies_between_what_is_fused(beta: float) -> None:
    """At 0 the shipped weights, at 1 the trained ones, and what the shipped ones do not name is left out."""
    trained = {"weight": FIRST + 1, "velocity.weight": FIRST}
    found = fused({"weight": FIRST}, trained, beta)
    assert found.keys() == {"weight"}
    assert np.allclose(found["weight"], FIRST + beta, atol=1e-5)
    assert np.array_equal(fused({"weight": FIRST}, trained, 0.0)["weight"], FIRST)
    assert np.array_equal(fused({"weight": FIRST}, trained, 1.0)["weight"], FIRST + 1)

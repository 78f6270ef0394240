"""Overlays: whole or not at all, for their own bundle or none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import OverlayError
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head

BUNDLE = Digest.of(b"bundle")


def overlay(features: int = 4, classes: int = 3, temperature: float = 1.5) -> Overlay:
    """With a random head."""
    rng = np.random.default_rng(0)
    return Overlay(
        bundle=BUNDLE,
        head=Head(
            rng.normal(size=(features, classes)).astype(np.float32),
            rng.normal(size=classes).astype(np.float32),
        ),
        n=120,
        created=1_800_000_000.0,
        agreement_before=0.8,
        agreement_after=0.9,
        temperature=temperature,
    )


@given(st.integers(1, 40), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_writing_and_reading_give_the_same_overlay(features: int, classes: int, temperature: float) -> None:
    """Head and figures survive, to the bit."""
    one = overlay(features, classes, temperature)
    back = Overlay.from_bytes(one.to_bytes(), bundle=BUNDLE)
    np.testing.assert_array_equal(back.head.weight, one.head.weight)
    np.testing.assert_array_equal(back.head.bias, one.head.bias)
    assert (back.n, back.created, back.temperature) == (one.n, one.created, one.temperature)
    assert (back.agreement_before, back.agreement_after) == (0.8, 0.9)
    assert back.to_bytes() == one.to_bytes()


def test_attack_an_overlay_of_another_bundle() -> None:
    """It is refused, and the error says that removing it helps."""
    with pytest.raises(OverlayError) as caught:
        Overlay.from_bytes(overlay().to_bytes(), bundle=Digest.of(b"other"))
    assert str(caught.value) == (
        f"[overlay-invalid] an overlay of another bundle; at overlay; expected {Digest.of(b'other')}; got {BUNDLE}; "
        "remove the overlay; the bundle's own head serves"
    )


def test_a_part_of_an_overlay_is_refused() -> None:
    """Cut anywhere, as by a flat battery, it is not taken for the whole."""
    data = overlay().to_bytes()
    for length in range(len(data)):
        with pytest.raises(OverlayError, match="expected a whole overlay"):
            Overlay.from_bytes(data[:length])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_overlay_is_refused(position: int, change: int) -> None:
    """Any changed byte is found."""
    data = bytearray(overlay().to_bytes())
    data[position % len(data)] ^= change
    with pytest.raises(OverlayError, match="expected a whole overlay"):
        Overlay.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"n":120', b'"n":-20'),
        (b'"features":4', b'"features":5'),
        (b'"classes":3', b'"classes":0'),
        (b'"agreement_after":0.9', b'"agreement_after":9.9'),
        (b'"temperature":1.5', b'"temperature":0.0'),
        (b"ESTOVER1", b"ESTSTAT1"),
        (b'"bundle":"sha256', b'"bundle":"sha512'),
    ],
)
def test_attack_figures_that_cannot_be(old: bytes, new: bytes) -> None:
    """A file with a right digest over wrong figures is refused all the same."""
    body = overlay().to_bytes()[:-32]
    assert old in body
    body = body.replace(old, new)
    with pytest.raises(OverlayError, match="an overlay that cannot be used"):
        Overlay.from_bytes(body + hashlib.sha256(body).digest())


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    """With or without a digest at its end."""
    for candidate in (data, data + hashlib.sha256(data).digest()):
        with pytest.raises(OverlayError, match="an overlay that cannot be used"):
            Overlay.from_bytes(candidate)


def test_heads_that_cannot_be_are_refused() -> None:
    """Parts that do not fit, nothing at all, or NaN."""
    good = overlay()
    weight, bias = good.head
    for head, named in (
        (Head(weight, bias[:2]), r"weight \[D, C\] and bias \[C\]"),
        (Head(weight[:0], bias), "at most 2048 features"),
        (Head(weight * np.float32(np.nan), bias), "finite numbers"),
    ):
        with pytest.raises(OverlayError, match=named):
            Overlay(bundle=BUNDLE, head=head, n=1, created=0.0, agreement_before=0.0, agreement_after=1.0)

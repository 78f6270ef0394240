"""Softmax and the three measures of confidence, against values worked out by hand."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgestill.infer.confidence import confidence_of, softmax
from edgestill.infer.fusion import fuse
from edgestill.infer.policy import Measure

LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1e4, 1e4, width=32),
)


def test_softmax_of_known_logits() -> None:
    """Logits ln 1, ln 2, ln 5 give 1/8, 2/8, 5/8; temperature 0.5 squares the ratios."""
    logits = np.log(np.array([[1, 2, 5]], dtype=np.float32))
    np.testing.assert_allclose(softmax(logits), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-6)
    np.testing.assert_allclose(softmax(logits, 0.5), [[1 / 30, 4 / 30, 25 / 30]], rtol=1e-6)


@given(LOGITS, st.floats(0.01, 100))
def test_softmax_gives_distributions(logits: np.ndarray, temperature: float) -> None:
    """Rows sum to 1, however large the logits; the input is left as it was."""
    before = logits.copy()
    p = softmax(logits, temperature)
    assert p.dtype == np.float32
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("max_probability", [0.5, 1.0, 0.25]),
        ("margin", [0.25, 1.0, 0.0]),
        ("entropy", [1 - 1.75 / 2, 1.0, 0.0]),
    ],
)
def test_measures_of_known_probabilities(measure: Measure, expected: list[float]) -> None:
    """(1/2, 1/4, 1/8, 1/8) has an entropy of 1.75 bits of 2; one class is certain; four equal ones are not."""
    p = np.array([[0.5, 0.25, 0.125, 0.125], [0, 0, 1, 0], [0.25] * 4], dtype=np.float32)
    np.testing.assert_allclose(confidence_of(p, measure), expected, atol=1e-6)


@given(LOGITS, st.sampled_from(get_args(Measure)))
def test_confidence_lies_between_0_and_1(logits: np.ndarray, measure: Measure) -> None:
    """Every measure, one class alone included."""
    confidence = confidence_of(softmax(logits), measure)
    assert confidence.dtype == np.float32
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_entropy_of_one_class_is_certain() -> None:
    """With one class there is nothing to doubt."""
    one = np.ones((2, 1), dtype=np.float32)
    for measure in get_args(Measure):
        assert confidence_of(one, measure).tolist() == [1, 1]


@given(LOGITS, st.floats(0, 1))
def test_a_fused_answer_is_a_distribution_between_both(logits: np.ndarray, alpha: float) -> None:
    """Fusing stays between the two voices, class by class, and sums to 1."""
    student, teacher = softmax(logits), softmax(-logits)
    fused = fuse(teacher, student, alpha)
    low, high = np.minimum(student, teacher), np.maximum(student, teacher)
    assert ((fused >= low - 1e-6) & (fused <= high + 1e-6)).all()
    np.testing.assert_allclose(fused.sum(axis=1), 1, rtol=1e-5)


def test_alpha_is_the_teachers_weight() -> None:
    """A quarter of the teacher and three quarters of the student."""
    teacher, student = np.array([[1.0, 0.0]], np.float32), np.array([[0.2, 0.8]], np.float32)
    np.testing.assert_allclose(fuse(teacher, student, 0.25), [[0.4, 0.6]], rtol=1e-6)
    assert math.isclose(float(fuse(teacher, student, 1.0)[0, 0]), 1.0)

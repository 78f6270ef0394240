"""Temperature, alpha and calibration error: against values worked out by hand and searches by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, SettingError, ShapeError
from edgestill.infer.calibration import (
    expected_calibration_error,
    fit_alpha,
    fit_temperature,
    negative_log_likelihood,
)
from edgestill.infer.confidence import softmax

seeds = st.integers(0, 10_000)


def sample(seed: int, n: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about the labels as often as their softmax says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, classes))
    p = softmax(logits)
    labels = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits, labels


def exact_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """In double precision: a grid search against 1e-6 would see the rounding of `softmax`, which answers in single."""
    scaled = logits / temperature
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def test_the_temperature_of_two_classes_by_hand() -> None:
    """Three of four right at a logit gap of 2: the likeliest gap is ln 3, so the temperature is 2 / ln 3."""
    logits = np.array([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)


@given(seeds, st.floats(0.2, 10))
def test_the_temperature_undoes_a_scaling_of_the_logits(seed: int, factor: float) -> None:
    """Logits times a factor have that factor more temperature."""
    logits, labels = sample(seed)
    once, scaled = fit_temperature(logits, labels), fit_temperature(logits * factor, labels)
    assert scaled == pytest.approx(once * factor, rel=1e-6)


@given(seeds)
def test_no_other_temperature_is_likelier(seed: int) -> None:
    """Against a fine grid over the bounds."""
    logits, labels = sample(seed, n=60)
    best = negative_log_likelihood(exact_softmax(logits, fit_temperature(logits, labels)), labels)
    for temperature in np.geomspace(0.01, 100, 60):
        assert best <= negative_log_likelihood(exact_softmax(logits, temperature), labels) + 1e-6


def test_honest_logits_have_a_temperature_of_one() -> None:
    """Labels drawn from the softmax itself need no correction."""
    assert fit_temperature(*sample(0, n=20_000)) == pytest.approx(1, abs=0.05)


def test_soft_labels_are_fitted_as_well() -> None:
    """A teacher whose distributions are the student's at temperature 3 is met at 3."""
    logits, _ = sample(1)
    assert fit_temperature(logits, softmax(logits, 3.0)) == pytest.approx(3, rel=1e-4)


def test_the_temperature_stays_within_its_bounds() -> None:
    """Always right wants 0, always wrong wants infinity: both end at the bound."""
    logits = np.array([[3.0, 0.0]] * 5)
    assert fit_temperature(logits, np.zeros(5, dtype=int)) == pytest.approx(0.01)
    assert fit_temperature(logits, np.ones(5, dtype=int)) == pytest.approx(100)


def test_alpha_of_known_voices_by_hand() -> None:
    """Voices (p, 1-p) of 0.9 and 0.1, right label first three times of four: the mixture 3/4 needs alpha 13/16."""
    teacher, student = np.array([[0.9, 0.1]] * 4), np.array([[0.1, 0.9]] * 4)
    assert fit_alpha(teacher, student, np.array([0, 0, 0, 1])) == pytest.approx(13 / 16, rel=1e-9)


@given(seeds, st.floats(0.1, 5))
def test_no_other_alpha_is_likelier(seed: int, sharpness: float) -> None:
    """Against a grid over [0, 1]."""
    logits, labels = sample(seed, n=60)
    rng = np.random.default_rng(seed + 1)
    teacher = exact_softmax(logits * sharpness)
    student = exact_softmax(logits + rng.normal(scale=2, size=logits.shape))
    alpha = fit_alpha(teacher, student, labels)
    best = negative_log_likelihood(alpha * teacher + (1 - alpha) * student, labels)
    for other in np.linspace(0, 1, 41):
        assert best <= negative_log_likelihood(other * teacher + (1 - other) * student, labels) + 1e-6


def test_alpha_trusts_whoever_is_right() -> None:
    """A perfect teacher gets everything, a useless one nothing, an equal one nothing."""
    right, wrong = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    label = np.array([0])
    assert fit_alpha(right, wrong, label) == 1
    assert fit_alpha(wrong, right, label) == 0
    assert fit_alpha(right, right, label) == 0


def test_alpha_survives_certainty_about_the_wrong_class() -> None:
    """A probability of 0 for the label is no division by zero."""
    alpha = fit_alpha(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.5, 0.5]] * 2), np.array([0, 0]))
    assert 0 <= alpha < 0.5


@given(seeds, st.sampled_from([1, 5, 400]))
def test_no_other_temperature_has_a_higher_posterior(seed: int, units: int) -> None:
    """Units times the likelihood, and the Gamma(3, 2) prior of 1 / temperature: against a grid."""
    logits, labels = sample(seed, n=60)

    def objective(temperature: float) -> float:
        beta = 1 / temperature
        return units * negative_log_likelihood(exact_softmax(logits, temperature), labels) + 2 * (
            beta - math.log(beta)
        )

    best = objective(fit_temperature(logits, labels, units=units))
    for other in np.geomspace(0.02, 50, 60):
        assert best <= objective(float(other)) + 1e-6


@given(seeds, st.sampled_from([1, 5, 400]))
def test_no_other_alpha_has_a_higher_posterior(seed: int, units: int) -> None:
    """Units times the likelihood, and the Beta(2.8, 1.2) prior: against a grid."""
    logits, labels = sample(seed, n=60)
    teacher, student = exact_softmax(logits * 2), exact_softmax(logits[::-1].copy())

    def objective(alpha: float) -> float:
        fused = alpha * teacher + (1 - alpha) * student
        prior = 1.8 * math.log(alpha) + 0.2 * math.log(1 - alpha)
        return units * negative_log_likelihood(fused, labels) - prior

    alpha = fit_alpha(teacher, student, labels, units=units)
    assert 0 < alpha < 1
    for other in np.linspace(0.01, 0.99, 50):
        assert objective(alpha) <= objective(float(other)) + 1e-6


def test_one_unit_stays_near_the_prior_and_many_speak_for_themselves() -> None:
    """The same samples, worth 1 or 10,000: the likeliest temperature is 1/4, the prior's 1."""
    logits, labels = sample(3, n=4_000)
    cool = logits / 4
    assert fit_temperature(cool, labels, units=1) > 0.5
    assert fit_temperature(cool, labels, units=10_000) == pytest.approx(
        fit_temperature(cool, labels), rel=0.01
    )
    right, wrong = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    assert 0.9 < fit_alpha(right, wrong, np.array([0]), units=1) < 0.95
    assert 0.6 < fit_alpha(wrong, right, np.array([0]), units=1) < 0.9
    assert fit_alpha(right, wrong, np.array([0]), units=10_000) > 0.99
    assert fit_alpha(wrong, right, np.array([0]), units=10_000) < 0.01
    assert fit_alpha(right, right, np.array([0]), units=5) == pytest.approx(0.9)


def test_calibration_error_by_hand() -> None:
    """Confidence 0.8 twice with one right, 1.0 once and right: (2 * |0.8 - 0.5| + 0) / 3."""
    p = np.array([[0.8, 0.2], [0.2, 0.8], [1.0, 0.0]])
    assert expected_calibration_error(p, np.array([0, 0, 0]), bins=10) == pytest.approx(0.2)


def test_calibration_error_of_one_bin_is_the_gap_of_the_means() -> None:
    """With one bin it is |mean confidence - accuracy|."""
    logits, labels = sample(3)
    p = softmax(logits)
    gap = abs(p.max(axis=1).mean() - (p.argmax(axis=1) == labels).mean())
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(gap, abs=1e-6)


def test_calibrating_lowers_the_calibration_error() -> None:
    """Overconfident logits, fitted on one half, are honest on the other."""
    logits, labels = sample(4, n=8_000)
    logits = logits * 4
    temperature = fit_temperature(logits[:4_000], labels[:4_000])
    before = expected_calibration_error(softmax(logits[4_000:]), labels[4_000:])
    after = expected_calibration_error(softmax(logits[4_000:], temperature), labels[4_000:])
    assert before > 0.15
    assert after < 0.04


def test_arrays_that_do_not_fit_are_refused() -> None:
    """Each refusal says what was expected."""
    z, y = np.zeros((3, 2)), np.array([0, 1, 0])
    with pytest.raises(
        ShapeError, match=r"the logits are no matrix; at logits; expected \[N, C\]; got \[3\]"
    ):
        fit_temperature(z[:, 0], y)
    with pytest.raises(DataError, match="nothing to calibrate on; at logits"):
        fit_temperature(z[:0], y[:0])
    with pytest.raises(NotFiniteError, match="the logits hold NaN"):
        fit_temperature(z * np.nan, y)
    with pytest.raises(
        ClassCountError, match="labels and logits disagree; at labels; expected 0 to 1; got 0 to 2"
    ):
        fit_temperature(z, np.array([0, 1, 2]))
    with pytest.raises(ShapeError, match=r"labels do not fit the student's probabilities"):
        fit_alpha(z, z, y[:2])
    with pytest.raises(ShapeError, match="labels do not fit the teacher's probabilities"):
        fit_alpha(np.zeros((2, 2)), z, y)
    with pytest.raises(SettingError, match="a number of units is out of range"):
        fit_temperature(z, y, units=0)
    with pytest.raises(SettingError, match="a number of units is out of range"):
        fit_alpha(softmax(z), softmax(z), y, units=0)
    with pytest.raises(NotFiniteError, match="the labels hold NaN"):
        negative_log_likelihood(z, z * np.nan)
    with pytest.raises(DataError, match="no bins"):
        expected_calibration_error(z, y, bins=0)

"""The teacher's weight by the student's confidence: taken where it helps, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from edgestill.infer.bands import FEWEST, Voices, fit_weights
from edgestill.infer.calibration import fit_alpha, negative_log_likelihood
from edgestill.infer.confidence import confidence_of, softmax
from edgestill.infer.fusion import fuse, weights
from edgestill.infer.policy import Policy


def voices(n: int, *, hard: float, seed: int = 0, per_group: int = 1) -> Voices:
    """Two calibrated voices about three classes; of a share of the inputs the student knows next to nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    right = np.eye(3)[labels]
    strength = np.where(random.random(n) < hard, 0.1, 3.0)[:, None]

    def voice(strong: np.ndarray | float) -> np.ndarray:
        # unit noise around strength * one-hot is calibrated at logits strength * what is seen
        return softmax((strong * (strong * right + random.normal(size=(n, 3)))).astype(np.float32))

    student, teacher = voice(strength), voice(1.5)
    return Voices(
        teacher=teacher,
        student=student,
        confidence=confidence_of(student, "max_probability"),
        labels=labels,
        groups=np.arange(n) // per_group,
    )


def fitted(data: Voices, share: float = 0.2) -> Policy:
    """A policy with the weights of these voices."""
    found = fit_weights(data, share)
    return Policy(labels=("a", "b", "c"), alpha=found.alpha, bands=found.bands)


def test_where_the_student_knows_when_it_does_not_know_the_teacher_is_heard_there() -> None:
    """The least sure band leans to the teacher, the rest to the student, and fresh samples are more likely so."""
    policy, fresh = fitted(voices(3_000, hard=0.3)), voices(3_000, hard=0.3, seed=1)
    assert policy.bands
    assert policy.bands[0].alpha > 0.8
    assert policy.alpha < 0.4
    one = fit_alpha(fresh.teacher, fresh.student, fresh.labels)
    banded = fuse(fresh.teacher, fresh.student, weights(policy, fresh.confidence))
    single = fuse(fresh.teacher, fresh.student, one)
    assert (
        negative_log_likelihood(banded, fresh.labels) < negative_log_likelihood(single, fresh.labels) - 0.01
    )


def test_where_one_weight_is_right_there_are_no_bands() -> None:
    """A teacher who says what the student says, with noise of its own that never helps, gets one weight."""
    data = voices(2_000, hard=0.0)
    same = Voices(
        teacher=data.student,
        student=data.student,
        confidence=data.confidence,
        labels=data.labels,
        groups=data.groups,
    )
    assert fit_weights(same, 0.2).bands == ()


def test_few_samples_have_one_weight() -> None:
    """Bands of fewer than `FEWEST` samples are not made; the one weight is that of `fit_alpha`."""
    data = voices(2 * FEWEST - 1, hard=0.3)
    found = fit_weights(data, 0.2)
    assert found.bands == ()
    assert found.alpha == fit_alpha(data.teacher, data.student, data.labels, units=data.units)


def test_few_groups_have_one_weight() -> None:
    """A thousand windows of four people are four people: nothing is cross-validated."""
    data = voices(1_000, hard=0.3, per_group=250)
    assert fit_weights(data, 0.2).bands == ()


def test_equal_confidences_have_no_borders() -> None:
    """A student that is always as sure has one weight."""
    data = voices(1_000, hard=0.3)
    flat = Voices(
        teacher=data.teacher,
        student=data.student,
        confidence=np.full(1_000, 0.5, np.float32),
        labels=data.labels,
        groups=data.groups,
    )
    assert fit_weights(flat, 0.2).bands == ()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6, 1.0])
def test_borders_rise_and_bands_hold_enough_samples(share: float) -> None:
    """Whatever the share, each band rests on `FEWEST` samples at least."""
    data = voices(1_500, hard=0.3)
    borders = [band.below for band in fit_weights(data, share).bands]
    assert borders == sorted(set(borders))
    counts = np.bincount(np.searchsorted(borders, data.confidence, side="right"))
    assert counts.min() >= FEWEST


def test_a_band_does_not_rest_on_one_sample_below_a_tie() -> None:
    """Where most confidences are the same, the place in their order is not what lies below a border."""
    data = voices(1_000, hard=0.3)
    tied = np.full(1_000, 0.5, np.float32)
    tied[0], tied[900:] = 0.1, 0.9
    flat = Voices(
        teacher=data.teacher, student=data.student, confidence=tied, labels=data.labels, groups=data.groups
    )
    for border in (band.below for band in fit_weights(flat, 0.2).bands):
        assert (tied < border).sum() >= FEWEST

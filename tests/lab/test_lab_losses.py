"""The loss, worked by hand; each peer's known mistake is a test."""

from __future__ import annotations

from math import exp, inf, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import ClassCountError
from edgestill.lab.losses import distillation_loss, soft_loss

TEACHER = torch.tensor([[log(0.8), log(0.2)]])
STUDENT = torch.tensor([[log(0.5), log(0.5)]])
TEACHER_FIRST = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)
STUDENT_FIRST = 0.5 * log(0.5 / 0.8) + 0.5 * log(0.5 / 0.2)


def test_the_divergence_is_of_the_teacher_from_the_student() -> None:
    """The value is KL(teacher || student), which differs from the swapped one (a peer swapped them)."""
    assert soft_loss(STUDENT, TEACHER, tau=1).item() == pytest.approx(TEACHER_FIRST, rel=1e-5)
    assert abs(TEACHER_FIRST - STUDENT_FIRST) > 0.02


def test_the_mean_is_over_samples_not_classes() -> None:
    """A second sample without a difference halves the loss; the number of classes divides nothing."""
    two = soft_loss(torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER]), tau=1)
    assert two.item() == pytest.approx(TEACHER_FIRST / 2, rel=1e-5)
    unlikely = torch.full((1, 8), -60.0)
    wide = soft_loss(torch.cat([STUDENT, unlikely], 1), torch.cat([TEACHER, unlikely], 1), tau=1)
    assert wide.item() == pytest.approx(TEACHER_FIRST, rel=1e-5)


def test_temperature_divides_the_logits_and_its_square_multiplies_the_loss() -> None:
    """At tau = 2 the teacher's odds are the square root of 4, and the divergence counts four times."""
    p = 2 / 3
    by_hand = 4 * (p * log(p / 0.5) + (1 - p) * log((1 - p) / 0.5))
    assert soft_loss(STUDENT, TEACHER, tau=2).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_tau_squared_stays_whatever_the_weight(weight: float) -> None:
    """The soft part is weight * tau^2 * KL also where the hard part has no weight (a peer dropped it there)."""
    soft = soft_loss(STUDENT, TEACHER, tau=3).item()
    hard = -log(0.5)
    found = distillation_loss(STUDENT, torch.tensor([1]), TEACHER, tau=3, soft_weight=weight)
    assert found.item() == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-5)


def test_without_labels_the_soft_part_counts_alone() -> None:
    """Unlabelled data gives the soft loss with weight 1, whatever the weight says."""
    found = distillation_loss(STUDENT, None, TEACHER, tau=2, soft_weight=0.3)
    assert found.item() == soft_loss(STUDENT, TEACHER, tau=2).item()


def test_label_smoothing_spreads_the_hard_labels_only() -> None:
    """At smoothing s a share s / C goes to each class of the hard part."""
    student = torch.tensor([[log(0.9), log(0.1)]])
    found = distillation_loss(
        student, torch.tensor([0]), student, tau=1, soft_weight=0.5, label_smoothing=0.2
    )
    assert found.item() == pytest.approx(0.5 * (-0.9 * log(0.9) - 0.1 * log(0.1)), rel=1e-4)


def test_the_gradient_is_the_difference_of_probabilities_times_tau() -> None:
    """`d/ds tau^2 KL = tau (softmax(s / tau) - softmax(t / tau))`: its scale does not shrink with tau squared."""
    student = STUDENT.clone().requires_grad_()
    soft_loss(student, TEACHER, tau=2).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([2 * (0.5 - 2 / 3), 2 * (0.5 - 1 / 3)], rel=1e-4)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.floats(0.1, 20),
)
def test_the_loss_of_a_binary_task_is_finite_and_not_negative(logits: list[float], tau: float) -> None:
    """Two classes and certain answers give no infinity and no NaN (a peer's loss went to infinity there)."""
    student = torch.tensor([logits[:2]], requires_grad=True)
    loss = distillation_loss(student, torch.tensor([0]), torch.tensor([logits[2:]]), tau=tau, soft_weight=0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert -1e-3 <= loss.item() < inf
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_equal_logits_cost_nothing_and_a_shift_changes_nothing() -> None:
    """Only differences between logits count."""
    assert soft_loss(TEACHER, TEACHER + 5, tau=4).item() == pytest.approx(0, abs=1e-6)
    assert exp(TEACHER_FIRST) > 1


def test_half_precision_answers_of_the_teacher_are_taken() -> None:
    """The cache keeps float16; the loss is computed in float32."""
    found = soft_loss(STUDENT, TEACHER.half(), tau=1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(TEACHER_FIRST, rel=1e-2)


def test_different_classes_are_refused_with_both_counts() -> None:
    """Teacher and student of different widths end in one sentence that names both."""
    with pytest.raises(
        ClassCountError, match=r"\[class-count-mismatch\].*expected 3 classes.*got 2"
    ) as caught:
        soft_loss(STUDENT, torch.zeros(1, 3), tau=1)
    assert caught.value.fix == "give the student a head of the teacher's width"

"""Mistakes found in the losses of published tools; each is a test of its own that ours does not make it.

Where the mistake is a formula, the test writes it out, so that its number can be seen to differ.
"""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestill.lab.loss.losses import decoupled_loss, distillation_loss, multilabel_soft_loss, soft_loss
from edgestill.lab.loss.objective import Objective

torch.set_num_threads(1)

P, Q = np.array([0.8, 0.2]), np.array([0.5, 0.5])  # the teacher's probabilities, the student's
TEACHER, STUDENT = (torch.tensor(np.log([one]), dtype=torch.float32) for one in (P, Q))
RIGHT = 0.8 * log(1.6) + 0.2 * log(0.4)  # KL(P || Q) = .192745


def test_kl_arguments_swapped() -> None:
    """The divergence is KL(teacher || student) = .192745, not KL(student || teacher) = .223144."""
    swapped = float((Q * np.log(Q / P)).sum())
    assert soft_loss(STUDENT, TEACHER, tau=1).item() == pytest.approx(RIGHT, rel=1e-5)
    assert swapped == pytest.approx(0.223144, abs=1e-6)


def test_log_missing() -> None:
    """The student's side is a logarithm: without it, `sum p (log p - q)` is -1.000402 here, and its minimum not at q = p."""
    without_log = float((P * (np.log(P) - Q)).sum())
    assert without_log == pytest.approx(-1.000402, abs=1e-6)
    assert soft_loss(STUDENT, TEACHER, tau=1).item() == pytest.approx(RIGHT, rel=1e-5)


def test_divided_by_classes() -> None:
    """The number of classes divides nothing: six more that nobody thinks likely leave the loss as it is."""
    unlikely = torch.full((1, 6), -60.0)
    wide = soft_loss(torch.cat([STUDENT, unlikely], 1), torch.cat([TEACHER, unlikely], 1), tau=1)
    assert wide.item() == pytest.approx(RIGHT, rel=1e-5)
    labels = [torch.cat([one, torch.zeros(1, 6)], 1) for one in (STUDENT, TEACHER)]
    few = multilabel_soft_loss(STUDENT, TEACHER, tau=1)
    assert multilabel_soft_loss(*labels, tau=1).item() == pytest.approx(few.item(), rel=1e-5)


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_tau_squared_dropped_where_the_hard_part_has_no_weight(weight: float) -> None:
    """The soft part is w * tau^2 * KL for every w, also for w = 1, and without labels.

    At tau 2 the teacher's odds 4 become 2: KL((2/3, 1/3) || (1/2, 1/2)) = .056633, times 4 is .226532.
    """
    soft, hard = 0.226532, log(2)
    expected = pytest.approx((1 - weight) * hard + weight * soft, abs=2e-6)
    label = torch.tensor([1])
    assert distillation_loss(STUDENT, label, TEACHER, tau=2, soft_weight=weight).item() == expected
    objective = Objective(tau=2, soft_weight=weight)
    assert objective.loss(STUDENT, label, TEACHER).item() == expected
    assert objective.loss(STUDENT, None, TEACHER).item() == pytest.approx(soft, abs=2e-6)


def test_kl_of_raw_logits() -> None:
    """Logits become probabilities first: what is added to all of them, or their sign, must not matter to the logarithm."""
    raw = torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([[-2.0, 4.0, 1.0]])
    s, t = (one.numpy().astype(np.float64) for one in raw)
    p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
    expected = float((p * np.log(p / q)).sum())
    assert soft_loss(*raw, tau=1).item() == pytest.approx(expected, rel=1e-5)
    assert soft_loss(raw[0] + 7, raw[1] - 9, tau=1).item() == pytest.approx(expected, rel=1e-5)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), st.floats(0.1, 20), st.integers(0, 1)
)
def test_dkd_infinite_on_binary_tasks(logits: list[float], tau: float, label: int) -> None:
    """Two classes and certain answers give DKD no infinity and no NaN, in neither the loss nor its gradient."""
    student = torch.tensor([logits[:2]], requires_grad=True)
    loss = decoupled_loss(
        student, torch.tensor([logits[2:]]), torch.tensor([label]), tau=tau, alpha=1, beta=8
    )
    assert -1e-2 <= loss.item() < inf
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_dkd_infinite_when_the_student_is_sure_and_wrong() -> None:
    """Where a probability underflows, its logarithm taken afterwards is infinite; ours is the difference of logits.

    Student (200, 0), teacher (0, 0), target 1: TCKD = .5 ln(.5 / 1) + .5 (ln .5 + 200) = 100 - ln 2.
    """
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.zeros(1, 2)
    with np.errstate(divide="ignore"):
        peer = np.log(torch.softmax(student, 1).numpy())
    assert peer[0, 1] == -inf
    found = decoupled_loss(student, teacher, torch.tensor([1]), tau=1, alpha=1, beta=8)
    assert found.item() == pytest.approx(100 - log(2), rel=1e-5)


def test_dkd_of_two_classes_has_no_rest_to_compare() -> None:
    """With one class beside the target NCKD is exactly 0, and so is its gradient, for every beta."""
    student = torch.tensor([[0.3, -2.0], [5.0, 1.0]], requires_grad=True)
    loss = decoupled_loss(student, torch.randn(2, 2), torch.tensor([0, 1]), tau=3, alpha=0, beta=1e6)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].abs().max().item() == 0


def test_dkd_target_leaks_where_logits_are_larger_than_the_number_that_hides_it() -> None:
    """Logits of thousands: the target stays out of the rest, which here is (1/2, 1/2) for both: NCKD = 0."""
    student, teacher = torch.tensor([[5e3, 0.0, 0.0]]), torch.tensor([[9e3, 0.0, 0.0]])
    assert decoupled_loss(student, teacher, torch.tensor([0]), tau=1, alpha=0, beta=1).item() == 0


def test_gradient_reaches_the_teacher() -> None:
    """A teacher whose forward pass kept its graph is not trained by the loss."""
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    for method in ("kd", "dkd", "dist"):
        loss = Objective(method=method).loss(student, torch.tensor([0]), teacher)
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(loss, teacher)

"""The losses, worked by hand: small examples whose arithmetic stands beside them."""

from __future__ import annotations

from math import log, nan, sqrt
from typing import TYPE_CHECKING

import pytest
import torch

from edgestill.core.errors import ClassCountError, DtypeError, ShapeError
from edgestill.lab.loss.losses import (
    IGNORE,
    decoupled_loss,
    distillation_loss,
    hard_loss,
    labelled_count,
    multilabel_hard_loss,
    multilabel_soft_loss,
    regression_hard_loss,
    regression_soft_loss,
    relational_loss,
    soft_loss,
)
from edgestill.lab.loss.objective import Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.data.source import Task

torch.set_num_threads(1)

TEACHER = torch.tensor([[log(0.8), log(0.2)]])
STUDENT = torch.tensor([[log(0.5), log(0.5)]])
TEACHER_FIRST = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)

# Three classes; logits are logarithms of probabilities, so that softmax gives these back.
THREE_TEACHER = torch.tensor([[0.5, 0.3, 0.2]]).log()
THREE_STUDENT = torch.tensor([[0.25, 0.25, 0.5]]).log()

# Log-odds: sigmoid(log 4) = 0.8, sigmoid(0) = 0.5.
LIKELY, EVEN = log(4), 0.0


def test_the_mean_is_over_samples() -> None:
    """A second sample without a difference halves the loss."""
    two = soft_loss(torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER]), tau=1)
    assert two.item() == pytest.approx(TEACHER_FIRST / 2, rel=1e-5)


def test_temperature_divides_the_logits_and_its_square_multiplies_the_loss() -> None:
    """At tau = 2 the teacher's odds are the square root of 4, and the divergence counts four times."""
    p = 2 / 3
    by_hand = 4 * (p * log(p / 0.5) + (1 - p) * log((1 - p) / 0.5))
    assert soft_loss(STUDENT, TEACHER, tau=2).item() == pytest.approx(by_hand, rel=1e-5)


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
    (gradient,) = torch.autograd.grad(soft_loss(student, TEACHER, tau=2), student)
    assert gradient[0].tolist() == pytest.approx([2 * (0.5 - 2 / 3), 2 * (0.5 - 1 / 3)], rel=1e-4)


def test_equal_logits_cost_nothing_and_a_shift_changes_nothing() -> None:
    """Only differences between logits count."""
    assert soft_loss(TEACHER, TEACHER + 5, tau=4).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_answers_of_the_teacher_are_taken() -> None:
    """The cache keeps float16; the loss is computed in float32."""
    found = soft_loss(STUDENT, TEACHER.half(), tau=1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(TEACHER_FIRST, rel=1e-2)


def test_under_autocast_the_loss_is_computed_in_float32() -> None:
    """A student that answers in bfloat16 gets the loss of its answers in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = torch.nn.Linear(2, 2)(TEACHER)
        assert student.dtype == torch.bfloat16
        found = [
            soft_loss(student, TEACHER, tau=1),
            decoupled_loss(student, TEACHER, torch.tensor([0]), tau=1, alpha=1, beta=1),
            relational_loss(student, TEACHER, tau=1, beta=1, gamma=1),
            multilabel_soft_loss(student, TEACHER, tau=1),
            regression_soft_loss(student, TEACHER),
            hard_loss(student, torch.tensor([0])),
            multilabel_hard_loss(student, torch.ones(1, 2)),
            regression_hard_loss(student, torch.ones(1, 2)),
        ]
    assert {loss.dtype for loss in found} == {torch.float32}
    assert found[0].item() == soft_loss(student.float(), TEACHER, tau=1).item()


def test_decoupled_by_hand() -> None:
    """Teacher (.5, .3, .2), student (.25, .25, .5), target 0, alpha 1, beta 8, tau 1.

    TCKD = .5 ln(.5/.25) + .5 ln(.5/.75) = .143841; the rests are (.6, .4) and (1/3, 2/3), so that
    NCKD = .6 ln(.6/(1/3)) + .4 ln(.4/(2/3)) = .148342; together .143841 + 8 * .148342 = 1.330577.
    """
    found = decoupled_loss(THREE_STUDENT, THREE_TEACHER, torch.tensor([0]), tau=1, alpha=1, beta=8)
    assert found.item() == pytest.approx(1.330577, abs=2e-6)


def test_decoupled_at_a_temperature_by_hand() -> None:
    """Twice the logits at tau 2 give the same probabilities, and tau^2 = 4 times the loss; alpha and beta are weights."""
    pair = (2 * THREE_STUDENT, 2 * THREE_TEACHER, torch.tensor([0]))
    assert decoupled_loss(*pair, tau=2, alpha=1, beta=0).item() == pytest.approx(4 * 0.143841, abs=4e-6)
    assert decoupled_loss(*pair, tau=2, alpha=0, beta=1).item() == pytest.approx(4 * 0.148342, abs=4e-6)


def test_decoupled_without_a_label_splits_at_the_teachers_class() -> None:
    """`IGNORE` counts as class 0 here, the teacher's most likely one; the mean stays over all samples."""
    twice = (torch.cat([THREE_STUDENT] * 2), torch.cat([THREE_TEACHER] * 2))
    found = decoupled_loss(*twice, torch.tensor([0, IGNORE]), tau=1, alpha=1, beta=8)
    assert found.item() == pytest.approx(1.330577, abs=2e-6)


def test_relational_by_hand() -> None:
    """Two samples; the second mirrors the first, teacher (.2, .3, .5), student (.5, .25, .25). tau 1.

    Inter: the centred rows are (5, -1, -4)/30 and (-1, -1, 2)/12, correlation -12 / sqrt(42 * 6), for both samples.
    Intra: class 0 falls with the teacher and rises with the student, class 2 the other way round: distance 2 each.
    Class 1 is .3 for the teacher in both: constant, distance 0. The mean is 4/3.
    """
    student = torch.cat([THREE_STUDENT, THREE_STUDENT.flip(1)])
    teacher = torch.cat([THREE_TEACHER, THREE_TEACHER.flip(1)])
    inter, intra = 1 + 12 / sqrt(42 * 6), 4 / 3
    assert relational_loss(student, teacher, tau=1, beta=1, gamma=0).item() == pytest.approx(inter, rel=1e-5)
    assert relational_loss(student, teacher, tau=1, beta=0, gamma=1).item() == pytest.approx(intra, rel=1e-5)
    doubled = relational_loss(2 * student, 2 * teacher, tau=2, beta=2, gamma=3)
    assert doubled.item() == pytest.approx(4 * (2 * inter + 3 * intra), rel=1e-5)


def test_relational_of_a_constant_teacher_is_nothing_and_of_a_constant_student_one() -> None:
    """A teacher without a preference gives nothing to follow; a student without one is not rewarded for it."""
    flat, spoken = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    assert relational_loss(spoken, flat, tau=1, beta=1, gamma=1).item() == 0
    assert relational_loss(flat, spoken, tau=1, beta=1, gamma=1).item() == pytest.approx(2)


def test_a_flat_student_gets_a_bounded_gradient_from_relational() -> None:
    """A head that begins with zeros moves, and no further than one over the shortest length that counts."""
    student = torch.zeros(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(relational_loss(student, teacher, tau=1, beta=1, gamma=1), student)
    assert 0 < gradient.abs().max().item() < 1e4


def test_relational_of_one_sample_has_only_the_relation_between_classes() -> None:
    """In a batch of one no class varies, and the distance within classes is 0, not NaN."""
    student = THREE_STUDENT.clone().requires_grad_()
    loss = relational_loss(student, THREE_TEACHER, tau=1, beta=1, gamma=1)
    assert loss.item() == pytest.approx(1 + 12 / sqrt(42 * 6), rel=1e-5)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_multilabel_soft_by_hand() -> None:
    """Teacher (.8, .5), student (.5, .5): .8 ln 1.6 + .2 ln .4 = .192745 and 0: summed over labels, not halved."""
    student, teacher = torch.tensor([[EVEN, EVEN]]), torch.tensor([[LIKELY, EVEN]])
    assert multilabel_soft_loss(student, teacher, tau=1).item() == pytest.approx(0.192745, abs=1e-6)
    at_two = multilabel_soft_loss(2 * student, 2 * teacher, tau=2)
    assert at_two.item() == pytest.approx(4 * 0.192745, abs=4e-6)
    four = multilabel_soft_loss(student.repeat(4, 1), teacher.repeat(4, 1), tau=1)
    assert four.item() == pytest.approx(0.192745, abs=1e-6)


def test_one_label_is_a_softmax_of_two() -> None:
    """A sigmoid's z is the softmax of [z, 0]: both soft losses agree."""
    student, teacher = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.5], [0.7]])
    two = [torch.cat([one, torch.zeros(2, 1)], 1) for one in (student, teacher)]
    assert multilabel_soft_loss(student, teacher, tau=3).item() == pytest.approx(
        soft_loss(*two, tau=3).item(), rel=1e-5
    )


def test_multilabel_hard_by_hand() -> None:
    """-ln .8 for a likely label that is there, -ln .2 for one that is not; summed, averaged over samples.

    Sample 1: -ln .8 - ln .5. Sample 2: -ln .2 - ln .5. The mean is (1.609438 + .223144) / 2 + .693147 = 1.609438.
    """
    student = torch.tensor([[LIKELY, EVEN], [LIKELY, EVEN]])
    targets = torch.tensor([[1, 0], [0, 1]])
    assert multilabel_hard_loss(student, targets).item() == pytest.approx(1.609438, abs=1e-6)


def test_multilabel_smoothing_moves_both_ends() -> None:
    """At s = .2 a label that is there counts .9, and one that is not counts .1."""
    found = multilabel_hard_loss(torch.tensor([[LIKELY]]), torch.tensor([[1.0]]), label_smoothing=0.2)
    assert found.item() == pytest.approx(-0.9 * log(0.8) - 0.1 * log(0.2), rel=1e-5)


@pytest.mark.parametrize("unknown", [nan, -1.0])
def test_an_unknown_label_counts_nowhere(unknown: float) -> None:
    """NaN and -1 mean that nobody knows: no loss, no gradient, and a sample without any is not in the mean."""
    student = torch.tensor([[LIKELY, 3.0], [7.0, 7.0]], requires_grad=True)
    loss = multilabel_hard_loss(student, torch.tensor([[1.0, unknown], [unknown, unknown]]))
    assert loss.item() == pytest.approx(-log(0.8), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.flatten().tolist() == pytest.approx([-0.2, 0, 0, 0], abs=1e-6)


def test_regression_by_hand() -> None:
    """Differences 0, 2, 3, 0: (4 + 9) / 4; with huber 1 the far ones cost 2 * 2 - 1 = 3 and 2 * 3 - 1 = 5."""
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert regression_soft_loss(student, teacher).item() == 3.25
    assert regression_soft_loss(student, teacher, huber=1).item() == 2
    assert regression_soft_loss(student, teacher, huber=100).item() == 3.25
    assert regression_hard_loss(student, teacher).item() == 3.25
    assert regression_hard_loss(student, teacher, huber=1).item() == 2


def test_an_unknown_value_counts_nowhere() -> None:
    """The mean is over known values, and NaN reaches neither the loss nor the gradient."""
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = regression_hard_loss(student, torch.tensor([[nan, 0.0], [0.0, nan]]))
    assert loss.item() == (4 + 9) / 2
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.flatten().tolist() == [0, 2, 3, 0]


def test_the_hard_mean_is_over_the_labelled() -> None:
    """Probabilities .8 and .5 of the true class; the third sample has no label: (-ln .8 - ln .5) / 2, not / 3."""
    student = torch.cat([TEACHER, STUDENT, STUDENT])
    found = hard_loss(student, torch.tensor([0, 1, IGNORE]))
    assert found.item() == pytest.approx((-log(0.8) - log(0.5)) / 2, rel=1e-5)


def test_a_batch_without_any_label_has_no_hard_part() -> None:
    """The hard losses of nothing are 0 with a gradient of 0, not NaN."""
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    unknown = torch.full((2, 2), nan)
    for loss in (
        hard_loss(student, torch.tensor([IGNORE, IGNORE])),
        hard_loss(student, torch.tensor([IGNORE, IGNORE]), label_smoothing=0.1),
        multilabel_hard_loss(student, unknown),
        regression_hard_loss(student, unknown),
    ):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, student)[0].abs().max().item() == 0


def test_an_unlabelled_sample_counts_in_the_soft_part() -> None:
    """Two samples, one labelled: w times the soft mean over both, and (1 - w) times the hard part of the one."""
    student, teacher = torch.cat([STUDENT, STUDENT]), torch.cat([TEACHER, TEACHER])
    found = distillation_loss(student, torch.tensor([0, IGNORE]), teacher, tau=1, soft_weight=0.25)
    assert found.item() == pytest.approx(0.75 * -log(0.5) + 0.25 * TEACHER_FIRST, rel=1e-5)


def test_different_classes_are_refused_with_both_counts() -> None:
    """Teacher and student of different widths end in one sentence that names both."""
    with pytest.raises(
        ClassCountError, match=r"\[class-count-mismatch\].*expected 3 classes.*got 2"
    ) as caught:
        soft_loss(STUDENT, torch.zeros(1, 3), tau=1)
    assert caught.value.fix == "give the student a head of the teacher's width"
    others: tuple[Callable[[], object], ...] = (
        lambda: decoupled_loss(STUDENT, torch.zeros(1, 3), torch.tensor([0]), tau=1, alpha=1, beta=1),
        lambda: relational_loss(STUDENT, torch.zeros(1, 3), tau=1, beta=1, gamma=1),
        lambda: multilabel_soft_loss(STUDENT, torch.zeros(1, 3), tau=1),
        lambda: regression_soft_loss(STUDENT, torch.zeros(1, 3)),
    )
    for other in others:
        with pytest.raises(ClassCountError):
            other()


def test_one_class_cannot_be_decoupled() -> None:
    """A single output has no other classes."""
    one = torch.zeros(2, 1)
    with pytest.raises(
        ClassCountError, match=r"one class cannot be decoupled; at student; expected 2 or more"
    ):
        decoupled_loss(one, one, torch.tensor([0, 0]), tau=1, alpha=1, beta=1)


def test_nothing_is_broadcast() -> None:
    """Values `[N, 1]` against targets `[N]` would compare every sample with every other: refused, as other batches are."""
    with pytest.raises(ShapeError, match=r"\[shape-mismatch\].*gives \[3, 1\]; got \[3\]"):
        regression_hard_loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"gives \[3, 2\]; got \[1, 2\]"):
        soft_loss(torch.zeros(3, 2), torch.zeros(1, 2), tau=1)
    with pytest.raises(ShapeError, match=r"one label a sample; at labels; expected \[3\]; got \[2\]"):
        hard_loss(torch.zeros(3, 2), torch.tensor([0, 1]))


def test_labels_that_are_not_whole_numbers_are_refused() -> None:
    """Class labels as floats would mean probabilities to torch."""
    with pytest.raises(DtypeError, match=r"expected int64; got torch.float32"):
        hard_loss(torch.zeros(2, 2), torch.zeros(2))


def test_what_a_hard_loss_is_a_mean_over() -> None:
    """Labelled samples; samples of which any label is known; known values."""
    nan = float("nan")
    assert labelled_count("classes", torch.tensor([0, IGNORE, 2])) == 2
    assert labelled_count("multi-label", torch.tensor([[0.0, nan], [nan, -1.0], [1.0, 1.0]])) == 2
    assert labelled_count("regression", torch.tensor([[0.0, nan], [nan, nan], [-1.0, 1.0]])) == 3


@pytest.mark.parametrize("task", ["classes", "multi-label", "regression"])
def test_parts_of_a_batch_scaled_by_their_counts_are_the_batch(task: Task) -> None:
    """Hard and soft part of L, split unevenly into two: the mean of the scaled parts is the loss of the whole."""
    torch.manual_seed(0)
    student, teacher = torch.randn(9, 3), torch.randn(9, 3)
    targets = torch.tensor([0, -1, -1, -1, 2, 1, 0, 2, 1]) if task == "classes" else torch.rand(9, 3)
    if task != "classes":
        targets[:3, :] = float("nan")
    objective = Objective(task=task, soft_weight=0.4)
    whole = objective.loss(student, targets, teacher)
    counts = [labelled_count(task, part) for part in (targets[:4], targets[4:])]
    parts = [
        objective.loss(
            student[part], targets[part], teacher[part], scales=(2 * count / sum(counts), 2 * n / 9)
        )
        for part, count, n in ((slice(4), counts[0], 4), (slice(4, 9), counts[1], 5))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)

"""The objective: how the parts are weighed, and what it refuses before training."""

from __future__ import annotations

from math import inf, log, nan
from typing import Any

import pytest
import torch

from edgestill.core.errors import ClassCountError, SettingError
from edgestill.lab.loss.losses import IGNORE, distillation_loss
from edgestill.lab.loss.objective import Objective

torch.set_num_threads(1)

STUDENT = torch.tensor([[0.3, -1.2, 2.0], [1.0, 0.5, -0.5]])
TEACHER = torch.tensor([[1.3, -0.2, 0.0], [3.0, 0.5, -1.5]])
LABELS = torch.tensor([2, 0])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_kd_on_classes_is_the_distillation_loss(weight: float) -> None:
    """Task and method as they come give `(1 - w) CE + w tau^2 KL`."""
    objective = Objective(tau=3, soft_weight=weight, label_smoothing=0.1)
    expected = distillation_loss(
        STUDENT, LABELS, TEACHER, tau=3, soft_weight=weight, label_smoothing=0.1
    ).item()
    assert objective.loss(STUDENT, LABELS, TEACHER).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["kd", "dkd", "dist"])
def test_the_weights_mix_hard_and_soft(method: Any) -> None:
    """At w the loss is (1 - w) times that at 0 and w times that at 1, for every method."""
    at = {
        w: Objective(method=method, soft_weight=w).loss(STUDENT, LABELS, TEACHER).item() for w in (0, 0.3, 1)
    }
    assert at[0.3] == pytest.approx(0.7 * at[0] + 0.3 * at[1], rel=1e-5)


def test_each_method_has_its_own_loss_and_weights() -> None:
    """Teacher (.8, .1, .1), student (.5, .25, .25), target 0, tau 1.

    NCKD is 0, and KD = TCKD = .8 ln 1.6 + .2 ln .4 = .192745. DIST's rows are proportional when centred: distance 0.
    """
    student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()

    def loss(**settings: Any) -> float:
        objective = Objective(tau=1, soft_weight=1, **settings)
        return objective.loss(student, torch.tensor([0]), teacher).item()

    assert loss(method="kd") == pytest.approx(0.192745, abs=1e-6)
    assert loss(method="dkd", dkd_alpha=3, dkd_beta=100) == pytest.approx(3 * 0.192745, abs=2e-5)
    assert loss(method="dist", dist_beta=100) == pytest.approx(0, abs=2e-5)
    mirrored = Objective(method="dist", tau=1, soft_weight=1, dist_beta=2, dist_gamma=5)
    # a student that prefers what the teacher does not: correlation -1, distance 2
    assert mirrored.loss(-student, None, teacher).item() == pytest.approx(2 * 2, rel=1e-4)


def test_multilabel_by_hand() -> None:
    """Teacher .8 and student .5 for one label that is there, the other unknown: (1 - w) ln 2 + w .192745."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[log(4), 0.0]])
    targets = torch.tensor([[1.0, nan]])
    found = Objective(task="multi-label", tau=1, soft_weight=0.25).loss(student, targets, teacher)
    assert found.item() == pytest.approx(0.75 * log(2) + 0.25 * 0.192745, abs=1e-6)
    smooth = Objective(task="multi-label", soft_weight=0, label_smoothing=0.5)
    assert smooth.loss(teacher, targets, None).item() == pytest.approx(
        -0.75 * log(0.8) - 0.25 * log(0.2), rel=1e-5
    )


def test_regression_by_hand() -> None:
    """Student 5, label 3, teacher 4: (1 - w) 4 + w 1; with huber 1 the label's part is 2 * 2 - 1 = 3."""
    student, targets, teacher = (torch.tensor([[one]]) for one in (5.0, 3.0, 4.0))
    for huber, hard in ((0.0, 4), (1.0, 3)):
        objective = Objective(task="regression", soft_weight=0.25, huber=huber)
        assert objective.loss(student, targets, teacher).item() == 0.75 * hard + 0.25


@pytest.mark.parametrize("task", ["classes", "multi-label", "regression"])
def test_plain_training_needs_no_teacher_and_following_no_labels(task: Any) -> None:
    """At w = 0 None will do for the teacher; w = 1 takes None for the targets, and looks at none."""
    targets = LABELS if task == "classes" else torch.zeros(2, 3)
    assert Objective(task=task, soft_weight=0).loss(STUDENT, targets, None).item() > 0
    alone = Objective(task=task, soft_weight=1)
    assert alone.loss(STUDENT, None, TEACHER).item() == alone.loss(STUDENT, targets, TEACHER).item() > 0


def test_at_full_soft_weight_the_labels_are_not_looked_at() -> None:
    """Labels of classes that do not exist are no error where they count nothing; where they count, torch refuses them."""
    nonsense = torch.tensor([99, 99])
    assert Objective(soft_weight=1).loss(STUDENT, nonsense, TEACHER).isfinite()
    with pytest.raises(IndexError):
        Objective(soft_weight=0.5).loss(STUDENT, nonsense, TEACHER)


def test_without_any_targets_the_soft_part_counts_with_weight_1() -> None:
    """Unlabelled data at w = .3 gives the loss of w = 1."""
    for method in ("kd", "dist"):
        partly, alone = (Objective(method=method, soft_weight=w) for w in (0.3, 1))
        assert partly.loss(STUDENT, None, TEACHER).item() == alone.loss(STUDENT, None, TEACHER).item() > 0


def test_a_batch_that_happens_to_have_no_label_keeps_its_weight() -> None:
    """All `IGNORE`: w times the soft part, and no hard part; not NaN."""
    found = Objective(soft_weight=0.3).loss(STUDENT, torch.full((2,), IGNORE), TEACHER)
    alone = Objective(soft_weight=1).loss(STUDENT, None, TEACHER)
    assert found.item() == pytest.approx(0.3 * alone.item(), rel=1e-6)


def test_what_is_needed_and_missing_is_named() -> None:
    """Soft labels without a teacher, plain training without labels, DKD without labels."""
    with pytest.raises(
        SettingError,
        match=r"\[setting-invalid\].*there is no teacher; at soft_weight; expected 0 without a teacher; got 0.5",
    ):
        Objective().loss(STUDENT, LABELS, None)
    with pytest.raises(SettingError, match=r"training needs labels; at soft_weight; expected more than 0"):
        Objective(soft_weight=0).loss(STUDENT, None, TEACHER)
    with pytest.raises(SettingError, match=r"DKD .* needs labels; at method; expected kd or dist"):
        Objective(method="dkd", soft_weight=1).loss(STUDENT, None, TEACHER)


def test_other_class_counts_are_refused() -> None:
    """Whatever the method, teacher and student must have the same outputs."""
    for method in ("kd", "dkd", "dist"):
        with pytest.raises(ClassCountError, match=r"expected 2 classes .*got 3"):
            Objective(method=method).loss(STUDENT, LABELS, TEACHER[:, :2])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "dkd", "task": "regression"}, "at method; expected kd, for task regression; got dkd"),
        ({"method": "dist", "task": "multi-label"}, "at method; expected kd, for task multi-label; got dist"),
        (
            {"label_smoothing": 0.1, "task": "regression"},
            "at label_smoothing; expected 0, for task regression",
        ),
        ({"huber": 1.0}, "at huber; expected 0, for task classes; got 1.0"),
    ],
)
def test_what_excludes_each_other_is_refused_when_it_is_made(settings: dict[str, Any], text: str) -> None:
    """Two settings that cannot both hold never reach training."""
    with pytest.raises(SettingError, match=f"exclude each other; {text}"):
        Objective(**settings)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("task", "detection", "classes, multi-label, regression"),
        ("method", "rkd", "kd, dkd, dist"),
        ("tau", 0.0, "more than 0, finite"),
        ("tau", inf, "more than 0, finite"),
        ("tau", nan, "more than 0, finite"),
        ("soft_weight", -0.1, "0 to 1"),
        ("soft_weight", 1.1, "0 to 1"),
        ("label_smoothing", 1.0, "at least 0, less than 1"),
        ("dkd_alpha", -1.0, "at least 0, finite"),
        ("dkd_beta", nan, "at least 0, finite"),
        ("dist_beta", inf, "at least 0, finite"),
        ("dist_gamma", -1.0, "at least 0, finite"),
        ("huber", -1.0, "at least 0, finite"),
        ("hint_weight", -1.0, "at least 0, finite"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any, expected: str) -> None:
    """The text names the setting, its range and the value."""
    settings: dict[str, Any] = {name: value}
    with pytest.raises(SettingError, match=f"out of range; at {name}; expected {expected}; got {value}"):
        Objective(**settings)


def test_check_refuses_what_cannot_be_learned_before_training() -> None:
    """One output has no softmax to teach, and missing labels are noticed before the first batch."""
    with pytest.raises(
        SettingError, match=r"at task; expected 2 or more outputs.*got 1; use task multi-label"
    ):
        Objective().check(1, labelled=True)
    with pytest.raises(SettingError, match=r"without outputs; at outputs; expected at least 1; got 0"):
        Objective(task="regression").check(0, labelled=True)
    with pytest.raises(SettingError, match=r"at method; expected kd or dist for unlabelled data; got dkd"):
        Objective(method="dkd").check(3, labelled=False)
    with pytest.raises(SettingError, match=r"at soft_weight; expected more than 0 for unlabelled data"):
        Objective(soft_weight=0).check(3, labelled=False)


def test_check_lets_pass_what_works() -> None:
    """One yes-or-no output, one value, and following without labels."""
    Objective(task="multi-label").check(1, labelled=True)
    Objective(task="regression").check(1, labelled=False)
    Objective(method="dist").check(2, labelled=False)
    Objective(method="dkd").check(2, labelled=True)
    Objective(soft_weight=0).check(2, labelled=True)

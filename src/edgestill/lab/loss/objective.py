"""What a run minimises: one task, one method, their weights.

    L = (1 - w) hard + w soft

| task | hard | soft |
|---|---|---|
| `classes` | cross-entropy | `kd`, `dkd` or `dist` on the softmax |
| `multi-label` | binary cross-entropy a label | `kd` on each label's sigmoid |
| `regression` | squared error | squared difference to the teacher's value (`kd`) |

- tau^2 belongs to the soft part and stays whatever w is.
- DKD adds its loss to the cross-entropy with weight 1 (Zhao et al. 2022), and DIST likewise with beta and gamma (Huang
  et al. 2022). Both are `soft_weight=0.5` here, at half the loss: what was tuned on the papers' scale wants twice the
  learning rate with SGD.
- w = 0 needs no teacher, w = 1 needs no labels (DKD excepted: it splits by the true class).
- Data without any labels: the soft part alone, with weight 1. A batch without labels, of data that has some: w times the
  soft part, as in every other batch.
- What cannot work is refused before training: by the constructor, by `check`, or by the first `loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, final, get_args

from edgestill.core.errors import SettingError
from edgestill.lab.data.source import Task
from edgestill.lab.loss import losses

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["kd", "dkd", "dist"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of a run.

    Attributes:
        task: what the outputs mean.
        method: how the teacher is followed; `dkd` and `dist` are for `classes`.
        tau: the temperature of both; more than 0. Regression has none.
        soft_weight: w, in [0, 1].
        label_smoothing: of the hard labels, in [0, 1); not for regression.
        dkd_alpha: DKD's weight of the target class.
        dkd_beta: DKD's weight of the other classes.
        dist_beta: DIST's weight of relations between a sample's classes.
        dist_gamma: DIST's weight of relations between samples.
        huber: for regression, the difference from which on an error counts in proportion, in units of the output; 0 for
            squared errors throughout.
        hint_weight: of a feature hint (`hint.hint_loss`), added to L by whoever trains; 0 for none.

    Raises:
        SettingError: a value out of its range, or two that exclude each other.
    """

    task: Task = "classes"
    method: Method = "kd"
    tau: float = 2.0
    soft_weight: float = 0.5
    label_smoothing: float = 0.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    dist_beta: float = 1.0
    dist_gamma: float = 1.0
    huber: float = 0.0
    hint_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.method != "kd" and self.task != "classes":
            raise _unfit("method", self.method, f"kd, for task {self.task}")
        if self.label_smoothing and self.task == "regression":
            raise _unfit("label_smoothing", self.label_smoothing, "0, for task regression")
        if self.huber and self.task != "regression":
            raise _unfit("huber", self.huber, f"0, for task {self.task}")

    def _check_ranges(self) -> None:
        weights = ("dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma", "huber", "hint_weight")
        for name, holds, expected in (
            ("task", self.task in get_args(Task), ", ".join(get_args(Task))),
            ("method", self.method in get_args(Method), ", ".join(get_args(Method))),
            ("tau", 0 < self.tau < inf, "more than 0, finite"),
            ("soft_weight", 0 <= self.soft_weight <= 1, "0 to 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1"),
            *((name, 0 <= getattr(self, name) < inf, "at least 0, finite") for name in weights),
        ):
            if not holds:
                raise SettingError(
                    "an objective's value is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix="leave it out where you are unsure",
                )

    def check(self, outputs: int, *, labelled: bool) -> None:
        """Whether it fits a network and its data.

        Args:
            outputs: of the network: classes, labels or values.
            labelled: whether any sample has a label.

        Raises:
            SettingError: it does not.
        """
        if outputs < 1:
            raise SettingError(
                "a network without outputs",
                where="outputs",
                expected="at least 1",
                got=outputs,
                fix="give the network a head",
            )
        if self.task == "classes" and outputs < 2:
            raise SettingError(
                "a softmax of one output is always 1, and teaches nothing",
                where="task",
                expected="2 or more outputs for task classes",
                got=outputs,
                fix="use task multi-label for one yes-or-no output, or two outputs",
            )
        if not labelled:
            self._check_without_labels()

    def _check_without_labels(self) -> None:
        if self.soft_weight == 0:
            raise SettingError(
                "without a teacher, training needs labels",
                where="soft_weight",
                expected="more than 0 for unlabelled data",
                got=self.soft_weight,
                fix="give the recipe a soft_weight, or bring labels",
            )
        if self.method == "dkd":
            raise SettingError(
                "DKD splits the teacher's answer by the true class, and needs labels",
                where="method",
                expected="kd or dist for unlabelled data",
                got=self.method,
                fix="use method kd, or bring labels",
            )

    def loss(
        self,
        student_logits: Tensor,
        targets: Tensor | None,
        teacher_logits: Tensor | None,
        *,
        scales: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
    ) -> Tensor:
        """`L` of a batch, a scalar.

        Args:
            student_logits: `[N, outputs]`; the values themselves for regression.
            targets: int64 `[N]` (classes), or `[N, outputs]`; unknown: `losses.IGNORE` (classes), NaN or less than 0
                (multi-label), NaN (regression). None: no sample has one.
            teacher_logits: as the student's; None only where `soft_weight` is 0.
            scales: of the hard and of the soft part, where this is a part of a larger batch.

        Raises:
            SettingError: something is needed and not there. ClassCountError, ShapeError, DtypeError: as in `losses`.
        """
        if targets is None:
            self._check_without_labels()
        hard = self._hard(student_logits, targets) if targets is not None and self.soft_weight < 1 else None
        if self.soft_weight == 0 and hard is not None:
            return hard * scales[0]
        if teacher_logits is None:
            raise SettingError(
                "soft labels are asked for, and there is no teacher",
                where="soft_weight",
                got=self.soft_weight,
                expected="0 without a teacher",
                fix="give a teacher, or set soft_weight to 0",
            )
        soft = self._soft(student_logits, targets, teacher_logits)
        soft = soft * scales[1]
        return soft if hard is None else (1 - self.soft_weight) * hard * scales[0] + self.soft_weight * soft

    def _hard(self, student: Tensor, targets: Tensor) -> Tensor:
        if self.task == "regression":
            return losses.regression_hard_loss(student, targets, huber=self.huber or None)
        if self.task == "multi-label":
            return losses.multilabel_hard_loss(student, targets, label_smoothing=self.label_smoothing)
        return losses.hard_loss(student, targets, label_smoothing=self.label_smoothing)

    def _soft(self, student: Tensor, targets: Tensor | None, teacher: Tensor) -> Tensor:
        if self.task == "regression":
            return losses.regression_soft_loss(student, teacher, huber=self.huber or None)
        if self.task == "multi-label":
            return losses.multilabel_soft_loss(student, teacher, tau=self.tau)
        if self.method == "dkd" and targets is not None:
            return losses.decoupled_loss(
                student, teacher, targets, tau=self.tau, alpha=self.dkd_alpha, beta=self.dkd_beta
            )
        if self.method == "dist":
            return losses.relational_loss(
                student, teacher, tau=self.tau, beta=self.dist_beta, gamma=self.dist_gamma
            )
        return losses.soft_loss(student, teacher, tau=self.tau)


def _unfit(name: str, value: object, expected: str) -> SettingError:
    return SettingError(
        "two values of an objective exclude each other",
        where=name,
        expected=expected,
        got=value,
        fix="change one of the two",
    )

"""What a student is trained on: pure functions of tensors, one number out.

    L = (1 - w) CE(y, s) + w tau^2 KL(softmax(t / tau) || softmax(s / tau))        (Hinton et al. 2015, "Distillation")

- A divergence is summed over classes (or labels) and averaged over samples, never over classes. The teacher comes first.
- tau^2 stays whatever w is: it keeps the soft gradient's scale independent of tau.
- Half-precision logits are widened to float32 first, under autocast too; float64 stays float64.
- The teacher is a constant: no gradient reaches it.
- No probability is ever handed to a logarithm: logarithms come from logits, so that certainty stays finite.
- A sample without a label (`IGNORE`, or NaN) has no hard part, and does not count in the hard part's mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from edgestill.core.errors import ClassCountError, DtypeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from edgestill.lab.data.source import Task

IGNORE: Final = -1
"""The class label of a sample that has none."""

# A centred row of probabilities of less squared length than this is taken as constant: a correlation's gradient grows as
# one over the length.
_FLAT: Final = 1e-8


# Soft parts: what the teacher says


def soft_loss(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """`tau^2 KL(teacher || student)` at temperature tau, averaged over samples (Hinton et al. 2015, "Distillation").

    Args:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`.
        tau: more than 0.

    Raises:
        ClassCountError: different numbers of classes. ShapeError: not `[N, C]`, or different numbers of samples.
    """
    student, teacher = _pair(student, teacher)
    found, wanted = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * tau**2


def decoupled_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, tau: float, alpha: float, beta: float
) -> Tensor:
    """`tau^2 (alpha TCKD + beta NCKD)`: decoupled distillation (DKD; Zhao et al., CVPR 2022).

    TCKD is the divergence of [target, not target], NCKD that within the classes that are not the target. With two
    classes nothing is left to compare within, and NCKD is exactly 0. alpha = 1 and beta = 1 - p_target(teacher) would
    give `soft_loss` (their reformulation of KD). tau^2 is not in the paper's formula; it is from the authors' code.

    A sample labelled `IGNORE` takes the teacher's most likely class as its target (ours, not the paper's).

    Args:
        student: logits `[N, C]`, C at least 2.
        teacher: logits `[N, C]`.
        labels: int64 `[N]`, 0 to C - 1 or `IGNORE`.
        tau: more than 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.

    Raises:
        ClassCountError: different numbers of classes, or one class. ShapeError, DtypeError: of logits or labels.
    """
    student, teacher = _pair(student, teacher)
    _check_labels(student, labels)
    if student.shape[1] < 2:
        raise ClassCountError(
            "one class cannot be decoupled",
            expected="2 or more classes",
            got=1,
            where="student",
            fix="use method kd",
        )
    targets = torch.where(labels == IGNORE, teacher.argmax(1), labels)[:, None]
    ours, our_rest = _split(student / tau, targets)
    theirs, their_rest = _split(teacher / tau, targets)
    parts = alpha * _binary_divergence(ours, theirs) + beta * _divergence(our_rest, their_rest)
    return parts.mean() * tau**2


def relational_loss(student: Tensor, teacher: Tensor, *, tau: float, beta: float, gamma: float) -> Tensor:
    """`tau^2 (beta inter + gamma intra)`: DIST (Huang et al., NeurIPS 2022).

    With Y = softmax(logits / tau) and the distance `1 - Pearson(u, v)`: inter is the mean distance of student's and
    teacher's rows of Y (a sample's classes), intra that of their columns (a class over the batch). tau^2 is from the
    authors' code. Neither scale nor offset of the student's probabilities counts, only their relations.

    A correlation with a constant is not defined. Where the teacher's row or column is constant (one sample in the
    batch; a class nobody shows) there is nothing to follow: distance 0. Where only the student's is: distance 1.

    Args:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`.
        tau: more than 0.
        beta: weight of inter.
        gamma: weight of intra.

    Raises:
        ClassCountError, ShapeError: as `soft_loss`.
    """
    student, teacher = _pair(student, teacher)
    ours, theirs = (student / tau).softmax(1), (teacher / tau).softmax(1)
    inter = _pearson_distance(ours, theirs).mean()
    intra = _pearson_distance(ours.T, theirs.T).mean()
    return (beta * inter + gamma * intra) * tau**2


def multilabel_soft_loss(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """`tau^2 sum over labels of KL([p, 1 - p] || [q, 1 - q])` with p = sigmoid(t / tau), q = sigmoid(s / tau), averaged over samples.

    The multi-label logits distillation (MLD) of Yang et al., ICCV 2023, with a temperature added. Summed, not averaged,
    over labels, as there: it is then the divergence of the joint distribution of independent labels, and for one label
    equals `soft_loss` of the logits [z, 0].

    Args:
        student: logits `[N, L]`, one per label.
        teacher: logits `[N, L]`.
        tau: more than 0.

    Raises:
        ClassCountError, ShapeError: as `soft_loss`.
    """
    student, teacher = _pair(student, teacher)
    return _binary_divergence(student / tau, teacher / tau).sum(1).mean() * tau**2


def regression_soft_loss(student: Tensor, teacher: Tensor, *, huber: float | None = None) -> Tensor:
    """Mean squared difference to the teacher's values, over samples and outputs; in squared units of the output.

    Args:
        student: values `[N, D]`.
        teacher: values `[N, D]`.
        huber: from this difference on (more than 0, in units of the output) the loss grows in a straight line. It is
            twice Huber's (1964), so that below it is the squared difference itself.

    Raises:
        ClassCountError, ShapeError: as `soft_loss`.
    """
    student, teacher = _pair(student, teacher)
    return _squares(student, teacher, huber).mean()


# Hard parts: what the labels say


def hard_loss(student: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats, averaged over the labelled samples; 0 where there is none.

    Args:
        student: logits `[N, C]`.
        labels: int64 `[N]`, 0 to C - 1 or `IGNORE`.
        label_smoothing: a share s in [0, 1): s / C goes to each class (Szegedy et al. 2016, "Model Regularization via Label Smoothing").

    Raises:
        ShapeError: labels that are not one per sample. DtypeError: labels that are not int64.
    """
    _check_labels(student, labels)
    total = functional.cross_entropy(
        _wide(student), labels, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing
    )
    return total / labelled_count("classes", labels).clamp(min=1)


def multilabel_hard_loss(student: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy in nats, summed over known labels, averaged over samples that have any; 0 where there is none.

    Args:
        student: logits `[N, L]`.
        targets: `[N, L]`: 0 to 1, or NaN or less than 0 (such as `IGNORE`) where nobody knows.
        label_smoothing: a share s in [0, 1): y becomes (1 - s) y + s / 2.

    Raises:
        ShapeError: targets of another shape.
    """
    _check_same_shape(student, targets)
    student, targets = _alike(student, targets)
    known = targets >= 0  # false for NaN too
    wanted = torch.where(known, targets * (1 - label_smoothing) + label_smoothing / 2, 0)
    total = functional.binary_cross_entropy_with_logits(
        student, wanted, weight=known.to(student.dtype), reduction="sum"
    )
    return total / labelled_count("multi-label", targets).clamp(min=1)


def regression_hard_loss(student: Tensor, targets: Tensor, *, huber: float | None = None) -> Tensor:
    """Mean squared error over the known values, in squared units of the output; 0 where there is none.

    Args:
        student: values `[N, D]`.
        targets: `[N, D]`, NaN where nobody knows.
        huber: as for `regression_soft_loss`.

    Raises:
        ShapeError: targets of another shape.
    """
    _check_same_shape(student, targets)
    student, targets = _alike(student, targets)
    known = ~targets.isnan()
    squares = _squares(student, torch.where(known, targets, student.detach()), huber)
    return squares.sum() / labelled_count("regression", targets).clamp(min=1)


def distillation_loss(
    student: Tensor,
    labels: Tensor | None,
    teacher: Tensor,
    *,
    tau: float,
    soft_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of this module's docstring; without labels the soft part alone counts, with weight 1."""
    soft = soft_loss(student, teacher, tau=tau)
    if labels is None or soft_weight == 1:
        return soft
    hard = hard_loss(student, labels, label_smoothing=label_smoothing)
    return (1 - soft_weight) * hard + soft_weight * soft


def labelled_count(task: Task, targets: Tensor) -> Tensor:
    """What the hard loss of this task is a mean over: labelled samples, or for regression known values; a scalar."""
    if task == "regression":
        return (~targets.isnan()).sum()
    return (targets >= 0).any(1).sum() if task == "multi-label" else (targets != IGNORE).sum()


# Pieces


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each row of logits: `[N, C]` -> `[N]`."""
    found, wanted = student.log_softmax(1), teacher.log_softmax(1)
    return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(1)


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each yes-or-no answer, from its log-odds; element-wise."""
    yes = teacher.sigmoid() * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
    no = (-teacher).sigmoid() * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    return yes + no


def _split(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, C]` and `[N, 1]` -> the target's log-odds `[N]` and the other logits `[N, C - 1]`."""
    # gathered: pushing the target out of a softmax with a large number needs one that is large beside every logit
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = logits.gather(1, places + (places >= targets))
    return logits.gather(1, targets).squeeze(1) - rest.logsumexp(1), rest


def _pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - Pearson` of each row: `[R, K]` -> `[R]`; 0 where the teacher's row is constant."""
    ours, theirs = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    our_square, their_square = ours.square().sum(1), theirs.square().sum(1)
    # clamped before the root: the root's own gradient at 0 is infinite
    lengths = our_square.clamp(min=_FLAT).sqrt() * their_square.clamp(min=_FLAT).sqrt()
    return torch.where(their_square > _FLAT, 1 - (ours * theirs).sum(1) / lengths, 0)


def _squares(student: Tensor, wanted: Tensor, huber: float | None) -> Tensor:
    if huber is None:
        return functional.mse_loss(student, wanted, reduction="none")
    return 2 * functional.huber_loss(student, wanted, reduction="none", delta=huber)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _alike(student: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(student)
    return wide, wanted.detach().to(wide.dtype)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the same wide type, the teacher's without a gradient."""
    if student.shape[1:] != teacher.shape[1:]:
        raise ClassCountError(
            "teacher and student name different classes",
            expected=f"{teacher.shape[-1]} classes (the teacher's)",
            got=f"{student.shape[-1]} (the student's)",
            fix="give the student a head of the teacher's width",
            where="logits",
        )
    _check_same_shape(student, teacher)
    return _alike(student, teacher)


def _check_same_shape(student: Tensor, other: Tensor) -> None:
    """Against broadcasting: `[N, 1]` and `[N]` would silently compare every sample with every other."""
    if student.ndim != 2 or student.shape != other.shape:
        raise ShapeError(
            "a loss compares row with row",
            expected=f"two of [N, outputs]; the student gives {list(student.shape)}",
            got=list(other.shape),
            where="logits",
            fix="give both as [N, outputs]",
        )


def _check_labels(student: Tensor, labels: Tensor) -> None:
    if labels.shape != student.shape[:1]:
        raise ShapeError(
            "one label a sample",
            expected=[student.shape[0]],
            got=list(labels.shape),
            where="labels",
            fix="give labels [N]",
        )
    if labels.dtype != torch.int64:
        raise DtypeError(
            "class labels are whole numbers",
            expected="int64",
            got=labels.dtype,
            where="labels",
            fix="convert them with .long()",
        )

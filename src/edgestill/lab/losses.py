"""What a student is trained on.

    L = (1 - w) CE(y, s) + w tau^2 KL(softmax(t / tau) || softmax(s / tau))        (Hinton et al. 2015, section 2.1)

The divergence is summed over classes and averaged over samples (not over classes), the teacher comes first, and tau^2
stays whatever w is: it keeps the soft gradient's scale independent of tau.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from edgestill.core.errors import ClassCountError

if TYPE_CHECKING:
    from torch import Tensor


def soft_loss(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """`tau^2 KL(teacher || student)` at temperature tau, averaged over samples.

    Args:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`.
        tau: more than 0.

    Raises:
        ClassCountError: different numbers of classes.
    """
    if student.shape[1:] != teacher.shape[1:]:
        raise ClassCountError(
            "teacher and student name different classes",
            expected=f"{teacher.shape[-1]} classes (the teacher's)",
            got=f"{student.shape[-1]} (the student's)",
            fix="give the student a head of the teacher's width",
        )
    wanted = functional.log_softmax(teacher.float() / tau, dim=1)
    found = functional.log_softmax(student / tau, dim=1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * tau**2


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
    hard = functional.cross_entropy(student, labels, label_smoothing=label_smoothing)
    return (1 - soft_weight) * hard + soft_weight * soft

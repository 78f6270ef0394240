"""The next student, from what the fleet's devices saw.

Escalated inputs with the teacher's answers (never the fused ones: a student must not learn from itself) join a replay
of the old data; training goes on from the parent's weights. The control does the same with no evidence, so that a gain
can be told from more training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.lab.data.samples import Samples
from edgestill.lab.distil import distill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.run import Run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Escalated inputs with the teacher's answers.

    Attributes:
        inputs: `[N, ...]`.
        teacher: logits `[N, C]`.
        audit: `[N]`: asked at random (an unbiased sample), not because the student was unsure.
        devices: `[N]`: who saw it.
    """

    inputs: NDArray[np.generic]
    teacher: NDArray[np.float32]
    audit: NDArray[np.bool_]
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.inputs)
        if not len(self.teacher) == len(self.audit) == len(self.devices) == n:
            raise EvidenceError(
                "evidence whose parts do not belong together",
                expected=f"{n} of each",
                where="evidence",
                fix="take all of it from one answer of the hub",
                got="different numbers",
            )
        if self.teacher.ndim != 2:
            raise EvidenceError(
                "answers that are no logits",
                expected="[N, C]",
                got=self.teacher.shape,
                where="evidence: teacher",
                fix="give the teacher's logits, or the logarithms of its probabilities",
            )
        if not np.isfinite(self.teacher).all():
            raise EvidenceError(
                "evidence with answers that are not finite",
                where="teacher",
                expected="finite numbers",
                got="NaN or infinity",
                fix="drop these samples",
            )
        if np.issubdtype(self.inputs.dtype, np.floating) and not np.isfinite(self.inputs).all():
            rows = np.flatnonzero(~np.isfinite(self.inputs.reshape(n, -1)).all(axis=1))
            raise EvidenceError(
                "evidence with inputs that are not finite",
                where=f"sample {rows[0]} of {self.devices[rows[0]]}",
                got=f"{len(rows)} of {n} samples",
                fix="leave these samples out",
                expected="finite numbers",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def labelled(self, replay: Samples) -> Samples:
        """As samples, labelled with the teacher's answers; EvidenceError where it is of another input or head."""
        if self.inputs.shape[1:] != replay.inputs.shape[1:] or self.inputs.dtype != replay.inputs.dtype:
            raise EvidenceError(
                "evidence of another input",
                expected=f"{replay.inputs.dtype} {list(replay.inputs.shape[1:])}",
                got=f"{self.inputs.dtype} {list(self.inputs.shape[1:])}",
                where="evidence: input",
                fix="take evidence that devices gathered with this model",
            )
        if self.teacher.shape[1] != replay.classes:
            raise EvidenceError(
                "evidence of other classes",
                expected=replay.classes,
                got=self.teacher.shape[1],
                where="evidence: teacher",
                fix="take evidence that devices gathered with this model",
            )
        names = {name: index for index, name in enumerate(sorted(set(self.devices)))}
        first = int(replay.groups.max()) + 1
        groups = np.array([first + names[name] for name in self.devices], dtype=np.int64)
        return Samples(self.inputs, self.teacher.argmax(1).astype(np.int64), groups, replay.classes)


def redistil(
    parent: Run, evidence: Evidence | None, recipe: Recipe, *, augment: Augment | None = None
) -> Run:
    """Trains a copy of the parent's student on its old data and, where given, the evidence.

    Args:
        parent: the run whose student is deployed; left as it is.
        evidence: of the fleet, or None for the control.
        recipe: for both.
        augment: makes views.

    Raises:
        EvidenceError: evidence of another input or head, or none at all.
    """
    train = parent.train
    if not isinstance(train, Samples):
        raise EvidenceError(
            "evidence joins samples that are held in memory",
            where="train",
            expected="Samples",
            got=type(train).__name__,
            fix="distil the parent from Samples.of(inputs, labels)",
        )
    if evidence is not None:
        if len(evidence) == 0:
            raise EvidenceError(
                "no evidence yet",
                expected="at least one escalated answer",
                got=0,
                where="evidence",
                fix="let the devices escalate first",
            )
        train = train + evidence.labelled(train)
    run = distill(
        parent.teacher,
        train,
        validation=parent.validation,
        student=copy.deepcopy(parent.student),
        recipe=recipe,
        augment=augment,
        inherit=False,
        budget=parent.budget,
    )
    return replace(
        run, index_map=parent.index_map
    )  # the same units of the same teacher, so it can still absorb

"""One call from a teacher to a student: inherit, cache the teacher's answers, train, and be ready to pack."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgestill.core.bundle import write_archive
from edgestill.core.errors import ClassCountError, SettingError
from edgestill.infer.policy import Policy
from edgestill.lab.inherit import IndexMap, inherit_
from edgestill.lab.pack import Origin, Packed, pack
from edgestill.lab.recipe import Recipe
from edgestill.lab.train import Lesson, train_
from edgestill.lab.views import SoftLabels, answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.lab.samples import Samples
    from edgestill.lab.views import Augment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What came of a distillation.

    Attributes:
        student: trained, in evaluation mode.
        teacher: unchanged.
        index_map: which of the teacher's weights the student began with; None where it kept its own.
        recipe: how it was made.
        train: what it was shown.
        validation: what neither was trained on.
        budget: what it must keep, or None.
    """

    student: nn.Module
    teacher: nn.Module
    index_map: IndexMap | None
    recipe: Recipe
    train: Samples
    validation: Samples
    budget: Budget | None = None

    def pack(self, policy: Policy | None = None, *, origin: Origin | None = None) -> Packed:
        """The bundle in memory; see `lab.pack.pack`. The budget's escalation share bounds the policy's.

        Raises:
            SettingError: the bundle is larger than the budget allows.
        """
        packed = pack(
            self.student,
            self.teacher,
            train=self.train,
            heldout=self.validation,
            policy=self._policy(policy),
            origin=origin
            or Origin(name="student", version="1.0.0", recipe=self.recipe.as_json(), seed=self.recipe.seed),
        )
        if (
            self.budget is not None
            and self.budget.size is not None
            and packed.manifest.size > self.budget.size
        ):
            raise SettingError(
                "the bundle is larger than its budget",
                where="size",
                expected=f"at most {self.budget.size} bytes (budget)",
                got=packed.manifest.size,
                fix="give a narrower student",
            )
        return packed

    def save_bundle(self, path: Path | str, policy: Policy | None = None) -> Path:
        """Packs and writes `NAME.esb`; the file's name becomes the model's."""
        path = Path(path)
        origin = Origin(
            name=path.stem.lower(), version="1.0.0", recipe=self.recipe.as_json(), seed=self.recipe.seed
        )
        packed = self.pack(policy, origin=origin)
        write_archive(path, packed.manifest, packed.blobs)
        return path

    def _policy(self, wanted: Policy | None) -> Policy:
        bound = None if self.budget is None else self.budget.escalation
        if wanted is None:
            labels = tuple(f"class {index}" for index in range(self.validation.classes))
            wanted = Policy(labels=labels)
            share = wanted.escalation_share if bound is None else bound
        else:
            share = wanted.escalation_share if bound is None else min(bound, wanted.escalation_share)
        return replace(wanted, escalation_share=share, audit_share=min(wanted.audit_share, share))


def distill(
    teacher: nn.Module,
    train: Samples,
    *,
    validation: Samples,
    student: nn.Module,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    augment: Augment | None = None,
    inherit: bool = True,
    cache: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Run:
    """Trains `student` in place on `train`, guided by the teacher.

    Args:
        teacher: any module from a batch to logits `[N, C]`; put into evaluation mode while it is asked.
        train: the student's limited data.
        validation: held-out data; used by `Run.pack`, never for training.
        student: a module of as many classes.
        recipe: by default 30 epochs with soft labels at weight 0.7.
        budget: checked when the bundle is packed.
        augment: makes views, the same for teacher and student.
        inherit: whether the student begins as a part of the teacher, which must then be of its family.
        cache: folder for the teacher's answers; by default a temporary one.
        progress: called after each epoch with (done, all, loss).

    Raises:
        ClassCountError: teacher, student and data disagree on the classes; found before training starts.
        ModelError: the student cannot be inherited from this teacher.
        TrainingError: the loss is not finite.
    """
    recipe = recipe or Recipe(epochs=30, soft_weight=0.7)
    example = torch.from_numpy(train.inputs[:2])
    _check_classes(teacher, student, train, example)
    if validation.classes != train.classes:
        raise ClassCountError(
            "training and held-out data disagree on the classes",
            where="validation",
            expected=f"{train.classes} (the training data's)",
            got=validation.classes,
            fix="say `classes=` when reading the data",
        )
    index_map = None
    if inherit:
        index_map = inherit_(student, teacher, example[:1], selection=recipe.inherit, seed=recipe.seed)
    with tempfile.TemporaryDirectory() as temporary:
        soft = None
        if recipe.soft_weight > 0:
            soft = SoftLabels.make(
                cache or Path(temporary) / "soft",
                teacher=teacher,
                samples=train,
                augment=augment,
                views=recipe.views,
                seed=recipe.seed,
            )
        train_(student, Lesson(samples=train, soft=soft, augment=augment), recipe, progress=progress)
    return Run(
        student=student,
        teacher=teacher,
        index_map=index_map,
        recipe=recipe,
        train=train,
        validation=validation,
        budget=budget,
    )


def _check_classes(teacher: nn.Module, student: nn.Module, train: Samples, example: torch.Tensor) -> None:
    widths = {
        name: answers(model, example).shape[-1]
        for name, model in (("teacher", teacher), ("student", student))
    }
    for name, width in widths.items():
        if width != train.classes:
            raise ClassCountError(
                f"the {name} and the data disagree on the classes",
                where=name,
                expected=f"{train.classes} (the data's)",
                got=width,
                fix=f"give the {name} a head of {train.classes} outputs, or say `classes=` when reading the data",
            )

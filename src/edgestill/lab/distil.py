"""One call from a teacher to a student: inherit, ask the teacher once, train, and be ready to pack."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

from torch import nn

from edgestill.core.errors import SettingError
from edgestill.lab.compare import compare
from edgestill.lab.data.samples import Samples
from edgestill.lab.fits import as_source, check_data, check_model, first_inputs
from edgestill.lab.inherit import inherit_
from edgestill.lab.notices import DistillingHurtsWarning, NotDistillingWarning
from edgestill.lab.progress import Progress, shown
from edgestill.lab.recipe import Recipe
from edgestill.lab.run import Run
from edgestill.lab.searching.workshop import fitted_student
from edgestill.lab.teacher.asking import Asking
from edgestill.lab.training.runtime import Runtime, together
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.budget import Budget
    from edgestill.lab.compare import Slice
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.source import Inputs, Source
    from edgestill.lab.inherit import IndexMap
    from edgestill.lab.progress import Show
    from edgestill.lab.recipe import Selection
    from edgestill.lab.teacher.asking import When


def distill(
    teacher: nn.Module,
    train: Samples | Source,
    *,
    validation: Samples | Source,
    student: nn.Module | Callable[[int], nn.Module] | None = None,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    augment: Augment | None = None,
    inherit: bool = True,
    ask: When = "cached",
    cache: Path | None = None,
    against: Slice | None = None,
    runtime: Runtime | None = None,
    progress: Show | None = None,
) -> Run:
    """Trains `student` on `train`, guided by the teacher.

    Args:
        teacher: any module that takes what `train` gives; put into evaluation mode while it is asked.
        train: the student's limited data: labelled samples of classes, or any source (other tasks, other inputs, data
            without labels).
        validation: held-out data; used to compare and by `Run.pack`, never for training.
        student: a module of as many outputs, trained in place; see `lab.carve` to have one cut out of the teacher. Or a
            function that makes the student of a seed: `against` then compares students of different first weights. Left
            out, the largest is cut out of the teacher whose bundle keeps the budget: every width alike, in int8 or in
            floats. `lab.search` looks for a better one.
        recipe: by default 30 epochs with soft labels at weight 0.7.
        budget: what the bundle must keep; checked when it is packed.
        augment: makes views of `Samples`, the same for teacher and student. A source has its own.
        inherit: whether the student begins as a part of the teacher, which must then be of its family.
        ask: when the teacher is asked: once for all (`cached`), at every step (`live`), or so as an int8 file (`onnx`).
        cache: folder for the teacher's answers; by default a temporary one. Only for `cached`.
        against: compares with plain training on a slice first, and warns where distilling hurts; None does not.
        runtime: where to train; by default one process on the CPU.
        progress: called with how far each phase is.

    Raises:
        ClassCountError: teacher, student and data disagree on the outputs; found before training starts.
        ModelError: the student cannot be inherited from this teacher, or a model does not take the data.
        SettingError: values that exclude each other.
        DataError: the cache or the checkpoint is of another teacher, data set or recipe.
        TrainingError: the loss or the weights are not finite, or another process of the run has failed.

    Warns:
        DistillingHurtsWarning: `against` found plain training to be better, beyond the noise.
        NotDistillingWarning: the recipe asks no teacher.
    """
    recipe, runtime = recipe or Recipe(epochs=30, soft_weight=0.7), runtime or Runtime()
    asking = Asking(teacher=teacher, when=ask, cache=cache)
    source, heldout = as_source(train, "train", augment), as_source(validation, "validation")
    check_data(source, heldout)
    check_model("teacher", teacher, source, heldout)
    _check_distils(recipe, against)
    gate = None
    if student is None:
        student, gate = fitted_student(
            teacher,
            train,
            validation,
            budget=budget,
            recipe=recipe,
            progress=shown(progress, "profiling"),
        )
    beginning = _Beginning(student, teacher, first_inputs(source, 1), recipe.inherit if inherit else None)
    learner = beginning.student(recipe.seed)
    check_model("student", learner, source, heldout)
    index_map = beginning.inherited_(learner, recipe.seed)
    comparison = None
    if against is not None:
        comparison = compare(
            asking,
            beginning.other,
            source,
            heldout,
            recipe=recipe,
            size=against,
            groups=validation.groups if isinstance(validation, Samples) else None,
            kept=None if runtime.checkpoint is None else runtime.checkpoint / "comparison.json",
            progress=shown(progress, "comparing"),
        )
        if comparison.gain.verdict == "hurts":
            warnings.warn(DistillingHurtsWarning(comparison.sentence), stacklevel=2)
    fabric = runtime.open()
    show = progress if fabric.global_rank == 0 else None
    with together(), asking.guide(source, recipe, fabric=fabric, progress=shown(show, "asking")) as guide:
        lesson = Lesson(source=source, guide=guide)
        train_(learner, lesson, recipe, runtime=runtime, fabric=fabric, progress=_epochs(show))
        fabric.barrier()  # nobody takes a shared folder away before all have done with it
    return Run(
        student=learner,
        teacher=teacher,
        index_map=index_map,
        recipe=recipe,
        train=train,
        validation=validation,
        augment=augment,
        budget=budget,
        comparison=comparison,
        gate=gate,
    )


class _Beginning:
    """How students begin: the one that will be trained, and others like it, one for each seed, to compare."""

    def __init__(
        self,
        student: nn.Module | Callable[[int], nn.Module],
        teacher: nn.Module,
        example: Inputs,
        selection: Selection | None,
    ) -> None:
        if student is teacher:
            raise SettingError(
                "the student is the teacher",
                where="student",
                expected="another module",
                got="the same object",
                fix="copy it by copy.deepcopy, or cut one out of it by carve()",
            )
        self._given = student if isinstance(student, nn.Module) else None
        self._blank = copy.deepcopy(self._given)
        self._make = student
        self._teacher, self._example, self._selection = teacher, example, selection

    def student(self, seed: int) -> nn.Module:
        """The one itself, before it inherits."""
        return self._make(seed) if self._given is None else self._given

    def other(self, seed: int) -> nn.Module:
        """Another one like it, with its first weights."""
        student = self._make(seed) if self._blank is None else copy.deepcopy(self._blank)
        self.inherited_(student, seed)
        return student

    def inherited_(self, student: nn.Module, seed: int) -> IndexMap | None:
        """Fills it with a part of the teacher, where it shall inherit."""
        if self._selection is None:
            return None
        return inherit_(student, self._teacher, self._example, selection=self._selection, seed=seed)


def _check_distils(recipe: Recipe, against: Slice | None) -> None:
    if recipe.distils:
        return
    if against is not None:
        raise SettingError(
            "nothing to compare",
            where="soft_weight",
            expected="more than 0, or a hint with a weight",
            got=recipe.soft_weight,
            fix="give the recipe a soft_weight, or leave the comparison out",
        )
    text = "the recipe asks no teacher: soft_weight is 0 and no hint has a weight, so the student is trained plainly"
    warnings.warn(NotDistillingWarning(text), stacklevel=3)


def _epochs(show: Show | None) -> Callable[[int, int, float], None] | None:
    if show is None:
        return None
    return lambda done, of, loss: show(Progress(phase="training", done=done, of=of, loss=loss))

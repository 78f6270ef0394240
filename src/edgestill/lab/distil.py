"""One call from a teacher to a student: inherit, ask the teacher once, train, and be ready to pack."""

from __future__ import annotations

import copy
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from torch import Tensor

from edgestill.core.bundle import write_archive
from edgestill.core.errors import ClassCountError, EdgestillError, ModelError, SettingError
from edgestill.infer.policy import Policy
from edgestill.lab.compare import Comparison, DistillingHurtsWarning, Slice, compare
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource, Ask
from edgestill.lab.forward import evaluating, forward
from edgestill.lab.inherit import IndexMap, inherit_
from edgestill.lab.packing.pack import Origin, Packed, pack
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.cache import CachedGuide
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.onnxguide import OnnxGuide
from edgestill.lab.training.runtime import Runtime, together
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_fabric import Fabric
    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.source import Inputs, Source
    from edgestill.lab.teacher.guide import Guide

_SHOWN: Final = 512

Asking = Literal["cached", "live", "onnx"]
"""When the teacher is asked: once for all (`cached`), at every step (`live`), or at every step as an int8 file (`onnx`)."""


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
        comparison: with plain training on a slice, where it was asked for.
    """

    student: nn.Module = field(repr=False)
    teacher: nn.Module = field(repr=False)
    index_map: IndexMap | None = field(repr=False)
    recipe: Recipe
    train: Samples | Source
    validation: Samples | Source
    budget: Budget | None = None
    comparison: Comparison | None = None

    def pack(self, policy: Policy | None = None, *, origin: Origin | None = None) -> Packed:
        """The bundle in memory; see `lab.packing.pack.pack`. The budget's escalation share bounds the policy's.

        Raises:
            SettingError: the bundle is larger than the budget allows, or the data is not labelled samples of classes,
                which is what bundles are for so far.
        """
        train, heldout = classified(self.train, "train"), classified(self.validation, "validation")
        packed = pack(
            self.student,
            self.teacher,
            train=train,
            heldout=heldout,
            policy=self._policy(policy, heldout.classes),
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

    def _policy(self, wanted: Policy | None, classes: int) -> Policy:
        bound = None if self.budget is None else self.budget.escalation
        if wanted is None:
            wanted = Policy(labels=tuple(f"class {index}" for index in range(classes)))
            share = wanted.escalation_share if bound is None else bound
        else:
            share = wanted.escalation_share if bound is None else min(bound, wanted.escalation_share)
        return replace(wanted, escalation_share=share, audit_share=min(wanted.audit_share, share))


def classified(data: Samples | Source, where: str) -> Samples:
    """The data as labelled samples of classes.

    Raises:
        SettingError: it is a source of another kind.
    """
    if isinstance(data, Samples):
        return data
    raise SettingError(
        "a bundle is made of labelled samples of classes",
        where=where,
        expected="Samples",
        got=type(data).__name__,
        fix="pass Samples to distill(), or export the student by lab.export",
    )


def distill(
    teacher: nn.Module,
    train: Samples | Source,
    *,
    validation: Samples | Source,
    student: nn.Module,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    augment: Augment | None = None,
    inherit: bool = True,
    ask: Asking = "cached",
    cache: Path | None = None,
    against: Slice | None = None,
    runtime: Runtime | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Run:
    """Trains `student` in place on `train`, guided by the teacher.

    Args:
        teacher: any module that takes what `train` gives; put into evaluation mode while it is asked.
        train: the student's limited data: labelled samples of classes, or any source (other tasks, other inputs, data
            without labels).
        validation: held-out data; used to compare and by `Run.pack`, never for training.
        student: a module of as many outputs; see `lab.carve` to have one cut out of the teacher.
        recipe: by default 30 epochs with soft labels at weight 0.7.
        budget: checked when the bundle is packed.
        augment: makes views of `Samples`, the same for teacher and student. A source has its own.
        inherit: whether the student begins as a part of the teacher, which must then be of its family.
        ask: when the teacher is asked.
        cache: folder for the teacher's answers; by default a temporary one. Only for `cached`.
        against: compares with plain training on a slice first, and warns where distilling hurts; None does not.
        runtime: where to train; by default one process on the CPU.
        progress: called after each epoch with (done, all, loss).

    Raises:
        ClassCountError: teacher, student and data disagree on the outputs; found before training starts.
        ModelError: the student cannot be inherited from this teacher.
        SettingError: values that exclude each other.
        DataError: the cache or the checkpoint is of another teacher, data set or recipe.
        TrainingError: the loss is not finite, or another process of the run has failed.

    Warns:
        DistillingHurtsWarning: `against` found plain training to be better, beyond the noise.
    """
    recipe, runtime = recipe or Recipe(epochs=30, soft_weight=0.7), runtime or Runtime()
    if ask not in get_args(Asking):
        raise SettingError(
            "unknown way to ask",
            where="ask",
            expected=", ".join(get_args(Asking)),
            got=ask,
            fix="leave it out where you are unsure",
        )
    source = _source(train, augment, "train")
    heldout = _source(validation, None, "validation")
    _check_outputs(teacher, student, source, heldout)
    index_map: IndexMap | None = None
    make: nn.Module | Callable[[int], nn.Module] = student
    if inherit:
        make = _inheriting(student, teacher, _first(source, 1), recipe)
        index_map = inherit_(student, teacher, _first(source, 1), selection=recipe.inherit, seed=recipe.seed)
    comparison = None
    if against is not None and recipe.distils:
        comparison = compare(
            teacher,
            make,
            source,
            heldout,
            recipe=recipe,
            size=against,
            groups=validation.groups if isinstance(validation, Samples) else None,
            cached=ask == "cached",
            kept=None if runtime.checkpoint is None else runtime.checkpoint / "comparison.json",
        )
        if comparison.gain.verdict == "hurts":
            warnings.warn(DistillingHurtsWarning(comparison), stacklevel=2)
    fabric = runtime.open()
    with together(), _guide(teacher, source, recipe, ask=ask, cache=cache, fabric=fabric) as guide:
        lesson = Lesson(source=source, guide=guide)
        train_(student, lesson, recipe, runtime=runtime, fabric=fabric, progress=progress)
        fabric.barrier()  # nobody takes a shared folder away before all have done with it
    return Run(
        student=student,
        teacher=teacher,
        index_map=index_map,
        recipe=recipe,
        train=train,
        validation=validation,
        budget=budget,
        comparison=comparison,
    )


def _inheriting(
    student: nn.Module, teacher: nn.Module, example: Inputs, recipe: Recipe
) -> Callable[[int], nn.Module]:
    """Students of the same kind that begin as other parts of the teacher, one for each seed."""
    blank = copy.deepcopy(student)

    def made(seed: int) -> nn.Module:
        fresh = copy.deepcopy(blank)
        inherit_(fresh, teacher, example, selection=recipe.inherit, seed=seed)
        return fresh

    return made


@contextmanager
def _guide(
    teacher: nn.Module, source: Source, recipe: Recipe, *, ask: Asking, cache: Path | None, fabric: Fabric
) -> Iterator[Guide | None]:
    """Who answers for the teacher in this run; None where nobody is asked."""
    hint = None if recipe.hinted is None else recipe.hinted.teacher_layer
    if not recipe.distils:
        yield None
    elif ask == "onnx":
        yield OnnxGuide.export(teacher, _shown(source), task=source.task, hint=hint)
    elif ask == "live":
        yield LiveGuide(teacher, hint=hint)
    elif cache is not None:
        yield _cached(LiveGuide(teacher, hint=hint), source, recipe, folder=cache, fabric=fabric)
    else:
        with tempfile.TemporaryDirectory(prefix="edgestill-") as own:
            folder = Path(fabric.broadcast(own))  # all processes share the first one's
            yield _cached(LiveGuide(teacher, hint=hint), source, recipe, folder=folder, fabric=fabric)


def _cached(live: LiveGuide, source: Source, recipe: Recipe, *, folder: Path, fabric: Fabric) -> CachedGuide:
    return CachedGuide.open(
        folder,
        teacher=live,
        source=source,
        seed=recipe.seed,
        views=(recipe.views or recipe.epochs) if source.augmented else 1,
        top_k=recipe.top_k or None,
        rank=fabric.global_rank,
        world=fabric.world_size,
        barrier=fabric.barrier,
    )


def _first(source: Source, count: int) -> Inputs:
    return next(iter(source.batches([Ask(np.arange(min(count, len(source))))]))).inputs


def _shown(source: Source) -> Tensor:
    """Some inputs, spread over the data, to quantise and compare an exported teacher on."""
    index = np.unique(np.linspace(0, len(source) - 1, min(_SHOWN, len(source))).astype(np.int64))
    inputs = next(iter(source.batches([Ask(index)]))).inputs
    if not isinstance(inputs, Tensor):
        raise SettingError(
            "a teacher of several inputs is not exported",
            where="ask",
            expected="cached or live",
            got="onnx",
            fix='ask it live, or keep its answers: ask="cached"',
        )
    return inputs


def _source(data: Samples | Source, augment: Augment | None, where: str) -> Source:
    if isinstance(data, Samples):
        return ArraySource.of(data, augment)
    if augment is not None:
        raise SettingError(
            "two places for an augmentation",
            where=where,
            expected="augment= for Samples, or a source that makes its own views",
            got=type(data).__name__,
            fix="make the views in the source, and leave augment= out",
        )
    if not hasattr(data, "batches"):
        raise SettingError(
            "data of a kind that is not known",
            where=where,
            expected="Samples or a Source",
            got=type(data).__name__,
            fix="make Samples.of(inputs, labels), or DatasetSource of a torch Dataset",
        )
    return data


def _check_outputs(teacher: nn.Module, student: nn.Module, train: Source, heldout: Source) -> None:
    example, other = _first(train, 2), _first(heldout, 2)
    for name, model in (("teacher", teacher), ("student", student)):
        width = _width(model, example, name, "training")
        _width(model, other, name, "held-out")  # whose inputs may have another shape
        if width != train.outputs:
            raise ClassCountError(
                f"the {name} and the data disagree on the classes",
                where=name,
                expected=f"{train.outputs} (the data's)",
                got=width,
                fix=f"give the {name} a head of {train.outputs} outputs, or say `classes=` when reading the data",
            )
    if (heldout.outputs, heldout.task) != (train.outputs, train.task):
        raise ClassCountError(
            "training and held-out data disagree on the classes",
            where="validation",
            expected=f"{train.outputs} ({train.task}, the training data's)",
            got=f"{heldout.outputs} ({heldout.task})",
            fix="say `classes=` when reading the data",
        )


def _width(model: nn.Module, example: Inputs, name: str, data: str) -> int:
    try:
        with evaluating(model):
            return forward(model, example).shape[-1]
    except EdgestillError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {name} does not take the {data} data",
            where=name,
            expected="a model that runs on a batch of it",
            got=f"{type(error).__name__}: {error}",
            fix=f"try {name}(batch) by hand with what the data gives; dtype, shape and order of the axes are the usual causes",
        ) from error

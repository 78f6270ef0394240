"""What comes of a distillation, and its way into a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import Bundle
from edgestill.core.hardware import HardwareClass
from edgestill.core.manifest import MODEL
from edgestill.lab.fits import as_source
from edgestill.lab.packing.assemble import Origin, Packed, check_follows
from edgestill.lab.packing.aware import trained_for_codes
from edgestill.lab.packing.footprint import held_to, policy_within
from edgestill.lab.packing.grid import Grid
from edgestill.lab.packing.material import labelled
from edgestill.lab.packing.pack import pack
from edgestill.lab.packing.trainable import fixed_of_module, parameters_of_module, trainable
from edgestill.lab.teacher.asking import Asking

if TYPE_CHECKING:
    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.infer.policy import Policy
    from edgestill.lab.compare import Comparison
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.gradient.step import Training
    from edgestill.lab.inherit import IndexMap
    from edgestill.lab.packing.gate import Gate
    from edgestill.lab.recipe import Recipe


FIRST: Final = "1.0.0"
"""The version of a bundle whose maker does not say."""


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
        augment: made views of it, where it is samples.
        budget: what it must keep, or None.
        comparison: with plain training on a slice, where it was asked for.
        gate: what int8 may cost where `pack` is not told; None for half a point.
        hardware_class: where the bundle will run where `pack` is not told; None for this machine's.
    """

    student: nn.Module = field(repr=False)
    teacher: nn.Module = field(repr=False)
    index_map: IndexMap | None = field(repr=False)
    recipe: Recipe
    train: Samples | Source
    validation: Samples | Source
    augment: Augment | None = None
    budget: Budget | None = None
    comparison: Comparison | None = None
    gate: Gate | None = None
    hardware_class: HardwareClass | None = None

    def pack(
        self,
        policy: Policy | None = None,
        *,
        origin: Origin | None = None,
        hardware_class: HardwareClass | None = None,
        gate: Gate | None = None,
        grid: Grid | None = None,
        follows: Path | str | None = None,
        training: Training | None = None,
    ) -> Packed:
        """The bundle in memory; see `lab.packing.pack.pack`. The budget's escalation share bounds the policy's.

        Args:
            policy: names of the classes and what is not fitted; by default `class 0`, `class 1`, ...
            origin: name and version; by default `student`, 1.0.0.
            hardware_class: where it will run; by default this run's.
            gate: what int8 may cost; by default this run's. Where it costs more, the student is trained on for it, in a
                copy.
            grid: quantisation grid of the version that it follows; by default that of `follows`, or its own.
            follows: the bundle before it, `NAME.esb` or a folder: the lineage names it, and the budget's `update` bounds the patch from it.
            training: what devices may train, and how; by default nothing.

        Raises:
            SettingError: the bundle takes more than the budget allows, as measured on this machine, or bundles are not
                for this kind of model yet.
            BundleError, PathError and others: `follows` is no sound bundle. ModelError: it is of another network. SettingError: it is of
                another name or hardware class, or its version is not lower.
            DataError: the held-out data has no labels, or too few samples.

        Warns:
            NotMeasuredWarning: latency or memory are bounded, and the bundle is for other hardware; or an update, and it follows none.
        """
        origin, before = origin or self.origin(), None
        if follows is not None:
            before = Bundle.open(follows)
            before.verify()
            check_follows(
                before.manifest, origin, hardware_class or self.hardware_class or HardwareClass.here()
            )
            grid = grid or Grid.of(before.read(MODEL))
            origin = replace(origin, parent=origin.parent or before.manifest.digest)
        heldout = labelled(self.validation, "validation")
        packed = pack(
            self.student,
            self.teacher,
            train=self.train,
            heldout=heldout,
            policy=policy_within(policy, self.budget, heldout.classes),
            origin=origin,
            hardware_class=hardware_class or self.hardware_class,
            gate=gate or self.gate,
            grid=grid,
            retrain=self._trained_for_codes,
        )
        packed = held_to(self.budget, packed, heldout.inputs, follows=before)
        if training is None:
            return packed
        return trainable(
            packed, training, named=parameters_of_module(self.student), fixed=fixed_of_module(self.student)
        )

    def save_bundle(
        self,
        path: Path | str,
        policy: Policy | None = None,
        *,
        version: str = FIRST,
        hardware_class: HardwareClass | None = None,
        follows: Path | str | None = None,
        training: Training | None = None,
    ) -> Path:
        """Packs and writes `NAME.esb`; the file's name becomes the model's. Errors as `pack`.

        Args:
            path: of the file.
            policy: as for `pack`.
            version: `MAJOR.MINOR.PATCH`.
            hardware_class: as for `pack`.
            follows: as for `pack`.
            training: as for `pack`.
        """
        path = Path(path)
        origin = self.origin(path.stem.lower(), version)
        packed = self.pack(
            policy, origin=origin, hardware_class=hardware_class, follows=follows, training=training
        )
        return packed.save(path)

    def origin(self, name: str = "student", version: str = FIRST) -> Origin:
        """Where the student comes from, under this name and version.

        Raises:
            SettingError: no name or version that a bundle can have.
        """
        return Origin(name=name, version=version, recipe=self.recipe.as_json(), seed=self.recipe.seed)

    def _trained_for_codes(self, hardware_class: HardwareClass) -> nn.Module:
        source, asking = as_source(self.train, "train", self.augment), Asking(teacher=self.teacher)
        return trained_for_codes(self.student, asking, source, self.recipe, hardware_class)

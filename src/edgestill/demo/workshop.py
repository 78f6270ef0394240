"""The lab's part of the route, for both scenarios: teacher, student, bundle, and the next student with its control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgestill.infer.engine import OnnxEngine
from edgestill.lab.distil import distill
from edgestill.lab.measure import accuracy, run_model
from edgestill.lab.packing.assemble import Origin, Packed
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.redistil import Evidence, redistil
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.core.digest import Digest
    from edgestill.core.protocols import Engine
    from edgestill.demo.scenario import Scenario
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.measure import Figure
    from edgestill.lab.progress import Show
    from edgestill.lab.run import Run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workshop:
    """What the lab has made before the fleet is founded.

    Attributes:
        scenario: whose data it was.
        teacher: trained on all data.
        teacher_onnx: the same as fp32 ONNX.
        run: the student's distillation.
        packed: its bundle, version 1.0.0.
    """

    scenario: Scenario
    teacher: nn.Module
    teacher_onnx: bytes
    run: Run
    packed: Packed

    @property
    def size_ratio(self) -> float:
        """The teacher's fp32 file over the student's model file."""
        return len(self.teacher_onnx) / len(self.packed.blobs["model.onnx"])


def teach(scenario: Scenario, *, progress: Callable[[int, int, float], None] | None = None) -> nn.Module:
    """Trains the teacher on all its data."""
    return train_(
        scenario.make_teacher(),
        Lesson.of(scenario.teach, scenario.augment),
        scenario.teacher_recipe,
        progress=progress,
    )


def learn(scenario: Scenario, teacher: nn.Module, *, progress: Show | None = None) -> Workshop:
    """Inherits, distils, quantises, calibrates and packs the first student."""
    run = distill(
        teacher,
        scenario.limited,
        validation=scenario.heldout,
        student=scenario.make_student(),
        recipe=scenario.student_recipe,
        augment=scenario.augment,
        progress=progress,
    )
    origin = Origin(
        name=scenario.model, version="1.0.0", recipe=run.recipe.as_json(), seed=scenario.student_recipe.seed
    )
    example = torch.from_numpy(scenario.heldout.inputs[:2])
    return Workshop(
        scenario=scenario,
        teacher=teacher,
        teacher_onnx=export_onnx(teacher, example),
        run=run,
        packed=run.pack(scenario.policy, origin=origin),
    )


def next_student(
    workshop: Workshop, evidence: Evidence | None, *, version: str, parent: Digest | None
) -> Packed:
    """The bundle after 1.0.0, from evidence; with None, the control that was given the same training and none."""
    scenario = workshop.scenario
    run = redistil(workshop.run, evidence, scenario.next_recipe, augment=scenario.augment)
    origin = Origin(
        name=scenario.model,
        version=version,
        recipe=run.recipe.as_json(),
        seed=scenario.next_recipe.seed,
        parent=parent,
        evidence=None
        if evidence is None
        else {
            "samples": len(evidence),
            "audits": int(evidence.audit.sum()),
            "devices": len(set(evidence.devices)),
        },
    )
    return run.pack(scenario.policy, origin=origin)


def engine_of(packed: Packed) -> Engine:
    """The bundle's model, ready to run."""
    return OnnxEngine(packed.blobs["model.onnx"])


def score(engine: Engine, samples: Samples) -> Figure:
    """Accuracy of an exported model."""
    return accuracy(run_model(engine, samples.inputs)[0], samples.labels, samples.groups)

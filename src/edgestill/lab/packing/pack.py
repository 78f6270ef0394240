"""From a trained student and its teacher to a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.confidence import softmax
from edgestill.infer.engines import engine_of
from edgestill.lab.data.samples import Samples
from edgestill.lab.fits import as_source
from edgestill.lab.forward import answers, weights_digest
from edgestill.lab.measure import run_model
from edgestill.lab.packing.adapter import check_enough, trained_adapter
from edgestill.lab.packing.assemble import Packed, Parts, assembled
from edgestill.lab.packing.export import export_onnx, head_of
from edgestill.lab.packing.gate import written_down
from edgestill.lab.packing.material import shown_inputs, spread
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgestill.infer.policy import Policy
    from edgestill.lab.data.source import Source
    from edgestill.lab.packing.assemble import Origin
    from edgestill.lab.packing.gate import Gate
    from edgestill.lab.packing.grid import Grid


def pack(
    student: nn.Module,
    teacher: nn.Module,
    *,
    train: Samples | Source,
    heldout: Samples,
    policy: Policy,
    origin: Origin,
    hardware_class: HardwareClass | None = None,
    gate: Gate | None = None,
    grid: Grid | None = None,
    retrain: Callable[[HardwareClass], nn.Module] | None = None,
) -> Packed:
    """Makes the bundle.

    Args:
        student: trained; its last linear layer is the head.
        teacher: what it learned from.
        train: the student's training data; its inputs calibrate the quantiser and give the reference statistics.
        heldout: data that trained neither; fits the policy.
        policy: the wanted one; temperatures, alpha and threshold are fitted. Where it lets features leave and no more, they are
            fitted for an adapter, which is trained (`lab.packing.adapter`), in the place of the teacher.
        origin: for the lineage.
        hardware_class: where it will run; by default this machine's.
        gate: what int8 may cost; by default half a point of accuracy.
        grid: quantisation grid of the version that it follows; by default its own.
        retrain: gives the student trained on for int8 on that hardware; None where that cannot be.

    Raises:
        SettingError: not one label name a class. ModelError: not exportable or quantisable.
        ClassCountError: data, student and teacher disagree on the classes. DataError: too little data. Whatever
            `check_adaptable` raises.
    """
    _check_classes(student, heldout, policy)
    adapted = policy.leaves == "features"
    if adapted:
        check_adaptable(student, train)
    where = hardware_class or HardwareClass.here()
    shown = shown_inputs(train, "train")
    files = _Files(torch.from_numpy(heldout.inputs[:2]))
    written = written_down(
        files.of(student),
        heldout,
        spread(shown, 512),
        where,
        gate=gate,
        grid=grid,
        retrain=None if retrain is None else lambda: files.of(retrain(where)),
    )
    student = files.made[written.floats]
    backbone = backbone_id(student)
    lineage = {
        "teacher": str(weights_digest(teacher)),
        "student": str(weights_digest(student)),
        "backbone": str(backbone),
        "data": str(train.digest),
    }
    own, features = run_model(engine_of(written.model, where.name), shown)
    known = answers(teacher, torch.from_numpy(shown)).numpy()
    groups = train.groups if isinstance(train, Samples) else None
    parts = Parts(
        written=written,
        heldout=heldout,
        teacher=answers(teacher, torch.from_numpy(heldout.inputs)).numpy(),
        reference=_reference(backbone, features, softmax(known)),
        policy=policy,
        origin=origin,
        hardware_class=where,
        lineage=lineage | ({} if grid is None else {"clipped": grid.clipped(written.floats, where)}),
        adapter=trained_adapter(features, known, student=own, groups=groups, seed=origin.seed)
        if adapted
        else None,
    )
    return assembled(parts)


class _Files:
    """Exported students, and which is whose."""

    def __init__(self, example: torch.Tensor) -> None:
        self._example = example
        self.made: dict[bytes, nn.Module] = {}

    def of(self, student: nn.Module) -> bytes:
        """Its file."""
        floats = export_onnx(student, self._example)
        self.made[floats] = student
        return floats


def backbone_id(student: nn.Module) -> Digest:
    """Names everything up to `features`: statistics of the same backbone add, others do not."""
    name, head = head_of(student)
    kept = {key: value for key, value in student.state_dict().items() if not key.startswith(f"{name}.")}
    chunks = [
        part for key in sorted(kept) for part in (key.encode(), kept[key].detach().cpu().numpy().tobytes())
    ]
    return Digest.of_chunks([*chunks, str(head.in_features).encode()])


def check_adaptable(student: nn.Module, train: Samples | Source) -> None:
    """Looks whether an adapter may be asked with this student's features.

    Raises:
        SettingError: they are the inputs themselves, or as good as these.
        DataError: too little data to train an adapter.
    """
    check_enough(len(as_source(train, "train")))
    name, _ = head_of(student)
    if all(key.startswith(f"{name}.") for key, _ in student.named_parameters()):
        raise SettingError(
            "the features of this student are its inputs",
            where="policy: leaves",
            expected="a student that learns something before its last layer, where features may leave and inputs may not",
            got=f"{type(student).__name__}, whose only parameters are those of {name or 'itself'}",
            fix='let leaves be "nothing", or "raw" where inputs may leave as well',
        )


def _reference(backbone: Digest, features: NDArray[np.float32], targets: NDArray[np.float32]) -> Statistics:
    empty = Statistics.empty(
        backbone=backbone, window=0, classes=targets.shape[1], features=features.shape[1]
    )
    return empty.add(features, targets)


def _check_classes(student: nn.Module, heldout: Samples, policy: Policy) -> None:
    if len(policy.labels) != heldout.classes:
        raise SettingError(
            "one name a class",
            where="policy: labels",
            expected=heldout.classes,
            got=len(policy.labels),
            fix="give Policy(labels=...) one name a class",
        )
    outputs = answers(student, torch.from_numpy(heldout.inputs[:2])).shape[1]
    if outputs != heldout.classes:
        raise ClassCountError(
            "the student and the held-out data disagree on the classes",
            expected=f"{heldout.classes} (the data's)",
            got=f"{outputs} (the student's)",
            fix="say `classes=` when reading the data",
            where="heldout",
        )

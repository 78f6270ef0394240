"""From a trained student to a bundle: quantise, calibrate, golden answers, reference statistics, lineage, card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from edgestill import __version__
from edgestill.core import manifest as names
from edgestill.core.bundle import build
from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import JsonObject, canonical
from edgestill.core.units import format_size
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import Golden
from edgestill.lab.forward import answers, weights_digest
from edgestill.lab.measure import Figure, accuracy, run_model
from edgestill.lab.packing.calibrate import Heldout, calibrate, promise_text
from edgestill.lab.packing.export import head_of
from edgestill.lab.packing.gate import written_down
from edgestill.lab.packing.material import shown_inputs, spread
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import grid_id
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgestill.core.footprint import Footprint
    from edgestill.core.manifest import Manifest
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.packing.gate import Gate, Try, Written
    from edgestill.lab.packing.quantise import Grid

REFERENCE: Final = "reference.stats"
GOLDEN_SAMPLES: Final = (4, 16)
"""At least and at most: between them as many as `GOLDEN_BYTES` hold."""
GOLDEN_BYTES: Final = 32_000
TOLERANCE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a student comes from, for `lineage.json`.

    Attributes:
        name: of the model.
        version: `MAJOR.MINOR.PATCH`.
        recipe: as JSON.
        seed: of the run.
        parent: digest of the bundle it follows, or None.
        evidence: what of the fleet's evidence it was taught, or empty.
    """

    name: str
    version: str
    recipe: JsonObject
    seed: int
    parent: Digest | None = None
    evidence: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A bundle ready to be written, and what was measured while making it.

    Attributes:
        manifest: of the bundle.
        blobs: name -> bytes.
        policy: the fitted one.
        student: what was packed: another module than was given, where it had to be trained for int8.
        model_fp32: its ONNX before int8.
        tried: the ways in which it was written down, the last of which is the bundle's.
        fp32: accuracy of the exported student before int8, on the held-out data.
        int8: accuracy of the bundle's file.
        teacher: accuracy of the teacher there.
        footprint: what it takes of this machine, where there was a budget.
    """

    manifest: Manifest
    blobs: dict[str, bytes]
    policy: Policy
    student: nn.Module
    model_fp32: bytes
    tried: tuple[Try, ...]
    fp32: Figure
    int8: Figure
    teacher: Figure
    footprint: Footprint | None = None


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
        policy: the wanted one; temperatures, alpha and threshold are fitted.
        origin: for the lineage.
        hardware_class: where it will run; by default this machine's.
        gate: what int8 may cost; by default half a point of accuracy.
        grid: quantisation grid of the version that it follows; by default its own.
        retrain: gives the student trained on for int8 on that hardware; None where that cannot be.

    Raises:
        SettingError: not one label name a class. ModelError: not exportable or quantisable.
        ClassCountError: data, student and teacher disagree on the classes. DataError: too little data.
    """
    _check_classes(student, heldout, policy)
    where = hardware_class or HardwareClass.here()
    shown = shown_inputs(train, "train")
    written = written_down(
        student,
        heldout,
        spread(shown, 512),
        where,
        gate=gate,
        grid=grid,
        retrain=None if retrain is None else lambda: retrain(where),
    )
    student, model = written.student, written.model
    engine = OnnxEngine(model)
    logits, _ = run_model(engine, heldout.inputs)
    teacher_logits = answers(teacher, torch.from_numpy(heldout.inputs)).numpy()
    said = Heldout(student=logits, teacher=teacher_logits, labels=heldout.labels, groups=heldout.groups)
    fitted = calibrate(said, policy, seed=origin.seed)
    figures = {
        "fp32": accuracy(
            run_model(OnnxEngine(written.floats), heldout.inputs)[0], heldout.labels, heldout.groups
        ),
        "int8": accuracy(logits, heldout.labels, heldout.groups),
        "teacher": accuracy(teacher_logits, heldout.labels, heldout.groups),
    }
    blobs = {
        names.MODEL: shippable(model, fitted.temperature),
        names.POLICY: fitted.to_bytes(),
        names.GOLDEN: _golden(engine, heldout).to_bytes(),
        names.LINEAGE: canonical(
            _lineage(written, teacher, train.digest, origin=origin, figures=figures)
            | ({} if grid is None else {"clipped": grid.clipped(written.floats, where)})
        ),
        REFERENCE: _reference(engine, student, teacher, shown).to_bytes(),
    }
    blobs[names.CARD] = _card(f"{origin.name} {origin.version}", figures, fitted, written.tried[-1]).encode()
    manifest, blobs = build(
        name=origin.name,
        version=origin.version,
        hardware_class=where.name,
        blobs=blobs,
    )
    return Packed(
        manifest=manifest,
        blobs=blobs,
        policy=fitted,
        student=student,
        model_fp32=written.floats,
        tried=written.tried,
        fp32=figures["fp32"],
        int8=figures["int8"],
        teacher=figures["teacher"],
    )


def reweighted(packed: Packed, **changes: object) -> Packed:
    """The same bundle with other policy values, such as a budget the operator chose."""
    policy = replace(packed.policy, **changes)  # type: ignore[arg-type]  # the policy checks every value itself
    head = packed.manifest
    figures = {"fp32": packed.fp32, "int8": packed.int8, "teacher": packed.teacher}
    card = _card(f"{head.name} {head.version}", figures, policy, packed.tried[-1])
    blobs = packed.blobs | {
        names.MODEL: shippable(packed.blobs[names.MODEL], policy.temperature),
        names.POLICY: policy.to_bytes(),
        names.CARD: card.encode(),
    }
    manifest, blobs = build(
        name=head.name, version=head.version, hardware_class=head.hardware_class, blobs=blobs
    )
    return replace(packed, manifest=manifest, blobs=blobs, policy=policy)


def backbone_id(student: nn.Module) -> Digest:
    """Names everything up to `features`: statistics of the same backbone add, others do not."""
    name, head = head_of(student)
    kept = {key: value for key, value in student.state_dict().items() if not key.startswith(f"{name}.")}
    chunks = [
        part for key in sorted(kept) for part in (key.encode(), kept[key].detach().cpu().numpy().tobytes())
    ]
    return Digest.of_chunks([*chunks, str(head.in_features).encode()])


def _reference(
    engine: OnnxEngine, student: nn.Module, teacher: nn.Module, inputs: NDArray[np.generic]
) -> Statistics:
    features = run_model(engine, inputs)[1]
    targets = softmax(answers(teacher, torch.from_numpy(inputs)).numpy())
    empty = Statistics.empty(
        backbone=backbone_id(student), window=0, classes=targets.shape[1], features=features.shape[1]
    )
    return empty.add(features, targets)


def golden_count(bytes_each: int) -> int:
    """How many inputs of so many bytes the probe of a bundle brings."""
    least, most = GOLDEN_SAMPLES
    return min(most, max(least, GOLDEN_BYTES // bytes_each))


def _golden(engine: OnnxEngine, heldout: Samples) -> Golden:
    inputs = spread(heldout.inputs, golden_count(heldout.inputs[0].nbytes))
    return Golden(input=inputs, logits=run_model(engine, inputs)[0], tolerance=TOLERANCE)


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


def _lineage(
    written: Written,
    teacher: nn.Module,
    data: Digest,
    *,
    origin: Origin,
    figures: dict[str, Figure],
) -> JsonObject:
    return {
        "made_by": f"edgestill {__version__}",
        "teacher": str(weights_digest(teacher)),
        "student": str(weights_digest(written.student)),
        "backbone": str(backbone_id(written.student)),
        "data": str(data),
        "recipe": origin.recipe,
        "seed": origin.seed,
        "parent": None if origin.parent is None else str(origin.parent),
        "evidence": origin.evidence,
        "grid": str(grid_id(written.model)),
        "written": [one.as_json() for one in written.tried],
        "metrics": {
            name: {
                "accuracy": one.value,
                "ci95": [one.low, one.high] if one.bounded else None,
                "n": one.n,
                "groups": one.groups,
            }
            for name, one in figures.items()
        },
    }


def _card(title: str, figures: dict[str, Figure], policy: Policy, file: Try) -> str:
    alone = any(one.groups == 1 for one in figures.values())
    caution = (
        "They are of one group (a person, a device), which says nothing about others.\n\n" if alone else ""
    )
    rows = "\n".join(f"| {name} | {one} | {one.rests_on()} |" for name, one in figures.items())
    return (
        f"# {title}\n\n"
        f"{len(policy.labels)} classes: {', '.join(policy.labels)}. Model file: {format_size(file.size)}, {file.way}.\n\n"
        "Accuracy on the held-out data that the policy was fitted on, with 95 % intervals over groups:\n\n"
        f"| model | accuracy | on |\n|---|---|---|\n{rows}\n\n{caution}"
        f"Asks the teacher for at most {policy.escalation_share:.0%} of its inputs; alpha = {policy.alpha:.2f}. "
        f"Promise on the risk: {promise_text(policy)}.\n\nMay leave the device: {policy.leaves}.\n"
    )

"""From a file that was judged to a bundle: policy, golden answers, reference statistics, lineage, card.

It asks engines, never torch: the student may have been trained here, or be a finished ONNX file of somebody else's.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill import __version__
from edgestill.core import manifest as names
from edgestill.core.bundle import PUBLIC, build, write_archive
from edgestill.core.bundle import replace as write_whole
from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.jsonio import Fields, JsonObject, canonical
from edgestill.core.units import format_size
from edgestill.infer.adapter import FEATURES, LOGITS, as_sent
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.infer.golden import Golden
from edgestill.lab.measure import Figure, accuracy, run_model
from edgestill.lab.notices import NoGainWarning, NothingLearnedWarning
from edgestill.lab.packing.calibrate import Heldout, asking_text, calibrate, kept_budget, promise_text
from edgestill.lab.packing.grid import grid_id
from edgestill.lab.packing.leverage import relative_leverage, room_for
from edgestill.lab.packing.material import spread
from edgestill.lab.packing.probabilities import shippable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.footprint import Footprint
    from edgestill.core.hardware import HardwareClass
    from edgestill.core.manifest import Manifest
    from edgestill.core.protocols import Engine
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.gate import Try, Written
    from edgestill.learn.statistics import Statistics

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

    def __post_init__(self) -> None:
        for what, value, pattern in (
            ("name", self.name, names.NAME),
            ("version", self.version, names.VERSION),
        ):
            if re.fullmatch(pattern, value) is None:
                raise SettingError(
                    f"a {what} that no bundle can have",
                    where=what,
                    expected=f"text that matches {pattern}",
                    got=repr(value[:80]),
                    fix="name it like camera, in version 1.0.0",
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A bundle ready to be written, and what was measured while making it.

    Attributes:
        manifest: of the bundle.
        blobs: name -> bytes.
        policy: the fitted one.
        model_fp32: the student's ONNX before int8.
        tried: the ways in which it was written down, the last of which is the bundle's.
        fp32: accuracy of the exported student before int8, on the held-out data.
        int8: accuracy of the bundle's file.
        teacher: accuracy of the teacher there; None where there was none.
        labelled: False where accuracies are but the agreement with the file in floats.
        footprint: what it takes of this machine, where there was a budget.
        adapter: ONNX that a server answers with from features; None where inputs may leave, or nothing may.
        adapted: accuracy of the adapter; None where there is none.
    """

    manifest: Manifest
    blobs: dict[str, bytes]
    policy: Policy
    model_fp32: bytes
    tried: tuple[Try, ...]
    fp32: Figure
    int8: Figure
    teacher: Figure | None
    labelled: bool = True
    footprint: Footprint | None = None
    adapter: bytes | None = field(default=None, repr=False)
    adapted: Figure | None = None

    def save(self, path: Path | str) -> Path:
        """Writes `NAME.esb`, and beside it an adapter as `NAME.adapter.onnx`; one of an earlier bundle goes.

        Raises:
            PathError: one of them cannot be written.
        """
        path = Path(path)
        if self.adapter is None:
            adapter_path(path).unlink(missing_ok=True)
        else:
            write_whole(adapter_path(path), self.adapter, mode=PUBLIC)
        write_archive(path, self.manifest, self.blobs)
        return path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a bundle is made of.

    Attributes:
        written: the student's file, as the gate let it through.
        heldout: what the policy is fitted on, and accuracies are told of.
        teacher: its logits `[N, C]` for these; None where there is no teacher.
        reference: statistics of what the student was shown.
        policy: the wanted one; temperatures, alpha and threshold are fitted.
        origin: for the lineage.
        hardware_class: where it will run.
        lineage: what else the lineage says: of teacher, student, backbone and data.
        labelled: False where the held-out labels are but the answers of the file in floats.
        adapter: ONNX that answers from features in the teacher's place; None asks the teacher itself.
    """

    written: Written
    heldout: Samples
    teacher: NDArray[np.float32] | None
    reference: Statistics
    policy: Policy
    origin: Origin
    hardware_class: HardwareClass
    lineage: JsonObject
    labelled: bool = True
    adapter: bytes | None = None


def assembled(parts: Parts) -> Packed:
    """The bundle.

    Raises:
        DataError: too little held-out data. ClassCountError: student and teacher disagree on the classes.
    """
    written, heldout, origin = parts.written, parts.heldout, parts.origin
    engine = engine_of(written.model, parts.hardware_class.name)
    logits, features = run_model(engine, heldout.inputs)
    reference = relative_leverage(parts.reference)
    floats, _ = run_model(engine_of(written.floats, parts.hardware_class.name), heldout.inputs)
    adapted = None if parts.adapter is None else answers_from(parts.adapter, features)
    said = Heldout(
        student=logits,
        teacher=parts.teacher if adapted is None else adapted,
        labels=heldout.labels,
        groups=heldout.groups,
        leverage=reference.of(features) if _may_tell_leverage(parts, features.shape[1]) else None,
    )
    wanted = replace(parts.policy, adapter=None if parts.adapter is None else Digest.of(parts.adapter))
    if parts.labelled:
        policy = calibrate(said, wanted, seed=origin.seed)
    else:
        policy = kept_budget(said, wanted, "the data had no labels; the threshold keeps the budget only")
    figures = {"fp32": _accuracy(floats, heldout), "int8": _accuracy(logits, heldout)}
    if parts.teacher is not None:
        figures["teacher"] = _accuracy(parts.teacher, heldout)
    if adapted is not None:
        figures["adapter"] = _accuracy(adapted, heldout)
    adapter = None if adapted is None or _is_of_no_use(policy) else parts.adapter
    policy = policy if adapter is not None else replace(policy, adapter=None)
    if parts.labelled:
        _remark_on_order(figures, len(policy.labels))
    blobs = {
        names.MODEL: shippable(
            written.model, policy.temperature, reference if policy.measure == "leverage" else None
        ),
        names.POLICY: policy.to_bytes(),
        names.GOLDEN: _golden(engine, heldout).to_bytes(),
        names.LINEAGE: canonical(parts.lineage | _lineage(written, origin, figures)),
        REFERENCE: parts.reference.to_bytes(),
    }
    manifest, blobs = build(
        name=origin.name,
        version=origin.version,
        hardware_class=parts.hardware_class.name,
        blobs=blobs | {names.CARD: b""},
    )
    packed = Packed(
        manifest=manifest,
        blobs=blobs,
        policy=policy,
        model_fp32=written.floats,
        tried=written.tried,
        fp32=figures["fp32"],
        int8=figures["int8"],
        teacher=figures.get("teacher"),
        labelled=parts.labelled,
        adapter=adapter,
        adapted=figures.get("adapter"),
    )
    return with_blobs(packed, {names.CARD: _card(packed).encode()})


def check_follows(before: Manifest, origin: Origin, where: HardwareClass) -> None:
    """A hub makes patches between versions of one name and class, from a lower one to a higher; grids are of a class, too.

    Raises:
        SettingError: this is no next version of that bundle.
    """
    for what, is_so, expected, got in (
        ("name", before.name == origin.name, before.name, origin.name),
        ("hardware_class", before.hardware_class == where.name, before.hardware_class, where.name),
        (
            "version",
            _numbers(before.version) < _numbers(origin.version),
            f"more than {before.version}",
            origin.version,
        ),
    ):
        if not is_so:
            raise SettingError(
                "this is no next version of the bundle that it shall follow",
                where=what,
                expected=expected,
                got=got,
                fix="name the bundle before it, of the same name and hardware class, and give a higher version",
            )


def adapter_path(bundle: Path) -> Path:
    """Where the adapter of a bundle is written: `NAME.adapter.onnx` beside `NAME.esb`."""
    return bundle.with_suffix(".adapter.onnx")


def answers_from(adapter: bytes, features: NDArray[np.floating]) -> NDArray[np.float32]:
    """An adapter's logits `[N, C]` for a student's features `[N, D]`, as a server would give them."""
    return OnnxEngine(adapter).run({FEATURES: as_sent(features)})[LOGITS].astype("float32")


def _may_tell_leverage(parts: Parts, width: int) -> bool:
    """Whether the matrix that it takes is small beside the file, or it was asked for."""
    return parts.policy.measure == "leverage" or room_for(width, len(parts.written.model)) > 0


def reweighted(packed: Packed, **changes: object) -> Packed:
    """The same bundle with other policy values, such as a budget the operator chose."""
    policy = replace(packed.policy, **changes)  # type: ignore[arg-type]  # the policy checks every value itself
    changed = replace(packed, policy=policy)
    return with_blobs(
        changed,
        {
            names.MODEL: shippable(packed.blobs[names.MODEL], policy.temperature),
            names.POLICY: policy.to_bytes(),
            names.CARD: _card(changed).encode(),
        },
    )


def with_blobs(packed: Packed, changed: dict[str, bytes]) -> Packed:
    """The bundle with these blobs in the place of others."""
    head = packed.manifest
    manifest, blobs = build(
        name=head.name, version=head.version, hardware_class=head.hardware_class, blobs=packed.blobs | changed
    )
    return replace(packed, manifest=manifest, blobs=blobs)


def golden_count(bytes_each: int) -> int:
    """How many inputs of so many bytes the probe of a bundle brings."""
    least, most = GOLDEN_SAMPLES
    return min(most, max(least, GOLDEN_BYTES // bytes_each))


def _remark_on_order(figures: dict[str, Figure], classes: int) -> None:
    """Warns where a model is surely worse than guessing: then its classes stand in another order than the labels."""
    for name, one in figures.items():
        if one.bounded and one.high < 1 / classes and name in {"fp32", "teacher"}:
            text = (
                f"{'the teacher' if name == 'teacher' else 'the model'} is worse than guessing: {one} right of {classes} classes. "
                "Are labels and names in the order of the model's outputs?"
            )
            warnings.warn(NothingLearnedWarning(text), stacklevel=4)


def _is_of_no_use(policy: Policy) -> bool:
    """Whether asking the adapter does not make answers better; warns where that is so.

    Likelihoods are told by the samples that nothing was fitted on.
    """
    report = Fields(policy.evidence, "evidence").inner("report")
    alone, both = (report.inner(voice).number("nll") for voice in ("student", "fused"))
    if both < alone:
        return False
    text = (
        f"an adapter does not make answers better (negative log-likelihood {both:.3f}, and {alone:.3f} of the student alone): the "
        "bundle has none, and its device asks nobody, since features would leave it for nothing"
    )
    warnings.warn(NoGainWarning(text), stacklevel=5)
    return True


def _accuracy(logits: NDArray[np.float32], heldout: Samples) -> Figure:
    return accuracy(logits, heldout.labels, heldout.groups)


def _golden(engine: Engine, heldout: Samples) -> Golden:
    inputs = spread(heldout.inputs, golden_count(heldout.inputs[0].nbytes))
    return Golden(input=inputs, logits=run_model(engine, inputs)[0], tolerance=TOLERANCE)


def _lineage(written: Written, origin: Origin, figures: dict[str, Figure]) -> JsonObject:
    return {
        "made_by": f"edgestill {__version__}",
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


def _card(packed: Packed) -> str:
    figures = {
        "fp32": packed.fp32,
        "int8": packed.int8,
        "teacher": packed.teacher,
        "adapter": packed.adapted,
    }
    told = {name: one for name, one in figures.items() if one is not None}
    policy, file, head = packed.policy, packed.tried[-1], packed.manifest
    alone = any(one.groups == 1 for one in told.values())
    caution = (
        "They are of one group (a person, a device), which says nothing about others.\n\n" if alone else ""
    )
    rows = "\n".join(f"| {name} | {one} | {one.rests_on()} |" for name, one in told.items())
    of = "Accuracy on the held-out data that the policy was fitted on"
    if not packed.labelled:
        of = "Agreement with the file in floats, on data without labels"
    return (
        f"# {head.name} {head.version}\n\n"
        f"{len(policy.labels)} classes: {', '.join(policy.labels)}. Model file: {format_size(file.size)}, {file.way}.\n\n"
        f"{of}, with 95 % intervals over groups:\n\n"
        f"| model | {'accuracy' if packed.labelled else 'agreement'} | on |\n|---|---|---|\n{rows}\n\n{caution}"
        f"{asking_text(policy)} Promise on the risk: {promise_text(policy)}.\n\nMay leave the device: {policy.leaves}.\n"
    )


def _numbers(version: str) -> list[int]:
    return [int(one) for one in version.split(".")]

"""A closer look at the student that was picked: by class, by confidence, by layer, and answer by answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.clock import SystemClock
from edgestill.core.manifest import MODEL
from edgestill.infer.calibration import expected_calibration_error
from edgestill.infer.confidence import softmax
from edgestill.infer.engines import engine_of
from edgestill.lab.measure import run_model, share_figure
from edgestill.lab.packing.gate import harm_by_layer
from edgestill.lab.packing.material import labelled, shown_inputs
from edgestill.lab.packing.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Engine
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.run import Run

BINS: Final = 10
_ANSWERS: Final = 1000
_WARM: Final = 50
_SHOWN: Final = 256


def closer(
    run: Run, packed: Packed, unseen: Samples | Source, hardware_class: HardwareClass, *, here: bool
) -> JsonObject:
    """What the report says of the bundle beside its footprint, on the held-out data that nothing was chosen or fitted on.

    Args:
        run: of the student.
        packed: its bundle.
        unseen: that data.
        hardware_class: where it will run.
        here: whether that is this machine, so that its answers can be timed.
    """
    heldout = labelled(unseen, "validation")
    engine = engine_of(packed.blobs[MODEL], hardware_class.name)
    probabilities = softmax(run_model(engine, heldout.inputs)[0] / packed.policy.temperature)
    right = probabilities.argmax(1) == heldout.labels
    told: dict[str, Any] = {
        "file": share_figure(right, heldout.groups).value,
        "classes": _classes(probabilities, heldout, packed.policy.labels),
        "calibration": _calibration(probabilities, heldout),
        "latencies": _histogram(engine, heldout.inputs) if here else None,
        "written": [one.as_json() for one in packed.tried],
        "layers": None,
    }
    if packed.tried[-1].way.startswith("int8"):
        shown = shown_inputs(run.train, "train")[:_SHOWN]

        def quantised(floats: bytes, in_floats: Iterable[str]) -> bytes:
            return quantise(floats, shown, hardware_class, in_floats=in_floats)

        told["layers"] = harm_by_layer(packed.model_fp32, heldout.inputs, quantised)
    return told


def _classes(probabilities: NDArray[np.float32], heldout: Samples, names: tuple[str, ...]) -> dict[str, Any]:
    """Name -> the share of its samples that are told right; none of a class that the data does not have."""
    right = probabilities.argmax(1) == heldout.labels
    found: dict[str, Any] = {}
    for number, name in enumerate(names):
        own = heldout.labels == number
        if own.any():
            found[name] = share_figure(right[own], heldout.groups[own]).as_json()
    return found


def _calibration(probabilities: NDArray[np.float32], heldout: Samples) -> dict[str, Any]:
    """The expected calibration error, and how often answers of each confidence are right."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == heldout.labels
    index = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "confidence": float(sure[index == one].mean()),
            "right": float(right[index == one].mean()),
            "n": int((index == one).sum()),
        }
        for one in range(BINS)
        if (index == one).any()
    ]
    return {"ece": expected_calibration_error(probabilities, heldout.labels), "bins": bins}


def _histogram(engine: Engine, inputs: NDArray[np.generic]) -> dict[str, Any]:
    """Seconds of each of many answers, one at a time: how many lie between which borders; the slowest hundredth is one bin."""
    clock, (name,) = SystemClock(), engine.inputs
    times = np.empty(_WARM + _ANSWERS)
    for at in range(len(times)):
        row = {name: inputs[at % len(inputs)][None]}
        start = clock.monotonic()
        engine.run(row)
        times[at] = clock.monotonic() - start
    kept = times[_WARM:]
    slow = float(np.percentile(kept, 99))
    counts, borders = np.histogram(kept[kept <= slow], bins=40)
    return {
        "borders": borders.tolist(),
        "counts": counts.tolist(),
        "slower": int((kept > slow).sum()),
        "slowest": float(kept.max()),
    }

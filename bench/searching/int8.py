"""What int8 costs the shipped examples: their own students, packed as users pack them, on data that no choice has seen.

- The intents of `examples/clinc150.py`, distilled from the sentence encoder, 100 questions an intent.
- The reference pair on the middle of CIFAR-10, distilled.
- The watch of the demonstration: its figures are those of the last walk (`bench_demo.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from edgestill.core.manifest import MODEL
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.lab.distil import distill
from edgestill.lab.measure import mean_figure, run_model
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe
from searching.teachers import world

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

if TYPE_CHECKING:
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.run import Run

RESULTS: Final = Path(__file__).resolve().parent.parent / "results"


def drops(data: Path, *, quick: bool) -> dict[str, Any]:
    """Example -> points of accuracy that int8 lost, and how the file came to be."""
    found = {"intents": _intents(data, quick=quick), "reference": _reference(data, quick=quick)}
    walk = json.loads((RESULTS / "demo_watch.json").read_text())["figures"]
    found["watch"] = {
        "drop": 100 * (walk["student_accuracy"] - walk["int8_accuracy"]),
        "from": "demo_watch.json",
    }
    return found


def _measured(run: Run, test: Samples, policy: Policy) -> dict[str, Any]:
    """The file's accuracy against the student's in floats, on test data."""
    packed = run.pack(policy)
    right = [
        (run_model(OnnxEngine(model), test.inputs)[0].argmax(1) == test.labels).astype(np.float64)
        for model in (packed.model_fp32, packed.blobs[MODEL])
    ]
    lost = mean_figure(right[0] - right[1], test.groups)
    return {
        "drop": 100 * lost.value,
        "ci95": [100 * lost.low, 100 * lost.high],
        "floats": 100 * float(right[0].mean()),
        "int8": 100 * float(right[1].mean()),
        "written": [one.as_json() for one in packed.tried],
        "n": len(test),
    }


def _intents(data: Path, *, quick: bool) -> dict[str, Any]:
    from clinc150 import BagStudent, Encoder, read, taught

    torch.manual_seed(0)
    splits, names = read(data, 6 if quick else 150)
    teacher, student = taught(Encoder(), splits["train"]), BagStudent(len(names))
    run = distill(
        teacher,
        splits["train"],
        validation=splits["val"],
        student=student,
        recipe=Recipe(epochs=2 if quick else 30, batch=128, lr=1e-2, weight_decay=0.1, soft_weight=0.8),
        inherit=False,
    )
    return _measured(run, splits["test"], Policy(labels=names))


def _reference(data: Path, *, quick: bool) -> dict[str, Any]:
    one = world("reference", data, quick=quick)
    half = np.arange(len(one.heldout)) < len(one.heldout) // 2
    student = ImageNet24(32, 64, 32)
    run = distill(
        one.teacher,
        one.train,
        validation=one.heldout.where(half),
        student=student,
        recipe=replace(one.recipe, epochs=1) if quick else one.recipe,
        augment=one.augment,
    )
    return _measured(run, one.heldout.where(~half), Policy(labels=tuple(f"class {at}" for at in range(10))))

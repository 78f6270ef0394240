"""Latencies of files, of networks and of `predict`, in turns on one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from edgestill.core.clock import SystemClock
from edgestill.core.hardware import HardwareClass
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of, installed
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student
from edgestill.infer.timing import time_calls, time_engines
from edgestill.lab.networks import ImageNet24
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgestill.core.footprint import Latency
    from edgestill.core.protocols import Engine

ROUNDS: Final = 15


def p95_of(models: dict[str, bytes], inputs: NDArray[np.generic]) -> dict[str, float]:
    """Seconds that 95 of 100 answers of each file keep."""
    engines = {name: OnnxEngine(model) for name, model in models.items()}
    return {name: one.p95.value for name, one in time_engines(engines, inputs, clock=SystemClock()).items()}


def reference_pair() -> dict[str, Any]:
    """The reference pair, batch 1, one thread: the eager teacher, and on each engine the teacher in floats and the int8 student.

    Weights are the first ones: no operator takes longer for other numbers. `predict` is the student on the usual engine with all that
    answering adds.
    """
    torch.manual_seed(0)
    teacher, student = ImageNet24(64, 128, 512).eval(), ImageNet24(32, 64, 32).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8)
    example = torch.from_numpy(inputs[:2])
    large = export_onnx(teacher, example)
    int8 = shippable(quantise(export_onnx(student, example), inputs, HardwareClass.here()))
    rows = [inputs[at : at + 1] for at in range(len(inputs))]
    tensors = [torch.from_numpy(one) for one in rows]
    labels = tuple(f"class {one}" for one in range(10))
    ready = Student(engine_of(int8), Policy(labels=labels), clock=SystemClock())

    def eager(at: int) -> object:
        with torch.inference_mode():
            return teacher(tensors[at % len(tensors)])

    calls: dict[str, Callable[[int], object]] = {"eager": eager}
    for name in installed():
        for who, model in (("teacher", large), ("student", int8)):
            calls[f"{who}_{name}"] = _asking(engine_of(model, name), rows)
    calls["predict"] = lambda at: ready.predict(rows[at % len(rows)])
    found = time_calls(calls, clock=SystemClock(), rounds=ROUNDS)
    return {name: _told(one) for name, one in found.items()}


def _asking(engine: Engine, rows: list[NDArray[np.generic]]) -> Callable[[int], object]:
    return lambda at: engine.run({"input": rows[at % len(rows)]})


def _told(one: Latency) -> dict[str, Any]:
    return {
        "p50": one.p50.value,
        "p50_quartiles": [one.p50.low, one.p50.high],
        "p95": one.p95.value,
        "rounds": one.rounds,
        "runs": one.runs,
    }

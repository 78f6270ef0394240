"""What serving costs: the teacher's endpoint against onnxruntime in the same process; and what `predict` adds to a bare run.

- The published ResNet-56 takes batches of 32 images, one client after the other: over HTTP, with raw tensors and without
  payloads, and in process, by turns. Both run it on one thread; the client shares the machine with the server.
- `predict` of a student alone, of a cascade that may ask nobody, and of one that asks about none of its inputs, each against
  `session.run` of the same file; the reference student in int8.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cascading.served import NAME, serving
from edgestill.core.clock import SystemClock
from edgestill.core.hardware import HardwareClass
from edgestill.infer.cascade import Cascade
from edgestill.infer.decision import PolicyState
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student
from edgestill.infer.timing import time_calls
from edgestill.lab.networks import ImageNet24
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise
from edgestill.link.http import HttpTransport
from edgestill.link.inference import RemoteModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH: Final = 32
ROUNDS: Final = 9
SECONDS: Final = 3.0
_LABELS: Final = tuple(f"class {at}" for at in range(10))


def measured(data: Path, *, quick: bool) -> dict[str, Any]:
    """Both."""
    return {"throughput": _throughput(data, quick=quick), "predict": _added(quick=quick)}


def _throughput(data: Path, *, quick: bool) -> dict[str, Any]:
    from cifar_resnet import teacher

    os.environ["EDGESTILL_DATA"] = str(data)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    model = export_onnx(teacher().eval(), torch.from_numpy(images[:2]))
    engine, clock = OnnxEngine(model), SystemClock()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), model, images[:4], _LABELS) as url:
        remote = RemoteModel(
            HttpTransport(clock=clock), url, model=NAME, output="probabilities", clock=clock, timeout=60
        )
        ways: dict[str, Callable[[], object]] = {
            "in_process": lambda: engine.run({"input": images}),
            "served": lambda: remote.predict(images),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 if quick else ROUNDS):
            for name, ask in ways.items():
                rates[name].append(_rate(ask, 0.3 if quick else SECONDS))
    ratios = [ours / theirs for ours, theirs in zip(rates["served"], rates["in_process"], strict=True)]
    return {
        "images_per_second": {name: float(np.median(each)) for name, each in rates.items()},
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
    }


def _rate(ask: Callable[[], object], seconds: float) -> float:
    ask()
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        ask()
        count += BATCH
    return count / (time.monotonic() - start)


class _Nobody:
    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Any:  # noqa: ARG002  # a `Predict`
        raise AssertionError("nobody is asked")


def _added(*, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    student = ImageNet24(32, 64, 32).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8)
    int8 = quantise(export_onnx(student, torch.from_numpy(inputs[:2])), inputs, HardwareClass.here())
    engine, clock = OnnxEngine(shippable(int8)), SystemClock()
    policy = Policy(labels=_LABELS, threshold=0.0, audit_share=0.0)
    alone, draw = Student(engine, policy, clock=clock), random.Random(0).random  # noqa: S311  # audits
    offline = Cascade(alone, None, policy, clock=clock, random=draw)
    sure = Cascade(alone, _Nobody(), replace(policy, escalation_share=1e-9), clock=clock, random=draw)
    sure._state = PolicyState(level=-0.2)  # noqa: SLF001  # a state in which nothing is asked about
    rows = [inputs[at : at + 1] for at in range(len(inputs))]
    calls: dict[str, Callable[[int], object]] = {
        "run": lambda at: engine.run({"input": rows[at % 32]}),
        "student": lambda at: alone.predict(rows[at % 32]),
        "offline": lambda at: offline.predict(rows[at % 32]),
        "sure": lambda at: sure.predict(rows[at % 32]),
    }
    found = time_calls(calls, clock=clock, rounds=3 if quick else 15)
    p50 = {name: one.p50.value for name, one in found.items()}
    return {
        "p50_us": {name: 1e6 * value for name, value in p50.items()},
        "added_us": {name: 1e6 * (p50[name] - p50["run"]) for name in ("student", "offline", "sure")},
    }

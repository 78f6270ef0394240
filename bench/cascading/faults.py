"""A device whose cloud is killed, frozen, slow or mad: does its caller wait longer than allowed, or see an error, and is the cloud found again?

`edgestill serve` runs the larger model, a relay before it is what the device knows, all as processes over real sockets. Every input is
escalated, with a deadline.

- How long the caller waits is measured without a breaker, so that each question really waits for the cloud: its 99th percentile
  over the deadline.
- How soon the cloud is found again is measured with the breaker that devices have, after an outage of `OUTAGE` seconds: from its
  return to the first answer of the teacher, over the pause that was kept then.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cascading.served import serving
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError
from edgestill.infer.cascade import Cascade
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import ALWAYS, Policy
from edgestill.infer.student import Student
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.http import HttpTransport
from edgestill.link.inference import LONGEST_PAUSE, RemoteModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEADLINE: Final = 0.05
QUESTIONS: Final = 200
OUTAGE: Final = 4.0
PATIENCE: Final = 30.0
FAULTS: Final = ("killed", "frozen", "slow", "garbage")
_LABELS: Final = ("left", "right")
_RELAY: Final = Path(__file__).with_name("relay.py")


@dataclass(slots=True)
class Cloud:
    """The relay, and what it stands before."""

    port: int
    target: int
    process: subprocess.Popen[str] | None = None

    def start(self, mode: str) -> None:
        """Begins to answer."""
        command = [sys.executable, str(_RELAY), str(self.port), str(self.target), mode]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own program
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """Ends without a word."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # reaches a stopped one as well
            self.process.wait()

    def fail(self, fault: str) -> None:
        """From now on."""
        assert self.process is not None
        if fault == "frozen":
            os.kill(self.process.pid, signal.SIGSTOP)
            return
        self.kill()
        if fault != "killed":
            self.start(fault)

    def heal(self, fault: str) -> None:
        """From now on it answers again."""
        assert self.process is not None
        if fault == "frozen":
            os.kill(self.process.pid, signal.SIGCONT)
            return
        self.kill()
        self.start("pass")


def measured(*, quick: bool) -> dict[str, Any]:
    """Each fault's figures."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), _model(), _input(0), _LABELS) as url:
        cloud = Cloud(_free_port(), int(url.rpartition(":")[2]))
        cloud.start("pass")
        try:
            return {fault: _one(cloud, fault, quick=quick) for fault in FAULTS}
        finally:
            cloud.kill()


def _one(cloud: Cloud, fault: str, *, quick: bool) -> dict[str, Any]:
    count = 10 if quick else QUESTIONS
    device, _ = _device(cloud, Breaker(threshold=10**6))
    healthy = _asked(device, count)
    cloud.fail(fault)
    ill = _asked(device, count)
    cloud.heal(fault)
    return {
        "errors": healthy["errors"] + ill["errors"],
        "healthy_p50_ms": 1e3 * float(np.median(healthy["seconds"])),
        "healthy_by_teacher": healthy["by_teacher"],
        "ill_by_teacher": ill["by_teacher"],
        "p99_over_deadline_ms": 1e3 * (float(np.quantile(ill["seconds"], 0.99)) - DEADLINE),
        "longest_ms": 1e3 * float(ill["seconds"].max()),
        "recovery": _recovery(cloud, fault, quick=quick),
    }


def _asked(device: Cascade, count: int) -> dict[str, Any]:
    """So many questions, one after the other."""
    seconds, errors, by_teacher = np.zeros(count), 0, 0
    for place in range(count):
        start = time.monotonic()
        try:
            answer = device.predict(_input(place), deadline=start + DEADLINE)
            by_teacher += answer.decided_by == ("teacher",)
        except EdgestillError:
            errors += 1
        seconds[place] = time.monotonic() - start
    return {"seconds": seconds, "errors": errors, "by_teacher": by_teacher / count}


def _recovery(cloud: Cloud, fault: str, *, quick: bool) -> dict[str, float]:
    """Seconds from the cloud's return to its first answer, and the pause that the breaker kept then."""
    device, guard = _device(cloud, Breaker(longest=LONGEST_PAUSE))
    assert _asked(device, 5)["by_teacher"] > 0
    cloud.fail(fault)
    gone = time.monotonic()
    while time.monotonic() - gone < (OUTAGE / 4 if quick else OUTAGE):
        _asked(device, 1)
    cloud.heal(fault)
    interval, back = guard.interval, time.monotonic()
    while time.monotonic() - back < PATIENCE:
        if _asked(device, 1)["by_teacher"]:
            break
        time.sleep(0.005)
    seconds = time.monotonic() - back
    return {"seconds": seconds, "interval": interval, "over_interval": seconds / interval}


def _device(cloud: Cloud, breaker: Breaker) -> tuple[Cascade, Guard]:
    """A student that asks about everything, and believes what it is told."""
    clock = SystemClock()
    policy = Policy(labels=_LABELS, threshold=ALWAYS, escalation_share=1.0, audit_share=1.0, alpha=1.0)
    guard = Guard(breaker, clock=clock, random=random.Random(0).random)  # noqa: S311  # jitter
    remote = RemoteModel(
        HttpTransport(clock=clock),
        f"http://127.0.0.1:{cloud.port}",
        model="large",
        output="probabilities",
        clock=clock,
        timeout=5.0,
        breaker=guard,
    )
    student = Student(OnnxEngine(_model()), policy, clock=clock)
    return Cascade(student, remote, policy, clock=clock, random=lambda: 0.5), guard


def _model() -> bytes:
    """Two classes out of sixteen numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "weight"], ["logits"]),
            helper.make_node("Relu", ["logits"], ["features"]),
        ],
        "large",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 16])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 2]),
        ],
        [numpy_helper.from_array(np.eye(16, 2, dtype=np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _input(place: int) -> NDArray[np.float32]:
    return np.random.default_rng(place).normal(size=(1, 16)).astype(np.float32)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port

"""A device and the real hub, each a process: a rollout, a bundle that falls back, evidence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from device_bundles import HERE, batches, model, tiny_bundle
from device_fleet import Publisher, until

from edgestill.device.client import LocalClient
from edgestill.device.main import main
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient

if TYPE_CHECKING:
    from pathlib import Path


def test_a_rollout_reaches_a_device_and_a_bad_one_stops_there(tmp_path: Path) -> None:
    """The hub sees what serves, counts what was escalated, and pauses the rollout that fell back."""
    (tmp_path / "teacher.onnx").write_bytes(model(1))
    processes: list[subprocess.Popen[bytes]] = []

    def start(module: str, *arguments: str) -> str:
        ready = tmp_path / f"{module}.ready"
        command = [sys.executable, "-m", f"edgestill.{module}", *arguments, "--ready", str(ready)]
        with (tmp_path / f"{module}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, stderr=log, env=os.environ | {"EDGESTILL_LOG": "INFO"})
            )
        until(ready.exists)
        return ready.read_text(encoding="utf-8").strip()

    try:
        hub = ["up", "--home", str(tmp_path / "hub"), "--port", "0", "--poll-interval", "0.1"]
        url = start("hub.main", *hub, "--teacher", str(tmp_path / "teacher.onnx"))
        token = (tmp_path / "hub" / "operator.token").read_text(encoding="utf-8").strip()
        operator = OperatorClient(HttpTransport(), url, token=token)
        publisher = Publisher(operator)
        publisher.publish("1.0.0", tiny_bundle("1.0.0", seed=2))
        home = tmp_path / "device"
        joining = [
            "join",
            "--home",
            str(home),
            "--hub",
            url,
            "--token",
            operator.join_token(),
            "--name",
            "d1",
        ]
        assert main(joining) == 0
        start(
            "device.main", "run", "--home", str(home), "--health-every", "100ms", "--health-window", "300ms"
        )

        first = operator.start_rollout("tiny/1.0.0")
        until(lambda: operator.rollout(first)["state"] == "done")
        with LocalClient.open(home) as client:
            answer = client.predict(batches(20, 1))
        assert answer.decided_by == ("fused",) * 20
        assert answer.teacher is not None
        assert np.isfinite(answer.teacher).all()
        samples = until(lambda: (got := operator.samples()).outputs and got)
        assert {one.name for one in samples.outputs} >= {"input", "teacher", "audit"}

        publisher.publish("1.1.0", tiny_bundle("1.1.0", seed=2, golden_seed=3))
        second = operator.start_rollout("tiny/1.1.0")
        until(lambda: operator.rollout(second)["state"] == "paused")
        member = cast("Any", operator.rollout(second)["devices"])["d1"]
        assert member["state"] == "fell-back"
        assert "probe-failed" in member["reason"]
        with LocalClient.open(home) as client:
            assert client.status()["release"] == "tiny/1.0.0"
            assert len(client.predict(batches(1, 1))) == 1
        assert HERE in str(operator.fleet())
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in processes]
    assert codes == [0, 0]

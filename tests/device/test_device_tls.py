"""A device and its hub, each a process, over mutual TLS: join, a rollout, escalation, a certificate that is lost and comes anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

from device_bundles import batches, model, tiny_bundle
from device_fleet import Publisher, until

from edgestill.device.client import LocalClient
from edgestill.device.main import main
from edgestill.device.status import read_status
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.link.tls import hub_context

if TYPE_CHECKING:
    from pathlib import Path


def test_a_device_lives_by_its_certificate(tmp_path: Path) -> None:
    """The hub requires certificates; both processes of the agent show the one that holds, also one that came anew."""
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
        tls = ["--tls", "--require-certificates", "--certificate-lifetime", "1h"]
        url = start("hub.main", *hub, *tls, "--teacher", str(tmp_path / "teacher.onnx"))
        assert url.startswith("https://")
        token = (tmp_path / "hub" / "operator.token").read_text(encoding="utf-8").strip()
        believed = HttpTransport(tls=hub_context((tmp_path / "hub" / "authority.pem").read_text()))
        operator = OperatorClient(believed, url, token=token)
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
        first = (home / "certificate.pem").read_bytes()
        start(
            "device.main", "run", "--home", str(home), "--health-every", "100ms", "--health-window", "300ms"
        )
        rollout = operator.start_rollout("tiny/1.0.0")
        until(lambda: operator.rollout(rollout)["state"] == "done")
        with LocalClient.open(home) as client:
            answer = client.predict(batches(20, 1))
        assert answer.decided_by == ("fused",) * 20
        # without a certificate the credential gets another, and nothing else
        (home / "certificate.pem").unlink()
        until((home / "certificate.pem").exists)
        assert (home / "certificate.pem").read_bytes() != first
        with LocalClient.open(home) as client:
            assert client.predict(batches(20, 2)).decided_by == ("fused",) * 20
        (shown,) = cast("Any", operator.fleet())["devices"]
        assert shown["certified_until"] > shown["enrolled_at"]
        assert read_status(home)["certificate"] is not None
        operator.revoke("d1")
        agent_log = tmp_path / "device.main.log"
        until(lambda: "the credential was revoked" in agent_log.read_text())
        assert "secret" not in agent_log.read_text()
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in processes]
    assert codes == [0, 0]

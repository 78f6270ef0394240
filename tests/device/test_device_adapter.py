"""A device from which nothing but features may leave: with the real hub as a process, and as a gateway in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import adapter, batches, features_of, logits_of, model, policy_of, tiny_bundle, weights

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.jsonio import Fields
from edgestill.core.wire import Health
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.frames import Frame
from edgestill.device.home import Home
from edgestill.device.main import main
from edgestill.device.model import Serving
from edgestill.device.neighbours import Neighbours, Upstream
from edgestill.device.serve.models import of_bundle
from edgestill.device.serve.tokens import Anybody
from edgestill.infer.adapter import as_sent, model_name
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.serving.app import App
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.served import of_engine
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.repository import create_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.infer.policy import Policy

FILE = adapter(2)
NAME = model_name(Digest.of(FILE))


def by_features(file: bytes = FILE, **changes: object) -> Policy:
    """A policy that asks about everything, with features."""
    usual: dict[str, object] = {"leaves": "features", "adapter": Digest.of(file), "alpha": 0.25}
    return policy_of(**(usual | changes))


def fused(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What student and adapter say together: the adapter sees halves of the student's features."""
    sent = as_sent(features_of(1, batch)).astype(np.float32)
    said: NDArray[np.float32] = 0.25 * softmax(sent @ (8 * weights(2)[1])) + 0.75 * softmax(
        logits_of(1, batch)
    )
    return said


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, OperatorClient]]:
    """A hub with a teacher and an adapter: its address, and its operator."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "teacher.onnx").write_bytes(model(1))
    (folder / "student.adapter.onnx").write_bytes(FILE)
    ready, clock, pause = folder / "ready", SystemClock(), threading.Event()
    files = ["--teacher", str(folder / "teacher.onnx"), "--adapter", str(folder / "student.adapter.onnx")]
    command = [
        sys.executable,
        "-m",
        "edgestill.hub.main",
        "up",
        "--home",
        str(folder / "home"),
        "--port",
        "0",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *files, "--ready", str(ready)], stderr=log, env=os.environ | {"EDGESTILL_LOG": "INFO"}
        )
    try:
        end = clock.monotonic() + 30
        while not ready.exists():
            assert clock.monotonic() < end, (folder / "log").read_text()
            pause.wait(0.05)
        url = ready.read_text(encoding="utf-8").strip()
        token = (folder / "home" / "operator.token").read_text(encoding="utf-8").strip()
        operator = OperatorClient(HttpTransport(), url, token=token)
        give_root(operator)
        yield url, operator
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def give_root(operator: OperatorClient) -> None:
    """Without one no device may join."""
    online = PublicKey.from_json(operator.online_key(), where="online")
    root, targets = SigningKey.generate(), SigningKey.generate().public
    operator.upload_root(
        create_root(root=[root], targets=[targets], online=online, expires=SystemClock().now() + 86_400)
    )


def joined(path: Path, hub: tuple[str, OperatorClient], *, leaves: str = "raw") -> Home:
    """A device of this hub."""
    url, operator = hub
    found = ["--home", str(path), "--hub", url, "--token", operator.join_token(), "--name", path.name]
    assert main(["join", *found, "--leaves", leaves]) == 0
    return Home.open(path)


def opened(home: Home, policy: Policy) -> Serving:
    """A bundle that serves there."""
    path = home.path / "x.esb"
    path.write_bytes(tiny_bundle(policy=policy))
    return Serving.open(home, path, clock=SystemClock(), random=lambda: 0.0)


def predicted(serving: Serving, batch: NDArray[np.float32]) -> Answer:
    """What it says."""
    return answer_from_frame(serving.answer(Frame({"op": "predict"}, (to_tensor("input", batch),))))


def test_a_hub_answers_from_features_and_sees_no_input(
    tmp_path: Path, hub: tuple[str, OperatorClient]
) -> None:
    """Fused with the adapter's weight; no label, no audit, no evidence; the device tells what it sends, and to whom."""
    serving, batch = opened(joined(tmp_path / "d1", hub), by_features()), batches(6, 3)
    answer = predicted(serving, batch)
    np.testing.assert_allclose(answer.probabilities, fused(batch), atol=1e-5)
    assert answer.tiers == ("adapter",)
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all()
    status = serving.status()
    assert (status["escalates"], status["sends"], status["asks"]) == (True, "features", ["adapter"])
    health = Health.from_fields(Fields(serving.collect().header, "engine").inner("health"))
    assert (health.escalated, health.audits, health.audits_lost, health.errors) == (6, 0, 0, 0)
    assert [one.shape[0] for one in hub[1].samples().outputs] == [0] * 4, "no evidence"


def test_a_device_that_lets_nothing_leave_keeps_its_features(
    tmp_path: Path, hub: tuple[str, OperatorClient]
) -> None:
    """Whatever the bundle says."""
    serving = opened(joined(tmp_path / "d2", hub, leaves="nothing"), by_features())
    answer = predicted(serving, batches(3, 1))
    assert (answer.tiers, answer.teacher) == ((), None)
    assert (serving.status()["sends"], serving.status()["asks"]) == ("nothing", [])


def test_a_device_of_features_asks_no_teacher_for_a_bundle_of_raw(
    tmp_path: Path, hub: tuple[str, OperatorClient]
) -> None:
    """That bundle was fitted for the teacher, and no adapter is named: the student answers alone."""
    serving = opened(joined(tmp_path / "d3", hub, leaves="features"), policy_of())
    assert predicted(serving, batches(3, 1)).tiers == ()
    assert serving.status()["sends"] == "nothing"


def test_a_hub_without_this_adapter_costs_nothing_but_the_question(
    tmp_path: Path, hub: tuple[str, OperatorClient]
) -> None:
    """The student's answer stands, and after three such refusals the hub is left alone for a while."""
    serving = opened(joined(tmp_path / "d4", hub), by_features(adapter(3)))
    for _ in range(5):
        answer = predicted(serving, batches(1, 1))
        assert answer.decided_by == ("student",)
        assert answer.teacher is None
    health = Health.from_fields(Fields(serving.collect().header, "engine").inner("health"))
    assert health.escalated == 5
    three = 3 * 600
    assert 0 < health.bytes_up < three, "the last two were not sent"


def test_attack_neighbours_get_no_features(tmp_path: Path, hub: tuple[str, OperatorClient]) -> None:
    """They would take them for inputs, and are not named by the policy."""
    home = joined(tmp_path / "d5", hub)
    Neighbours().with_one(Upstream(name="gateway", url="http://127.0.0.1:1")).write(home.neighbours)
    serving = opened(home, by_features())
    assert predicted(serving, batches(2, 1)).tiers == ("adapter",)
    assert serving.status()["asks"] == ["adapter"]


def test_a_gateway_asks_the_adapter_of_its_bundle(tmp_path: Path) -> None:
    """Under its name, at whatever server; what it answered is no teacher's word for who asks the gateway."""
    batch, clock = batches(4, 2), FakeClock()
    served = of_engine(OnnxEngine(FILE), name=NAME, version="1")
    upstairs = Endpoint([served], about=About(name="up", version="0"), clock=clock)
    path = tmp_path / "tiny.esb"
    path.write_bytes(tiny_bundle(policy=by_features()))
    with AsgiTransport(App(upstairs, gate=Anybody())) as there:
        gateway = of_bundle(
            Bundle.open(path),
            upstream=Upstream(url="http://up.test", transport=there),
            neighbours=Neighbours(each=(Upstream(name="near", url="http://127.0.0.1:1"),)),
            clock=clock,
            random=lambda: 0.0,
        )
        rows = gateway.run(batch, None)
    found: Any = rows.outputs["probabilities"]
    np.testing.assert_allclose(found, fused(batch), atol=1e-5)
    assert rows.told["tiers"] == ("adapter",) * 4
    assert rows.told["decided_by"] == ("fused",) * 4

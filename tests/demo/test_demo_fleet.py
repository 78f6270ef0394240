"""The fleet's own part: a real hub in a process, a publisher beside it, and devices that say what the test wants."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from demo_worlds import running
from onnx import TensorProto, helper, numpy_helper

from edgestill.core import bundle
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import DemoError, NotFoundError
from edgestill.core.manifest import REQUIRED
from edgestill.core.oip import InferRequest, Tensor
from edgestill.core.protocols import Request
from edgestill.core.wire import Enrol, Enrolled, Health, Report, reports_to_bytes
from edgestill.demo import fleet as room
from edgestill.demo.fleet import Fleet, Publisher
from edgestill.demo.processes import Processes
from edgestill.learn.statistics import Statistics
from edgestill.link.http import HttpTransport
from edgestill.testing.clock import FakeClock
from edgestill.trust.keys import SigningKey
from edgestill.trust.repository import check_root, check_targets

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASS = "x86_64-vnni-onnxruntime"
EVERYBODY: list[Device] = []
"""All devices of the hub, in the order in which they came."""


def packed(version: str = "1.0.0") -> Any:
    """A bundle of a few kilobytes, as the lab hands it over; versions differ in a few bytes."""
    rng = np.random.default_rng(1)
    model = bytearray(rng.bytes(20_000))
    model[:20] = version.encode().ljust(20)
    blobs = {name: f"{name} of the test".encode() for name in REQUIRED} | {"model.onnx": bytes(model)}
    manifest, ordered = bundle.build(name="tiny", version=version, hardware_class=CLASS, blobs=blobs)
    return SimpleNamespace(manifest=manifest, blobs=ordered)


def teacher() -> bytes:
    """`logits = input @ W`, W `[4, 3]`."""
    weight = np.outer(np.ones(4), np.arange(1, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["logits"])],
        "teacher",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Device:
    """One that says what the test wants."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.name, self.fleet = name, fleet
        self.transport = HttpTransport()
        self.reports = 0
        message = Enrol(join_token=fleet.operator.join_token(), device=name, hardware_class=CLASS)
        body = json.dumps(self.call("POST", "/v1/enrol", message.to_bytes())).encode()
        self.secret = Enrolled.from_bytes(body).credential
        EVERYBODY.append(self)

    secret = ""

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        """A request with its credential."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.secret:
            named["authorization"] = f"Bearer {self.secret}"
        response = self.transport.send(Request(method, self.fleet.url + path, named, body), timeout=20)
        data = b"".join(response.chunks())
        assert response.status < 300, data
        return json.loads(data) if headers.get("accept") != "anything" else data

    def tells(self, release: str, **what: Any) -> None:
        """A report."""
        self.reports += 1
        report = Report(id=f"r{self.reports}", at=1.0, bundle=str(Digest.of(b"x")), release=release, **what)
        self.call("POST", "/v1/reports", reports_to_bytes([report]))

    def asks(self, batch: Any, purpose: str) -> None:
        """Asks the teacher, and lets the hub keep it."""
        tensor = Tensor("input", "FP32", batch.shape, batch.astype("<f4").tobytes())
        body, length = InferRequest(
            inputs=(tensor,), parameters={"retain": True, "purpose": purpose}, binary=True
        ).encode(binary=True)
        header = {"inference_header_content_length": str(length), "accept": "anything"}
        self.call("POST", "/v2/models/teacher/infer", body, **header)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A hub in a process of its own."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "logs").mkdir()
    clock = SystemClock()
    with Processes(folder / "logs", clock=clock, pause=time.sleep) as processes:
        made = Fleet.found(folder, teacher(), processes, clock=clock)
        EVERYBODY.clear()
        try:
            yield made
        finally:
            made.close()
    assert running(str(folder)) == []


def test_the_hub_is_for_this_machine_alone(fleet: Fleet) -> None:
    """It listens on the loopback, on a port that was free."""
    assert fleet.url.startswith("http://127.0.0.1:")
    assert fleet.operator.fleet() == {"devices": []}


def test_without_evidence_the_walk_says_so(fleet: Fleet) -> None:
    """Instead of making a student of nothing."""
    with pytest.raises(DemoError, match="no evidence came in"):
        fleet.evidence()
    with pytest.raises(NotFoundError):
        fleet.statistics(Digest.of(b"nobody"))


def test_a_release_is_signed_and_can_be_had(fleet: Fleet) -> None:
    """Listed under its name, both versions beside each other, and a patch from one to the next."""
    first, second = fleet.publish(packed("1.0.0")), fleet.publish(packed("1.1.0"))
    assert (first, second) == ("tiny/1.0.0", "tiny/1.1.0")
    told: Any = fleet.operator.releases()["releases"]
    assert {one["release"] for one in told} >= {first, second}
    patch = fleet.patch_size(first, second)
    assert patch is not None
    assert 0 < patch < 5_000
    assert fleet.patch_size(second, first) is None


def test_no_key_of_the_publishers_is_in_the_hubs_folder(fleet: Fleet) -> None:
    """A stolen hub can sign no list: the private keys there are its own, and that of the fleet's authority."""
    fleet.publish(packed("1.2.0"))
    home = fleet._folder / "hub"
    private = [
        path.name for path in home.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert sorted(private) == ["authority.key", "online.pem"]


def test_a_rollout_that_pauses_ends_the_walk_with_its_reason(fleet: Fleet) -> None:
    """A device falls back: the error names release and device; what was heard meanwhile was handed on."""
    release = fleet.publish(packed("2.0.0"))
    Device(fleet, "falls-back")
    heard: list[Any] = []

    def listen(state: Any) -> None:
        heard.append(state["state"])
        for device in EVERYBODY:
            if is_assigned(device, release):
                device.tells(release, state="fell-back", reason="too hot")

    with pytest.raises(
        DemoError, match=r"the rollout was stopped; at tiny/2\.0\.0; expected .*; got .* failed, of 1"
    ):
        fleet.roll_out(release, heard=listen)
    assert (heard[0], heard[-1]) == ("running", "paused")
    newest: Any = fleet.operator.rollouts()["rollouts"]
    assert newest[0]["release"] == release
    fleet.operator.rollback(str(newest[0]["id"]))


def test_a_rollout_that_is_confirmed_is_done(fleet: Fleet) -> None:
    """A fifth first, then the rest; the last state is handed back."""
    release = fleet.publish(packed("2.1.0"))
    for number in range(3):
        Device(fleet, f"good-{number}")
    confirmed: list[str] = []

    def listen(_state: Any) -> None:
        for device in EVERYBODY:
            if device.name not in confirmed and is_assigned(device, release):
                device.tells(release, state="confirmed")
                confirmed.append(device.name)

    state = fleet.roll_out(release, heard=listen)
    assert state["state"] == "done"
    assert sorted(confirmed) == sorted(device.name for device in EVERYBODY)


def is_assigned(device: Device, release: str) -> bool:
    """Whether the hub wants this of it."""
    told = device.call("GET", "/v1/poll")["assignment"]
    return told is not None and told["signed"]["target"].startswith(f"{release}/")


def test_health_is_that_of_devices_that_have_told_some(fleet: Fleet) -> None:
    """A device that never reported is not among them."""
    Device(fleet, "quiet")
    device = Device(fleet, "healthy")
    device.tells("tiny/2.1.0", health=Health(answers=5, escalated=2, bytes_up=77, drift="confirmed"))
    found = fleet.health()
    assert "quiet" not in found
    assert found["healthy"].integer("bytes_up") == 77
    assert found["healthy"].text("drift") == "confirmed"


def test_evidence_comes_whole_over_many_pages(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which it came, with who asked and why."""
    monkeypatch.setattr(room, "_PAGE", 7)
    one, other = Device(fleet, "asks"), Device(fleet, "audits")
    batch = np.arange(80, dtype=np.float32).reshape(20, 4)
    one.asks(batch[:12], "escalation")
    other.asks(batch[12:], "audit")
    found = fleet.evidence()
    assert (found.inputs == batch).all()
    assert np.allclose(found.teacher[:, 0], batch.sum(1))
    assert found.audit.tolist() == [False] * 12 + [True] * 8
    assert found.devices == ("asks",) * 12 + ("audits",) * 8


def test_sums_of_the_devices_add_up(fleet: Fleet) -> None:
    """Of the backbone that was asked for."""
    backbone = Digest.of(b"backbone")
    rng = np.random.default_rng(0)
    empty = Statistics.empty(backbone=backbone, window=1, classes=2, features=3)
    total = 0
    for name in ("sums-1", "sums-2"):
        sums = empty.add(rng.normal(size=(8, 3)), np.eye(2)[rng.integers(0, 2, 8)])
        total += sums.n
        Device(fleet, name).call("POST", "/v1/evidence/statistics", sums.to_bytes(), x_edgestill_id="m1")
    assert fleet.statistics(backbone).n == total


def test_the_publishers_lists_follow_each_other() -> None:
    """Each names all that was listed before, is one version newer, and is believed by who believes the root."""
    clock = FakeClock(now=1_700_000_000.0)
    publisher, online = Publisher(clock=clock), SigningKey.generate()
    root = publisher.root(online.public)
    check_root(root=root, previous=None, now=clock.now())
    previous, names = None, []
    for number in range(3):
        names.append(f"tiny/1.{number}.0/{CLASS}.esb")
        targets = publisher.listed(names[-1], b"archive %d" % number)
        listed = check_targets(root=root, previous=previous, targets=targets, now=clock.now())
        assert sorted(listed) == names
        previous = targets

"""A hub, its publisher and its devices in one process: the real application over an in-memory transport, on a fake clock."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.core.manifest import REFERENCE, REQUIRED
from edgestill.core.oip import InferRequest, InferResponse, Tensor
from edgestill.core.protocols import Request
from edgestill.core.release import target_name
from edgestill.core.wire import Enrol, Enrolled, Health, Report, reports_to_bytes
from edgestill.hub.app import create_app
from edgestill.hub.home import Home
from edgestill.hub.service import Hub
from edgestill.hub.settings import Settings
from edgestill.learn.statistics import Statistics
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import sign_targets
from edgestill.trust.root import create_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.wire import DeviceState

URL = "http://hub.test"
CLASS = "x86_64-vnni-onnxruntime"
DAY = 86_400.0
INPUTS, CLASSES = 4, 3


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Device:
    """A device that does as the test says."""

    world: World
    id: str
    credential: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """A request with the device's credential."""
        return self.world.call(method, path, body, authorization=f"Bearer {self.credential}", **headers)

    def poll(self) -> Any:
        """The signed part of the assignment, None where there is none."""
        reply = self.call("GET", "/v1/poll")
        assert reply.status == 200, reply
        envelope = reply.json["assignment"]
        return None if envelope is None else envelope["signed"]

    def report(self, *reports: Report) -> Any:
        """Sends reports."""
        reply = self.call("POST", "/v1/reports", reports_to_bytes(list(reports)))
        assert reply.status == 200, reply
        return reply.json

    def told(self, release: str, state: DeviceState, **changes: Any) -> Report:
        """A report of a step, not sent."""
        return Report(**(self._about(release) | {"state": state} | changes))

    def tells(self, release: str, state: DeviceState, **changes: Any) -> Any:
        """Reports a step."""
        return self.report(self.told(release, state, **changes))

    def audited(self, release: str, audits: int, agreed: int) -> Any:
        """Reports health figures with so many audits."""
        return self.report(self.figures(release, audits, agreed))

    def figures(self, release: str, audits: int, agreed: int) -> Report:
        """Health figures with so many audits, not sent."""
        figures = Health(answers=10 * audits, escalated=audits, audits=audits, agreed=agreed)
        return Report(**self._about(release), health=figures)

    def _about(self, release: str) -> dict[str, Any]:
        return {
            "id": f"{self.id}-{next(self.numbers)}",
            "at": self.world.clock.now(),
            "bundle": str(Digest.of(release.encode())),
            "release": release,
        }


class World:
    """The hub and everybody around it."""

    def __init__(
        self,
        folder: Path,
        clock: FakeClock,
        settings: Settings,
        teacher: bytes | None,
        adapters: Sequence[bytes] = (),
    ) -> None:
        self.folder = folder
        self.clock = clock
        home = Home.init(folder)
        self.operator = (folder / "operator.token").read_text().strip()
        self.root_key, self.targets_key = SigningKey.generate(), SigningKey.generate()
        self.online = home.key.public
        self.targets: bytes | None = None
        secrets = random.Random(5)
        self.hub = Hub.open(
            folder,
            clock=clock,
            chance=lambda: 0.5,
            secret=lambda: secrets.randbytes(24).hex(),
            settings=settings,
            teacher=teacher,
            adapters={f"adapter {number}": one for number, one in enumerate(adapters)},
        )
        self.transport = AsgiTransport(create_app(self.hub))
        self.transport.open()

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """One request; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.transport.send(Request(method, URL + path, named, body), timeout=60)
        return Reply(response.status, dict(response.headers), b"".join(response.chunks()))

    def admin(self, method: str, path: str, body: bytes | dict[str, Any] = b"") -> Reply:
        """One request by the operator."""
        data = body if isinstance(body, bytes) else canonical(body)
        return self.call(method, f"/v1/admin/{path}", data, authorization=f"Bearer {self.operator}")

    def root(self, **changes: Any) -> bytes:
        """Root metadata that names this hub."""
        given: dict[str, Any] = {
            "root": [self.root_key],
            "targets": [self.targets_key.public],
            "online": self.online,
            "expires": self.clock.now() + 365 * DAY,
        }
        return create_root(**(given | changes))

    def give_root(self) -> bytes:
        """Uploads a root."""
        root = self.root()
        assert self.admin("POST", "root", root).status == 200
        return root

    def upload(self, archive: bytes) -> TargetInfo:
        """Uploads an archive."""
        reply = self.admin("PUT", "blobs", archive)
        assert reply.status == 201, reply
        return TargetInfo(reply.json["size"], Digest.parse(reply.json["digest"]))

    def sign(self, add: Mapping[str, TargetInfo], remove: tuple[str, ...] = ()) -> bytes:
        """The publisher's next list."""
        return sign_targets(
            previous=self.targets,
            add=add,
            remove=remove,
            keys=[self.targets_key],
            expires=self.clock.now() + 90 * DAY,
        )

    def publish(
        self,
        *versions: str,
        hardware_class: str = CLASS,
        retire: tuple[str, ...] = (),
        reference: bytes | None = None,
    ) -> None:
        """Publishes `watch/VERSION` for each version, with its own statistics where some are given."""
        add = {}
        for version in versions:
            archive = esb(version, hardware_class=hardware_class, reference=reference)
            add[target_name("watch", version, hardware_class)] = self.upload(archive)
        targets = self.sign(add, retire)
        reply = self.admin("POST", "targets", targets)
        assert reply.status == 200, reply
        self.targets = targets

    def token(self, uses: int = 1, expires_in: float = 3600) -> str:
        """A join token."""
        reply = self.admin("POST", "join-tokens", {"uses": uses, "expires_in": expires_in})
        assert reply.status == 201, reply
        return str(reply.json["token"])

    def enrol(
        self, name: str, *, token: str | None = None, hardware_class: str = CLASS, **labels: str
    ) -> Device:
        """A new device."""
        message = Enrol(
            join_token=token or self.token(), device=name, hardware_class=hardware_class, labels=labels
        )
        reply = self.call("POST", "/v1/enrol", message.to_bytes())
        assert reply.status == 201, reply
        return Device(self, name, Enrolled.from_bytes(reply.body).credential)

    def fleet(self, count: int, **labels: str) -> list[Device]:
        """Devices d0, d1, ..."""
        token = self.token(uses=count)
        return [self.enrol(f"d{index}", token=token, **labels) for index in range(count)]

    def roll_out(self, release: str, *stages: float, **rest: Any) -> int:
        """Starts a rollout."""
        body = {"release": release, "stages": list(stages or (1,)), **rest}
        reply = self.admin("POST", "rollouts", body)
        assert reply.status == 201, reply
        return int(reply.json["id"])

    def rollout(self, number: int) -> Any:
        """How the rollout stands."""
        reply = self.admin("GET", f"rollouts/{number}")
        assert reply.status == 200, reply
        return reply.json

    def confirm_all(self, devices: list[Device], release: str) -> None:
        """Every device that is assigned the release confirms it, until no further one is."""
        done: set[str] = set()
        while True:
            some = [one for one in devices if one.id not in done and _is_assigned(one, release)]
            if not some:
                return
            for one in some:
                one.tells(release, "confirmed")
                done.add(one.id)


def _is_assigned(device: Device, release: str) -> bool:
    told = device.poll()
    return told is not None and told["target"].startswith(f"{release}/")


@contextmanager
def world(
    folder: Path,
    *,
    clock: FakeClock | None = None,
    settings: Settings | None = None,
    teacher: bytes | None = None,
    adapters: Sequence[bytes] = (),
) -> Iterator[World]:
    """An open world; nothing may have crashed in it when it ends."""
    made = World(folder, clock or FakeClock(), settings or Settings(longest_poll=5), teacher, adapters)
    try:
        yield made
    finally:
        made.transport.close()
    assert made.transport.crashes == []


def esb(
    version: str = "1.0.0",
    *,
    hardware_class: str = CLASS,
    name: str = "watch",
    reference: bytes | None = None,
) -> bytes:
    """A bundle's archive: versions differ in a few bytes of their model."""
    rng = np.random.default_rng(1)
    model = bytearray(rng.bytes(20_000))
    model[:20] = version.encode().ljust(20)
    blobs = {blob: f"{blob} of {name}".encode() for blob in REQUIRED} | {"model.onnx": bytes(model)}
    if reference is not None:
        blobs[REFERENCE] = reference
    manifest, ordered = bundle.build(name=name, version=version, hardware_class=hardware_class, blobs=blobs)
    return bundle.archive_bytes(manifest, ordered)


def teacher_model(*, outputs: tuple[str, ...] = ("logits",)) -> bytes:
    """An ONNX model: `logits = input @ W`, W `[4, 3]` of ones times (1, 2, 3)."""
    weight = np.outer(np.ones(INPUTS), np.arange(1, CLASSES + 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], [name]) for name in outputs],
        "teacher",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in outputs],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def adapter_model(
    kind: int = TensorProto.FLOAT16, name: str = "features", *, output: str = "logits"
) -> bytes:
    """An adapter: `logits = features @ W`, W `[4, 3]` of ones times (1, 2, 3), features in half precision."""
    weight = np.outer(np.ones(INPUTS), np.arange(1, CLASSES + 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [name], ["single"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["single", "w"], [output]),
        ],
        "adapter",
        [helper.make_tensor_value_info(name, kind, ["N", INPUTS])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def question(batch: NDArray[np.float32], *, binary: bool = True, **rest: Any) -> tuple[bytes, dict[str, str]]:
    """A request to the teacher: body and headers."""
    tensor = Tensor("input", "FP32", batch.shape, batch.astype("<f4").tobytes())
    body, length = InferRequest(inputs=(tensor,), binary=binary, **rest).encode(binary=binary)
    return body, {} if length is None else {"inference_header_content_length": str(length)}


def answer(reply: Reply) -> InferResponse:
    """The teacher's answer."""
    length = reply.headers.get("inference-header-content-length")
    return InferResponse.decode(reply.body, None if length is None else int(length))


def sums(
    *,
    window: int = 1,
    seed: int = 0,
    features: int = 3,
    classes: int = 2,
    samples: int = 8,
    backbone: str = "backbone",
) -> Statistics:
    """Statistics over so many random samples."""
    rng = np.random.default_rng(seed)
    empty = Statistics.empty(
        backbone=Digest.of(backbone.encode()), window=window, classes=classes, features=features
    )
    labels = np.eye(classes)[rng.integers(0, classes, samples)]
    return empty.add(rng.normal(size=(samples, features)), labels)

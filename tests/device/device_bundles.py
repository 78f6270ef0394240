"""Tiny bundles with a real ONNX model, and a hub for one device, in memory."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import canonical
from edgestill.core.oip import HEADER, InferRequest, InferResponse, Tensor
from edgestill.core.release import Assignment, Measurement, Turn
from edgestill.core.timing import TimingReport
from edgestill.core.wire import Certified, Certify, Enrol, Enrolled, Poll, reports_from_bytes
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy
from edgestill.learn.statistics import Statistics
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import RepositorySimulator
from edgestill.trust import assignment as assignments
from edgestill.trust.certificates import Requested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock, Request
    from edgestill.core.wire import Report
    from edgestill.trust.authority import Authority
    from edgestill.trust.keys import SigningKey

Answered = tuple[int, dict[str, str], bytes]

LABELS = ("low", "middle", "high")
INPUTS, FEATURES, CLASSES = 4, 5, 3
HERE = str(HardwareClass.here())


def weights(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the two layers: `[4, 5]` and `[5, 3]`."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(INPUTS, FEATURES)).astype(np.float32)
    return first, rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)


def model(seed: int) -> bytes:
    """Two layers: features = relu(input @ first), logits = features @ second."""
    first, second = weights(seed)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["features"]),
            helper.make_node("MatMul", ["features", "second"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", INPUTS])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES]),
        ],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString()
    return data


def adapter(seed: int) -> bytes:
    """Answers from the features of `model`, sent as halves: logits = 8 * features @ second, with the second layer of this seed."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["features"], ["single"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["single", "second"], ["logits"]),
        ],
        "adapter",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT16, ["N", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(8 * weights(seed)[1], "second")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def features_of(seed: int, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model's features are."""
    features: NDArray[np.float32] = np.maximum(batch @ weights(seed)[0], 0)
    return features


def logits_of(seed: int, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model's logits are."""
    return features_of(seed, batch) @ weights(seed)[1]


def batches(n: int, seed: int) -> NDArray[np.float32]:
    """Inputs `[n, 4]`."""
    return np.random.default_rng(seed).normal(size=(n, INPUTS)).astype(np.float32)


def tiny_bundle(
    version: str = "1.0.0",
    *,
    seed: int = 1,
    golden_seed: int | None = None,
    hardware_class: str = HERE,
    blobs: dict[str, bytes | None] | None = None,
    policy: Policy | None = None,
) -> bytes:
    """An archive.

    Args:
        version: of the bundle.
        seed: of its weights.
        golden_seed: of the weights that gave the golden answers; another one makes the probe fail.
        hardware_class: where it may run.
        blobs: instead of, or besides, the usual ones; None leaves one out.
        policy: instead of one that escalates everything.
    """
    asked = batches(6, 99)
    calibration = batches(200, 7)
    reference = Statistics.empty(
        backbone=Digest.of(model(seed)), window=0, classes=CLASSES, features=FEATURES
    ).add(features_of(seed, calibration), np.eye(CLASSES)[logits_of(seed, calibration).argmax(axis=1)])
    golden = Golden(
        input=asked, logits=logits_of(seed if golden_seed is None else golden_seed, asked), tolerance=1e-3
    )
    usual = {
        "model.onnx": model(seed),
        "policy.json": (policy or policy_of()).to_bytes(),
        "golden.npz": golden.to_bytes(),
        "lineage.json": b"{}",
        "card.md": b"# tiny\n",
        "reference.stats": reference.to_bytes(),
    }
    kept = {name: data for name, data in (usual | (blobs or {})).items() if data is not None}
    manifest, ordered = bundle.build(name="tiny", version=version, hardware_class=hardware_class, blobs=kept)
    return bundle.archive_bytes(manifest, ordered)


def policy_of(**changes: Any) -> Policy:
    """A policy that asks about everything, half of it as audits."""
    values: dict[str, Any] = {"threshold": 2.0, "escalation_share": 1.0, "audit_share": 0.5, "alpha": 0.5}
    return Policy(labels=LABELS, **(values | changes))


def release_name(version: str, hardware_class: str = HERE) -> str:
    """The target's name."""
    return f"tiny/{version}/{hardware_class}.esb"


@dataclass
class TinyHub:
    """A hub for one device: real metadata, real signatures, a teacher, and a memory of what it was told.

    Attributes:
        clock: its time.
        assigned: what it wants, as (version, counter).
        reports: what it was told, each id once.
        statistics: messages by id.
        sequences: the number that each of them came with.
        asked: parameters of every question to the teacher.
        teacher_seed: of the teacher's weights.
        teacher_permutation: of the classes, by which the teacher differs from the model with those weights.
        refuse: path prefix -> status with which it answers instead.
        served: every path that was asked for.
        ranges: what part of each file; empty for all of it.
        authority: issues certificates; None gives none, as a hub of old.
        lifetime: of certificates, in seconds.
        key: of the device, once it has asked for a certificate.
        bodies: of every request.
        measure: what the device shall time, as it is sent; None for nothing.
        timings: what it was told of timing jobs, each step once.
        vote: what the device shall vote on, as it is sent; None for nothing.
        ballots: what it was sent: round, id, sequence and ballot.
    """

    clock: Clock = field(default_factory=FakeClock)
    assigned: tuple[str, int] | None = None
    reports: dict[str, Report] = field(default_factory=dict)
    statistics: dict[str, bytes] = field(default_factory=dict)
    sequences: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    teacher_seed: int = 1
    teacher_permutation: NDArray[np.float32] = field(
        default_factory=lambda: np.eye(CLASSES, dtype=np.float32)
    )
    refuse: dict[str, int] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    patches: dict[str, bytes] = field(default_factory=dict)
    interval: float = 0.05
    secret: str = "c" * 32
    authority: Authority | None = None
    lifetime: float = 7 * 86_400.0
    key: str | None = None
    bodies: list[bytes] = field(default_factory=list)
    measure: JsonObject | None = None
    timings: dict[str, TimingReport] = field(default_factory=dict)
    vote: JsonObject | None = None
    ballots: list[tuple[str, str, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.repository = RepositorySimulator(self.clock)
        self._heard = threading.Condition()

    def wait_for(self, what: Callable[[], bool], *, seconds: float = 30) -> None:
        """Waits until something holds, looking after every request."""
        with self._heard:
            assert self._heard.wait_for(what, seconds), "it did not come true in time"

    @property
    def token(self) -> str:
        """A join token."""
        root = Digest.of(self.repository.root).hex
        if self.authority is None:
            return f"est1.secret.{root}"
        return f"est2.secret.{root}.{self.authority.authorities.digests[0]}"

    def publish(self, version: str, archive: bytes, hardware_class: str = HERE) -> None:
        """Lists and serves a bundle."""
        self.repository.publish({release_name(version, hardware_class): archive})

    def states(self, version: str) -> list[str]:
        """The steps that were reported about a version, in order."""
        return [one.state for one in self.reports.values() if one.release == f"tiny/{version}" and one.state]

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answered:
        """Status, header fields and body."""
        with self._heard:
            answered = self._answer(path, headers, body)
            self._heard.notify_all()
        return answered

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> Answered:
        path, _, _ = path.partition("?")
        self.served.append(path)
        self.bodies.append(body)
        for prefix, status in self.refuse.items():
            if path.startswith(prefix):
                return status, {}, b'{"error": "told to"}'
        if path.startswith(("/metadata/", "/targets/", "/patches/")):
            return self._file(path, headers)
        if path == "/v1/enrol":
            asked = Enrol.from_bytes(body)
            self.key = None
            enrolled = Enrolled(
                device=asked.device,
                credential=self.secret,
                root=self.repository.root,
                interval=self.interval,
                **({} if self.authority is None else self._certified(asked.device, asked.request)),
            )
            return 200, {}, enrolled.to_bytes()
        if headers.get("authorization") != f"Bearer {self.secret}":
            return 401, {}, b"{}"
        return self._control(path, headers, body)

    def _certified(self, device: str, request: str) -> dict[str, str]:
        """Fields of an answer that holds a certificate; the key is bound."""
        assert self.authority is not None
        requested = Requested.from_pem(request.encode())
        self.key = requested.key
        certificate = self.authority.device(requested, device, now=self.clock.now(), lifetime=self.lifetime)
        return {
            "certificate": certificate.decode(),
            "authorities": self.authority.authorities.to_pem().decode(),
        }

    def _control(self, path: str, headers: dict[str, str], body: bytes) -> Answered:
        if path == "/v1/poll":
            return self._poll(headers)
        if path == "/v1/certificate" and self.authority is not None:
            request = Certify.from_bytes(body).request
            if self.key not in {None, Requested.from_pem(request.encode()).key}:
                return 409, {}, b'{"what": "another key than the device\'s"}'
            return 200, {}, Certified(**self._certified("d1", request)).to_bytes()
        if path == "/v1/reports":
            batch = reports_from_bytes(body)
            new = [one for one in batch if self.reports.setdefault(one.id, one) is one]
            return 200, {}, json.dumps({"accepted": len(new), "duplicates": len(batch) - len(new)}).encode()
        if path == "/v1/evidence/statistics":
            self.statistics[headers["x-edgestill-id"]] = body
            self.sequences[headers["x-edgestill-id"]] = headers.get("x-edgestill-sequence", "")
            return 200, {}, b'{"accepted": true}'
        if path.startswith("/v1/evidence/votes/"):
            id_, sequence = headers["x-edgestill-id"], int(headers["x-edgestill-sequence"])
            self.ballots.append((path.rpartition("/")[2], id_, sequence, body))
            return 200, {}, b'{"accepted": true}'
        if path == "/v1/timing":
            told = TimingReport.from_bytes(body)
            is_new = self.timings.setdefault(told.id, told) is told
            return 200, {}, json.dumps({"accepted": is_new}).encode()
        if path == "/v2/models/teacher/infer":
            return self._teach(headers, body)
        return 404, {}, b"{}"

    def _poll(self, headers: dict[str, str]) -> Answered:
        etag = '"none"' if self.assigned is None else '"{}-{}"'.format(*self.assigned)
        if self.measure is not None:
            etag = f'"{Digest.of(etag.encode() + canonical(self.measure)).hex[:20]}"'
        if self.vote is not None:
            etag = f'"{Digest.of(etag.encode() + canonical(self.vote)).hex[:20]}"'
        if headers.get("if-none-match") == etag:
            return 304, {"etag": etag}, b""
        envelope = None
        if self.assigned is not None:
            version, counter = self.assigned
            wanted = Assignment(
                device="d1",
                counter=counter,
                target=release_name(version),
                expires=int(self.clock.now()) + 3600,
                epoch=self.repository.epoch,
            )
            envelope = assignments.sign(wanted, self.repository.online)
        told = Poll(assignment=envelope, interval=self.interval, measure=self.measure, vote=self.vote)
        return 200, {"etag": etag}, told.to_bytes()

    def asks_for_votes(
        self, target: str, counter: int, *, key: SigningKey | None = None, **changes: Any
    ) -> None:
        """Wants something voted on, likewise."""
        said: dict[str, Any] = {
            "device": "d1",
            "counter": counter,
            "target": target,
            "expires": int(self.clock.now()) + 3600,
            "epoch": self.repository.epoch,
        }
        self.vote = assignments.sign_turn(Turn(**(said | changes)), key or self.repository.online)

    def measures(self, target: str, counter: int, *, key: SigningKey | None = None, **changes: Any) -> None:
        """Wants something timed, for an hour; with another key, or for another device, where the test says so."""
        said: dict[str, Any] = {
            "device": "d1",
            "counter": counter,
            "target": target,
            "expires": int(self.clock.now()) + 3600,
            "epoch": self.repository.epoch,
        }
        wanted = Measurement(**(said | changes))
        self.measure = assignments.sign_measurement(wanted, key or self.repository.online)

    def _file(self, path: str, headers: dict[str, str]) -> Answered:
        data = (self.repository.files | self.patches).get(path[1:])
        if data is None:
            return 404, {}, b"{}"
        wanted = headers.get("range", "")
        self.ranges.append(wanted)
        if wanted.startswith("bytes="):
            first = int(wanted[6:].split("-")[0])
            last = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return 206, {"content-range": last}, data[first:]
        return 200, {}, data

    def _teach(self, headers: dict[str, str], body: bytes) -> Answered:
        length = headers.get(HEADER)
        request = InferRequest.decode(body, None if length is None else int(length))
        self.asked.append(dict(request.parameters))
        (tensor,) = request.inputs
        batch = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
        logits = (8 * logits_of(self.teacher_seed, batch) @ self.teacher_permutation).astype("<f4")
        output = Tensor("logits", "FP32", logits.shape, logits.tobytes())
        data, json_length = InferResponse(model="teacher", outputs=(output,)).encode(binary=True)
        fields = {} if json_length is None else {HEADER: str(json_length)}
        return 200, fields, data


@dataclass(frozen=True)
class MemoryResponse:
    """An answer of the hub in memory."""

    status: int
    headers: dict[str, str]
    body: bytes

    def chunks(self) -> Iterator[bytes]:
        """The body in two pieces."""
        half = len(self.body) // 2
        yield self.body[:half]
        yield self.body[half:]

    def close(self) -> None:
        """There is nothing to close."""


@dataclass
class MemoryTransport:
    """A `core.protocols.Transport` to a TinyHub, without sockets."""

    hub: TinyHub

    def send(self, request: Request, *, timeout: float) -> MemoryResponse:
        """Asks the hub."""
        path = "/" + request.url.split("/", 3)[3]
        status, headers, body = self.hub.answer(path, dict(request.headers), request.body)
        return MemoryResponse(status, {"content-length": str(len(body))} | headers, body)


class HttpHub:
    """A TinyHub on 127.0.0.1, for agents that are real processes."""

    def __init__(self, hub: TinyHub) -> None:
        self.hub = outer = hub

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                fields = {name.lower(): value for name, value in self.headers.items()}
                status, headers, data = outer.answer(self.path, fields, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 304:
                    self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

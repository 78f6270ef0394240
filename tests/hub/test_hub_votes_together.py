"""The whole way of a vote: students of different architectures, a real hub in memory, an outcome, and who learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hub_worlds import CLASS, URL, Device, World, world
from onnx import TensorProto, helper, numpy_helper

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.core.proxyset import ProxySet
from edgestill.core.release import proxy_name
from edgestill.core.wire import Poll
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.memory import Memory
from edgestill.device.voting_child import ballot_of
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.recipe import Recipe
from edgestill.lab.voted import FLOOR, VotedGuide, distil_votes, lesson_of
from edgestill.learn.outcomes import outcome_of
from edgestill.learn.proxysets import pack, samples_of
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from edgestill.link.operator import OperatorClient
from edgestill.trust.assignment import AssignmentKeys, verify_turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.learn.votes import Outcome

INPUTS, CLASSES = 4, 3
LABELS = ("walk", "sit", "run")
CENTRES = 3 * np.eye(CLASSES, INPUTS)
TARGET = proxy_name("world", "1.0.0")


def seen(
    n: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs `[n, 4]` and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    return (CENTRES[labels] + rng.normal(size=(n, INPUTS))).astype(np.float32), labels


@dataclass(frozen=True)
class Network:
    """An architecture: one hidden layer of a width and an activation, whose weights are never trained."""

    activation: str
    width: int
    seed: int

    @property
    def weight(self) -> NDArray[np.float32]:
        """Of the hidden layer, `[4, D]`."""
        return np.random.default_rng(self.seed).normal(size=(INPUTS, self.width)).astype(np.float32)

    def features(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the hidden layer gives, `[N, D]`."""
        hidden: NDArray[np.float32] = inputs @ self.weight
        found: NDArray[np.float32] = np.maximum(hidden, 0) if self.activation == "Relu" else np.tanh(hidden)
        return found

    @property
    def backbone(self) -> Digest:
        """Of the hidden layer."""
        return Digest.of(self.activation.encode() + self.weight.tobytes())

    def sums(self, inputs: NDArray[np.float32], labels: NDArray[np.int64], window: int = 0) -> Statistics:
        """Over these samples."""
        empty = Statistics.empty(backbone=self.backbone, window=window, classes=CLASSES, features=self.width)
        return empty.add(self.features(inputs), np.eye(CLASSES)[labels])

    def onnx(self, known: Statistics) -> tuple[bytes, NDArray[np.float32], NDArray[np.float32]]:
        """As a file, with the head of what is known; and the head."""
        head = solve(known, ridge=usual_ridge(known, 1e-3))
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["input", "w"], ["hidden"]),
                helper.make_node(self.activation, ["hidden"], ["features"]),
                helper.make_node("MatMul", ["features", "v"], ["scores"]),
                helper.make_node("Add", ["scores", "b"], ["logits"]),
            ],
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", INPUTS])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", self.width]),
            ],
            [
                numpy_helper.from_array(self.weight, "w"),
                numpy_helper.from_array(head.weight, "v"),
                numpy_helper.from_array(head.bias, "b"),
            ],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString()), head.weight, head.bias


@dataclass
class Voter:
    """A device in the world, that has seen some of the classes with a network of its own."""

    name: str
    network: Network
    knows: tuple[int, ...]

    def known(self) -> Statistics:
        """What it has seen."""
        day = 1_700_000_000 // 86_400
        return self.network.sums(*seen(300, self.network.seed, self.knows), window=day)

    def right(self, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """How often it is right alone."""
        _, weight, bias = self.network.onnx(self.known())
        return accuracy(self.network.features(inputs) @ weight + bias, labels)

    def ballot(self, folder: Path, proxy: bytes, now: float) -> bytes:
        """What it votes: its bundle, its home and its own sums are real files."""
        model, weight, bias = self.network.onnx(self.known())
        inputs = seen(4, 1)[0]
        logits = self.network.features(inputs) @ weight + bias
        blobs = {
            "model.onnx": model,
            "policy.json": Policy(labels=LABELS).to_bytes(),
            "golden.npz": Golden(input=inputs, logits=logits, tolerance=0.01).to_bytes(),
            "lineage.json": b"{}",
            "card.md": b"# a student\n",
            "reference.stats": self.known().to_bytes(),
        }
        folder.mkdir()
        manifest, ordered = bundle.build(name=self.name, version="1.0.0", hardware_class=CLASS, blobs=blobs)
        bundle.write_archive(folder / "b.esb", manifest, ordered)
        home = Home.create(
            folder / "home",
            identity=Identity(device=self.name, credential="c", hub=URL, hardware_class=CLASS, interval=60),
            settings=Settings(leaves="features", labels={}),
            root=b"{}",
        )
        own = self.network.sums(*seen(300, self.network.seed, self.knows), window=int(now // 86_400))
        Memory(home.learned, manifest.digest).keep_statistics([own.to_bytes()])
        (folder / "set.esp").write_bytes(proxy)
        found = ballot_of(
            home, folder / "b.esb", ProxySet.open(folder / "set.esp"), Digest.of(proxy), clock=At(now)
        )
        return found.to_bytes()


@dataclass(frozen=True)
class At:
    """A clock that stands."""

    at: float

    def now(self) -> float:
        """Wall time."""
        return self.at

    def monotonic(self) -> float:
        """Seconds."""
        return self.at


VOTERS = (
    Voter("d0", Network("Relu", 24, 1), (0, 1)),
    Voter("d1", Network("Tanh", 16, 2), (1, 2)),
    Voter("d2", Network("Relu", 32, 3), (2, 0)),
)


def accuracy(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The share of right answers."""
    return float((scores.argmax(axis=1) == labels).mean())


@cache
def shared() -> NDArray[np.float32]:
    """The samples that everybody has."""
    return seen(300, 77)[0]


@cache
def archive() -> bytes:
    """As a set."""
    return pack(shared(), name="world", version="1.0.0", labels=LABELS)


def voted(there: World, folder: Path) -> Outcome:
    """A round from its beginning to its outcome, as operator and devices go through it."""
    info = there.upload(archive())
    assert there.admin("POST", "targets", there.sign({TARGET: info})).status == 200
    client = OperatorClient(there.transport, URL, token=there.operator)
    devices = {one.id: one for one in there.fleet(len(VOTERS))}
    number = str(client.start_voting(TARGET)["id"])
    for voter in VOTERS:
        send(there, devices[voter.name], voter, folder)
    assert client.close_voting(number)["state"] == "closed"
    found = client.outcome(number)
    kinds = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
    arrays: dict[str, Any] = {
        one.name: np.frombuffer(one.data, kinds[one.datatype]).reshape(one.shape) for one in found.outputs
    }
    arrays |= {name: np.array(found.parameters[name]) for name in ("proxy", "voters", "students")}
    return outcome_of(arrays)


def send(there: World, device: Device, voter: Voter, folder: Path) -> None:
    """A device is told, fetches what it is told, and votes."""
    envelope = Poll.from_bytes(device.call("GET", "/v1/poll").body).vote
    assert envelope is not None
    keys, now = AssignmentKeys((there.online,)), there.clock.now()
    turn = verify_turn(envelope, keys=keys, device=device.id, seen=0, now=now)
    served = f"/targets/proxy/world/1.0.0/{Digest.of(archive()).hex}.samples.esp"
    body = voter.ballot(folder / device.id, there.call("GET", served).body, now)
    headers = {"x_edgestill_id": "one", "x_edgestill_sequence": "1"}
    reply = device.call("POST", f"/v1/evidence/votes/{turn.counter}", body, **headers)
    assert reply.json == {"accepted": True}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What three students of three architectures have voted."""
    folder = tmp_path_factory.mktemp("votes")
    with world(folder / "hub") as there:
        there.give_root()
        yield voted(there, folder)


def test_students_of_different_architectures_make_one_outcome(outcome: Outcome) -> None:
    """Most samples are named by those who know them, and rightly; the others abstain."""
    labels = seen(300, 77)[1]
    named = outcome.voted > 0
    assert (outcome.voters, outcome.students) == (3, 3)
    assert named.mean() > 0.8
    assert accuracy(outcome.soft[named], labels[named]) > 0.9
    assert outcome.voted.max() < 4


def test_a_head_that_is_distilled_from_votes_is_better_than_every_voter(outcome: Outcome) -> None:
    """Of a fourth architecture, which nobody runs; without a single label."""
    inputs, labels = seen(600, 500)
    network = Network("Tanh", 40, 9)
    empty = Statistics.empty(backbone=network.backbone, window=0, classes=CLASSES, features=network.width)
    learned = outcome.learned_by(empty, network.features(shared()))
    head = solve(learned, ridge=usual_ridge(learned, 1e-3))
    found = accuracy(network.features(inputs) @ head.weight + head.bias, labels)
    alone = [one.right(inputs, labels) for one in VOTERS]
    assert max(alone) < 0.75
    assert found > 0.85
    assert found > max(alone) + 0.1


def test_a_student_that_is_distilled_from_votes_is_better_than_every_voter(
    outcome: Outcome, tmp_path: Path
) -> None:
    """All its weights are trained, by the lab's own loop, from the set as the file has it."""
    inputs, labels = seen(600, 500)
    (tmp_path / "set.esp").write_bytes(archive())
    samples = samples_of(ProxySet.open(tmp_path / "set.esp"))
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(INPUTS, 12), torch.nn.ReLU(), torch.nn.Linear(12, CLASSES))
    recipe = Recipe(epochs=20, batch=32, lr=1e-2, soft_weight=1.0, tau=1.0, seed=3)
    trained = distil_votes(student, samples, outcome, recipe)
    with torch.no_grad():
        found = accuracy(trained(torch.from_numpy(inputs)).numpy(), labels)
    assert found > max(one.right(inputs, labels) for one in VOTERS) + 0.1


# The lesson


def test_a_lesson_shows_what_enough_have_voted_on(outcome: Outcome) -> None:
    """And old samples beside it, on which everybody agrees."""
    many = lesson_of(shared(), outcome, at_least=2)
    assert len(many.source) == int((outcome.voted >= 2).sum()) > 0
    old = Samples.of(*seen(30, 4), classes=CLASSES)
    both = lesson_of(shared(), outcome, old=old)
    assert len(both.source) == int((outcome.voted >= 1).sum()) + 30
    guide = both.guide
    assert isinstance(guide, VotedGuide)
    last = np.exp(guide._logits[-30:])
    assert last.argmax(axis=1).tolist() == old.labels.tolist()
    assert last.min() >= FLOOR / 2


def test_a_lesson_that_cannot_be_is_refused(outcome: Outcome) -> None:
    """Other samples, too few voters, or old samples of another kind."""
    with pytest.raises(EvidenceError, match="an outcome about other samples"):
        lesson_of(shared()[1:], outcome)
    with pytest.raises(EvidenceError, match="no sample with so many voters"):
        lesson_of(shared(), outcome, at_least=4)
    inputs, labels = seen(30, 4)
    for old in (Samples.of(inputs[:, 1:], labels), Samples.of(inputs.astype(np.float64), labels)):
        with pytest.raises(EvidenceError, match="old samples of another kind"):
            lesson_of(shared(), outcome, old=old)
    with pytest.raises(EvidenceError, match="4 classes"):
        lesson_of(shared(), outcome, old=Samples.of(inputs, labels, classes=4))


def test_guides_that_say_other_things_have_other_digests() -> None:
    """A cache would tell them apart."""
    one, other = np.full((2, 3), 1 / 3), np.eye(3)[:2]
    assert VotedGuide(one).digest != VotedGuide(other).digest
    assert VotedGuide(one).digest == VotedGuide(one.copy()).digest

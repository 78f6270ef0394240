"""`edgestill learn vote`: from samples without labels over a real hub to a head, by verbs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from test_cli_operating import HERE, World, hub_up

from edgestill.core.bundle import build, write_archive
from edgestill.core.digest import Digest
from edgestill.core.proxyset import ProxySet
from edgestill.core.wire import Enrol
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy
from edgestill.learn.proxysets import question_of
from edgestill.learn.statistics import Statistics
from edgestill.learn.votes import ABSTAIN, Ballot
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TARGET = "proxy/light/1.0.0/samples.esp"
LABELS = ("dark", "bright")
SAMPLES = np.random.default_rng(4).normal(size=(40, 2)).astype(np.float32)
RIGHT = SAMPLES.argmax(axis=1)


def model() -> bytes:
    """Features and logits are the two inputs."""
    ends = [
        helper.make_tensor_value_info(one, TensorProto.FLOAT, ["N", 2])
        for one in ("input", "logits", "features")
    ]
    nodes = [helper.make_node("Identity", ["input"], [one]) for one in ("logits", "features")]
    graph = helper.make_graph(nodes, "light", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def bundle(folder: Path, labels: Sequence[str] = LABELS, *, learns: bool = True) -> Path:
    """A bundle that runs, and beside which something is learned."""
    empty = Statistics.empty(backbone=Digest.of(model()), window=0, classes=2, features=2)
    wrong = empty.add(SAMPLES, np.eye(2)[1 - RIGHT])
    blobs = {
        "model.onnx": model(),
        "policy.json": Policy(labels=tuple(labels)).to_bytes(),
        "golden.npz": Golden(
            input=np.eye(2, dtype=np.float32), logits=np.eye(2, dtype=np.float32), tolerance=0.01
        ).to_bytes(),
        "lineage.json": b"{}",
        "card.md": b"# light\n",
    } | ({"reference.stats": wrong.to_bytes()} if learns else {})
    manifest, ordered = build(name="light", version="1.0.0", hardware_class=HERE, blobs=blobs)
    path = folder / f"{'-'.join(labels)}-{learns}.esb"
    write_archive(path, manifest, ordered)
    return path


def made(world: World) -> Path:
    """The set, by the verb that makes one."""
    path = world.folder / "light.esp"
    if not path.exists():
        np.save(world.folder / "one.npy", SAMPLES[:30])
        np.save(world.folder / "two.npy", SAMPLES[30:])
        given = [world.folder / "one.npy", world.folder / "two.npy", "--bundle", bundle(world.folder)]
        said = world.json("learn", "vote", "set", *given, "--output", path)
        assert (said["samples"], said["target"]) == (40, TARGET)
    return path


def cast(world: World, name: str, labels: NDArray[np.integer], number: int) -> None:
    """A device joins and votes."""
    token = world.json("hub", "token", "--uses", 1)["token"]
    plain = ControlClient(HttpTransport(), world.url)
    enrolled = plain.enrol(
        Enrol(join_token=token, device=name, hardware_class=HERE, labels={"site": "north"})
    )
    path = made(world)
    asked = question_of(Digest.of(path.read_bytes()), ProxySet.open(path).head)
    ballot = Ballot.of(asked, student=Digest.of(name.encode()), labels=labels)
    device = ControlClient(HttpTransport(), world.url, credential=enrolled.credential)
    assert device.vote(number, "one", ballot.to_bytes(), sequence=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with a teacher that lists a set, on which two devices have voted: one knows the bright, the other is always wrong."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "teacher.onnx").write_bytes(model())
    with hub_up(folder, "--teacher", str(folder / "teacher.onnx")) as one:
        one.run("release", "keys", "init")
        one.run("release", "root")
        published = one.json("release", "publish", made(one))
        assert published["published"] == [TARGET]
        said = one.run("learn", "vote", "start", TARGET, "--label", "site=north", "--for", "1h")
        assert said == "round 1 is open to 0 devices; edgestill learn vote status 1\n"
        cast(one, "good", np.where(RIGHT == 1, 1, ABSTAIN), 1)
        cast(one, "bad", 1 - RIGHT, 1)
        yield one


def arrays(path: Path) -> dict[str, Any]:
    """What an outcome's file holds."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_status_tells_who_has_voted(world: World) -> None:
    """On how many samples, and with which student; for whom, nobody is told."""
    rows = world.run("learn", "vote", "status", 1).splitlines()
    assert rows[0] == f"{TARGET}: open, 40 samples"
    assert rows[1] == "2 voted, 0 waited for, 0 revoked"
    assert rows[2].split() == ["DEVICE", "STATE", "VOTES", "STUDENT"]
    assert [row.split()[:3] for row in rows[3:]] == [
        ["bad", "voted", "40"],
        ["good", "voted", str(int((RIGHT == 1).sum()))],
    ]
    assert world.run("learn", "vote", "status").splitlines()[1].split()[1:5] == [TARGET, "open", "40", "2"]


def test_an_outcome_is_the_share_of_votes(world: World, tmp_path: Path) -> None:
    """By weight; a device of weight 0 is not heard."""
    out = tmp_path / "outcome.npz"
    said = world.json("learn", "vote", "outcome", 1, "--out", out)
    assert (said["voters"], said["students"], said["voted_on"], said["labelled"]) == (2, 2, 40, 40)
    assert np.allclose(arrays(out)["soft"][RIGHT == 1], 0.5)
    said = world.json("learn", "vote", "outcome", 1, "--out", out, "--weight", "bad=0")
    assert (said["voters"], said["voted_on"]) == (1, int((RIGHT == 1).sum()))
    assert np.allclose(arrays(out)["soft"][RIGHT == 1], [0, 1])


@pytest.mark.parametrize("teacher", ["hub", "file"])
def test_the_teacher_votes_too(world: World, tmp_path: Path, teacher: str) -> None:
    """The hub's own, or one that lies in a file: as much as its weight says, on every sample."""
    out = tmp_path / "outcome.npz"
    named = "hub" if teacher == "hub" else world.folder / "teacher.onnx"
    given = ["--out", out, "--weight", "bad=0", "--teacher", named, "--set", made(world)]
    said = world.json(
        "learn", "vote", "outcome", 1, *given, "--teacher-weight", 3, "--teacher-temperature", 0.5
    )
    assert (said["voted_on"], said["labelled"]) == (int((RIGHT == 1).sum()), 40)
    shares = np.exp(2 * SAMPLES)
    shares /= shares.sum(axis=1, keepdims=True)
    own = np.eye(2)[RIGHT] * (RIGHT == 1)[:, None]
    expected = (3 * shares + own) / (3 + (RIGHT == 1))[:, None]
    assert np.allclose(arrays(out)["soft"], expected, atol=1e-5)


def test_a_head_is_distilled_from_an_outcome(world: World, tmp_path: Path) -> None:
    """Of a network that nobody has run: right where its own statistics were wrong."""
    out, head = tmp_path / "outcome.npz", tmp_path / "head.npz"
    given = ["--out", out, "--weight", "bad=0", "--teacher", "hub", "--set", made(world)]
    world.run("learn", "vote", "outcome", 1, *given)
    archive = bundle(tmp_path)
    told = world.json(
        "learn", "vote", "head", archive, "--outcome", out, "--set", made(world), "--output", head,
        "--at-least", 0, "--prior", 0,
    )  # fmt: skip
    assert told["samples"] == 40
    found = arrays(head)
    assert ((SAMPLES @ found["weight"] + found["bias"]).argmax(axis=1) == RIGHT).mean() > 0.8
    told = world.json(
        "learn", "vote", "head", archive, "--outcome", out, "--set", made(world), "--output", head
    )
    assert told["samples"] == int((RIGHT == 1).sum())


def test_what_cannot_be_is_one_line(world: World, tmp_path: Path) -> None:
    """A round that there is not, a set that nobody lists, another set than was voted on, and whatever else is asked for wrongly."""
    vote = ("learn", "vote")
    for verb in ("status", "close", "outcome"):
        assert "no such voting round" in world.run(*vote, verb, 7, fails=True)
    assert "does not list this proxy set" in world.run(
        *vote, "start", "proxy/light/9.0.0/samples.esp", fails=True
    )
    assert "not a name of a proxy set" in world.run(*vote, "start", "light/1.0.0/x.esb", fails=True)
    assert "another voting round is open" in world.run(*vote, "start", TARGET, fails=True)
    out = tmp_path / "outcome.npz"
    for weight in ("good", "good=much", "=1", "good=-1"):
        assert "not a weight" in world.run(*vote, "outcome", 1, "--weight", weight, fails=True)
    twice = ["--weight", "good=1", "--weight", "good=0"]
    assert "a device is weighed twice" in world.run(*vote, "outcome", 1, "--out", out, *twice, fails=True)
    unknown = ["--weight", "nobody=0"]
    assert "a device without a ballot" in world.run(*vote, "outcome", 1, "--out", out, *unknown, fails=True)
    assert "the samples are not named" in world.run(
        *vote, "outcome", 1, "--out", out, "--teacher", "hub", fails=True
    )
    assert not out.exists()
    world.run(*vote, "outcome", 1, "--out", out)
    np.save(tmp_path / "other.npy", SAMPLES[:4])
    other = tmp_path / "other.esp"
    world.run(*vote, "set", tmp_path / "other.npy", "--bundle", bundle(tmp_path), "-o", other)
    made_of = ("--outcome", out, "--output", tmp_path / "head.npz")
    assert "another set than was voted on" in world.run(
        *vote, "head", bundle(tmp_path), *made_of, "--set", other, fails=True
    )
    given = (*made_of, "--set", made(world))
    assert "an outcome about other classes" in world.run(
        *vote, "head", bundle(tmp_path, ("bright", "dark")), *given, fails=True
    )
    assert "nothing is learned beside" in world.run(
        *vote, "head", bundle(tmp_path, learns=False), *given, fails=True
    )
    assert "no sample with so many voters" in world.run(
        *vote, "head", bundle(tmp_path), *given, "--at-least", 3, fails=True
    )
    (tmp_path / "x.esp").write_bytes(b"none" * 1000)
    assert "not a proxy set" in world.run("release", "publish", tmp_path / "x.esp", fails=True)


def test_a_round_is_closed_and_its_outcome_stays(world: World, tmp_path: Path) -> None:
    """The last of these tests: nobody has a turn after it."""
    assert world.run("learn", "vote", "close", 1) == f"round 1 about {TARGET} is closed\n"
    assert "is over" in world.run("learn", "vote", "close", 1, fails=True)
    assert world.json("learn", "vote", "outcome", 1, "--out", tmp_path / "x.npz")["voters"] == 2
    assert world.json("release", "retire", "proxy/light/1.0.0")["retired"] == [TARGET]

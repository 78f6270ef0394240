"""`edgestill learn round`: from a hub's sums to the next version of a bundle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_cli_operating import HERE, World, hub_up

from edgestill.cli import rounding
from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import parse_object
from edgestill.core.sharing import Sharing
from edgestill.core.wire import Enrol
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.infer.student import load
from edgestill.lab.data.samples import Samples
from edgestill.lab.measure import run_model
from edgestill.lab.packing.assemble import Origin
from edgestill.lab.packing.finished import pack_onnx
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.discriminant import discriminant
from edgestill.learn.statistics import Statistics
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

INPUTS, FEATURES, CLASSES, DEVICES = 6, 12, 3, 4


def seen(n: int, seed: int, *, turned: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs `[n, 6]` and their classes, of a world in which each has the next one's name."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    inputs = 2 * np.eye(CLASSES).repeat(2, axis=1)[labels] + 0.5 * rng.normal(size=(n, INPUTS))
    return inputs.astype(np.float32), (labels + turned) % CLASSES


def network(turned: int) -> bytes:
    """`relu(x F) W + b`, which knows the world turned so far."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(INPUTS, FEATURES)).astype(np.float32)
    inputs, labels = seen(500, 2, turned=turned)
    features = np.maximum(inputs @ first, 0)
    sums = Statistics.empty(backbone=Digest.of(b"any"), window=0, classes=CLASSES, features=FEATURES)
    head = discriminant(sums.add(features, np.eye(CLASSES)[labels]), shrink=0.1)
    parts = {"first": first, "w": head.weight, "b": head.bias}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["features"]),
            helper.make_node("Gemm", ["features", "w", "b"], ["logits"]),
        ],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", INPUTS])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES]),
        ],
        [numpy_helper.from_array(one, name) for name, one in parts.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


@cache
def bundle() -> Path:
    """What the devices run: a network that knows a world without turns."""
    path = Path(mkdtemp()) / "small.esb"
    return pack_onnx(
        network(0),
        Samples.of(*seen(400, 3, turned=0), classes=CLASSES),
        policy=Policy(labels=("a", "b", "c"), statistics=Sharing(), escalation_share=0.1),
        origin=Origin(name="small", version="1.0.9", recipe={}, seed=0),
    ).save(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with four devices, which have sent what they saw of the turned world in codes."""
    opened = Bundle.open(bundle())
    known = Statistics.from_bytes(opened.read("reference.stats"))
    coordinates = Coordinates.of(known, FEATURES)
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        token = made.json("hub", "token", "--uses", DEVICES)["token"]
        for place in range(DEVICES):
            control = ControlClient(HttpTransport(), made.url)
            enrolled = control.enrol(
                Enrol(join_token=token, device=f"d{place}", hardware_class=HERE, labels={})
            )
            device = ControlClient(HttpTransport(), made.url, credential=enrolled.credential)
            inputs, labels = seen(120, 10 + place)
            _, features = run_model(OnnxEngine(opened.read("model.onnx")), inputs)
            empty = Statistics.empty(backbone=known.backbone, window=1, classes=CLASSES, features=FEATURES)
            sums = empty.add(features, np.eye(CLASSES)[labels])
            assert device.statistics("codes", coordinates.project(sums).to_bytes("int8"))
        yield made


@pytest.fixture
def check(tmp_path: Path) -> Path:
    """Labelled data of the turned world."""
    inputs, labels = seen(200, 99)
    np.savez(tmp_path / "check.npz", x=inputs, y=labels)
    return tmp_path / "check.npz"


@pytest.mark.parametrize(
    "how", [[], ["--plain", "--prior", "0"], ["--prior", "0"], ["--prior", "0.01", "--within", "5"]]
)
def test_the_next_version_knows_what_the_devices_know(
    world: World, check: Path, tmp_path: Path, how: list[str]
) -> None:
    """By a weighed sum and by the exact one; told with its patch, and right where the parent was wrong."""
    told = world.json("learn", "round", bundle(), "--check", check, "--out", tmp_path / "next.esb", *how)
    assert told["before"]["value"] < 0.1
    assert told["after"]["value"] > (
        0.9 if how else 0.4
    )  # the usual prior is as strong as all devices together
    assert told["version"] == "1.0.10"
    assert told["sums"]["samples"] == DEVICES * 120
    assert "weights" not in told["sums"], "names of devices have no business in a bundle"
    assert 200 < told["patch"] < 2_000
    inputs, labels = seen(300, 100)
    right = load(tmp_path / "next.esb").predict(inputs).probabilities.argmax(axis=1) == labels
    assert abs(right.mean() - told["after"]["value"]) < 0.15
    lineage = parse_object(Bundle.open(tmp_path / "next.esb").read("lineage.json"), where="lineage")
    evidence: Any = lineage["evidence"]
    assert evidence["solved"]["robust"] == ("--plain" not in how)
    assert evidence["head"] == told["head"]
    # what a device can do is bounded for this head alone
    assert told["head"] == "least squares" or "--plain" in how
    assert set(evidence["sums"]) <= {"devices", "samples", "window", "largest", "moved", "settled"}


def test_sentences_say_what_to_do_next(
    world: World, check: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file is called after the version where nobody names it."""
    monkeypatch.chdir(tmp_path)
    said = world.run("learn", "round", bundle(), "--check", check, "--prior", "0.01", "--version", "2.0.0")
    assert "accuracy of 1.0.9: " in said
    assert "accuracy of 2.0.0: " in said
    assert "deliver it: edgestill release publish small-2.0.0.esb" in said
    assert Bundle.open(tmp_path / "small-2.0.0.esb").manifest.version == "2.0.0"


def test_a_teacher_is_heard_anew(world: World, check: Path, tmp_path: Path) -> None:
    """Alpha is fitted, and a promise may be given where it asks somebody."""
    (tmp_path / "teacher.onnx").write_bytes(network(1))
    asked = ["--teacher", tmp_path / "teacher.onnx", "--prior", "0.01"]
    world.json("learn", "round", bundle(), "--check", check, "--out", tmp_path / "next.esb", *asked)
    policy = Policy.from_bytes(Bundle.open(tmp_path / "next.esb").read("policy.json"))
    report: Any = policy.evidence["report"]
    assert report["teacher"]["accuracy"] > 0.9


# What is refused


@pytest.mark.parametrize("version", ["abc", "2", "2.0.0-rc1", "1.0.10.1", "1.0.9"])
def test_a_version_that_no_next_one_has(world: World, check: Path, version: str) -> None:
    """Said before the hub is asked."""
    said = world.run("learn", "round", bundle(), "--check", check, "--version", version, fails=True)
    assert "version" in said
    assert version in said


def test_the_next_version_does_not_replace_the_one_before(world: World, check: Path, tmp_path: Path) -> None:
    """Patches are made from that one; by whatever name it is called."""
    own = tmp_path / "own.esb"
    own.write_bytes(bundle().read_bytes())
    other = tmp_path / "other.esb"
    other.symlink_to(own)
    for out in (own, other):
        said = world.run("learn", "round", own, "--check", check, "--out", out, fails=True)
        assert "would replace the one that it follows" in said
    assert own.read_bytes() == bundle().read_bytes()


def test_a_radius_needs_a_weighed_sum(world: World, check: Path) -> None:
    """The error names the option of this verb."""
    asked = ["learn", "round", bundle(), "--check", check, "--plain", "--within", "0.2"]
    assert "learn round without --plain" in world.run(*asked, fails=True)


def test_attack_what_a_hub_says_does_not_get_into_a_signed_bundle() -> None:
    """Attack: a hub's answer holds names, and texts of any length; numbers alone are taken over, and must be some."""
    said: Any = {
        "devices": 3,
        "window": 1,
        "settled": True,
        "note": "x" * 10**6,
        "weights": {"anna's watch": 0.1},
    }
    assert rounding._bounded(said) == {"devices": 3, "window": 1, "settled": True}
    with pytest.raises(MessageError):
        rounding._bounded({"devices": "three"})


def test_data_without_labels_judge_nothing(world: World, tmp_path: Path) -> None:
    """Said before the hub is asked."""
    np.savez(tmp_path / "bare.npz", x=seen(100, 1)[0])
    said = world.run("learn", "round", bundle(), "--check", tmp_path / "bare.npz", fails=True)
    assert "cannot be judged by data without labels" in said


def test_a_head_that_knows_another_world_than_the_data_is_refused(world: World, tmp_path: Path) -> None:
    """Nothing is written then."""
    inputs, labels = seen(200, 99, turned=0)
    np.savez(tmp_path / "old.npz", x=inputs, y=labels)
    asked = ["learn", "round", bundle(), "--check", tmp_path / "old.npz", "--out", tmp_path / "next.esb"]
    said = world.run(*asked, "--prior", "0.01", fails=True)
    assert "worse than the one that it would replace" in said
    assert not (tmp_path / "next.esb").exists()


def test_a_bundle_of_which_nobody_has_sent_sums(world: World, check: Path, tmp_path: Path) -> None:
    """Another network's backbone has another name."""
    made = pack_onnx(
        network(2),
        Samples.of(*seen(400, 3, turned=2), classes=CLASSES),
        policy=Policy(labels=("a", "b", "c"), statistics=Sharing(kept=FEATURES - 1)),
    ).save(tmp_path / "other.esb")
    said = world.run("learn", "round", made, "--check", check, fails=True)
    assert "no statistics of this backbone" in said

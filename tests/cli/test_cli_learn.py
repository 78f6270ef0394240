"""`edgestill learn`: what a real hub has of the devices' sums, and the head of all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_cli_operating import HERE, World, hub_up

from edgestill.core.bundle import build, write_archive
from edgestill.core.digest import Digest
from edgestill.core.errors import RefusedError
from edgestill.core.sharing import PLAIN, Sharing
from edgestill.core.wire import Enrol
from edgestill.infer.policy import Policy
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

D, C = 6, 3
BACKBONE = Digest.of(b"backbone")


def samples(seed: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features `[n, D]` around a centre a class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    return 2 * np.random.default_rng(99).normal(size=(C, D))[labels] + rng.normal(size=(n, D)), labels


def learned(seed: int, n: int = 60, *, turned: int = 0) -> Statistics:
    """A device's sums; every label moved on by `turned`."""
    features, labels = samples(seed, n)
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)
    return empty.add(features, np.eye(C)[(labels + turned) % C])


REFERENCE = learned(1_000, 300)


def bundle(folder: Path, sharing: Sharing) -> Path:
    """A bundle whose devices send in this way; it need not run here."""
    manifest, blobs = build(
        name="learner",
        version="1.0.0",
        hardware_class=HERE,
        blobs={
            "model.onnx": b"not run here",
            "policy.json": Policy(labels=("a", "b", "c"), statistics=sharing).to_bytes(),
            "golden.npz": b"not read here",
            "lineage.json": b"{}",
            "card.md": b"# learner\n",
            "reference.stats": REFERENCE.to_bytes("float64"),
        },
    )
    path = folder / f"{sharing.encoding}.esb"
    write_archive(path, manifest, blobs)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with ten devices: nine send what they saw, in both ways, the tenth lies with a million times the weight."""
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        token = made.json("hub", "token", "--uses", 10)["token"]
        coordinates = Coordinates.of(REFERENCE, D)
        for place in range(10):
            control = ControlClient(HttpTransport(), made.url)
            enrolled = control.enrol(
                Enrol(join_token=token, device=f"d{place}", hardware_class=HERE, labels={})
            )
            device = ControlClient(HttpTransport(), made.url, credential=enrolled.credential)
            own = learned(place) if place < 9 else learned(9, turned=1).scaled(1e6)
            assert device.statistics("plain", own.to_bytes("float64"))
            if place < 9:
                assert device.statistics("codes", coordinates.project(own).to_bytes("int8"))
            else:
                with pytest.raises(RefusedError):
                    device.statistics("bad", replace(own, b=own.b * 3).to_bytes())
        yield made


def right(path: Path) -> float:
    """Accuracy of a head on samples that nobody has."""
    features, labels = samples(5_000, 1_000)
    with np.load(path) as head:
        return float(((features @ head["weight"] + head["bias"]).argmax(axis=1) == labels).mean())


def test_status_tells_what_there_is_and_what_was_refused(world: World) -> None:
    """Each backbone with its devices, and each reason with who gave cause."""
    said = world.json("learn", "status")
    assert said["statistics"][str(BACKBONE)]["devices"] == 10
    assert len(said["statistics"]) == 2
    assert said["refused"] == {
        "no classifier's samples have these sums": {"messages": 1, "devices": 1, "most": {"d9": 1}}
    }
    text = world.run("learn", "status")
    assert "not taken: no classifier's samples have these sums: 1 messages of 1 devices (d9 1)" in text
    assert "SAMPLES" in text


def test_the_head_of_sums_in_codes_is_nearly_the_central_one(world: World, tmp_path: Path) -> None:
    """Lifted from the coordinates of the bundle's policy; the plain sums of the same backbone are added where there are some."""
    told = world.json("learn", "solve", bundle(tmp_path, Sharing()), "--output", tmp_path / "head.npz")
    # nine devices in codes, and all ten once more as plain sums
    assert told["samples"] == 19 * 60
    central = learned(9, turned=1).scaled(1e6)
    for place in range(9):
        central = central + learned(place).scaled(2.0)
    head = solve(central, ridge=usual_ridge(central))
    with np.load(tmp_path / "head.npz") as found:
        np.testing.assert_allclose(found["weight"], head.weight, atol=0.02)


def test_attack_one_device_decides_a_plain_sum_and_no_robust_one(world: World, tmp_path: Path) -> None:
    """The same hub, the same liar: with --robust the head is right, and what was weighed down is told."""
    archive = bundle(tmp_path, PLAIN)
    world.run("learn", "solve", archive, "--output", tmp_path / "plain.npz")
    assert right(tmp_path / "plain.npz") < 0.2
    told = world.json("learn", "solve", archive, "--robust", "--output", tmp_path / "robust.npz")
    assert right(tmp_path / "robust.npz") > 0.95
    assert told["devices"] == 10
    assert told["weights"]["d9"] < 1e-5
    assert told["largest"] < 0.2


def test_a_robust_head_stays_within_its_radius(world: World, tmp_path: Path) -> None:
    """What is told as moved is within it."""
    told = world.json(
        "learn",
        "solve",
        bundle(tmp_path, Sharing()),
        "--robust",
        "--within",
        0.02,
        "-o",
        tmp_path / "head.npz",
    )
    assert told["moved"] <= 0.02 * (1 + 1e-3)
    assert told["devices"] == 9
    assert right(tmp_path / "head.npz") > 0.95


def test_the_bundles_own_statistics_take_part_where_they_are_asked_to(world: World, tmp_path: Path) -> None:
    """A prior of as much weight as all samples pulls the head towards the bundle's."""
    archive = bundle(tmp_path, replace(Sharing(), kept=3))
    said = world.run("learn", "solve", archive, "--prior", 1, "-o", tmp_path / "head.npz")
    assert f"samples: {10 * 60}" in said


def test_what_cannot_be_solved_is_told(world: World, tmp_path: Path) -> None:
    """A radius without --robust; a bundle of which nobody sent sums in its coordinates."""
    archive = bundle(tmp_path, Sharing(kept=3))
    output = ("--output", tmp_path / "head.npz")
    assert "--robust" in world.run("learn", "solve", archive, "--within", 0.1, *output, fails=True)
    assert "no statistics of this backbone" in world.run(
        "learn", "solve", archive, "--robust", *output, fails=True
    )
    assert not (tmp_path / "head.npz").exists()

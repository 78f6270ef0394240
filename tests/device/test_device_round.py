"""What each device has seen a part of becomes a head for all of them: sent as sums, solved, delivered as a patch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import model
from device_fleet import Fleet, until
from tuning_worlds import CLASSES, seen, trained
from typer.testing import CliRunner

from edgestill.cli.app import app
from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError
from edgestill.core.manifest import REFERENCE
from edgestill.core.sharing import Sharing
from edgestill.device.client import LocalClient
from edgestill.infer.policy import Policy
from edgestill.infer.student import load
from edgestill.lab.data.samples import Samples
from edgestill.lab.packing.assemble import Origin
from edgestill.lab.packing.finished import pack_onnx
from edgestill.learn.statistics import Statistics
from edgestill.learn.together import head_file, head_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KNOWN = {"d1": (0, 1), "d2": (1, 2)}
"""Each of the devices never sees one of the classes."""


def bundle_into(path: Path) -> bytes:
    """Of a network that knows a world in which every class has another name."""
    made = pack_onnx(
        trained(),
        Samples.of(*seen(600), classes=CLASSES),
        policy=Policy(labels=("a", "b", "c"), statistics=Sharing(), escalation_share=0.0, audit_share=0.0),
        origin=Origin(name="tiny", version="1.0.0", recipe={}, seed=0),
    )
    return made.save(path).read_bytes()


def part(classes: tuple[int, ...], n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What a device of the turned world sees: these classes alone."""
    inputs, labels = seen(n, turned=1, seed=seed)
    mine = np.isin(labels, classes)
    return inputs[mine], labels[mine]


def right(fleet: Fleet, device: str) -> float:
    """How often a device names the class of the turned world, over all of them."""
    inputs, labels = seen(300, turned=1, seed=77)
    with LocalClient.open(fleet.home(device)) as client:
        return float((client.predict(inputs).probabilities.argmax(axis=1) == labels).mean())


def sums_of(fleet: Fleet) -> list[dict[str, Any]]:
    """What the hub has, by backbone."""
    told: Any = fleet.operator.evidence()
    return list(told["statistics"].values())


def next_version(fleet: Fleet, archive: Path, folder: Path) -> dict[str, Any]:
    """What `edgestill learn round` tells."""
    inputs, labels = seen(300, turned=1, seed=6)
    np.savez(folder / "check.npz", x=inputs, y=labels)
    asked = ["learn", "round", str(archive), "--check", str(folder / "check.npz"), "--json"]
    told = {"EDGESTILL_HUB": fleet.url, "EDGESTILL_TOKEN_FILE": str(folder / "hub" / "operator.token")}
    result = CliRunner().invoke(
        app, [*asked, "--out", str(folder / "next.esb"), "--prior", "0.1"], env=told, catch_exceptions=False
    )
    found: dict[str, Any] = json.loads(result.output)
    return found


def asked(*more: object, fails: bool = False) -> Any:
    """`edgestill learn round` without a hub; what it tells, or the error."""
    result = CliRunner().invoke(app, ["learn", "round", *map(str, more), "--json"])
    if fails:
        assert isinstance(result.exception, EdgestillError), result.output
        return str(result.exception)
    assert result.exception is None, result.exception
    return json.loads(result.output)


def test_a_head_that_was_made_elsewhere_becomes_a_version(tmp_path: Path) -> None:
    """Of a vote's outcome, for instance: no hub is asked, the data judge it, and the lineage names it."""
    archive = tmp_path / "tiny.esb"
    bundle_into(archive)
    opened = Bundle.open(archive)
    inputs, labels = seen(600, turned=1, seed=4)
    features = load(archive).predict(inputs).features
    assert features is not None
    known = Statistics.from_bytes(opened.read(REFERENCE))
    empty = Statistics.empty(backbone=known.backbone, window=0, classes=CLASSES, features=features.shape[1])
    data = head_file(head_of(empty.add(features, np.eye(CLASSES)[labels])))
    (tmp_path / "head.npz").write_bytes(data)
    check, check_labels = seen(300, turned=1, seed=6)
    np.savez(tmp_path / "check.npz", x=check, y=check_labels)
    given = (archive, "--check", tmp_path / "check.npz", "--head", tmp_path / "head.npz")
    said = asked(*given, "--out", tmp_path / "next.esb")
    assert said["before"]["value"] < 0.2
    assert said["after"]["value"] > 0.9
    lineage = json.loads(Bundle.open(tmp_path / "next.esb").read("lineage.json"))
    assert lineage["evidence"] == {"file": str(Digest.of(data)), "head": "given", "seed": 0}

    for option in (("--plain",), ("--prior", 1), ("--within", 0.1)):
        assert "not solved again" in asked(*given, *option, fails=True)
    np.savez(tmp_path / "head.npz", weight=np.full((24, CLASSES), np.nan), bias=np.zeros(CLASSES))
    assert "a file that holds no head" in asked(*given, fails=True)
    np.savez(tmp_path / "head.npz", weight=np.zeros((24, CLASSES)))
    assert "a file that holds no head" in asked(*given, fails=True)


@pytest.mark.slow
def test_what_devices_saw_apart_they_all_know_after_a_round(tmp_path: Path) -> None:
    """Neither has seen all classes; after it both name all of them, and what came to them was a patch of two kilobytes at most."""
    archive = tmp_path / "tiny.esb"
    with Fleet(tmp_path, model(1)) as fleet:
        for device in KNOWN:
            fleet.join(device)
        fleet.publisher.publish("1.0.0", bundle_into(archive))
        fleet.ends(fleet.roll_out("1.0.0"), seconds=60)
        for place, (device, classes) in enumerate(KNOWN.items()):
            assert right(fleet, device) < 0.2
            with LocalClient.open(fleet.home(device)) as client:
                client.teach(*part(classes, 300, seed=10 + place))
        sums = until(lambda: [one for one in sums_of(fleet) if one["devices"] == 2])
        assert sums[0]["n"] > 300

        said = next_version(fleet, archive, tmp_path)
        assert said["before"]["value"] < 0.2
        assert said["after"]["value"] > 0.9
        assert said["patch"] <= 2_000
        assert said["sums"]["devices"] == 2
        fleet.publisher.publish("1.0.1", (tmp_path / "next.esb").read_bytes())
        assert fleet.ends(fleet.roll_out("1.0.1"), seconds=60).startswith("done")
        for device in KNOWN:
            assert fleet.serving(device) == "tiny/1.0.1"
            assert right(fleet, device) > 0.9
            log = (tmp_path / f"{device}.log").read_text(encoding="utf-8")
            assert f"patched tiny/1.0.1: {said['patch']} of" in log
            # what it had gathered is of the same backbone, and is still there
            assert list((fleet.home(device) / "learned").glob("*.stats"))

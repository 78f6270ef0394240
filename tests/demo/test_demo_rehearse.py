"""The route without a fleet: lab, cascade, evidence and scores on a tiny world, in one process."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from demo_worlds import LABELS, QUIET, SHARING, motion, tiny_scenario

from edgestill.core.errors import EdgestillError
from edgestill.demo import walk
from edgestill.demo.rehearse import Device, compare, gather, rehearse, right, sharing
from edgestill.demo.walk import scenario_named
from edgestill.demo.workshop import engine_of, learn, next_student, score, teach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.demo.workshop import Workshop
    from edgestill.lab.progress import Progress


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    """The tiny world's teacher and first student, made once; one thread, since the networks are tiny too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenario = tiny_scenario()
    told: list[Progress] = []
    yield learn(scenario, teach(scenario), progress=told.append)
    assert [(one.done, one.of) for one in told if one.phase == "training"] == [
        (at, 25) for at in range(1, 26)
    ]
    torch.set_num_threads(threads)


def test_the_first_student_is_small_and_knows_one_world(workshop: Workshop) -> None:
    """Its file is smaller than the teacher's; it is right before the change and lost after, the teacher is right in both."""
    assert workshop.size_ratio > 1.5
    quiet = next(one for one in workshop.scenario.streams if not one.shares)
    student = engine_of(workshop.packed)
    assert score(student, quiet.before).value > 0.9
    assert score(student, quiet.after).value < 0.6
    with torch.no_grad():
        named = workshop.teacher.eval()(torch.from_numpy(quiet.after.inputs)).argmax(1).numpy()
    assert (named == quiet.after.labels).mean() > 0.9


def devices_of(workshop: Workshop) -> list[Device]:
    """The sharing devices, which have met both worlds."""
    devices = [Device(one, workshop, number) for number, one in enumerate(sharing(workshop.scenario))]
    for one in devices:
        one.meet(one.stream.before)
        one.meet(one.stream.after)
    return devices


def test_evidence_is_what_the_sharing_devices_asked(workshop: Workshop) -> None:
    """Inputs of both worlds, as many as the budget allows, mostly answered rightly, none from those who share nothing."""
    evidence = gather(devices_of(workshop))
    streams = {one.device: one.before + one.after for one in workshop.scenario.streams}
    assert set(evidence.devices) == set(SHARING)
    share = len(evidence) / sum(len(streams[name]) for name in SHARING)
    assert 0.3 < share < 0.7
    quiet = {one.tobytes() for one in streams[QUIET].inputs}
    assert not quiet & {one.tobytes() for one in evidence.inputs}
    labels = {
        one.tobytes(): int(label)
        for name in SHARING
        for one, label in zip(streams[name].inputs, streams[name].labels, strict=True)
    }
    agreed = [
        labels[one.tobytes()] == said.argmax()
        for one, said in zip(evidence.inputs, evidence.teacher, strict=True)
    ]
    assert np.mean(agreed) > 0.9
    assert 0 < evidence.audit.sum() < len(evidence)


def test_gathering_repeats_itself(workshop: Workshop) -> None:
    """The coins of a rehearsal are seeded."""
    one, two = gather(devices_of(workshop)), gather(devices_of(workshop))
    assert np.array_equal(one.inputs, two.inputs)
    assert np.array_equal(one.audit, two.audit)


def test_a_device_learns_by_itself_from_what_it_asked(workshop: Workshop) -> None:
    """In the changed world its student names more rightly with what it learned than as shipped; the shipped one is the same."""
    stream = replace(sharing(workshop.scenario)[0], after=motion(400, 77, other_way=True))
    device = Device(stream, workshop, 5)
    device.meet(stream.before)
    device.meet(stream.after)
    fresh = motion(90, 78, other_way=True)
    shipped = right(engine_of(workshop.packed), fresh).mean()
    learned = (device.meet(fresh) == fresh.labels).mean()
    assert learned > shipped + 0.2
    assert right(engine_of(workshop.packed), fresh).mean() == shipped


def test_the_next_student_names_its_parent_and_its_evidence(workshop: Workshop) -> None:
    """The lineage counts samples, audits and devices, and wins back on the device nothing was learned from."""
    devices = devices_of(workshop)
    evidence = gather(devices)
    parent = workshop.packed.manifest.digest
    packed = next_student(workshop, evidence, version="1.1.0", parent=parent)
    lineage = json.loads(packed.blobs["lineage.json"])
    assert (packed.manifest.name, packed.manifest.version) == ("tiny", "1.1.0")
    assert lineage["parent"] == str(parent)
    assert lineage["evidence"] == {
        "samples": len(evidence),
        "audits": int(evidence.audit.sum()),
        "devices": 2,
    }
    student = engine_of(workshop.packed)
    alone = {one.stream.device: one.meet(one.stream.later) for one in devices if one.stream.later}
    found = compare(workshop, engine_of(packed), student, alone)
    assert found.recovered.mean() > found.shifted.mean() + 0.3
    assert np.array_equal(found.control, found.shifted)
    assert np.array_equal(found.student, right(student, workshop.scenario.streams[-1].before))
    assert len(found.personal) == len(found.personal_without) == len(found.later) == 40
    assert len(found.kept) == len(found.teacher) == len(found.fp32) == len(found.before)


def test_a_rehearsal_walks_a_fold_to_its_end() -> None:
    """From nothing to an outcome: the change costs, the evidence wins back, more training without it does not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = rehearse(tiny_scenario(seed=4))
    torch.set_num_threads(threads)
    assert found.student.mean() > 0.9
    assert found.shifted.mean() < 0.6
    assert found.recovered.mean() > found.control.mean() + 0.3
    assert set(np.concatenate([found.teacher, found.kept, found.recovered])) <= {0.0, 1.0}


def test_the_tiny_world_is_what_it_says() -> None:
    """Worn the other way round, the outer classes change places, and the last channel tells."""
    one, other = motion(30, 1), motion(30, 1, other_way=True)
    high = LABELS.index("high")
    assert one.inputs[one.labels == high][:, :, 0].mean() > 0.8
    assert other.inputs[other.labels == high][:, :, 0].mean() < -0.8
    assert (one.inputs[:, :, 5].mean() > 0.8, other.inputs[:, :, 5].mean() < -0.8) == (True, True)


def test_scenarios_have_names(tmp_path: Path) -> None:
    """An unknown one is told the known ones; data of one's own is for images."""
    assert scenario_named("watch", seed=1).name == "watch"
    with pytest.raises(EdgestillError, match="expected watch, images; got 'wach'"):
        scenario_named("wach")
    with pytest.raises(EdgestillError, match="brings its own data") as caught:
        scenario_named("watch", data=tmp_path)
    assert (caught.value.code, caught.value.where) == ("setting-invalid", "--data")


def die(fold: int, seed: int) -> None:
    """Ends the process that runs it, as the system does where memory is short."""
    os._exit(fold + seed)


def test_a_rehearsing_process_that_dies_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short, the other process is the one that is killed; the walk says so in one line."""
    monkeypatch.setattr(walk, "_fold", die)
    with walk._rehearsals([3], seed=0) as outcomes, pytest.raises(EdgestillError) as caught:
        outcomes()
    assert caught.value.code == "demo-failed"

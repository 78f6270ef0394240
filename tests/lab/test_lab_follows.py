"""A version that follows another one: on its grid, naming it, and with a patch that keeps to its budget."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
from lab_worlds import POLICY, TRAIN, motion_net, packed, run

from edgestill.core.budget import Budget
from edgestill.core.bundle import Bundle, archive_bytes
from edgestill.core.errors import BundleAlteredError, ModelError, PathError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.delta.codec import diff
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.notices import NotMeasuredWarning
from edgestill.lab.packing.assemble import Origin
from edgestill.lab.packing.grid import Grid
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.lab.run import Run


NEXT = Origin(name="student", version="1.1.0", recipe={}, seed=0)


@cache
def later() -> Run:
    """The run whose student has gone on learning."""
    recipe = Recipe(epochs=1, batch=16, lr=1e-3, schedule="constant", frozen_statistics=True)
    student = train_(copy.deepcopy(run().student), Lesson.of(TRAIN, MotionJitter()), recipe)
    return replace(run(), student=student)


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The bundle of the first version."""
    (tmp_path / "next").mkdir()
    return packed().save(tmp_path / "first.esb")


def test_the_next_version_names_its_parent_and_keeps_its_grid(before: Path) -> None:
    """The lineage has the parent's digest, every scale is the parent's, and what was cut is told; in memory and as a file."""
    parent = Bundle.open(before)
    later().save_bundle(before.parent / "next" / "student.esb", POLICY, version="1.1.0", follows=before)
    saved = Bundle.open(before.parent / "next" / "student.esb")
    made = later().pack(POLICY, origin=later().origin(version="1.1.0"), follows=str(before))
    assert made.manifest == saved.manifest
    told = json.loads(made.blobs["lineage.json"])
    assert told["parent"] == str(parent.manifest.digest)
    assert Grid.of(made.blobs["model.onnx"]).id == Grid.of(parent.read("model.onnx")).id
    assert "clipped" in told
    assert not json.loads(packed().blobs["lineage.json"]).get("parent")


@pytest.mark.parametrize(
    ("changed", "where", "expected"),
    [
        ({"name": "other"}, "name", "student"),
        ({"version": "1.0.0"}, "version", r"more than 1\.0\.0"),
        ({"version": "0.9.9"}, "version", r"more than 1\.0\.0"),
    ],
)
def test_what_no_hub_would_make_a_patch_for_is_no_next_version(
    before: Path, changed: dict[str, str], where: str, expected: str
) -> None:
    """Another name, or a version that is not higher: the budget would be held against a patch that nobody is sent."""
    with pytest.raises(SettingError, match=rf"no next version .*; at {where}; expected {expected}; "):
        later().pack(POLICY, origin=replace(NEXT, **changed), follows=before)  # type: ignore[arg-type]  # texts all


def test_a_bundle_for_other_hardware_is_not_followed(before: Path) -> None:
    """Its grid has codes that this hardware may not have."""
    elsewhere = HardwareClass("aarch64-dotprod-onnxruntime")
    with pytest.raises(SettingError, match=r"no next version .*; at hardware_class"):
        later().pack(POLICY, origin=NEXT, follows=before, hardware_class=elsewhere)


def test_a_patch_is_held_to_its_budget(before: Path) -> None:
    """Of the whole archive, as a hub makes it; one that is larger is refused, with what would make it smaller."""
    bounded = replace(later(), budget=Budget(update="1 MB"))
    made = bounded.pack(POLICY, origin=NEXT, follows=before)
    assert made.footprint is not None
    patch = diff(before.read_bytes(), archive_bytes(made.manifest, made.blobs))
    assert made.footprint.update == len(patch)
    exact = replace(later(), budget=Budget(update=len(patch)))
    assert exact.pack(POLICY, origin=NEXT, follows=before).footprint == made.footprint
    tight = replace(later(), budget=Budget(update=len(patch) - 1))
    with pytest.raises(
        SettingError,
        match=rf"the patch is larger than its budget; at update; expected at most {len(patch) - 1} bytes \(budget\); "
        rf"got {len(patch)}; train it on for fewer steps",
    ):
        tight.pack(POLICY, origin=NEXT, follows=before)


def test_a_first_version_has_no_patch_to_be_held_to_a_budget() -> None:
    """Nobody is told that a bound was kept which nothing was measured against."""
    with pytest.warns(
        NotMeasuredWarning, match="update was not held against its budget: the bundle follows no other"
    ):
        made = replace(run(), budget=Budget(update="1 B")).pack(POLICY)
    assert made.footprint is not None
    assert made.footprint.update is None


def test_what_is_followed_must_be_a_sound_bundle_of_this_network(before: Path, tmp_path: Path) -> None:
    """A missing file, an altered one, and a bundle of another network are refused before anything is made."""
    with pytest.raises(PathError):
        later().pack(POLICY, origin=NEXT, follows=tmp_path / "nothing.esb")
    altered = bytearray(before.read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / "altered.esb").write_bytes(altered)
    with pytest.raises(BundleAlteredError):
        later().pack(POLICY, origin=NEXT, follows=tmp_path / "altered.esb")
    wider = train_(motion_net(3, 5, 6), Lesson.of(TRAIN, MotionJitter()), Recipe(epochs=2, batch=16, lr=1e-2))
    other = replace(run(), student=wider).pack(POLICY)
    with pytest.raises(ModelError, match="the grid is of another network"):
        later().pack(POLICY, origin=NEXT, follows=other.save(tmp_path / "other.esb"))

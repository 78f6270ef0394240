"""An adapter is trained from a student's features, and a bundle of `features` is fitted for it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_worlds import HELDOUT, POLICY, TRAIN, motion_net, run, teacher
from torch import nn

from edgestill.cli.terminal import bundle_line
from edgestill.core.bundle import Bundle, archive_bytes
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.adapter import as_sent
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Leaves, Policy
from edgestill.lab.forward import answers
from edgestill.lab.jobreport import bundle_of
from edgestill.lab.measure import run_model
from edgestill.lab.notices import NoGainWarning
from edgestill.lab.packing.adapter import FEWEST, _kept_out, trained_adapter
from edgestill.lab.packing.assemble import Origin, _is_of_no_use, adapter_path, answers_from
from edgestill.lab.packing.calibrate import Heldout, calibrate, promise_text
from edgestill.lab.packing.export import head_of
from edgestill.lab.packing.pack import pack
from edgestill.lab.packing.wrapping import wrapping_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.run import Run

BY_FEATURES = replace(POLICY, leaves="features")
ORIGIN = Origin(name="student", version="1.0.0", recipe={}, seed=0)


def rings(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features `[n, 2]` of two classes, one around the other: no linear head tells them apart."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    angle, radius = random.uniform(0, 2 * np.pi, n), 1.0 + 2 * labels + random.normal(0, 0.2, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32), labels


def ignorant(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of a student that knows nothing."""
    return np.zeros((len(features), 2), np.float32)


@cache
def forgetful() -> Run:
    """A student whose features are as good as before, and whose head has forgotten half of what they tell."""
    student = copy.deepcopy(run().student)
    _, head = head_of(student)
    with torch.no_grad():
        head.weight[:, ::2] = 0
    return replace(run(), student=student)


@pytest.fixture(scope="module")
def found() -> Packed:
    """Its bundle, whose policy lets features leave."""
    return forgetful().pack(BY_FEATURES)


def test_an_adapter_learns_what_a_linear_head_cannot() -> None:
    """It has a hidden layer; told by data that it has not seen."""
    features, labels = rings(1_500, 0)
    file = trained_adapter(features, 8 * np.eye(2, dtype=np.float32)[labels], student=ignorant(features))
    others, theirs = rings(500, 1)
    assert (answers_from(file, others).argmax(1) == theirs).mean() > 0.95
    solved = np.linalg.lstsq(np.c_[features, np.ones(1_500)], np.eye(2)[labels], rcond=None)[0]
    assert ((np.c_[others, np.ones(500)] @ solved).argmax(1) == theirs).mean() < 0.75


def test_training_twice_gives_the_same_file_and_leaves_the_generator() -> None:
    """The seed decides, and whoever draws next draws as if nothing had been."""
    features, labels = rings(300, 0)
    wanted = np.eye(2, dtype=np.float32)[labels]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = trained_adapter(features, wanted, student=wanted)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained_adapter(features, wanted, student=wanted) == first
    assert trained_adapter(features, wanted, student=wanted, seed=1) != first


def test_it_begins_as_the_students_own_head() -> None:
    """A teacher that says what the student says leaves nothing to be learned, and nothing is unlearned."""
    random = np.random.default_rng(3)
    features = random.normal(2.0, 3.0, size=(400, 4)).astype(np.float32)
    own = (features @ random.normal(size=(4, 3)) + 1).astype(np.float32)
    found = answers_from(trained_adapter(features, own, student=own), features)
    assert np.abs(found - own).max() < 0.1


@pytest.mark.parametrize("groups", [1, 3, 25])
def test_whole_people_are_kept_out(groups: int) -> None:
    """Of few people one; of one person some samples, for there must be something to learn from."""
    of = np.arange(200) % groups
    out = _kept_out(of, 0)
    assert 0 < out.sum() < 200
    if groups > 1:
        assert not set(of[out]) & set(of[~out])
        assert len(set(of[out])) == max(1, round(0.1 * groups))


def test_too_little_data_is_told() -> None:
    """Some hundred samples, or none at all."""
    features, labels = rings(FEWEST - 1, 0)
    with pytest.raises(DataError, match=r"too little data to train an adapter.*100 samples at least.*99"):
        trained_adapter(features, np.eye(2, dtype=np.float32)[labels], student=ignorant(features))


@settings(max_examples=8, deadline=None)
@given(
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 100.0]),
    dead=st.booleans(),
    classes=st.integers(2, 5),
)
def test_features_of_any_scale_are_learned_from(scale: float, shift: float, dead: bool, classes: int) -> None:
    """Tiny, large, far from nought, one that never changes: the file answers with finite numbers, as it was trained."""
    random = np.random.default_rng(0)
    features = (random.normal(size=(300, 3)) * scale + shift).astype(np.float32)
    if dead:
        features[:, 0] = 0
    teacher_says = random.normal(size=(300, classes)).astype(np.float32)
    own = np.zeros_like(teacher_says)
    said = answers_from(trained_adapter(features, teacher_says, student=own), features)
    assert said.shape == (300, classes)
    assert np.isfinite(said).all()


def test_the_policy_names_the_adapter_and_is_fitted_for_it(found: Packed) -> None:
    """Temperature, alpha and report are of what it says; the teacher's accuracy is told beside."""
    assert found.adapter is not None
    policy = Policy.from_bytes(found.blobs["policy.json"])
    assert (policy.leaves, policy.adapter) == ("features", Digest.of(found.adapter))
    assert policy.asks == "features"
    assert found.adapted is not None
    assert found.teacher is not None
    features = run_model(OnnxEngine(found.blobs["model.onnx"]), HELDOUT.inputs)[1]
    said = answers_from(found.adapter, features)
    assert found.adapted.value == pytest.approx((said.argmax(1) == HELDOUT.labels).mean())
    assert found.adapted.value > 0.6
    assert found.adapted.value > found.int8.value
    report = policy.evidence["report"]
    assert isinstance(report, dict)
    assert {"student", "adapter", "fused"} <= set(report)
    logits = run_model(OnnxEngine(found.blobs["model.onnx"]), HELDOUT.inputs)[0]
    heldout = Heldout(student=logits, teacher=said, labels=HELDOUT.labels, groups=HELDOUT.groups)
    wanted = calibrate(heldout, replace(BY_FEATURES, adapter=policy.adapter), seed=run().recipe.seed)
    kept = ("temperature", "teacher_temperature", "measure", "alpha", "bands", "threshold")
    assert {name: getattr(policy, name) for name in kept} == {name: getattr(wanted, name) for name in kept}
    theirs = answers(teacher(), torch.from_numpy(HELDOUT.inputs)).numpy()
    others = calibrate(replace(heldout, teacher=theirs), BY_FEATURES, seed=run().recipe.seed)
    assert others.teacher_temperature != policy.teacher_temperature


def test_the_adapter_follows_the_teacher_on_the_students_features(found: Packed) -> None:
    """More often than chance by far, on the data it learned from."""
    assert found.adapter is not None
    features = run_model(OnnxEngine(found.blobs["model.onnx"]), TRAIN.inputs)[1]
    theirs = answers(teacher(), torch.from_numpy(TRAIN.inputs)).numpy()
    assert (answers_from(found.adapter, features).argmax(1) == theirs.argmax(1)).mean() > 0.75


def test_it_is_asked_as_a_server_would_ask_it(found: Packed) -> None:
    """One input in half precision, any batch."""
    assert found.adapter is not None
    engine = OnnxEngine(found.adapter)
    ((name, (datatype, shape)),) = engine.inputs.items()
    assert (name, datatype, shape) == ("features", "FP16", (None, 6))
    assert engine.run({"features": as_sent(np.zeros((7, 6), np.float32))})["logits"].shape == (7, 3)


def test_it_is_written_beside_the_bundle(found: Packed, tmp_path: Path) -> None:
    """The archive itself holds nothing of it; what a job tells names both."""
    path = found.save(tmp_path / "watch.esb")
    assert path.read_bytes() == archive_bytes(found.manifest, found.blobs)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["watch.adapter.onnx", "watch.esb"]
    assert adapter_path(path).read_bytes() == found.adapter
    told = bundle_of(path)
    assert told == {
        "file": "watch.esb",
        "size": Bundle.open(path).manifest.size,
        "bytes": path.stat().st_size,
        "adapter": "watch.adapter.onnx",
    }
    assert bundle_line(told).endswith("; watch.adapter.onnx goes to the hub (--adapter)")


def test_the_card_tells_who_is_asked(found: Packed) -> None:
    """And how good the adapter is, in a row of its own."""
    card = found.blobs["card.md"].decode()
    assert "| adapter | " in card
    assert "Asks its adapter for at most 25% of its inputs" in card
    assert "May leave the device: features." in card
    evidence: JsonObject = {"promised": True, "epsilon": 0.05, "delta": 0.1, "n": 500, "escalated": 0.1}
    assert "although the adapter knows better" in promise_text(replace(found.policy, evidence=evidence))


def test_a_student_whose_features_are_its_inputs_is_refused() -> None:
    """A linear one: what may not leave would leave as features."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(TRAIN.inputs.shape[1:])), 3))
    with pytest.raises(SettingError, match=r"features of this student are its inputs; at policy: leaves"):
        pack(linear, teacher(), train=TRAIN, heldout=HELDOUT, policy=BY_FEATURES, origin=ORIGIN)


def test_a_budget_counts_what_an_adapter_adds_to_the_bundle(found: Packed) -> None:
    """What is foretold of the bundle beside its model is no less than it is, and not by a kilobyte more."""
    beside = wrapping_of(
        run().student,
        teacher(),
        train=TRAIN,
        heldout=HELDOUT,
        policy=BY_FEATURES,
        recipe=run().recipe,
        hardware_class=HardwareClass.here(),
    )
    really = found.manifest.size - len(found.blobs["model.onnx"])
    assert really <= beside(6) <= really + 1_000


def test_too_little_data_is_found_before_anything_is_made() -> None:
    """Not after the file was written down in all its ways."""
    few = TRAIN.where(np.arange(len(TRAIN)) < FEWEST - 1)
    with pytest.raises(DataError, match="too little data to train an adapter"):
        pack(run().student, teacher(), train=few, heldout=HELDOUT, policy=BY_FEATURES, origin=ORIGIN)


def test_an_adapter_of_no_use_is_left_out(tmp_path: Path) -> None:
    """A teacher that knows nothing makes one: the device asks nobody, and a file of an earlier bundle goes."""
    untrained = replace(run(), teacher=motion_net(8, 8, 12, seed=9))
    adapter_path(tmp_path / "watch.esb").write_bytes(b"an earlier one")
    with pytest.warns(
        NoGainWarning, match="an adapter does not make answers better .* its device asks nobody"
    ):
        made = untrained.pack(BY_FEATURES)
    assert (made.adapter, made.policy.adapter, made.policy.asks) == (None, None, "nothing")
    assert made.adapted is not None
    assert bundle_of(made.save(tmp_path / "watch.esb")).keys() == {"file", "size", "bytes"}
    assert [one.name for one in tmp_path.iterdir()] == ["watch.esb"]
    assert "Asks nobody." in made.blobs["card.md"].decode()


@pytest.mark.parametrize(
    ("both", "alone", "useless"), [(0.7, 0.6, True), (0.6, 0.6, True), (0.5, 0.6, False)]
)
def test_use_is_told_by_the_likelihood_of_unseen_answers(both: float, alone: float, *, useless: bool) -> None:
    """Not by how often they are right: that is told by fewer of the samples."""
    evidence: JsonObject = {"report": {"student": {"nll": alone}, "fused": {"nll": both}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGainWarning)
        assert _is_of_no_use(replace(BY_FEATURES, evidence=evidence)) == useless


@pytest.mark.parametrize("leaves", ["raw", "nothing"])
def test_other_policies_have_none(leaves: Leaves) -> None:
    """Neither file nor name, and a stale name in the wanted policy is dropped."""
    old = Digest.of(b"an adapter of another student") if leaves == "nothing" else None
    wanted = Policy(labels=POLICY.labels, leaves=leaves, adapter=old)
    made = run().pack(wanted)
    assert (made.adapter, made.adapted, made.policy.adapter) == (None, None, None)
    assert "adapter" not in bundle_of_blobs(made)


def bundle_of_blobs(made: Packed) -> str:
    """All that a person or a device reads of it."""
    return made.blobs["policy.json"].decode() + made.blobs["card.md"].decode()

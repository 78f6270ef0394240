"""From a teacher to a bundle, whole: tiny networks, and everything the bundle must say."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lab_worlds import (
    CLASSES,
    HELDOUT,
    LABELS,
    POLICY,
    TRAIN,
    image_net,
    images,
    motion_net,
    packed,
    run,
    same_weights,
    teacher,
)

import edgestill.lab
from edgestill.core.budget import Budget
from edgestill.core.bundle import Bundle, archive_bytes
from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, ModelError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import parse_object
from edgestill.infer import load
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import probe, read_golden
from edgestill.infer.policy import Policy
from edgestill.lab.compare import Slice
from edgestill.lab.data.dataset import DatasetSource
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.distil import distill
from edgestill.lab.forward import answers, weights_digest
from edgestill.lab.measure import run_model
from edgestill.lab.notices import NotDistillingWarning, NotMeasuredWarning
from edgestill.lab.packing.assemble import GOLDEN_SAMPLES, REFERENCE, Origin, golden_count, reweighted
from edgestill.lab.packing.calibrate import promise_text
from edgestill.lab.packing.grid import grid_id
from edgestill.lab.packing.pack import backbone_id, pack
from edgestill.lab.recipe import Recipe
from edgestill.learn.statistics import Statistics, solve
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = Recipe(epochs=1, batch=64, soft_weight=0.5)


def never(*told: object) -> None:
    """A progress that must not be reached."""
    pytest.fail(f"training started: {told}")


def lineage() -> dict[str, Any]:
    """The packed bundle's lineage."""
    return dict(parse_object(packed().blobs["lineage.json"], where="lineage.json"))


def test_the_distilled_student_is_nearly_as_good_as_its_teacher() -> None:
    """The exported int8 student is far above chance, and close to itself in fp32."""
    found = packed()
    assert found.teacher is not None
    assert found.teacher.value > 0.8
    assert found.int8.value > 0.7
    assert abs(found.int8.value - found.fp32.value) < 0.05
    assert (found.int8.n, found.int8.groups) == (len(HELDOUT), len(HELDOUT))


def test_distilling_leaves_the_teacher_and_says_what_was_inherited() -> None:
    """The teacher's weights and mode stay; the map tells which of them the student began with."""
    before, one = copy.deepcopy(teacher()), teacher()
    found = distill(one, TRAIN, validation=HELDOUT, student=motion_net(3, 3, 4), recipe=QUICK)
    assert found.teacher is one
    assert same_weights(one, before)
    assert found.index_map is not None
    index = found.index_map.kept["conv1.weight"][0]
    assert index is not None
    assert len(index) == 3
    assert not found.student.training


def test_a_bundle_is_written_read_and_verified(tmp_path: Path) -> None:
    """`save_bundle` names the model by the file; every blob is there, bit for bit, and a device's loader takes it."""
    path = run().save_bundle(tmp_path / "Watch.esb", POLICY)
    bundle = Bundle.open(path)
    bundle.verify()
    assert bundle.manifest.name == "watch"
    assert bundle.manifest.hardware_class == HardwareClass.here().name
    assert set(bundle.manifest.blobs) == {
        "model.onnx",
        "policy.json",
        "golden.npz",
        "lineage.json",
        "card.md",
        REFERENCE,
    }
    answer = load(path).predict(HELDOUT.inputs[:7])
    assert answer.probabilities.shape == (7, CLASSES)
    accurate = (load(path).predict(HELDOUT.inputs).probabilities.argmax(1) == HELDOUT.labels).mean()
    assert accurate == pytest.approx(packed().int8.value)


def test_packing_twice_gives_the_same_bytes() -> None:
    """The same run makes the same archive: nothing in it is a time or a draw."""
    again = run().pack(POLICY)
    assert archive_bytes(again.manifest, again.blobs) == archive_bytes(packed().manifest, packed().blobs)


def test_the_probe_passes_on_the_bundles_own_model_and_fails_on_another() -> None:
    """Golden answers are the int8 model's own; a model with its head turned round does not pass."""
    golden = read_golden(packed().blobs["golden.npz"])
    assert len(golden.input) == GOLDEN_SAMPLES[1]  # small inputs
    found = probe(OnnxEngine(packed().blobs["model.onnx"]), golden, FakeClock())
    assert found.check().difference < 0.01
    turned = replace(golden, logits=golden.logits[:, ::-1].copy())
    assert not probe(OnnxEngine(packed().blobs["model.onnx"]), turned, FakeClock()).passed


@pytest.mark.parametrize(("bytes_each", "count"), [(1, 16), (2_000, 16), (5_000, 6), (9_000, 4), (10**9, 4)])
def test_larger_inputs_bring_fewer_golden_answers(bytes_each: int, count: int) -> None:
    """The probe must not outweigh the model: 32 kB of inputs, four at least, sixteen at most."""
    assert golden_count(bytes_each) == count


def test_the_lineage_says_where_the_student_comes_from() -> None:
    """Teacher, student, backbone, data, recipe, seed, parent, grid, and metrics with intervals."""
    found = lineage()
    assert found["teacher"] == str(weights_digest(teacher()))
    assert found["student"] == str(weights_digest(run().student))
    assert found["backbone"] == str(backbone_id(run().student))
    assert found["data"] == str(TRAIN.digest)
    assert found["recipe"] == run().recipe.as_json()
    assert found["seed"] == run().recipe.seed
    assert (found["parent"], found["evidence"]) == (None, None)
    assert found["grid"] == str(grid_id(packed().blobs["model.onnx"]))
    int8 = packed().int8
    assert found["metrics"]["int8"] == {
        "accuracy": int8.value,
        "ci95": [int8.low, int8.high],
        "n": int8.n,
        "groups": int8.groups,
    }


def test_a_parent_and_its_evidence_stand_in_the_lineage() -> None:
    """The next bundle names the bundle it follows."""
    parent = packed().manifest.digest
    origin = Origin(name="watch", version="1.1.0", recipe={}, seed=1, parent=parent, evidence={"samples": 9})
    found = run().pack(POLICY, origin=origin)
    said = parse_object(found.blobs["lineage.json"], where="lineage.json")
    assert (said["parent"], said["evidence"]) == (str(parent), {"samples": 9})
    assert (found.manifest.name, found.manifest.version) == ("watch", "1.1.0")


def test_the_policy_in_the_bundle_is_the_fitted_one() -> None:
    """What was wanted is kept, what was fitted stands beside its evidence."""
    policy = Policy.from_bytes(packed().blobs["policy.json"])
    assert policy == packed().policy
    assert policy.labels == LABELS
    assert "report" in policy.evidence
    assert policy.temperature != 1.0


def test_the_reference_statistics_are_of_the_bundles_features() -> None:
    """They are keyed by the backbone, count every training sample, and solve to a head that agrees with the teacher."""
    found = Statistics.from_bytes(packed().blobs[REFERENCE])
    assert (found.n, found.classes, found.features) == (len(TRAIN), CLASSES, 6)
    assert found.backbone == backbone_id(run().student)
    head = solve(found, ridge=1e-3)
    features = run_model(OnnxEngine(packed().blobs["model.onnx"]), TRAIN.inputs)[1]
    said = answers(teacher(), torch.from_numpy(TRAIN.inputs)).numpy().argmax(1)
    assert ((features @ head.weight + head.bias).argmax(1) == said).mean() > 0.8


def test_the_backbone_is_everything_but_the_head() -> None:
    """Another head leaves the name; another weight before it, or another statistic, does not."""
    one = copy.deepcopy(run().student)
    with torch.no_grad():
        one.get_parameter("head.weight").add_(1)
    assert backbone_id(one) == backbone_id(run().student)
    one.get_buffer("norm3.running_mean").add_(1)
    assert backbone_id(one) != backbone_id(run().student)


def test_the_card_can_be_read_by_a_person() -> None:
    """Names, figures with intervals, the budget and the risk statement."""
    card = packed().blobs["card.md"].decode()
    assert card.startswith("# student 1.0.0\n")
    assert "3 classes: rest, lift, turn." in card
    assert f"| int8 | {packed().int8} | 150 samples |" in card
    assert "for at most 25% of its inputs" in card
    assert f"Promise on the risk: {promise_text(packed().policy)}." in card
    assert "one group" not in card


def test_another_budget_changes_policy_and_card_alone() -> None:
    """`reweighted` keeps model, answers and lineage; the card says the new budget, not the old one."""
    found = reweighted(packed(), escalation_share=0.5, bytes_per_day=1000)
    changed = {name for name in found.blobs if found.blobs[name] != packed().blobs[name]}
    assert changed == {"policy.json", "card.md"}
    assert found.policy.escalation_share == 0.5
    assert "for at most 50% of its inputs" in found.blobs["card.md"].decode()
    assert found.manifest.blobs["policy.json"].digest == Digest.of(found.blobs["policy.json"])
    with pytest.raises(SettingError):
        reweighted(packed(), escalation_share=1.5)


def test_a_bundle_over_its_size_budget_is_refused() -> None:
    """The budget and the size are both named, in bytes."""
    tight = replace(run(), budget=Budget(size=1000))
    with pytest.raises(SettingError, match=r"larger than its budget; at size; expected at most 1000 bytes"):
        tight.pack(POLICY)


@pytest.mark.parametrize(
    ("bound", "share", "audits"), [(0.1, 0.1, 0.05), (0.02, 0.02, 0.02), (0.9, 0.25, 0.05)]
)
def test_the_escalation_budget_bounds_a_given_policy(bound: float, share: float, audits: float) -> None:
    """A policy that would ask more than the budget is cut to it, audits too; one that asks less is kept."""
    found = replace(run(), budget=Budget(escalation=bound)).pack(POLICY).policy
    assert (found.escalation_share, found.audit_share) == (share, audits)


def test_without_a_policy_the_budget_is_the_share() -> None:
    """Labels are then numbered, and the escalation share is the budget's."""
    found = replace(run(), budget=Budget(escalation=0.4)).pack().policy
    assert found.escalation_share == 0.4
    assert found.labels == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_wrong_head_is_found_before_training(who: str) -> None:
    """Teacher or student with another number of classes: refused before anything is changed or trained."""
    widths: dict[str, int] = {"teacher": CLASSES, "student": CLASSES} | {who: 5}
    student = motion_net(2, 2, 2, classes=widths["student"])
    before = copy.deepcopy(student)
    with pytest.raises(ClassCountError, match=rf"the {who} and the data disagree .*expected 3 .*got 5"):
        distill(
            motion_net(4, 4, 4, classes=widths["teacher"]),
            TRAIN,
            validation=HELDOUT,
            student=student,
            progress=never,
        )
    assert same_weights(student, before)


def test_held_out_data_of_other_classes_is_found_before_training() -> None:
    """A class that the held-out data happens to lack must be named, or labels and head would not fit."""
    fewer = Samples.of(HELDOUT.inputs[HELDOUT.labels < 2], HELDOUT.labels[HELDOUT.labels < 2])
    with pytest.raises(ClassCountError, match=r"training and held-out data disagree .* expected 3 .*got 2"):
        distill(teacher(), TRAIN, validation=fewer, student=motion_net(2, 2, 2), progress=never)
    origin = Origin(name="x", version="1.0.0", recipe={}, seed=0)
    with pytest.raises(ClassCountError, match=r"the student and the held-out data .*expected 2 .*got 3"):
        pack(
            run().student,
            teacher(),
            train=TRAIN,
            heldout=fewer,
            policy=Policy(labels=LABELS[:2]),
            origin=origin,
        )


def test_a_policy_names_every_class() -> None:
    """Two names for three classes are refused before anything is exported."""
    with pytest.raises(SettingError, match="one name a class; at policy: labels; expected 3; got 2"):
        run().pack(Policy(labels=("a", "b")))


def test_too_little_held_out_data_is_refused() -> None:
    """Thirty samples are the least a policy is fitted on."""
    few = replace(run(), validation=HELDOUT.where(np.arange(len(HELDOUT)) < 29))
    with pytest.raises(DataError, match="too little held-out data"):
        few.pack(POLICY)


def test_a_student_of_another_family_can_be_distilled_without_inheriting() -> None:
    """It is refused as an heir, and taught from its own weights otherwise; then there is no map."""
    other: Callable[[], torch.nn.Module] = lambda: torch.nn.Sequential(  # noqa: E731  # two equal ones
        torch.nn.Flatten(), torch.nn.Linear(96, CLASSES)
    )
    with pytest.raises(ModelError):
        distill(teacher(), TRAIN, validation=HELDOUT, student=other(), recipe=QUICK, progress=never)
    found = distill(teacher(), TRAIN, validation=HELDOUT, student=other(), recipe=QUICK, inherit=False)
    assert found.index_map is None


def test_the_cache_of_one_run_serves_the_next(tmp_path: Path) -> None:
    """Two students of one teacher share its answers, and the same run twice gives the same student."""

    def student() -> torch.nn.Module:
        return distill(
            teacher(), TRAIN, validation=HELDOUT, student=motion_net(2, 2, 2), recipe=QUICK, cache=tmp_path
        ).student

    one = student()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert same_weights(one, student())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == written


def test_plain_training_asks_no_teacher_and_says_so(tmp_path: Path) -> None:
    """With a soft weight of 0 no cache is made; nobody gives a teacher for that without a word."""
    recipe = Recipe(epochs=1, soft_weight=0)
    with pytest.warns(NotDistillingWarning, match=r"^\[not-distilling\] the recipe asks no teacher"):
        distill(
            teacher(),
            TRAIN,
            validation=HELDOUT,
            student=motion_net(2, 2, 2),
            recipe=recipe,
            cache=tmp_path / "no",
        )
    with pytest.raises(SettingError, match="nothing to compare; at soft_weight"):
        distill(
            teacher(), TRAIN, validation=HELDOUT, student=motion_net(2, 2, 2), recipe=recipe, against=Slice()
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            Budget(latency="1 us"),
            "the student is slower than its budget; at latency; expected at most 1e-06 seconds in 95",
        ),
        (
            Budget(memory="10 B"),
            "the student takes more memory than its budget; at memory; expected at most 10 bytes",
        ),
    ],
)
def test_a_budget_is_held_against_what_is_measured(budget: Budget, text: str) -> None:
    """On the file that the bundle would bring; the error says what was measured."""
    with pytest.raises(SettingError, match=text) as caught:
        replace(run(), budget=budget).pack(POLICY)
    assert float(str(caught.value.got)) > 0


def test_a_budget_that_is_kept_is_told_with_its_figures() -> None:
    """Size, latency and memory as they are; what is not bounded is not measured."""
    budget = Budget(size="1 MB", latency="1 s", memory="1 GB")
    found = replace(run(), budget=budget).pack(POLICY)
    assert found.footprint is not None
    assert found.footprint.size == found.manifest.size
    assert 0 < found.footprint.latency < 0.1  # type: ignore[operator]  # it was measured
    assert 0 < found.footprint.memory < 10**8  # type: ignore[operator]
    only = replace(run(), budget=Budget(size="1 MB")).pack(POLICY).footprint
    assert only is not None
    assert (only.latency, only.memory) == (None, None)


def test_what_cannot_be_measured_here_is_said() -> None:
    """Another kind of device is not timed on this machine; its size is looked at all the same."""
    where = HardwareClass("aarch64-dotprod-onnxruntime")
    slow = replace(run(), budget=Budget(latency="1 us"))
    with pytest.warns(
        NotMeasuredWarning, match=r"^\[not-measured\] latency was not held .*for aarch64-dotprod"
    ):
        assert slow.pack(POLICY, hardware_class=where).footprint is not None
    with pytest.raises(SettingError, match="larger than its budget"):
        replace(run(), budget=Budget(size="1 kB")).pack(POLICY, hardware_class=where)


def test_the_teacher_is_no_student() -> None:
    """Trained in place, it would teach itself."""
    with pytest.raises(SettingError, match="the student is the teacher"):
        distill(teacher(), TRAIN, validation=HELDOUT, student=teacher(), recipe=QUICK)


def test_a_bundle_is_made_of_any_source_of_classes(tmp_path: Path) -> None:
    """Training data without labels from a torch dataset, held-out data of which some have none: as from samples."""
    held = ArraySource(
        torch.from_numpy(HELDOUT.inputs),
        torch.from_numpy(np.where(np.arange(len(HELDOUT)) < 9, -1, HELDOUT.labels)),
        "classes",
        CLASSES,
    )
    shown = DatasetSource(
        [torch.from_numpy(one) for one in TRAIN.inputs],  # type: ignore[arg-type]  # a list is a dataset
        outputs=CLASSES,
        labelled=False,
        name="motions-1",
    )
    found = distill(
        teacher(),
        shown,
        validation=held,
        student=motion_net(4, 4, 6, seed=5),
        recipe=replace(QUICK, soft_weight=1.0),
    )
    where = HardwareClass("aarch64-dotprod-onnxruntime")
    path = found.save_bundle(tmp_path / "motion.esb", POLICY, hardware_class=where)
    bundle = Bundle.open(path)
    bundle.verify()
    assert bundle.manifest.hardware_class == where.name
    assert json.loads(bundle.read("lineage.json"))["metrics"]["int8"]["n"] == len(HELDOUT) - 9


def test_the_reference_network_is_packed_from_bytes() -> None:
    """Images go in as uint8; the bundle is of the hardware class that was asked for."""
    train = Samples.of(images(40), np.arange(40) % 10)
    heldout = Samples.of(images(40, seed=1), np.arange(40) % 10)
    found = distill(image_net(8, 8, 16), train, validation=heldout, student=image_net(4, 4, 8), recipe=QUICK)
    origin = Origin(name="images", version="2.0.0", recipe={}, seed=0)
    labels = tuple("abcdefghij")
    where = HardwareClass("aarch64-dotprod-onnxruntime")
    made = pack(
        found.student,
        found.teacher,
        train=train,
        heldout=heldout,
        policy=Policy(labels=labels),
        origin=origin,
        hardware_class=where,
    )
    assert made.manifest.hardware_class == where.name
    assert read_golden(made.blobs["golden.npz"]).input.dtype == np.uint8
    assert probe(
        OnnxEngine(made.blobs["model.onnx"]), read_golden(made.blobs["golden.npz"]), FakeClock()
    ).passed


def test_the_room_opens_its_door_lazily() -> None:
    """`edgestill.lab` gives `Budget` and `distill`, and nothing it does not have."""
    assert edgestill.lab.Budget is Budget
    assert edgestill.lab.distill is distill
    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = edgestill.lab.teach

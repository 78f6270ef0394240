"""A whole distillation from one file: what comes of it, what is refused, and that nothing done is lost."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from job_worlds import COMPARE, JOB, data, loaded, write_job
from lab_worlds import HELDOUT, LABELS, TRAIN

from edgestill.core.budget import Budget
from edgestill.core.bundle import Bundle
from edgestill.core.errors import (
    ClassCountError,
    DataError,
    EdgestillError,
    ModelError,
    PathError,
    SettingError,
    UnitError,
)
from edgestill.infer.policy import Policy
from edgestill.infer.student import load
from edgestill.lab import compare as comparing
from edgestill.lab import job as module
from edgestill.lab.data.samples import Samples
from edgestill.lab.forward import answers
from edgestill.lab.inherit import carve
from edgestill.lab.job import Job
from edgestill.lab.jobdata import DataName
from edgestill.lab.notices import NothingLearnedWarning
from edgestill.lab.training import train as training

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import JsonObject

CARVED = JOB.replace('model = "nets.py:student"', "carve = 0.5")
MULTI = """
[teacher]
model = "nets.py:large"
[student]
model = "nets.py:small"
[data]
source = "nets.py:labels"
ask = "live"
[recipe]
epochs = 2
soft_weight = 0.5
"""


@cache
def done() -> tuple[Path, JsonObject]:
    """A job that ran to its end: its folder and report."""
    path = write_job(Path(mkdtemp(prefix="edgestill-test-")))
    return path, Job.read(path).run(path.parent / "out")


def test_the_weights_are_the_students() -> None:
    """The file loads into the student, and the bundle's int8 answers agree with it."""
    out = done()[0].parent / "out"
    network = loaded(out)
    ours = answers(network, torch.from_numpy(HELDOUT.inputs)).argmax(1).numpy()
    theirs = load(out / "student.esb").predict(HELDOUT.inputs).probabilities.argmax(1)
    assert (ours == theirs).mean() > 0.9
    assert (ours == HELDOUT.labels).mean() > 0.5


def test_the_bundle_is_sound_and_knows_the_names_of_its_classes() -> None:
    """They come from the data's file."""
    bundle = Bundle.open(done()[0].parent / "out" / "student.esb")
    bundle.verify()
    assert Policy.from_bytes(bundle.read("policy.json")).labels == LABELS


def test_the_report_says_what_was_measured() -> None:
    """Scores with n and intervals, sizes, the comparison, the recipe, the bundle; the file says the same."""
    path, report = done()
    told = json.loads((path.parent / "out" / "report.json").read_text())
    assert told == report
    figures, parameters = told["figures"], told["parameters"]
    for name in ("teacher", "student"):
        low, high = figures[f"{name}_score_ci95"]
        assert low <= figures[f"{name}_score"] <= high
        assert (figures[f"{name}_score_n"], figures[f"{name}_score_groups"]) == (150, 150)
    right = (
        answers(loaded(path.parent / "out"), torch.from_numpy(HELDOUT.inputs)).argmax(1).numpy()
        == HELDOUT.labels
    )
    assert figures["student_score"] == pytest.approx(right.mean())
    assert parameters["ratio"] == parameters["teacher"] / parameters["student"] > 1
    assert told["comparison"]["samples"] == 60
    assert told["recipe"]["soft_weight"] == 0.7
    assert told["bundle"]["bytes"] == (path.parent / "out" / "student.esb").stat().st_size
    assert (told["task"], told["seconds"] > 0) == ("classes", True)


def test_the_log_has_a_row_an_epoch() -> None:
    """With the mean loss, which falls."""
    rows = list(csv.DictReader((done()[0].parent / "out" / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_nothing_but_what_is_promised_is_in_the_folder() -> None:
    """No half-written file among it."""
    names = sorted(one.name for one in (done()[0].parent / "out").iterdir())
    assert names == ["cache", "checkpoint", "log.csv", "report.json", "student.esb", "student.safetensors"]


def test_a_second_call_gives_the_same_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the student nor what it is compared with is trained again."""
    path, report = done()
    out = path.parent / "out"
    before = {name: (out / name).read_bytes() for name in ("student.safetensors", "student.esb", "log.csv")}
    monkeypatch.setattr(training._Run, "run_epoch", None)
    monkeypatch.setattr(comparing, "train_", None)
    again = Job.read(path).run(out)
    assert {name: again[name] for name in again if name != "seconds"} == {
        name: report[name] for name in report if name != "seconds"
    }
    assert before == {name: (out / name).read_bytes() for name in before}


def test_another_job_does_not_take_over_the_folder() -> None:
    """Its checkpoint is of this teacher, student, data and recipe, and says so."""
    path, _ = done()
    job = Job.read(path)
    with pytest.raises(DataError, match="another"):
        replace(job, recipe=replace(job.recipe, lr=0.02), compare=None).run(path.parent / "out")


def test_a_budget_that_is_not_kept_is_an_error_after_everything_else_is_kept(tmp_path: Path) -> None:
    """Weights and report are there; the bundle is not."""
    path = write_job(tmp_path / "job", JOB + '[budget]\nsize = "1 kB"\n')
    with pytest.raises(SettingError, match="the bundle is larger than its budget"):
        Job.read(path).run(tmp_path / "out")
    assert loaded(tmp_path / "out") is not None
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["bundle"] is None
    assert report["figures"]["student_score"] > 0.5
    assert not (tmp_path / "out" / "student.esb").exists()


def test_a_budgets_escalation_share_bounds_the_policys(tmp_path: Path) -> None:
    """Named classes or not; the TOML's names go before the file's."""
    labels = '[data]\nlabels = ["a", "b", "c"]'
    path = write_job(tmp_path / "job", JOB.replace("[data]", labels) + '[budget]\nescalation = "3 %"\n')
    Job.read(path).run(tmp_path / "out")
    policy = Policy.from_bytes(Bundle.open(tmp_path / "out" / "student.esb").read("policy.json"))
    assert (policy.escalation_share, policy.labels) == (0.03, ("a", "b", "c"))
    assert policy.audit_share <= 0.03


def test_without_a_student_the_budget_says_how_much_is_carved(tmp_path: Path) -> None:
    """The bundle keeps it and little of it is left; a second run goes on with the same student, and needs no measuring."""
    head, _, rest = JOB.partition("[student]")
    text = f"{head}[data]{rest.partition('[data]')[2]}"
    path = write_job(tmp_path, text + '\n[budget]\nsize = "15 kB"\n')
    job = Job.read(path)
    report = job.run(tmp_path / "out")
    size = Bundle.open(tmp_path / "out" / "student.esb").manifest.size
    assert 12_000 < size <= 15_000
    assert job.run(tmp_path / "out")["figures"] == report["figures"]
    with pytest.raises(SettingError, match="neither a student nor a budget for one; at student"):
        replace(job, budget=None).run(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SettingError, match="the bound on size is too tight"):
        replace(job, budget=Budget(size="3 kB")).run(tmp_path / "other")


def test_a_student_is_carved_out_of_its_teacher(tmp_path: Path) -> None:
    """Half of every layer's units."""
    report = Job.read(write_job(tmp_path / "job", CARVED)).run(tmp_path / "out")
    weights = safetensors.torch.load_file(tmp_path / "out" / "student.safetensors")
    assert [len(weights[f"conv{at}.weight"]) for at in (1, 2, 3)] == [4, 4, 6]
    assert report["bundle"] is not None


def test_other_tasks_end_without_a_bundle(tmp_path: Path) -> None:
    """Two independent labels from a callable: weights and report."""
    report = Job.read(write_job(tmp_path / "job", MULTI)).run(tmp_path / "out")
    assert report["task"] == "multi-label"
    why = "bundles are for classes, told from one input; this is multi-label"
    assert report["bundle"] == {"file": None, "why": why}
    assert "student_score" in str(report["figures"])
    assert sorted(safetensors.torch.load_file(tmp_path / "out" / "student.safetensors")) == [
        "0.bias",
        "0.weight",
        "2.bias",
        "2.weight",
    ]


def test_held_out_data_of_one_group_has_no_interval(tmp_path: Path) -> None:
    """Rather than one that means nothing."""
    path = write_job(tmp_path / "job", JOB, groups_validation=np.zeros(len(HELDOUT), np.int64))
    report = Job.read(path).run(tmp_path / "out")
    assert "'student_score_ci95': None" in str(report["figures"])


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    """A file in its place is refused while the teacher's weights are not even there."""
    path = write_job(tmp_path / "job")
    (tmp_path / "job" / "teacher.safetensors").unlink()
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "out"):
        with pytest.raises(PathError, match="cannot write into the folder for the results"):
            Job.read(path).run(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    """Its being there is not enough."""
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(PathError, match="cannot write into the folder for the results"):
        Job.read(write_job(tmp_path / "job")).run(tmp_path / "out")


def without(table: str) -> str:
    """The job without a table."""
    start = JOB.index(f"[{table}]")
    end = JOB.find("\n[", start)
    return JOB[:start] + (JOB[end:] if end > 0 else "")


BAD_FILES: dict[str, tuple[str, str]] = {
    "an unknown table": (JOB + "[recipee]\n", "unknown table in a job; at .*recipee; .*; did you mean 'recipe'"),
    "a key outside of a table": ("epochs = 3\n" + JOB, "unknown table in a job; at .*epochs"),
    "an unknown key": (JOB + "lrr = 1\n", "unknown key in a recipe; at .*recipe: lrr; .*; did you mean 'lr'"),
    "an unknown key of data": (JOB.replace("file =", "fiel ="), "unknown key in a data; .*did you mean 'file'"),
    "an unknown key of the runtime": (JOB + "[runtime]\ndevice = 1\n", "did you mean 'devices'"),
    "an unknown key of the comparison": (JOB + "[compare]\nseed = 3\n", "did you mean 'seeds'"),
    "an unknown key of the budget": (JOB + '[budget]\nsise = "1 kB"\n', "did you mean 'size'"),
    "a wrong type": (JOB + 'momentum = "0.9"\n', "recipe: momentum; expected a number; got '0.9'"),
    "out of range": (JOB + "tau = 0\n", r"job.toml: recipe: tau"),
    "one seed": (JOB + "[compare]\nseeds = 1\n", "seeds 2 to 100"),
    "a table that is none": ("teacher = 3\n" + without("teacher"), r"expected \[teacher\]; got 3"),
    "a budget without a unit": (JOB + "[budget]\nsize = 120000\n", "budget: size; expected text; got 120000"),
    "both model and carve": (JOB.replace("[student]", "[student]\ncarve = 0.5"), "a student is named or carved"),
    "neither model nor carve": (JOB.replace('model = "nets.py:student"', ""), "a student is named or carved"),
    "all of the teacher": (CARVED.replace("0.5", "1"), "a student is named or carved"),
    "carved with weights": (CARVED.replace("0.5", '0.5\nweights = "w.pt"'), "a student begins in one way.*carve, weights"),
    "weights and inheritance": (
        JOB.replace('"nets.py:student"', '"nets.py:student"\nweights = "w.pt"\ninherit = true'),
        "a student begins in one way.*got weights, inherit",
    ),
    "no data": (JOB.replace('file = "data.npz"', ""), "one place for the data"),
    "two places for data": (JOB.replace("file =", 'source = "nets.py:labels"\nfile ='), "one place for the data"),
    "all held out": (JOB.replace("[data]", "[data]\nvalidation = 1.0"), "data: validation; expected more than 0"),
    "one class": (JOB.replace("[data]", "[data]\nclasses = 1"), "data: classes; expected 2 or more"),
    "too few names": (JOB.replace("[data]", '[data]\nclasses = 3\nlabels = ["a", "b"]'), r"expected 2 \(the labels\)"),
    "an unknown way to ask": (JOB.replace("[data]", '[data]\nask = "never"'), "cached, live, onnx"),
} | {f"no {name}": (without(name), rf"a table is missing in a job; .*\[{name}\]") for name in ("teacher", "data", "recipe")}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    """The text says where, and what would be right."""
    text, told = BAD_FILES[case]
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises((SettingError, UnitError), match=told) as refused:
        Job.read(tmp_path / "job.toml")
    assert refused.value.fix


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    """No comparison, no budget, one process; a student without weights inherits, one with weights does not."""
    (tmp_path / "job.toml").write_text(JOB)
    job = Job.read(tmp_path / "job.toml")
    assert job.student is not None
    assert (job.compare, job.budget, job.runtime.devices, job.student.inherits) == (None, None, 1, True)
    assert not replace(job.student, weights=tmp_path).inherits
    assert job.teacher.weights == tmp_path / "teacher.safetensors"


def npz(path: Path, **changes: Any) -> Path:
    """A file of data."""
    np.savez(path, **data(**changes))  # type: ignore[arg-type]  # numpy's stub takes names for its own flag
    return path


def outside() -> np.ndarray[Any, Any]:
    """Labels of which one is below zero."""
    labels = TRAIN.labels.copy()
    labels[5] = -1
    return labels


def holed() -> np.ndarray[Any, Any]:
    """Inputs of which sample 4 is not a number."""
    inputs = TRAIN.inputs.copy()
    inputs[4, 0, 0] = np.nan
    return inputs


BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"x_train": TRAIN.inputs.astype(str)}, r"inputs are not numbers; at .*npz: x_train"),
    "huge labels": (
        {"y_train": TRAIN.labels.astype(np.uint64) + np.uint64(2**63)},
        "labels are too large; at .*npz: y_train",
    ),
    "objects": ({"x_train": np.array([{}], dtype=object)}, "not an npz file of plain arrays"),
    "NaN": ({"x_train": holed()}, r"not-finite.*data.npz: x_train, sample 4"),
    "one class": ({"y_train": np.zeros(120, np.int64)}, "only one class; at .*data.npz: y_train"),
    "a label below zero": ({"y_train": outside()}, "a label outside the classes"),
    "a label too large": ({"y_train": TRAIN.labels + 1}, "a label outside the classes.*0 to 2; got 1 to 3"),
    "a new label held out": ({"y_validation": HELDOUT.labels + 1}, "y_validation.*0 to 2; got 1 to 3"),
    "other lengths": (
        {"y_train": TRAIN.labels[:-1]},
        r"do not belong together; at .*npz: x_train and y_train",
    ),
    "labels in columns": ({"y_train": TRAIN.labels[:, None]}, "inputs and labels do not belong together"),
    "labels that are fractions": ({"y_train": TRAIN.labels + 0.5}, "labels are not whole numbers"),
    "no samples": (
        {"x_train": TRAIN.inputs[:0], "y_train": TRAIN.labels[:0]},
        r"no samples; at .*data.npz: x_train",
    ),
    "groups of another length": (
        {"groups_train": np.zeros(3, np.int64)},
        r"one group a sample; at .*npz: groups_train",
    ),
    "no labels": ({"y_train": None}, "arrays are missing; .*expected x_train and y_train"),
    "half of the held-out data": ({"x_validation": None}, "expected x_validation and y_validation"),
    "a misspelt array": ({"x_validaton": HELDOUT.inputs}, "unknown array.*did you mean 'x_validation'"),
    "names that are numbers": ({"labels": np.arange(3)}, "labels that are no names"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    """The text names the file and what is wrong in it."""
    changes, told = BAD_DATA[case]
    with pytest.raises(EdgestillError, match=r"data.npz") as refused:
        DataName(file=npz(tmp_path / "data.npz", **changes)).load(tmp_path, 0)
    assert re.search(told, str(refused.value)), refused.value
    assert refused.value.fix
    assert "allow_pickle" not in str(refused.value)


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"x,y\n1,2\n",
        lambda content: b"\x80\x04K\x01.",
        lambda content: content[:3000] + b"\xff" * 64 + content[3064:],
    ],
    ids=["truncated", "empty", "csv", "pickle", "damaged"],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    """Whatever it is instead."""
    path = npz(tmp_path / "data.npz")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match="not an npz file of plain arrays"):
        DataName(file=path).load(tmp_path, 0)


def test_a_single_array_is_not_taken_for_data(tmp_path: Path) -> None:
    """An npy file under an npz name, and a file that is not there."""
    np.save(tmp_path / "one.npy", TRAIN.inputs)
    with pytest.raises(DataError, match="not an npz file"):
        DataName(file=tmp_path / "one.npy").load(tmp_path, 0)
    with pytest.raises(PathError, match="cannot read the data"):
        DataName(file=tmp_path / "none.npz").load(tmp_path, 0)


def test_without_held_out_data_whole_groups_are_held_out(tmp_path: Path) -> None:
    """A fifth of the people, none of them in both parts; another seed chooses others."""
    changes = {"x_validation": None, "y_validation": None, "groups_train": np.arange(120) // 6}
    name = DataName(file=npz(tmp_path / "data.npz", **changes))
    found = [name.load(tmp_path, seed) for seed in (0, 0, 1)]
    parts = []
    for one in found:
        assert isinstance(one.train, Samples)
        assert isinstance(one.heldout, Samples)
        assert not set(one.train.groups) & set(one.heldout.groups)
        assert (len(one.train), len(one.heldout)) == (96, 24)
        parts.append(set(one.heldout.groups.tolist()))
    assert parts[0] == parts[1] != parts[2]


def test_a_single_group_cannot_be_split(tmp_path: Path) -> None:
    """Nothing would be left to train on."""
    changes = {"x_validation": None, "y_validation": None, "groups_train": np.zeros(120, np.int64)}
    with pytest.raises(DataError, match="nothing is left to train on"):
        DataName(file=npz(tmp_path / "data.npz", **changes)).load(tmp_path, 0)


def test_names_give_the_number_of_classes(tmp_path: Path) -> None:
    """Four names for labels 0 to 2: a fourth class without samples yet."""
    found = DataName(file=npz(tmp_path / "data.npz"), labels=("a", "b", "c", "d")).load(tmp_path, 0)
    assert isinstance(found.train, Samples)
    assert (found.train.classes, found.labels) == (4, ("a", "b", "c", "d"))


def test_names_of_another_number_than_the_classes_are_refused(tmp_path: Path) -> None:
    """Four classes by the TOML, three names in the file."""
    with pytest.raises(ClassCountError, match="names and classes of the data disagree"):
        DataName(file=npz(tmp_path / "data.npz"), classes=4).load(tmp_path, 0)


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("nets.py:alone", SettingError, "gives two things; .*got ArraySource"),
        ("nets.py:student", SettingError, "gives two things; .*got MotionNet"),
        ("nets.py:fails", ModelError, "a callable that fails; .*no data today"),
        ("nets.py:labls", SettingError, "did you mean 'labels'"),
        ("torch:broadcast_shapes", SettingError, "gives two things"),
    ],
)
def test_a_source_that_gives_no_data_is_refused(
    tmp_path: Path, source: str, error: type[EdgestillError], told: str
) -> None:
    """The text says what came."""
    write_job(tmp_path)
    with pytest.raises(error, match=told):
        DataName(source=source).load(tmp_path, 0)


def test_a_model_that_does_not_take_the_data_is_refused_before_training(tmp_path: Path) -> None:
    """In one line, not with torch's traceback."""
    path = write_job(
        tmp_path, JOB.replace('model = "nets.py:student"', 'model = "nets.py:small"\ninherit = false')
    )
    with pytest.raises(ModelError, match="the student does not take the training data"):
        Job.read(path).run(tmp_path / "out")


def test_held_out_data_of_another_shape_is_refused_before_training(tmp_path: Path) -> None:
    """The text says which of the two parts it is."""
    path = write_job(tmp_path)
    wrong = HELDOUT.inputs[..., :3]
    npz(tmp_path / "data.npz", x_validation=wrong, y_validation=HELDOUT.labels)
    with pytest.raises(ModelError, match="the teacher does not take the held-out data"):
        Job.read(path).run(tmp_path / "out")


def test_too_little_held_out_data_for_a_bundle_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle is calibrated on thirty samples at least."""
    few = {"x_validation": HELDOUT.inputs[:29], "y_validation": HELDOUT.labels[:29]}
    path = write_job(tmp_path, JOB, **few)
    monkeypatch.setattr(training._Run, "run_epoch", None)
    with pytest.raises(DataError, match=r"too little held-out data to calibrate a bundle; .*got 29"):
        Job.read(path).run(tmp_path / "out")


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch; the next call goes on from the last checkpoint, bit for bit as if nothing had been."""
    text = JOB.replace("epochs = 3", "epochs = 40") + "[runtime]\ncheckpoint_every = 3\n"
    slow = text.replace('model = "nets.py:student"', 'model = "nets.py:student"\narguments = {pause = 0.02}')
    path, out = write_job(tmp_path / "job", slow), tmp_path / "out"
    command = [sys.executable, "-m", "edgestill.cli", "distill", str(path), "--out", str(out), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        log, until = out / "log.csv", time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) > 4) and time.monotonic() < until:
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)  # a real process: there is no clock to fake
        running.send_signal(signal.SIGKILL)
    assert not (out / "student.safetensors").exists()
    path.write_text(text)  # the same job at full speed
    told: list[int] = []
    Job.read(path).run(out, progress=lambda now: told.append(now.done) if now.phase == "training" else None)
    assert told[0] > 3
    Job.read(path).run(tmp_path / "whole")
    digests = [
        hashlib.sha256((one / "student.safetensors").read_bytes()).hexdigest()
        for one in (out, tmp_path / "whole")
    ]
    assert digests[0] == digests[1]


def test_comparing_is_part_of_a_job_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """A table without keys asks with the defaults."""
    (tmp_path / "job.toml").write_text(JOB + COMPARE.splitlines()[1] + "\n")
    job = Job.read(tmp_path / "job.toml")
    assert job.compare is not None
    assert job.compare.seeds == 3


FRESH = JOB.replace('model = "nets.py:student"', 'model = "nets.py:unseeded"\ninherit = false')


def test_a_student_that_draws_its_first_weights_is_the_same_in_the_next_process(tmp_path: Path) -> None:
    """The recipe's seed decides them, whatever the generators held; another seed gives others."""
    path = write_job(tmp_path / "job", FRESH)
    torch.manual_seed(1)
    Job.read(path).run(tmp_path / "one")
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002  # what a user's code draws from
    report = Job.read(path).run(tmp_path / "one")  # goes on: nothing is left to train
    assert len((tmp_path / "one" / "log.csv").read_text().splitlines()) == 1 + 3
    Job.read(path).run(tmp_path / "two")
    one, two = (safetensors.torch.load_file(tmp_path / at / "student.safetensors") for at in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = Job.read(write_job(tmp_path / "other", FRESH + "seed = 5\n"))
    assert other.run(tmp_path / "three")["figures"] != report["figures"]


def test_the_comparison_of_carved_students_varies_their_first_weights(tmp_path: Path) -> None:
    """Each seed carves another part of the teacher, so that the spread over seeds is of that too."""
    path = write_job(tmp_path / "job", CARVED + COMPARE)
    made: list[int] = []
    real = carve

    def noting(*args: Any, **named: Any) -> Any:
        made.append(named["seed"])
        return real(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "carve", noting)
        Job.read(path).run(tmp_path / "out")
    assert set(made) == {0, 1}


def test_data_of_another_type_than_the_teachers_is_told_as_such(tmp_path: Path) -> None:
    """Before anything is carved: float64 is what NumPy gives where nobody says otherwise."""
    text = CARVED.replace("nets.py:teacher", "nets.py:flat").replace('weights = "teacher.safetensors"\n', "")
    wide = {
        f"x_{part}": of.inputs.astype(np.float64) for part, of in (("train", TRAIN), ("validation", HELDOUT))
    }
    path = write_job(tmp_path / "job", text, **wide)
    with pytest.raises(ModelError, match=r"the teacher does not take the training data; .*dtype"):
        Job.read(path).run(tmp_path / "out")


def test_a_model_that_knows_nothing_is_said_aloud(tmp_path: Path) -> None:
    """A teacher whose weights were forgotten, and the student that it taught."""
    path = write_job(
        tmp_path / "job", JOB.replace('weights = "teacher.safetensors"\n', "").replace("0.01", "1e-9")
    )
    with pytest.warns(NothingLearnedWarning) as told:
        Job.read(path).run(tmp_path / "out")
    said = [str(one.message) for one in told if isinstance(one.message, NothingLearnedWarning)]
    assert said[0].startswith("[nothing-learned] the teacher is right about 3")
    assert said[0].endswith("look at its weights and its input")


def test_a_callable_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    """The user's own, not ours."""
    path = write_job(tmp_path / "job", JOB.replace('file = "data.npz"', 'source = "nets.py:fails"'))
    with pytest.raises(ModelError, match=r"a callable that fails; .*no data today \(line \d+ of nets\.py\)"):
        Job.read(path).run(tmp_path / "out")

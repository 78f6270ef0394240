"""The bundle that a job ends with: for whom it is made, and what may leave that device."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import pytest
from job_worlds import JOB, write_job
from lab_worlds import TRAIN

from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, EdgestillError, SettingError
from edgestill.core.sharing import Noise, Sharing
from edgestill.infer.policy import Policy
from edgestill.infer.reaction import Reaction
from edgestill.lab import job as module
from edgestill.lab.job import Job
from edgestill.lab.jobdata import Data
from edgestill.lab.notices import NoGainWarning

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bundle_is_made_for_the_device_that_is_named(tmp_path: Path) -> None:
    """Its class, and what may leave it; a name that is none is refused at once."""
    more = '[bundle]\nhardware_class = "aarch64-dotprod-onnxruntime"\nleaves = "features"\nlossy = true\nbytes_per_day = 500_000\n'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGainWarning)  # whether an adapter is of use differs by hardware
        Job.read(write_job(tmp_path / "job", JOB + more)).run(tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out" / "student.esb")
    assert bundle.manifest.hardware_class == "aarch64-dotprod-onnxruntime"
    policy = Policy.from_bytes(bundle.read("policy.json"))
    assert (policy.leaves, policy.lossy, policy.bytes_per_day) == ("features", True, 500_000)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    file = tmp_path / "out" / "student.adapter.onnx"
    assert report["bundle"].get("adapter") == (file.name if file.exists() else None)
    assert policy.adapter == (Digest.of(file.read_bytes()) if file.exists() else None)
    with pytest.raises(SettingError, match=r"out of range; at .*leaves; expected nothing, features, raw"):
        Job.read(write_job(tmp_path / "no", JOB + '[bundle]\nleaves = "all"\n'))


DRIFT = '[bundle.on_drift]\ndo = ["audit", "learn"]\naudit_factor = 3\naudit_inputs = 100\n'
SUMS = "[bundle.statistics]\nencoding = 'float32'\nkept = 4\nleast = 20\n"
NOISE = "[bundle.statistics.noise]\nunit = 'message'\nepsilon = 2\nmessages = 90\n"


def test_a_job_says_what_follows_a_change_and_how_sums_are_sent(tmp_path: Path) -> None:
    """In the policy of its bundle; what it leaves out is as usual."""
    Job.read(write_job(tmp_path / "job", JOB + DRIFT + SUMS + NOISE)).run(tmp_path / "out")
    policy = Policy.from_bytes(Bundle.open(tmp_path / "out" / "student.esb").read("policy.json"))
    assert policy.on_drift == Reaction(do=("audit", "learn"), audit_factor=3.0, audit_inputs=100)
    noise = Noise(unit="message", epsilon=2.0, messages=90)
    assert policy.statistics == Sharing(encoding="float32", kept=4, least=20, noise=noise)


def test_a_job_that_says_nothing_of_either_has_what_is_usual(tmp_path: Path) -> None:
    """Learning anew and a report; codes of eight bits in all coordinates, without noise."""
    policy = Job.read(write_job(tmp_path, JOB)).policy_for(Data(train=TRAIN, heldout=TRAIN, labels=()), 3)
    assert (policy.on_drift, policy.statistics) == (Reaction(), Sharing())


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ('[bundle.on_drift]\ndo = ["panic"]\n', r"bundle: on_drift: do\[0\]; expected audit, learn, report"),
        ('[bundle.on_drift]\ndo = ["learn", "learn"]\n', r"bundle: on_drift: do; expected .* each once"),
        ("[bundle.on_drift]\nlearn = true\n", "unknown key in on_drift"),
        (
            "[bundle.on_drift]\naudit_factor = 0.5\n",
            "bundle: on_drift: audit_factor; expected a number from 1",
        ),
        ("[bundle.on_drift]\naudit_inputs = 1.5\n", "on_drift: audit_inputs; expected a whole number"),
        ("[bundle.statistics]\nencoding = 'int4'\n", "bundle: statistics: encoding; expected float16"),
        ("[bundle.statistics]\nkept = 9999\n", "bundle: statistics: kept; expected 0 to 2048"),
        ("[bundle.statistics]\nunknown = {}\n", "unknown key in statistics"),
        (NOISE, 'statistics: noise; expected floats of sums .* say encoding = "float32"'),
        (SUMS.replace("4", "0") + NOISE, "statistics: noise; expected floats of sums in coordinates"),
        (SUMS + NOISE.replace("2", "-2"), "bundle: statistics: noise: epsilon; expected above 0"),
        (SUMS + NOISE.replace("message'", "house'"), "noise: unit; expected message, sample"),
        ('[bundle]\nleaves = "nothing"\n' + SUMS, 'bundle: statistics; .* got leaves = "nothing"'),
        ('[bundle]\nleaves = "features"\n' + DRIFT, "bundle: on_drift: do; .* got audit, with leaves"),
    ],
)
def test_what_a_policy_could_not_say_is_refused_before_anything_is_trained(
    tmp_path: Path, more: str, wrong: str
) -> None:
    """A misspelt or mistyped key, a value out of its range, and what could have no effect; each with where it stands."""
    with pytest.raises(SettingError, match=wrong):
        Job.read(write_job(tmp_path / "job", JOB + more))


def test_the_next_version_of_a_job_is_named_and_follows(tmp_path: Path) -> None:
    """Two jobs, one after the other: each file has its name, and the second its version, its parent's grid and digest."""
    job = JOB + '[bundle]\nname = "camera"\n'
    Job.read(write_job(tmp_path / "one", job)).run(tmp_path / "first")
    assert json.loads((tmp_path / "first" / "report.json").read_text())["bundle"]["file"] == "camera.esb"
    first = Bundle.open(tmp_path / "first" / "camera.esb")
    assert (first.manifest.name, first.manifest.version) == ("camera", "1.0.0")
    more = f'version = "1.1.0"\nfollows = "{tmp_path}/first/camera.esb"\n[budget]\nupdate = "1 MB"\n'
    Job.read(write_job(tmp_path / "two", job + more)).run(tmp_path / "second")
    second = Bundle.open(tmp_path / "second" / "camera.esb")
    assert (second.manifest.name, second.manifest.version) == ("camera", "1.1.0")
    assert json.loads(second.read("lineage.json"))["parent"] == str(first.manifest.digest)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('name = "My Camera"', "name; expected text that matches"),
        ('version = "1.1"', "version; expected text that matches"),
        ('follows = "nothing.esb"', "nothing.esb"),
    ],
)
def test_a_name_that_no_bundle_can_have_is_refused_before_anything_is_trained(
    tmp_path: Path, line: str, wrong: str
) -> None:
    """So is a bundle to follow that is not there."""
    with pytest.raises(EdgestillError, match=wrong):
        Job.read(write_job(tmp_path / "job", f"{JOB}[bundle]\n{line}\n"))


def test_a_source_of_the_users_becomes_a_bundle_too(tmp_path: Path) -> None:
    """Labelled tensors that a callable gives, instead of a file."""
    nets = (
        "import numpy as np\nimport torch\nfrom edgestill.lab.data.source import ArraySource\n"
        "def both():\n    with np.load('data.npz') as at:\n"
        "        return tuple(ArraySource(torch.from_numpy(at['x_' + part]), torch.from_numpy(at['y_' + part]), 'classes', 3)\n"
        "                     for part in ('train', 'validation'))\n"
    )
    path = write_job(tmp_path / "job", JOB.replace('file = "data.npz"', 'source = "own.py:both"'))
    (path.parent / "own.py").write_text(nets.replace("'data.npz'", repr(str(path.parent / "data.npz"))))
    report = Job.read(path).run(tmp_path / "out")
    assert report["bundle"] == {
        "file": "student.esb",
        "size": Bundle.open(tmp_path / "out" / "student.esb").manifest.size,
        "bytes": (tmp_path / "out" / "student.esb").stat().st_size,
    }


def test_too_little_data_for_an_adapter_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained last, and hours would be lost."""
    few = {"x_train": TRAIN.inputs[:99], "y_train": TRAIN.labels[:99]}
    path = write_job(tmp_path, JOB + '[bundle]\nleaves = "features"\n', **few)
    monkeypatch.setattr(module, "distill", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(DataError, match="too little data to train an adapter"):
        Job.read(path).run(tmp_path / "out")

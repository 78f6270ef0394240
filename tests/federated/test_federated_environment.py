"""The tests that need Flower, where Flower is: in an environment of its own, made here, as the project's cannot hold it.

Flower's bounds on protobuf, rich, typer and others exclude the versions of `constraints.txt`. Where no registry gives
Flower, these tests skip and say what pip said.
"""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.installs, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FILES = ("quiet", "node", "records", "strategies", "averaging", "engine")
LEAST = 100  # that pass; a file that is passed over whole would take more away
TOOLS = ("torch", "pytest", "hypothesis", "onnx", "scikit-learn")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has Flower, torch and what the tests use, in the pinned versions."""
    folder = tmp_path_factory.mktemp("flower")
    venv.create(folder, with_pip=True)
    made = folder / "bin" / "python"
    pip = [str(made), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    done = subprocess.run(
        [*pip, "-c", str(HERE / "constraints.txt"), f"{ROOT}[federated]", *TOOLS],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"Flower cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return made


def test_where_flower_is_its_tests_pass(python: Path, tmp_path: Path) -> None:
    """Every test of the adapter runs and passes there; of those that need Flower none is passed over."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [
            *map(str, (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")),
            *map(str, ("--basetemp", tmp_path / "its")),
            *(str(HERE / f"test_federated_{name}.py") for name in FILES),
        ],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST, done.stdout[-2000:]
    assert "Flower is not in this environment" not in done.stdout


def test_this_environment_and_flower_exclude_each_other() -> None:
    """Why there are two: the day they agree on every version, one file of constraints will do."""
    pins = [
        dict(line.split("==") for line in file.read_text().splitlines() if "==" in line and line[0] != "#")
        for file in (ROOT / "constraints.txt", HERE / "constraints.txt")
    ]
    differing = {name for name in pins[0].keys() & pins[1].keys() if pins[0][name] != pins[1][name]}
    assert differing >= {"protobuf", "rich", "typer", "packaging", "starlette"}

"""The import contracts catch what they are named after: each planted violation breaks its contract."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Contract -> a module that breaks it, as path and content.
VIOLATIONS: dict[str, tuple[str, str]] = {
    "Floors: imports go down, never up, never sideways": (
        "trust/sideways.py",
        "def hidden():\n    import edgestill.store\n",
    ),
    "Core is the standard library": ("core/heavy.py", "import numpy\n"),
    "Only the lab loads torch": ("hub/heavy.py", "def hidden():\n    import torch\n"),
    "A web server is loaded only by the hub and by device.serve": (
        "device/web.py",
        "import starlette.routing\n",
    ),
    "Only link opens client sockets (urllib3)": ("hub/client.py", "import urllib3\n"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source and its contracts, in a folder where they may be broken."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", folder)
    return folder


def broken(folder: Path) -> set[str]:
    """The contracts that do not hold there."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "COLUMNS": "200", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return set(re.findall(r"^(.+?) BROKEN", done.stdout, re.MULTILINE))


def test_planted_violations_break_their_contracts(copy: Path) -> None:
    """An import up or sideways, a heavy library or a client in the wrong room: each is found, and by its name."""
    planted = [(copy / "src" / "edgestill" / path, text) for path, text in VIOLATIONS.values()]
    for path, text in planted:
        path.write_text(f'"""Planted."""\n{text}')
    found = broken(copy)
    for path, _ in planted:
        path.unlink()
    assert found >= set(VIOLATIONS)


def test_a_folder_nobody_planned_breaks_the_floors(copy: Path) -> None:
    """A room without a floor is found."""
    room = copy / "src" / "edgestill" / "attic"
    room.mkdir()
    (room / "__init__.py").write_text('"""Planted."""\n')
    found = broken(copy)
    shutil.rmtree(room)
    assert "Floors: imports go down, never up, never sideways" in found


def test_the_house_as_it_stands_keeps_every_contract(copy: Path) -> None:
    """Without violations no contract is broken, device.serve's right to a web server included."""
    assert broken(copy) == set()

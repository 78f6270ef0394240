"""Every test that is named after an attack, run: tried are those that ran, accepted those that got through."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = ROOT / ".venv" / "bin" / "python"
ROOMS: Final = ("trust", "device", "hub", "link", "core", "delta")
"""Whose attacks are on delivery; those on answers and on learning are other rooms'."""


def measured() -> dict[str, Any]:
    """Attacks by room, and the names of those that got through.

    Raises:
        SystemExit: the project's own environment, which has the test runner, is not there.
    """
    if not PYTHON.exists():
        sys.exit("bench delivery: needs the project's environment for its tests: run `make venv`")
    tried: dict[str, int] = {}
    accepted: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "attacks.xml"
        command = [
            str(PYTHON),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "test_attack",
            f"--junitxml={report}",
        ]
        folders = [f"tests/{room}" for room in ROOMS]
        subprocess.run([*command, *folders], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)  # noqa: S603  # our own tests
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  # which pytest has written
            if case.find("skipped") is not None:
                continue
            room = str(case.get("classname")).split(".")[1]
            tried[room] = tried.get(room, 0) + 1
            if case.find("failure") is not None or case.find("error") is not None:
                accepted.append(f"{case.get('classname')}::{case.get('name')}")
    return {"tried": tried, "accepted": accepted}

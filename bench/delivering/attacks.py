"""Every test that is named after an attack, run: tried are the cases that ran, accepted those that got through.

A case that is known to get through (`xfail`) counts as accepted, and those that were left out are named. The attacks that updaters are
usually asked about must be among them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = ROOT / ".venv" / "bin" / "python"
ROOMS: Final = ("trust", "device", "hub", "link", "core", "delta", "infer", "cli")
NAMED: Final = {
    "rollback": "test_attack_rollback_of_the_timestamp",
    "freeze": "test_attack_freeze",
    "mix-and-match": "test_attack_mix_and_match",
    "wrong hash": "test_attack_altered_bytes_on_every_way",
    "wrong length": "test_attack_another_length",
    "endless data": "test_attack_endless_data",
    "slow retrieval": "test_attack_slow_retrieval",
    "key compromise below the threshold": "test_attack_key_compromise_below_threshold",
    "replayed assignment": "test_attack_replayed_assignment",
    "stolen hub": "test_attack_stolen_hub_lists_its_own_bundle",
    "another device's assignment": "test_attack_another_devices_assignment",
    "path traversal": "test_attack_a_target_name_cannot_leave_its_place",
    "zip bomb": "test_attack_a_zip_bomb",
    "oversize metadata": "test_attack_oversize_metadata_promised_by_a_stolen_hub",
}
"""What is usually asked about -> the test that tries it."""


def measured() -> dict[str, Any]:
    """Attacks by room, and the names of those that got through.

    Raises:
        SystemExit: the project's own environment, which has the test runner, is not there.
    """
    if not PYTHON.exists():
        sys.exit("bench delivery: needs the project's environment for its tests: run `make venv`")
    tried: dict[str, int] = {}
    accepted: list[str] = []
    left_out: list[str] = []
    ran: set[str] = set()
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
        ended = subprocess.run([*command, *folders], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)  # noqa: S603  # our own tests
        if ended.returncode not in {0, 1}:  # all passed, or some failed
            sys.exit(f"bench delivery: the tests ended with status {ended.returncode}")
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  # which pytest has written
            test = f"{case.get('classname')}::{case.get('name')}"
            skipped = case.find("skipped")
            if skipped is not None and skipped.get("type") != "pytest.xfail":
                left_out.append(test)
                continue
            ran.add(str(case.get("name")).partition("[")[0])
            room = test.split(".")[1]
            tried[room] = tried.get(room, 0) + 1
            if skipped is not None or case.find("failure") is not None or case.find("error") is not None:
                accepted.append(test)
    if missing := set(NAMED.values()) - ran:
        sys.exit(f"bench delivery: not tried: {', '.join(sorted(missing))}")
    return {"tried": tried, "accepted": accepted, "left_out": left_out, "tests": len(ran)}

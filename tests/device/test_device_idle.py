"""What an agent may hold that has nothing to do: which rooms, which libraries, and how many modules of ours.

A library that is loaded is held for good, whatever it was wanted for. So what is needed once, or by another verb, is loaded there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

AT_MOST = 70
"""Modules of ours: each takes some ten thousand bytes, and a dataclass in it as much again. Who adds one here says why."""
LIBRARIES = {"tuf", "securesystemslib", "cryptography", "urllib3", "_cffi_backend"}
ROOMS = {"core", "trust", "link", "device", "infer"}
OF_INFER = {"edgestill.infer", "edgestill.infer.policy", "edgestill.infer.reaction"}
OF_OTHERS = {
    "edgestill.device.coach",
    "edgestill.device.depot",
    "edgestill.device.engine_child",
    "edgestill.device.engine_work",
    "edgestill.device.measuring",
    "edgestill.device.oneword",
    "edgestill.device.patching",
    "edgestill.device.trainer",
    "edgestill.device.voter",
    "edgestill.device.voting",
    "edgestill.trust.repository",
}
"""Of the rooms that it may enter, what is loaded when there is something to do, or in another process."""
STANDARD = {
    "_decimal",
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "decimal",
    "fractions",
    "multiprocessing",
    "platform",
    "statistics",
    "xml",
}
"""Of the standard library, what is large or draws in what is."""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules, with a file each, that `edgestill-agent run` has loaded by the time it opens its home, which is not there."""
    home: Path = tmp_path_factory.mktemp("idle") / "none"
    program = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "from edgestill.device.main import main\n"
        f"status = main(['run', '--home', {str(home)!r}])\n"
        "new = [name for name in set(sys.modules) - before if getattr(sys.modules[name], '__file__', None)]\n"
        "print(json.dumps([status, new]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    status, modules = json.loads(done.stdout)
    assert status == 1, done.stderr
    return set(modules)


def test_an_agent_that_runs_holds_the_rooms_that_it_needs(held: set[str]) -> None:
    """No codec of patches, no learning, no model: these are for when there is something to do, or for a child."""
    ours = {name for name in held if name.startswith("edgestill.")}
    assert {name.split(".")[1] for name in ours} == ROOMS
    assert {name for name in ours if name.split(".")[1] == "infer"} == OF_INFER
    assert ours & OF_OTHERS == set()
    assert "edgestill.device.life" in ours


def test_an_agent_that_runs_holds_few_modules_of_ours(held: set[str]) -> None:
    """Their number is a ratchet."""
    assert len([name for name in held if name.partition(".")[0] == "edgestill"]) <= AT_MOST


def test_an_agent_that_runs_holds_no_library_but_those_of_trust_and_link(held: set[str]) -> None:
    """Looking whether all of the extra is installed loads none of it, and a duration is read without decimal arithmetic."""
    foreign = {name.partition(".")[0] for name in held} - set(sys.stdlib_module_names) - {"edgestill"}
    assert foreign == LIBRARIES
    assert held & STANDARD == set()

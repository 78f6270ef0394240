"""Real disks that refuse, and a real SIGKILL in the midst of writing: what was there is there, whole, or the new one is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from device_disk_program import BUNDLE, POLICY, WINDOWS, overlay, window

from edgestill.device.home import Home, Identity, Settings
from edgestill.device.memory import Memory
from edgestill.device.outbox import Outbox
from edgestill.device.slots import Slots
from edgestill.device.state import State
from edgestill.infer.decision import PolicyState
from edgestill.learn.statistics import Statistics

PROGRAM = str(Path(__file__).parent / "device_disk_program.py")
REFUSALS = {"outbox": 2, "memory": 4, "slots": 2, "agent": 1}


@pytest.mark.parametrize("part", list(REFUSALS))
def test_a_full_disk_is_told_and_costs_nothing_that_was_there(part: str, tmp_path: Path) -> None:
    """The kernel refuses every write: our own error, the old content whole, no part left, and room is taken again."""
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, "full", part, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * REFUSALS[part] + ["kept", "taken"]


def killed_after(folder: Path, rounds: int) -> int:
    """Lets the program write so many rounds and kills it somewhere in the next; the last round it finished."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", PROGRAM, "forever", str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(rounds):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    return int(rest[-1]) if rest else rounds


def test_a_kill_while_a_device_writes_leaves_each_thing_whole(tmp_path: Path) -> None:
    """Killed in four places: overlay, windows, policy and state are of the last round or the next, never a mixture."""
    for rounds in (1, 2, 3, 5):
        folder = tmp_path / str(rounds)
        folder.mkdir()
        finished = killed_after(folder, rounds)
        may_be = {finished, finished + 1}
        kept = Memory(folder / "learned", BUNDLE)
        found = kept.overlay()
        assert found is not None
        (number,) = set(found.head.weight.ravel().tolist()) | set(found.head.bias.tolist())
        assert int(number) in may_be
        windows = [Statistics.from_bytes(one) for one in kept.statistics()]
        assert [one.window for one in windows] == list(range(WINDOWS))
        assert {one.n for one in windows} <= {one % 50 + 1 for one in may_be}
        assert kept.policy_state(POLICY) == PolicyState.start(POLICY)
        slots = Slots.open(folder / "slots")
        assert State.from_bytes((folder / "slots" / "state.json").read_bytes()).seen in may_be
        assert list(slots.folder.rglob(".*")) == [], "a start sweeps up"
        box = Outbox.open(folder / "outbox.db")
        told = [one.id for one in box.waiting()]
        assert told == [f"r{number}" for number in range(1, len(told) + 1)]
        assert len(told) in may_be
        box.close()


def test_parts_of_a_kill_do_not_pile_up(tmp_path: Path) -> None:
    """What a kill left beside the files is never taken for one of them, and goes with the next start of the agent."""
    identity = Identity(
        device="d1",
        credential="c",
        hub="http://127.0.0.1:9",
        hardware_class="x86_64-vnni-onnxruntime",
        interval=1.0,
    )
    home = Home.create(
        tmp_path, identity=identity, settings=Settings(leaves="nothing", labels={}), root=b"{}"
    )
    kept = Memory(home.learned, BUNDLE)
    kept.keep_overlay(overlay(1))
    kept.keep_statistics([window(1, 1)])
    parts = (
        "learned/.policy.json.abc",
        "learned/.x.stats.abc",
        "learned/.x.overlay.abc",
        ".identity.json.abc",
    )
    for left in parts:
        (tmp_path / left).write_bytes(b"half")
    (tmp_path / ".bashrc").write_bytes(b"theirs")
    assert kept.statistics() == [window(1, 1)]
    with home.locked():
        assert [one.name for one in tmp_path.rglob(".*")] == [".bashrc"]
        assert Home.open(tmp_path) == home
    assert kept.overlay() is not None
    assert kept.statistics() == [window(1, 1)]

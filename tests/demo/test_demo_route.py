"""The whole route with a real hub and real devices as processes, on a tiny world; and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from demo_worlds import QUIET, SHARING, running, tiny_scenario

from edgestill.core.bundle import Bundle
from edgestill.demo import route
from edgestill.demo.fleet import Fleet
from edgestill.demo.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.redistil import Evidence

EVERYONE = {*SHARING, QUIET}
# The program itself, with the tiny world under the name of any scenario.
PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from demo_worlds import tiny_scenario
from edgestill.demo import walk
walk.scenario_named = lambda *_, **__: tiny_scenario()
sys.argv = ["edgestill", "demo", "--out", {out!r}]
from edgestill.cli.app import run
run()
"""


class Told:
    """A view that keeps the steps."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []

    def begin(self, step: str) -> None:
        """Keeps its name."""
        self.begun.append(step)

    def advance(self, done: int, of: int, note: str) -> None:
        """Progress never goes past its end."""
        assert 0 <= done <= of, note

    def end(self, note: str) -> None:
        """Keeps what came of it."""
        self.ended.append(note)


class Witness:
    """Looks over the fleet's shoulder: what rollouts ended in, which evidence came in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rollouts: list[tuple[str, JsonObject]] = []
        self.evidence: list[Evidence] = []
        roll_out, evidence = Fleet.roll_out, Fleet.evidence

        def seen_rollout(fleet: Fleet, release: str, **options: Any) -> JsonObject:
            self.rollouts.append((release, roll_out(fleet, release, **options)))
            return self.rollouts[-1][1]

        def seen_evidence(fleet: Fleet) -> Evidence:
            self.evidence.append(evidence(fleet))
            return self.evidence[-1]

        monkeypatch.setattr(Fleet, "roll_out", seen_rollout)
        monkeypatch.setattr(Fleet, "evidence", seen_evidence)


def test_the_route_is_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub and three devices run as processes; both versions reach every device, evidence comes from those who share,
    the update is a patch and wins back what was lost, and nothing is left running.
    """  # noqa: D205  # one sentence
    mark = uuid4().hex
    monkeypatch.setenv("EDGESTILL_TEST_MARK", mark)
    monkeypatch.setattr(route, "_NOTICE", 1.0)
    witness, told = Witness(monkeypatch), Told()
    story = walk(tiny_scenario(), tmp_path, told)

    assert running(mark) == []
    assert told.begun == list(story.steps)
    assert len(told.ended) == len(told.begun)
    assert [release for release, _ in witness.rollouts] == ["tiny/1.0.0", "tiny/1.1.0"]
    for _, rollout in witness.rollouts:
        devices: Any = rollout["devices"]
        assert rollout["state"] == "done"
        assert {name: one["state"] for name, one in devices.items()} == dict.fromkeys(EVERYONE, "confirmed")

    (evidence,) = witness.evidence
    assert story.live.evidence == len(evidence) > 0
    assert set(evidence.devices) == set(SHARING)
    for row in story.live.rows:
        assert (row.escalated > 0, row.bytes_up > 0) == (row.shares, row.shares), row
    assert story.live.patch_bytes is not None
    assert 0 < story.live.patch_bytes < story.live.bundle_bytes
    assert story.recovered().value > story.recovered_by_control().value + 0.3
    assert story.accuracies()["int8"].value > 0.9

    for version in ("1.0.0", "1.1.0"):
        bundle = Bundle.open(tmp_path / f"tiny-{version}.esb")
        bundle.verify()
        assert bundle.manifest.version == version
    assert json.loads((tmp_path / "report.json").read_text()) == story.as_json()
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert {one.stem for one in (tmp_path / "logs").iterdir()} == {"hub", *EVERYONE}


def await_true(holds: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    """Waits for something that other processes do."""
    until = time.monotonic() + 90
    while not holds():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)  # real processes: there is no clock to fake


def interrupt(tmp_path: Path, number: signal.Signals, when: str) -> tuple[int, str, str]:
    """Starts the program and sends a signal once the log `when` is there; its status, its errors, its mark."""
    mark, out = uuid4().hex, tmp_path / "out"
    (tmp_path / "temporary").mkdir()
    text = PROGRAM.format(folder=str(Path(__file__).parent), out=str(out))
    with subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"EDGESTILL_TEST_MARK": mark, "TMPDIR": str(tmp_path / "temporary")},
    ) as program:
        await_true((out / "logs" / when).exists, program)
        assert len(running(mark)) > 1
        program.send_signal(number)
        _, said = program.communicate(timeout=60)
    return program.returncode, said, mark


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "hub.log"),
        pytest.param(signal.SIGTERM, f"{SHARING[0]}.log", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, f"{QUIET}.log", marks=pytest.mark.slow),
    ],
)
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals, when: str) -> None:
    """Ctrl-C, SIGTERM or a closed terminal: status 130, one line, no process, no temporary folder, no half a report."""
    status, said, mark = interrupt(tmp_path, number, when)
    assert (status, said) == (130, "interrupted; every process that was started has ended\n")
    assert running(mark) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"logs", "tiny-1.0.0.esb"}

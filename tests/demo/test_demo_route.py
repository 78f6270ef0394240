"""The whole route with real processes, in a tiny world: it ends with its figures, and it can be interrupted anywhere."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from demo_worlds import QUIET, SHARING, running, tiny_scenario
from rich.console import Console

from edgestill.core.bundle import Bundle
from edgestill.core.errors import DemoError, EdgestillError, PathError
from edgestill.demo.route import Route
from edgestill.demo.view import Silence, closing_tables
from edgestill.demo.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgestill.demo.story import Story

PATIENCE = 180.0
FOLDER = Path(__file__).parent
TRAINING = "worn"
"""In the first line, before anything is trained."""
ENROLMENT = "inherit and distil"
ROLLOUT = "found a hub"
"""The step whose end is the beginning of the one that is interrupted."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The route sets torch to one thread; the tests that follow get theirs back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclass
class Steps:
    """A view that only remembers."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    on_begin: Callable[[str], None] = lambda _step: None

    def begin(self, step: str) -> None:
        """A step begins."""
        self.begun.append(step)
        self.on_begin(step)

    def advance(self, done: int, of: int, note: str) -> None:
        """Whoever shows a bar needs a part and a whole."""
        assert 0 <= done <= of, note

    def end(self, note: str) -> None:
        """The step is done."""
        assert note
        self.ended.append(self.begun[-1])


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which every process started from here carries in its environment."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_route_ends_with_its_figures_and_leaves_nothing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher to update: every step in order, figures that make sense, whole files, no process, no folder.

    Where temporary files lie under a long path, each device needs a second folder for its socket: those go, too.
    """
    temporary = temporary / "x".ljust(70 - len(str(temporary)), "x")
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    steps = Steps()
    story = walk(tiny_scenario(), tmp_path / "out", steps)
    assert steps.begun == steps.ended
    assert list(story.steps) == list(dict.fromkeys(steps.begun))
    assert 0 < sum(story.steps.values()) <= story.wall_s
    assert_sane(story)
    assert_told(story, tmp_path / "out")
    assert running(str(temporary)) == []
    assert list(temporary.glob("edgestill-*")) == []


def assert_sane(story: Story) -> None:
    """The world is easy, so that the figures must be: the change hurts, and the update wins most of it back."""
    figures = story.accuracies()
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in figures.values())
    assert {name: one.n for name, one in figures.items() if one.n != 30} == {
        "personal": 40,
        "personal_without": 40,
    }
    assert figures["teacher"].value > 0.9
    assert figures["shifted"].value < figures["int8"].value - 0.3
    assert figures["updated"].value > figures["shifted"].value + 0.3
    assert figures["updated"].value > figures["control"].value
    won = story.recovered()
    assert won is not None
    assert won.value > 0.5
    assert story.size_ratio > 1
    assert 0 <= story.alpha <= 1
    assert 0 <= story.absorption.weight <= 1


def assert_told(story: Story, out: Path) -> None:
    """Rows and bytes of the live fleet, the closing tables, the report, and both bundles."""
    live = story.live
    rows = {row.device: row for row in live.rows}
    assert set(rows) == {*SHARING, QUIET}
    assert [rows[name].answers for name in (*SHARING, QUIET)] == [88, 88, 90]
    assert rows[QUIET].escalated == 0
    assert rows[QUIET].bytes_up == 0
    assert all(rows[name].escalated > 0 and rows[name].bytes_up > 0 for name in SHARING)
    assert all(row.latency_ms > 0 for row in rows.values())
    assert live.fused_shifted.value >= live.alone_shifted.value
    assert 0 < live.evidence <= 2 * 88
    assert live.head_accuracy is None or live.statistics_bytes > 0
    assert live.patch_bytes is None or live.patch_bytes < live.bundle_bytes
    assert 0 < live.model_bytes < live.bundle_bytes
    text = io.StringIO()
    for table in closing_tables(story):
        Console(file=text, width=160).print(table)
    assert all(name in text.getvalue() for name in (*SHARING, QUIET, "won back"))
    told: Any = json.loads((out / "report.json").read_text())
    assert told["figures"] == story.as_json()["figures"]
    assert sorted(path.name for path in out.iterdir()) == [
        "logs",
        "report.html",
        "report.json",
        "tiny-1.0.0.esb",
        "tiny-1.1.0.esb",
    ]
    first, second = (Bundle.open(out / f"tiny-{version}.esb") for version in ("1.0.0", "1.1.0"))
    first.verify()
    second.verify()
    assert first.manifest.hardware_class == second.manifest.hardware_class


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_hub_that_dies_ends_the_walk_in_order(tmp_path: Path, temporary: Path) -> None:
    """Killed before the rollout: a coded error, and nothing is left of the others."""

    def kill(step: str) -> None:
        if step == "roll out version 1.0.0":
            (hub,) = [one for one in running(str(temporary)) if "edgestill.hub.main" in one]
            os.kill(int(hub.partition(":")[0]), signal.SIGKILL)

    with pytest.raises(EdgestillError):
        walk(tiny_scenario(), tmp_path / "out", Steps(on_begin=kill))
    assert running(str(temporary)) == []
    assert list(temporary.glob("edgestill-*")) == []
    assert not list((tmp_path / "out").glob("report.*"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_device_that_dies_ends_the_walk_in_order(tmp_path: Path, temporary: Path) -> None:
    """Killed before the rollout, it is named with its log; neither hub nor the other devices are left."""

    def kill(step: str) -> None:
        if step == "roll out version 1.0.0":
            for one in running(str(temporary)):
                if f"/{QUIET}.ready" in one:
                    os.kill(int(one.partition(":")[0]), signal.SIGKILL)

    with pytest.raises(DemoError, match=f"{QUIET} ended while waiting for the rollout"):
        walk(tiny_scenario(), tmp_path / "out", Steps(on_begin=kill))
    assert running(str(temporary)) == []
    assert list(temporary.glob("edgestill-*")) == []


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    """A file is in the way of the report: the error says which, and what to do."""
    (tmp_path / "taken").touch()
    with pytest.raises(PathError, match=r"cannot write the report's folder.*give another one with --out"):
        Route(tiny_scenario(), tmp_path / "taken" / "out", Silence(), about={})


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    """Its being there is not enough: one in which nobody may make a file is found at once, the logs' too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").symlink_to("/proc/self")  # which not even root may write into
    with pytest.raises(PathError, match=r"cannot write the report's folder.*give another one with --out"):
        Route(tiny_scenario(), tmp_path / "out", Silence(), about={})


@dataclass
class Demonstration:
    """`edgestill demo` as a process, and what it has printed so far."""

    process: subprocess.Popen[str]
    out: Path
    temporary: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, text: str) -> None:
        """Waits until it has printed this."""
        self.look(lambda: any(text in line for line in self.lines))

    def look(self, holds: Callable[[], bool]) -> None:
        """Waits until this holds, as long as it lives."""
        until = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < until, self.lines
            time.sleep(0.02)  # real processes: there is no clock to fake

    def interrupted(self, number: int, *, times: int = 1) -> str:
        """Sends the signal, and waits for the end; what it said then."""
        for _ in range(times):
            self.process.send_signal(number)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.wait(PATIENCE)
        return said

    def assert_nothing_left(self) -> None:
        """No process, no temporary folder, and only whole files."""
        until = time.monotonic() + 10  # a helper of Python's own notices the end by itself, a moment later
        while [one for one in running(str(self.temporary)) if "resource_tracker" in one]:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert running(str(self.temporary)) == []
        assert list(self.temporary.glob("edgestill-*")) == []
        left = [path for path in self.out.rglob("*") if path.is_file() and path.parent.name != "logs"]
        assert {path.suffix for path in left} <= {".esb"}, left
        for path in left:
            Bundle.open(path).verify()


@pytest.fixture
def small(tmp_path: Path, temporary: Path) -> Iterator[Demonstration]:
    """The demonstration of the tiny world."""
    yield from started([str(FOLDER / "demo_small_route.py")], tmp_path / "out", temporary)


@pytest.fixture
def real(tmp_path: Path, temporary: Path) -> Iterator[Demonstration]:
    """The demonstration that everybody gets."""
    yield from started(["-m", "edgestill.cli"], tmp_path / "out", temporary)


def started(program: list[str], out: Path, temporary: Path) -> Iterator[Demonstration]:
    """A demonstration in a session of its own, as a terminal would give it: SIGHUP ends it, even where tests run under nohup."""
    command = [sys.executable, "-W", "error", *program, "demo", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, **pipes)  # type: ignore[call-overload]
    signal.signal(signal.SIGHUP, before)
    with process:
        one = Demonstration(process, out, temporary)
        try:
            yield one
        finally:
            process.kill()
            one.reader.join(PATIENCE)
    for left in running(str(temporary)):
        os.kill(int(left.partition(":")[0]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        (TRAINING, signal.SIGINT),
        (TRAINING, signal.SIGTERM),
        (TRAINING, signal.SIGHUP),
        (ENROLMENT, signal.SIGINT),
        (ROLLOUT, signal.SIGTERM),
    ],
)
def test_interrupted_anywhere_it_ends_with_130_and_leaves_nothing(
    small: Demonstration, stage: str, number: int
) -> None:
    """While it trains, enrols or rolls out; by Ctrl-C, by SIGTERM, by the terminal that closes: one line, no trace."""
    small.wait_for(stage)
    if stage == ENROLMENT:
        small.look(lambda: any("edgestill.device.main" in one for one in running(str(small.temporary))))
    said = small.interrupted(number)
    assert said == "interrupted; every process that was started has ended\n"
    assert small.process.returncode == 130
    small.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "last"),
    [(TRAINING, "spawn_main"), (ENROLMENT, "device.main"), (ROLLOUT, "device.engine_child")],
)
def test_killed_anywhere_it_leaves_nothing(small: Demonstration, stage: str, last: str) -> None:
    """Hub, agents, their engines and whoever measures the other folds end by themselves, and the folder goes."""
    small.wait_for(stage)
    small.look(lambda: any(last in one for one in running(str(small.temporary))))
    small.process.kill()
    small.process.wait(PATIENCE)
    until = time.monotonic() + 20
    while running(str(small.temporary)):
        assert time.monotonic() < until, running(str(small.temporary))
        time.sleep(0.02)  # real processes: there is no clock to fake
    assert list(small.temporary.glob("edgestill-*")) == []


@pytest.mark.slow
def test_an_impatient_person_changes_nothing(small: Demonstration) -> None:
    """Ctrl-C three times in a row: whatever it says then, nothing is left."""
    small.wait_for(ROLLOUT)
    small.interrupted(signal.SIGINT, times=3)
    assert small.process.returncode != 0
    small.assert_nothing_left()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_whole_group(small: Demonstration) -> None:
    """A terminal signals every process of its foreground group: what the demonstration started is not among them."""
    small.wait_for(ROLLOUT)
    os.killpg(small.process.pid, signal.SIGINT)
    said = small.interrupted(0)
    assert "Traceback" not in said
    assert small.process.returncode == 130
    small.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_demonstration_can_be_interrupted_while_it_trains(real: Demonstration, number: int) -> None:
    """With the other folds under way in the process beside it."""
    real.wait_for("every person is a device")
    real.look(lambda: any("multiprocessing" in one for one in running(str(real.temporary))))
    said = real.interrupted(number)
    assert said == "interrupted; every process that was started has ended\n"
    assert real.process.returncode == 130
    real.assert_nothing_left()

"""Processes: a death is told with its log, a deadline is kept, and the end is the end, whatever a process thinks of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from demo_worlds import running

import edgestill
from edgestill.core.clock import SystemClock
from edgestill.core.errors import DemoError
from edgestill.demo import processes as room
from edgestill.demo.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(edgestill.__file__).parents[1]
STARTER = """
import pathlib, sys, time
from edgestill.core.clock import SystemClock
from edgestill.demo.processes import Processes
folder = pathlib.Path(sys.argv[1])
processes = Processes(folder / "logs", clock=SystemClock(), pause=time.sleep)
for module in ("stays", "deaf"):
    ready = folder / f"{module}.ready"
    processes.start(module, module, [str(ready)], ready=ready)
    processes.wait_for(module, ready.exists, within=20)
(folder / "all").touch()
processes.run("a long one", "deaf", [str(folder / "run.ready")])
"""
MODULES = {
    "dies": "import sys\nprint('out of luck')\nsys.exit(3)\n",
    "stays": (
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "pathlib.Path(sys.argv[1]).touch()\nsignal.pause()\n"
    ),
    "deaf": (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)\n"
    ),
    "parent": (
        "import pathlib, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-m', 'deaf', sys.argv[1] + '.child'])\n"
        "child = pathlib.Path(sys.argv[1] + '.child')\n"
        "while not child.exists(): pass\n"
        "pathlib.Path(sys.argv[1]).touch()\nsys.exit(0)\n"
    ),
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Processes whose modules are those above, and that carry the test's folder in their environment."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCE}")
    monkeypatch.setattr(room, "GRACE", 0.3)
    return Processes(tmp_path / "logs", clock=SystemClock(), pause=time.sleep, longest=1.0)


def start(processes: Processes, folder: Path, module: str) -> Path:
    """Starts a module and waits until it is ready."""
    ready = folder / f"{module}.ready"
    processes.start(module, module, [str(ready)], ready=ready)
    processes.wait_for(module, ready.exists, within=20)
    return ready


def look(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    """Looks until this holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)  # real processes: there is no clock to fake


def test_what_a_run_prints_comes_back(given: Processes) -> None:
    """A module that ends well is its output."""
    assert given.run("base64", "base64", ["-t"]).strip()


def test_a_run_that_fails_is_told_with_what_it_said(given: Processes) -> None:
    """The error names module and reason, in one line."""
    with pytest.raises(
        DemoError, match=r"\[demo-failed\] a try failed; at nowhere; .*No module named nowhere"
    ):
        given.run("a try", "nowhere", [])


def test_a_run_that_does_not_end_is_ended(given: Processes, tmp_path: Path) -> None:
    """After its longest time it is killed, and that is a coded error too."""
    with pytest.raises(DemoError, match="a try did not end; at deaf; expected within 1 s"):
        given.run("a try", "deaf", [str(tmp_path / "ready")])
    assert running(str(tmp_path)) == []


def test_a_process_that_dies_is_told_with_its_log(given: Processes, tmp_path: Path) -> None:
    """Who waits for something else learns at once who died, where the log is and what it says."""
    given.start("dies", "dies", [], ready=tmp_path / "ready")
    with given, pytest.raises(DemoError, match="dies ended while waiting for luck") as caught:
        given.wait_for("luck", lambda: False, within=20)
    assert (caught.value.where, caught.value.got) == (tmp_path / "logs" / "dies.log", "out of luck")


def test_waiting_has_a_deadline(given: Processes, tmp_path: Path) -> None:
    """A process that runs but does not do what it should is not waited for any longer."""
    start(given, tmp_path, "stays")
    with given, pytest.raises(DemoError, match=r"waited in vain for a sign.*within 0\.1 s"):
        given.wait_for("a sign", lambda: False, within=0.1)
    assert running(str(tmp_path)) == []


def test_an_old_ready_file_is_not_believed(given: Processes, tmp_path: Path) -> None:
    """It is removed before the process starts."""
    ready = tmp_path / "ready"
    ready.touch()
    with given:
        given.start("dies", "dies", [], ready=ready)
        assert not ready.exists()


def test_all_are_ended_even_the_deaf(given: Processes, tmp_path: Path) -> None:
    """SIGTERM, some grace, SIGKILL: neither one that ignores SIGTERM nor one that obeys is left."""
    with given:
        start(given, tmp_path, "stays")
        start(given, tmp_path, "deaf")
        assert len(running(str(tmp_path))) == 2
    assert running(str(tmp_path)) == []
    given.end()  # twice is once


def test_what_a_dead_process_left_behind_is_ended_too(given: Processes, tmp_path: Path) -> None:
    """A child in its session goes with it."""
    start(given, tmp_path, "parent")
    with given, pytest.raises(DemoError, match="parent ended"):
        given.wait_for("more", lambda: False, within=20)
    look(
        lambda: running(str(tmp_path)) == []
    )  # nobody's child any more: the system notices its end when it does


@pytest.mark.usefixtures("given")
def test_all_end_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves nobody to end them: each ends by itself, the deaf one too, and one that was run to its end."""
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)]) as starter:
        look((tmp_path / "run.ready").exists)
        assert len(running(str(tmp_path))) == 4
        starter.kill()
    look(lambda: running(str(tmp_path)) == [])


def test_a_module_is_run_as_python_would(given: Processes, tmp_path: Path) -> None:
    """It is the main module, and sees its own arguments only."""
    (tmp_path / "tells.py").write_text("import sys\nprint(__name__, sys.argv)\n")
    assert (
        given.run("tells", "tells", ["--a", "b"]) == f"__main__ {[str(tmp_path / 'tells.py'), '--a', 'b']}\n"
    )


def test_a_second_interrupt_ends_only_the_waiting(given: Processes, tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice leaves no process behind either."""

    class Impatient:
        """A clock whose owner presses Ctrl-C when asked a second time."""

        asked = 0

        def now(self) -> float:
            return 0.0

        def monotonic(self) -> float:
            self.asked += 1
            if self.asked == 2:
                raise KeyboardInterrupt
            return 0.0

    start(given, tmp_path, "deaf")
    given._clock = Impatient()
    with pytest.raises(KeyboardInterrupt):
        given.end()
    assert running(str(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_just_when_a_process_starts_loses_none(
    given: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Between its birth and our knowing of it: the interrupt takes effect all the same, and nothing is left."""
    started = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = started(*arguments, **options)
        signal.raise_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(number, as_ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt), given:
            given.start("deaf", "deaf", [str(tmp_path / "ready")], ready=tmp_path / "ready")
        assert signal.getsignal(number) is as_ctrl_c
    finally:
        signal.signal(number, before)
    assert running(str(tmp_path)) == []


def as_ctrl_c(_number: int, _frame: object) -> None:
    """What the command line makes of every signal that ends it."""
    raise KeyboardInterrupt


def test_an_interrupted_run_has_ended(
    given: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that would have run to its end is ended and waited for, with what it has left in its session."""

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]  # bytes or text, as the caller asks
        """One during whose run somebody presses Ctrl-C."""

        def communicate(self, *arguments: Any, **options: Any) -> Any:
            until = SystemClock().monotonic() + 20
            while not (tmp_path / "ready").exists() and SystemClock().monotonic() < until:
                time.sleep(0.01)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        given.run("a try", "deaf", [str(tmp_path / "ready")])
    assert running(str(tmp_path)) == []


def test_they_do_not_get_the_terminals_interrupt(given: Processes, tmp_path: Path) -> None:
    """Each is in a session of its own, so Ctrl-C reaches the demonstration alone."""
    with given:
        start(given, tmp_path, "stays")
        ((_, process),) = given._running
        assert os.getsid(process.pid) == process.pid
        assert os.getpgid(process.pid) != os.getpgrp()
    assert process.returncode in {0, -signal.SIGTERM}

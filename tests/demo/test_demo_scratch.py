"""The folder of the demonstration: its owner's alone, and gone with it, though nobody could say goodbye."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo_worlds import running

import edgestill
from edgestill.core.clock import SystemClock
from edgestill.core.errors import PathError
from edgestill.demo import scratch as scratch_module
from edgestill.demo.processes import Processes
from edgestill.demo.scratch import LOCK, PREFIX, scratch, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path(edgestill.__file__).parents[1]
FOUNDER = """
import os, pathlib, sys, time
from edgestill.core.clock import SystemClock
from edgestill.demo.processes import Processes
from edgestill.demo.scratch import scratch
os.umask(0)
with scratch() as held:
    processes = Processes(pathlib.Path(sys.argv[1]), clock=SystemClock(), pause=time.sleep, scratch=held)
    home = str(held.folder / "hub")
    processes.run("the hub", "edgestill.hub.main", ["init", "--home", home])
    ready = pathlib.Path(sys.argv[1]) / "ready"
    options = ["up", "--home", home, "--port", "0", "--ready", str(ready)]
    processes.start("hub", "edgestill.hub.main", options, ready=ready)
    processes.wait_for("the hub", ready.exists, within=60)
    print(held.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, which every process started from here carries in its environment."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    for left in running(str(folder)):
        os.kill(int(left.partition(":")[0]), signal.SIGKILL)


def look(holds: Callable[[], bool], *, seconds: float = 30) -> None:
    """Looks until this holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)  # real processes: there is no clock to fake


def mode(path: Path) -> int:
    """Who may do what there."""
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_its_owners_alone_and_goes_with_the_block(base: Path) -> None:
    """Temporary files of this process go there meanwhile, and neither folder nor janitor is left."""
    with scratch() as held:
        assert held.folder.parent == base
        assert mode(held.folder) == 0o700
        assert tempfile.gettempdir() == str(held.folder)
        (held.folder / "secret").write_text("x")
    assert list(base.iterdir()) == []
    assert running(str(base)) == []
    assert tempfile.gettempdir() == str(base)


@pytest.mark.parametrize("step", ["_made", "_janitor"])
def test_interrupted_while_it_is_made_neither_folder_nor_janitor_is_left(
    base: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Ctrl-C after the folder, or after the janitor, but before the block: all of it has ended when the error comes."""
    real: Callable[..., object] = getattr(scratch_module, step)

    def interrupted(folder: Path) -> object:
        made = real(folder)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(scratch_module, step, interrupted)
    with pytest.raises(KeyboardInterrupt), scratch():
        pytest.fail("the block must not be entered")
    assert running(str(base)) == []
    assert list(base.iterdir()) == []
    assert tempfile.gettempdir() == str(base)


def test_killed_it_leaves_neither_folder_nor_token(base: Path, tmp_path: Path) -> None:
    """SIGKILL while a hub runs: hub and janitor end by themselves, and the operator's token with them.

    Until then nobody else may read it, whatever the umask.
    """
    with subprocess.Popen(
        [sys.executable, "-c", FOUNDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as founder:
        assert founder.stdout is not None
        folder = Path(founder.stdout.readline().strip())
        assert {mode(folder), mode(folder / "hub")} == {0o700}
        assert mode(folder / "hub" / "operator.token") == 0o600
        founder.kill()
    look(lambda: not folder.exists() and running(str(base)) == [])
    assert list(base.iterdir()) == []


def test_nothing_is_removed_while_a_process_still_works_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is every process's: the janitor waits, and a sweep passes by, until the last has ended."""
    (tmp_path / "stays.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCE}")
    with scratch() as held:
        folder, ready = held.folder, tmp_path / "ready"
        with Processes(tmp_path, clock=SystemClock(), pause=time.sleep, scratch=held) as processes:
            processes.start("stays", "stays", [str(ready)], ready=ready)
            processes.wait_for("stays", ready.exists, within=20)
            handles = Path(f"/proc/{processes._running[0][1].pid}/fd")
            assert str(folder / LOCK) in {str(one.readlink()) for one in handles.iterdir()}
            sweep(base)
            assert folder.is_dir()
    assert not folder.exists()


def test_what_a_dead_machine_left_behind_is_swept(base: Path) -> None:
    """A folder whose lock is free is nobody's: the next demonstration removes it, and leaves those that are held."""
    dead = base / f"{PREFIX}dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / "operator.token").write_text("secret")
    with scratch() as first, scratch() as second:
        assert not dead.exists()
        assert first.folder.is_dir()
        assert second.folder.is_dir()


def test_attack_what_only_looks_like_ours_is_left_alone(base: Path, tmp_path: Path) -> None:
    """A link out of the folder, one whose lock is a link, and a folder that is just being made are not removed."""
    valuable = tmp_path / "valuable"
    valuable.mkdir()
    (valuable / LOCK).touch()
    (base / f"{PREFIX}link").symlink_to(valuable)
    linked, new = base / f"{PREFIX}linked", base / f"{PREFIX}new"
    linked.mkdir()
    new.mkdir()
    (linked / LOCK).symlink_to(valuable / LOCK)
    sweep(base)
    assert (valuable / LOCK).exists()
    assert linked.is_dir()
    assert new.is_dir()


def test_a_place_where_nothing_can_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: where, and that TMPDIR can name another."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")  # which not even root may write into
    with (
        pytest.raises(PathError, match=r"cannot make a temporary folder; at /proc/self; .*TMPDIR"),
        scratch(),
    ):
        pass

"""`edgestill timing`: from a search's job over a hub and a device back to the search, by verbs alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from test_cli_distill import edgestill, write_job
from test_cli_operating import HERE, World, hub_up, until
from test_cli_search import CARVED

from edgestill.core.family import Family

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TARGET = f"timing/student/1.0.0/{HERE}.est"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub that has this publisher's root."""
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        yield made


def test_what_cannot_be_is_one_line(world: World, tmp_path: Path) -> None:
    """A job that there is not, a family that nobody lists, an archive that is none, and what is no family's name."""
    assert "no such timing job" in world.run("timing", "status", 7, fails=True)
    assert "no such timing job" in world.run("timing", "cancel", 7, fails=True)
    assert "no such timing job" in world.run("timing", "fetch", 7, "--out", tmp_path / "x.json", fails=True)
    assert not (tmp_path / "x.json").exists()
    assert "does not list this family" in world.run("timing", "start", TARGET, fails=True)
    assert "not a name of a family" in world.run("timing", "start", f"student/1.0.0/{HERE}.esb", fails=True)
    (tmp_path / "x.est").write_bytes(b"none" * 1000)
    assert "not a family of models" in world.run("release", "publish", tmp_path / "x.est", fails=True)
    assert world.run("timing", "status").split() == ["ID", "TARGET", "STATE", "DEVICES", "WHY"]


def run_agent(world: World, name: str) -> subprocess.Popen[bytes]:
    """A device that joined, and is quiet soon."""
    home = world.folder / name
    token = world.json("hub", "token", "--uses", 1)["token"]
    world.run("device", "join", "--home", home, "--hub", world.url, "--token", token, "--name", name)
    options = ["--home", str(home), "--idle-after", "100ms", "--idle-load", "100%"]
    return subprocess.Popen([sys.executable, "-m", "edgestill.device.main", "run", *options])


@pytest.mark.slow
def test_a_search_gets_its_latencies_from_a_device_of_the_fleet(world: World, tmp_path: Path) -> None:
    """Shapes, publish, start, fetch, search; retiring the family ends what may be timed."""
    write_job(tmp_path, CARVED)
    made = edgestill("device", "shapes", "job.toml", "student.est", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "28 models; publish them: edgestill release publish student.est\n"
    assert Family.open(tmp_path / "student.est").head.target == TARGET
    assert world.json("release", "publish", tmp_path / "student.est")["published"] == [TARGET]
    agent = run_agent(world, "lamp")
    try:
        said = world.run("timing", "start", TARGET, "--devices", 1)
        assert "is given to lamp" in said
        job = said.split()[2]
        until(lambda: world.json("timing", "status", job)["state"] == "done", seconds=240)
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    assert "lamp" in world.run("timing", "status", job)
    assert "1 measured" in world.run("timing", "status")
    told = world.run("timing", "fetch", job, "--out", tmp_path / "profile.json", "--device", "lamp")
    assert f"28 models on {HERE}, measured by lamp" in told
    done = edgestill(
        "search",
        "job.toml",
        "--profile",
        "profile.json",
        "--budget",
        "latency=50ms",
        "--json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert f"latencies of {HERE}" in report["latencies"]
    assert all(one["footprint"]["source"] == "predicted" for one in report["points"].values())
    assert world.json("release", "retire", "timing/student/1.0.0")["retired"] == [TARGET]
    assert "does not list this family" in world.run("timing", "start", TARGET, fails=True)

"""The hub as a process with a real socket, and the folder it lives in."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hub_processes import Process, get
from hub_worlds import teacher_model

from edgestill.core.errors import PathError, SettingError
from edgestill.hub.home import Home
from edgestill.hub.main import main
from edgestill.hub.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A hub with a teacher."""
    (tmp_path / "teacher.onnx").write_bytes(teacher_model())
    made = Process(tmp_path, "--teacher", str(tmp_path / "teacher.onnx"), "--poll-interval", "0.5")
    yield made
    made.stop(signal.SIGKILL)


def test_it_starts_serves_and_ends_with_0(process: Process) -> None:
    """The ready file has the address; the teacher is there; SIGTERM ends it with 0 and no trace in the log."""
    url = process.url()
    assert url.startswith("http://127.0.0.1:")
    assert get(f"{url}/health/ready") == (200, b"ready\n")
    assert get(f"{url}/v2/models/teacher/ready")[0] == 200
    token = (process.home / "operator.token").read_text().strip()
    assert get(f"{url}/v1/admin/fleet", authorization=f"Bearer {token}") == (200, b'{"devices":[]}')
    code, log = process.stop()
    assert code == 0, log
    assert "Traceback" not in log
    assert token not in log


def test_a_second_hub_finds_the_port_taken(process: Process, tmp_path: Path) -> None:
    """One line with what to do, exit code 1, and the first one lives on. Ctrl-C ends that one with 0 too."""
    url = process.url()
    other = tmp_path / "other"
    arguments = ["up", "--home", str(other), "--port", url.rpartition(":")[2]]
    done = subprocess.run(
        [sys.executable, "-m", "edgestill.hub.main", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("[port-in-use] the port is taken; at 127.0.0.1:")
    assert "choose another port" in last
    assert get(f"{url}/health/live")[0] == 200
    assert process.stop(signal.SIGINT)[0] == 0


def test_init_makes_the_folder_and_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the public key, twice the same."""
    for _ in range(2):
        assert main(["init", "--home", str(tmp_path / "hub")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert json.loads(first)["online_key"]["keytype"] == "ed25519"


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """The key, the token, and the folder itself."""
    home = Home.init(tmp_path / "hub")
    for path, mode in (("online.pem", 0o600), ("operator.token", 0o600), (".", 0o700)):
        assert stat.S_IMODE((home.folder / path).stat().st_mode) == mode, path


def test_what_a_kill_left_half_uploaded_is_dropped(tmp_path: Path) -> None:
    """`incoming` is empty after every start, and no half-written file is left beside those that are served."""
    home = Home.init(tmp_path / "hub")
    (home.patches / "base").mkdir()
    home.incoming.mkdir()
    (home.folder / "incoming").mkdir()
    left = (
        home.incoming / "half.esb",
        home.folder / "incoming" / "of an older hub.esb",
        home.metadata / ".timestamp.json.abc",
        home.patches / "base" / ".new.abc",
    )
    for path in left:
        path.write_bytes(b"x")
    with home.locked():
        assert not any(path.exists() for path in left)


def test_looking_at_a_running_hub_does_not_break_an_upload(tmp_path: Path) -> None:
    """`init` prints the key of a hub that serves: what is just being uploaded there stays."""
    home = Home.init(tmp_path / "hub")
    with home.locked():
        home.incoming.mkdir()
        (home.incoming / "half.esb").write_bytes(b"x")
        assert main(["init", "--home", str(tmp_path / "hub")]) == 0
        assert [one.name for one in home.incoming.iterdir()] == ["half.esb"]


def test_a_second_hub_on_the_same_folder_is_refused(process: Process) -> None:
    """Two would sign different metadata under one version: one line, exit code 1, and the first one lives on."""
    url = process.url()
    unfinished = process.home / "blobs" / "incoming" / "half.esb"
    unfinished.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "edgestill.hub.main", "up", "--home", str(process.home), "--port", "0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("[state-conflict] a hub runs here already; at ")
    assert unfinished.exists()
    assert get(f"{url}/health/ready")[0] == 200


def test_a_hub_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    """The kernel lets go of the lock with the process."""
    first = Process(tmp_path)
    first.url()
    first.stop(signal.SIGKILL)
    first.ready.unlink()
    second = Process(tmp_path)
    try:
        assert get(f"{second.url()}/health/live")[0] == 200
    finally:
        assert second.stop()[0] == 0


def test_a_folder_that_is_no_hub_is_refused(tmp_path: Path) -> None:
    """With the line that makes one; and a token that was emptied is noticed."""
    with pytest.raises(PathError, match="not a hub's folder") as caught:
        Home.open(tmp_path)
    assert caught.value.fix == f"run: python -m edgestill.hub.main init --home {tmp_path}"
    home = Home.init(tmp_path / "hub")
    (home.folder / "operator.token").write_text("\n")
    with pytest.raises(PathError, match="no operator token"):
        Home.open(tmp_path / "hub")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is in the way: one line, exit code 1."""
    (tmp_path / "file").write_text("")
    assert main(["init", "--home", str(tmp_path / "file" / "hub")]) == 1
    assert capsys.readouterr().err.startswith("[path-unusable] cannot make the hub's folder")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "secrets would travel in the clear"),
        (["--host", "hub.example"], "secrets would travel in the clear"),
        (["--tls-key", "key.pem"], "half of what TLS needs"),
        (["--poll-interval", "0"], "a time is out of range"),
        (["--teacher", "nowhere.onnx"], "cannot read the teacher"),
        (["--host", "192.0.2.1", "--behind-proxy"], "the port cannot be bound"),
        (["--port", "70000"], "a port is out of range; at --port; expected 0 to 65535; got 70000"),
        (["--port", "-1"], "a port is out of range"),
        (["--ready", "/dev/null/x"], "cannot say that the hub is ready; at --ready /dev/null/x"),
        (["--ready", "/"], "cannot say that the hub is ready; at --ready /; "),
    ],
)
def test_what_cannot_work_is_told_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    """One line, exit code 1."""
    assert main(["up", "--home", str(tmp_path / "hub"), "--port", "0", *arguments]) == 1
    said = capsys.readouterr().err
    assert text in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_wrong_command_line_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["up"])
    assert caught.value.code == 2
    assert "--home" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"poll_interval": 0.0},
        {"poll_interval": 1e6, "assignment_lifetime": 1e9},
        {"tick": 0.0},
        {"longest_poll": -1.0},
        {"metadata_lifetime": 0.0},
        {"assignment_lifetime": 10.0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    """Among them assignments that would expire between two polls."""
    with pytest.raises(SettingError):
        Settings(**changes)  # type: ignore[arg-type]  # the floats are for fields that are floats


def test_a_connection_that_sends_nothing_does_not_stop_the_end(process: Process) -> None:
    """Attack: an idle connection; SIGTERM still ends the hub, and with 0."""
    host, _, port = process.url().removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as idle:
        idle.sendall(b"GET /v1/poll HTTP/1.1\r\n")
        code, log = process.stop()
    assert code == 0, log

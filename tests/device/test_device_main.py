"""The command line: joining, statuses and errors; and what the agent may import."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from device_bundles import HERE, HttpHub, MemoryTransport, TinyHub

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, ConflictError, SettingError, TrustError
from edgestill.device.home import Home, Settings
from edgestill.device.life import join
from edgestill.device.main import main

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings(leaves="raw", labels={"site": "north"})
SUPERVISOR = (
    "agent, courier, engines, events, frames, home, installer, life, machine, main, outbox, privacy, processes, slots, state,"
    " status, supervisor, asking"
)
FOREIGN = [
    "numpy",
    "onnxruntime",
    "onnx",
    "torch",
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "aiosqlite",
    "typer",
    "rich",
    "scipy",
]


def joined(
    path: Path, hub: TinyHub, *, token: str | None = None, name: str = "d1", engine: str = "onnxruntime"
) -> Home:
    """A device that has joined a hub in memory."""
    return join(
        path,
        hub="http://127.0.0.1:1/",
        token=hub.token if token is None else token,
        name=name,
        settings=SETTINGS,
        transport=MemoryTransport(hub),
        engine=engine,
    )


def test_joining_makes_a_home(tmp_path: Path) -> None:
    """With the credential that the hub gave, and the root that the token names."""
    hub = TinyHub()
    home = joined(tmp_path / "home", hub)
    assert Home.open(tmp_path / "home") == home
    assert (home.identity.device, home.identity.credential) == ("d1", hub.secret)
    assert (home.identity.hub, home.identity.hardware_class) == ("http://127.0.0.1:1", HERE)
    assert home.root == hub.repository.root


def test_a_device_with_another_engine_is_of_another_class(tmp_path: Path) -> None:
    """Its hub gives it bundles for that engine."""
    home = joined(tmp_path / "home", TinyHub(), engine="openvino")
    assert home.identity.hardware_class == HERE.replace("onnxruntime", "openvino")
    assert home.identity.hardware_class != HERE


def test_attack_a_hub_with_another_root_is_refused(tmp_path: Path) -> None:
    """The token pins the publisher; nothing of that hub is written down."""
    token = f"est1.secret.{Digest.of(b'another root').hex}"
    with pytest.raises(TrustError, match="another publisher than the join token names"):
        joined(tmp_path / "home", TinyHub(), token=token)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "est1.secret",
        "est2.s." + "0" * 64,
        "est1.s." + "0" * 63,
        f"est1.s.{'0' * 64}.{'0' * 64}",
        f"est2.s.{'0' * 64}.{'0' * 63}",
        f"est3.s.{'0' * 64}.{'0' * 64}",
    ],
)
def test_half_a_token_is_refused_before_anything_is_sent(tmp_path: Path, token: str) -> None:
    """Copying it wrongly must not use it up."""
    hub = TinyHub()
    with pytest.raises(SettingError, match="not a join token"):
        joined(tmp_path / "home", hub, token=token)
    assert hub.served == []


def test_a_name_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Names are ids: letters, digits, dashes."""
    with pytest.raises(SettingError, match="a name that cannot be used"):
        joined(tmp_path / "home", TinyHub(), name="my device")


def test_joining_twice_is_refused(tmp_path: Path) -> None:
    """Before a token is used up."""
    hub = TinyHub()
    joined(tmp_path / "home", hub)
    hub.served.clear()
    with pytest.raises(ConflictError):
        joined(tmp_path / "home", hub)
    assert hub.served == []


def test_a_hub_that_does_not_know_the_token_is_heard(tmp_path: Path) -> None:
    """Its refusal is the error."""
    hub = TinyHub(refuse={"/v1/enrol": 403})
    with pytest.raises(AccessError):
        joined(tmp_path / "home", hub)


def test_the_command_line_joins_and_tells_where_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For people and for machines."""
    home = str(tmp_path / "home")
    with HttpHub(TinyHub()) as server:
        hub = server.hub
        arguments = ["join", "--home", home, "--hub", server.url, "--token", hub.token, "--name", "d1"]
        assert main([*arguments, "--label", "site=north", "--leaves", "features"]) == 0
    assert capsys.readouterr().out == f"d1 belongs to {server.url}\n"
    assert main(["status", "--home", home, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["device"], status["leaves"], status["labels"]) == ("d1", "features", {"site": "north"})
    assert (status["release"], status["phase"], status["engine"], status["reports"]) == (
        None,
        "idle",
        None,
        0,
    )
    assert main(["status", "--home", home]) == 0
    assert "phase           idle\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["status", "--home", "{}"], "[not-found] no device lives here"),
        (["run", "--home", "{}"], "[not-found] no device lives here"),
        (
            ["join", "--home", "{}", "--hub", "http://127.0.0.1:1", "--token", "x", "--name", "d"],
            "[setting-invalid]",
        ),
        (
            [
                "join",
                "--home",
                "{}",
                "--hub",
                "http://127.0.0.1:1",
                "--token",
                "x",
                "--name",
                "d",
                "--label",
                "y",
            ],
            "[setting-invalid] cannot read a label",
        ),
    ],
)
def test_errors_are_one_line_with_a_code(
    arguments: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit status is 1."""
    assert main([one.format(tmp_path) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith(error)
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["join"], ["run", "--home"], ["join", "--leaves", "all"]])
def test_wrong_usage_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As every Unix program."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: edgestill-agent" in capsys.readouterr().err


def test_an_agent_that_runs_already_keeps_the_second_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One supervisor for each home."""
    home = joined(tmp_path / "home", TinyHub())
    with home.locked():
        assert main(["run", "--home", str(home.path)]) == 1
    assert "an agent runs here already" in capsys.readouterr().err


def test_durations_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number without a unit could be anything."""
    home = joined(tmp_path / "home", TinyHub())
    assert main(["run", "--home", str(home.path), "--health-every", "15"]) == 1
    assert "a quantity needs a unit" in capsys.readouterr().err
    assert main(["run", "--home", str(home.path), "--health-every", "0s"]) == 1
    assert "an interval must be positive" in capsys.readouterr().err


def test_the_supervisor_imports_no_numpy_and_nothing_beyond_its_extra() -> None:
    """All its modules load where only the `agent` extra is installed."""
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {FOREIGN!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        f"from edgestill.device import {SUPERVISOR}\n"
        f"print(sorted(set({FOREIGN!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

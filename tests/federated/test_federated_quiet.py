"""What Flower is told about telemetry, updates and installing, where the user tells it nothing; Flower need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgestill.core.errors import MissingExtraError, SettingError
from edgestill.federated import QUIET
from edgestill.federated.__main__ import PROGRAMS, command

SOURCE = Path(__file__).resolve().parents[2] / "src"
SHOW = "import os, edgestill.federated as f; print(*(os.environ[name] for name in f.QUIET))"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, in which the variables are these and otherwise not set."""
    clean = {name: value for name, value in os.environ.items() if name not in QUIET}
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | {"PYTHONPATH": str(SOURCE)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_turns_telemetry_and_updates_off() -> None:
    """Both of Flower's variables say no, before anything could have loaded Flower."""
    assert run("-c", SHOW).stdout.split() == ["0", "1"]


def test_what_a_user_has_set_stays() -> None:
    """Who wants to report, or to hear of updates, does."""
    done = run("-c", SHOW, FLWR_TELEMETRY_ENABLED="1", FLWR_DISABLE_UPDATE_CHECK="0")
    assert done.stdout.split() == ["1", "0"]


def test_the_package_loads_neither_flower_nor_numpy() -> None:
    """What needs them is loaded when it is asked for."""
    done = run("-c", "import sys, edgestill.federated; print({'flwr', 'numpy', 'torch'} & set(sys.modules))")
    assert done.stdout.strip() == "set()"


def test_a_superlink_installs_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    """The server's program gets the option that stops it from installing what an app names; a user's own choice stays."""
    for name in PROGRAMS:
        (tmp_path / name).touch()
    off = "--disable-runtime-dependency-installation"
    assert command(["flower-superlink", "--insecure"], tmp_path)[1:] == [off, "--insecure"]
    for chosen in (off, "--allow-runtime-dependency-installation"):
        assert command(["flower-superlink", chosen], tmp_path)[1:] == [chosen]
    for other in PROGRAMS[1:]:
        assert command([other, "x"], tmp_path) == [str(tmp_path / other), "x"]


@pytest.mark.parametrize("arguments", [[], ["sh"], ["../flwr"], ["-c", "flwr"]])
def test_attack_no_other_program_is_started(tmp_path: Path, arguments: list[str]) -> None:
    """Only Flower's own programs are, by name; anything else is refused before a path is made of it."""
    with pytest.raises(SettingError, match="not a program of Flower's"):
        command(arguments, tmp_path)


def test_a_program_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    """One line says which `pip install` brings it."""
    with pytest.raises(MissingExtraError, match="flwr is not installed") as caught:
        command(["flwr"], tmp_path)
    assert 'pip install "edgestill[federated]"' in str(caught.value)


def test_the_program_ends_with_one_line() -> None:
    """Wrong usage is status 2 and no traceback."""
    done = run("-m", "edgestill.federated", "rm", "-r")
    assert done.returncode == 2
    assert done.stderr.startswith("[setting-invalid] ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
    (Path(sys.prefix) / "bin" / "flwr").exists(), reason="Flower is here; the test is about where it is not"
)
@pytest.mark.parametrize("name", ["client_app", "ClosedForm", "Averaging", "server_app"])
def test_what_needs_flower_says_so_where_it_is_missing(name: str) -> None:
    """Asking for it ends with one sentence that names the extra."""
    done = run("-c", f"from edgestill.federated import {name}")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("edgestill.core.errors.MissingExtraError: [extra-missing] flwr")
    )
    assert 'pip install "edgestill[federated]"' in done.stderr

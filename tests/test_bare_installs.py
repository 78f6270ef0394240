"""What an installation of each extra brings, in fresh environments: nothing more than its place needs.

- The wheel is built once and installed, with `constraints.txt`, into bare virtual environments for `edgestill`,
  `edgestill[agent]` and `edgestill[device]`; for `edgestill[federated]`, whose versions exclude those, with constraints
  of its own.
- `tests/weights.json` is a ratchet: number of wheels, installed size and idle memory may not grow beyond it. After a
  change that is meant to weigh something, run these tests with `EDGESTILL_RECORD_WEIGHTS=1` and commit the file.
- The import time is recorded for information; shared machines are too noisy to assert it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.installs

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "tests" / "weights.json"
PIP_ITSELF = {"pip", "setuptools"}  # what a fresh environment has
SIZE_MARGIN_MB = 1.0  # our own code may grow by this before the file must be recorded anew
SIZE_MARGIN = 1.1
MEMORY_MARGIN = 1.25

# What each environment imports, idles with, and is weighed with.
AGENT_ROOMS = ("core", "trust", "delta", "store", "link", "device")
NEEDS_NUMPY = {
    "edgestill.link.inference",
    "edgestill.device.arrays",
    "edgestill.device.client",
    "edgestill.device.engine_work",
    "edgestill.device.keeping",
    "edgestill.device.learning",
    "edgestill.device.memory",
    "edgestill.device.model",
    "edgestill.device.neighbours",
    "edgestill.device.replay",
    "edgestill.device.replay_format",
    "edgestill.device.replay_samples",
    "edgestill.device.sending",
    "edgestill.device.serve.models",
    "edgestill.device.sums",
    "edgestill.device.teachers",
    "edgestill.device.trained",
    "edgestill.device.trial",
    "edgestill.device.tuning",
}
NEEDS_A_WEB_SERVER = {"edgestill.device.serve.running", "edgestill.device.serve.server"}
IDLE = {
    "base": "import edgestill.core.bundle, edgestill.core.wire, edgestill.core.oip",
    "agent": "import edgestill.device.main, edgestill.device.life, edgestill.link.http",
    "device": "import edgestill.device.engine_work, onnxruntime",
    "federated": "import edgestill.federated.client, onnxruntime",
}
HEAVY = ("torch", "numpy", "starlette", "uvicorn", "typer", "rich", "onnxruntime", "onnx", "sqlalchemy")

MODULES_OF = """
import importlib, json, pkgutil, sys
outcome = {}
for room in sys.argv[1:]:
    package = importlib.import_module(f"edgestill.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"edgestill.{room}."):
        try:
            importlib.import_module(module.name)
            outcome[module.name] = ""
        except ImportError as error:
            outcome[module.name] = error.name or str(error)
print(json.dumps(outcome))
"""
CLOSURE_OF = """
import json, re, sys
from importlib.metadata import PackageNotFoundError, requires
wanted, found = list(sys.argv[1:]), set()
while wanted:
    name = wanted.pop()
    if name in found:
        continue
    try:
        needs = requires(name) or []
    except PackageNotFoundError:
        continue
    found.add(name)
    wanted += [re.match(r"[A-Za-z0-9._-]+", need)[0].lower().replace("_", "-") for need in needs if "extra ==" not in need]
print(json.dumps(sorted(found)))
"""
WEIGH = """
import json, re, time
start = time.perf_counter()
{idle}
seconds = time.perf_counter() - start
memory = re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({{"import_s": round(seconds, 2), "rss_mb": round(int(memory[1]) / 1024, 1)}}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A bare virtual environment with edgestill in it.

    Attributes:
        name: of the extra.
        path: where it is.
        warnings: what Python makes of them: errors, but where another's package warns when it is imported.
    """

    name: str
    path: Path
    warnings: str = "error"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, with nothing of this process's environment that concerns Python."""
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        program = str(self.path / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, env=clean, cwd=self.path, check=False
        )

    def python(self, program: str, *arguments: str) -> Any:
        """Runs a Python program there and reads the JSON it prints."""
        done = self.run("python", "-I", "-W", self.warnings, "-c", program, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def packages(self) -> set[str]:
        """What is installed."""
        done = self.run("python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
        return {one["name"].lower().replace("_", "-") for one in json.loads(done.stdout)}

    def megabytes(self) -> float:
        """The installed size of everything but pip itself, without compiled caches."""
        (site,) = self.path.glob("lib/python*/site-packages")
        return (
            sum(
                path.stat().st_size
                for path in site.rglob("*")
                if path.is_file()
                and path.suffix != ".pyc"
                and path.relative_to(site).parts[0].partition("-")[0]
                not in {*PIP_ITSELF, "pkg_resources", "_distutils_hack"}
            )
            / 1e6
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (found,) = folder.glob("edgestill-*.whl")
    return found


def pip(python: Path, *arguments: str) -> None:
    """Runs pip, and shows what it said when it fails."""
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(
    name: str, extra: str, wheel: Path, folder: Path, constraints: str = "constraints.txt"
) -> Environment:
    """A bare environment with this extra."""
    venv.create(folder, with_pip=True)
    pip(folder / "bin" / "python", "install", "-c", str(ROOT / constraints), f"{wheel}{extra}")
    return Environment(name, folder)


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install edgestill`."""
    return environment("base", "", wheel, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def agent(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install edgestill[agent]`."""
    return environment("agent", "[agent]", wheel, tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="session")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install edgestill[device]`."""
    return environment("device", "[device]", wheel, tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="session")
def federated(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install edgestill[federated]`."""
    folder, constraints = tmp_path_factory.mktemp("federated"), "tests/federated/constraints.txt"
    made = environment("federated", "[federated]", wheel, folder, constraints)
    return replace(made, warnings="ignore")  # Typer warns of click when Flower imports it


def test_the_base_brings_nothing_along(base: Environment) -> None:
    """`pip install edgestill` installs edgestill and nothing else."""
    assert base.packages() - PIP_ITSELF == {"edgestill"}


def test_the_base_can_use_all_of_core(base: Environment) -> None:
    """Every module of core imports in the bare base."""
    outcome = base.python(MODULES_OF, "core")
    assert {name for name, missing in outcome.items() if missing} == set()
    assert "edgestill.core.bundle" in outcome


def test_the_command_line_of_a_bare_base_says_what_to_install(base: Environment) -> None:
    """`edgestill` without its extra ends with one line that names the `pip install` line, and no traceback."""
    done = base.run("edgestill", "--help")
    assert done.returncode == 1
    assert 'pip install "edgestill[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("edgestill-agent", "status", "--home", "d"), "agent"),
        (("python", "-m", "edgestill.device.main", "run", "--home", "d"), "agent"),
        (("python", "-m", "edgestill.hub.main", "init", "--home", "h"), "hub"),
        (("python", "-m", "edgestill.hub.main", "up", "--home", "h"), "hub"),
    ],
)
def test_a_program_of_a_bare_base_says_what_to_install(
    base: Environment, command: tuple[str, ...], extra: str
) -> None:
    """Agent and hub without their extra end as the command line does, and leave nothing behind."""
    done = base.run(*command)
    assert done.returncode == 1
    assert done.stderr.startswith("[extra-missing] ")
    assert f'pip install "edgestill[{extra}]"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (base.path / "d").exists()
    assert not (base.path / "h").exists()


@pytest.mark.parametrize(
    ("line", "extra"),
    [("from edgestill.infer import load", "device"), ("from edgestill.lab import distill", "lab")],
)
def test_python_in_a_bare_base_says_what_to_install(base: Environment, line: str, extra: str) -> None:
    """What a room offers by name is refused with a coded error, not with the name of somebody else's module."""
    done = base.run("python", "-I", "-c", line)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError: [extra-missing] " in last
    assert f'pip install "edgestill[{extra}]"' in last


def test_an_agent_without_an_engine_says_what_to_install(agent: Environment) -> None:
    """The process that runs models tells its supervisor in one line what a device needs to answer."""
    program = (
        "import json, pathlib, socket, subprocess, sys\n"
        "from edgestill.device.frames import receive\n"
        "ours, theirs = socket.socketpair()\n"
        "command = [sys.executable, '-m', 'edgestill.device.engine_child', '--home', '.', '--archive', 'none.esb',"
        " '--control', str(theirs.fileno()), '--probe']\n"
        "done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True)\n"
        "theirs.close()\n"
        "print(json.dumps([done.returncode, done.stderr, receive(ours).header['reason']]))\n"
    )
    status, said, reason = agent.python(program)
    assert (status, said) == (1, "")
    assert reason.startswith("[extra-missing] ")
    assert 'pip install "edgestill[device]"' in reason


def test_the_agent_brings_no_arrays_no_web_server_and_no_torch(agent: Environment) -> None:
    """What keeps a device up to date needs none of the heavy libraries."""
    assert agent.packages() & set(HEAVY) == set()
    found = agent.python(
        "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))",
        *HEAVY,
    )
    assert found == []


def test_the_agent_can_use_every_module_that_needs_no_arrays(agent: Environment) -> None:
    """Every module of core, trust, delta, store, link and device's supervisor imports without numpy."""
    outcome = agent.python(MODULES_OF, *AGENT_ROOMS)
    missing = {name: module for name, module in outcome.items() if module}
    assert {
        name: module for name, module in missing.items() if name not in NEEDS_NUMPY | NEEDS_A_WEB_SERVER
    } == {}
    assert set(missing) >= NEEDS_NUMPY & set(outcome), (
        "a module that needs no numpy any more: take it off the list"
    )


def test_the_agents_command_runs_in_its_bare_environment(agent: Environment) -> None:
    """`edgestill-agent --help` works with what the extra brings."""
    done = agent.run("edgestill-agent", "--help")
    assert done.returncode == 0, done.stderr
    assert "join" in done.stdout


def test_the_supervisor_process_never_loads_arrays(device: Environment) -> None:
    """Even where numpy is installed, importing the supervisor does not load it."""
    loaded = device.python(f"import json, sys\n{IDLE['agent']}\nprint(json.dumps([*sys.modules]))")
    assert set(loaded) & set(HEAVY) == set()


def test_the_device_adds_numpy_and_onnxruntime_and_what_these_need(
    agent: Environment, device: Environment
) -> None:
    """Between agent and device lie two libraries and their own requirements."""
    added = device.packages() - agent.packages()
    assert added >= {"numpy", "onnxruntime"}
    assert added <= set(device.python(CLOSURE_OF, "numpy", "onnxruntime"))


def test_the_device_can_use_everything_but_the_web_server(device: Environment) -> None:
    """Every module of the agent's rooms, infer and learn imports, and torch is not there."""
    outcome = device.python(MODULES_OF, *AGENT_ROOMS, "infer", "learn")
    assert {name for name, missing in outcome.items() if missing} <= NEEDS_A_WEB_SERVER
    assert device.packages() & {"torch", "starlette", "uvicorn", "typer", "onnx"} == set()


def test_the_federated_client_learns_without_torch(federated: Environment) -> None:
    """Every module of the adapter imports with Flower and what a device has, and no laboratory comes along."""
    outcome = federated.python(MODULES_OF, "federated", "infer", "learn")
    assert {name for name, missing in outcome.items() if missing} == set()
    assert federated.packages() & {"torch", "onnx", "scipy", "matplotlib"} == set()
    assert "flwr" in federated.packages()


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has"
)
@pytest.mark.parametrize("name", ["base", "agent", "device", "federated"])
def test_an_installation_weighs_no_more_than_recorded(name: str, request: pytest.FixtureRequest) -> None:
    """Wheels, megabytes on disk and idle memory stay at or below `tests/weights.json`, within stated margins."""
    place: Environment = request.getfixturevalue(name)
    weighed = {
        "wheels": len(place.packages() - PIP_ITSELF),
        "installed_mb": round(place.megabytes(), 1),
        **place.python(WEIGH.format(idle=IDLE[name])),
    }
    recorded = json.loads(WEIGHTS.read_text()) if WEIGHTS.exists() else {}
    if os.environ.get("EDGESTILL_RECORD_WEIGHTS"):
        WEIGHTS.write_text(json.dumps(recorded | {name: weighed}, indent=2, sort_keys=True) + "\n")
        return
    limit = recorded[name]
    assert weighed["wheels"] <= limit["wheels"]
    assert weighed["installed_mb"] <= limit["installed_mb"] * SIZE_MARGIN + SIZE_MARGIN_MB
    assert weighed["rss_mb"] <= limit["rss_mb"] * MEMORY_MARGIN

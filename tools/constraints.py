"""Writes `constraints.txt` anew: what pip resolves today for everything that `make` installs, pinned.

    python tools/constraints.py [--check]

- A throw-away virtual environment gets the `demo` extra, the `dev` group and the build backend, without constraints.
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

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PIP = "pip==26.3"
HELD = (
    "torch==2.13.0",
)  # a newer one may have no CPU build at hand, and its default build brings gigabytes of CUDA
BACKEND = ("hatchling",)
HEADER = """\
# Every version that `make` installs. Written by tools/constraints.py; do not edit by hand.
# A version without a local label also admits builds that carry one: torch==2.13.0 is met by 2.13.0+cpu.
"""


def resolve(*, constrained: bool) -> str:
    """The text of `constraints.txt` for a fresh environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "-qq", "install"]
        held = ["-c", str(CONSTRAINTS)] if constrained else list(HELD)
        wanted = ["-e", f"{ROOT}[demo]", "--group", f"{ROOT}/pyproject.toml:dev", *BACKEND]
        subprocess.run([*install, PIP], check=True)  # noqa: S603  # our own command line
        subprocess.run([*install, *held, *wanted], check=True)  # noqa: S603
        listing = subprocess.check_output([*pip, "list", "--format=json"], text=True)  # noqa: S603
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listing)}
    del found["edgestill"]
    pins = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(found.items())]
    return HEADER + "".join(pins)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="verify constraints.txt instead of writing it")
    check = parser.parse_args().check
    text = resolve(constrained=check)
    if not check:
        CONSTRAINTS.write_text(text)
        return 0
    wrong = sorted(set(text.splitlines()) ^ set(CONSTRAINTS.read_text().splitlines()))
    print("\n".join(wrong) or "constraints.txt is exactly what gets installed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Walks both scenarios of the demonstration and keeps their figures in `bench/results/`.

    python bench/bench_demo.py [SCENARIO ...] [--json]

`python tools/tables.py` then writes the tables of docs/demo.md from them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
SCENARIOS = ("watch", "images")


def walk(scenario: str) -> dict[str, object]:
    """The closing JSON object of `edgestill demo`."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "edgestill.cli",
            "demo",
            "--scenario",
            scenario,
            "--json",
            "--out",
            out,
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # our own program
    report: dict[str, object] = json.loads(said.stdout.splitlines()[-1])
    return report


def main() -> None:
    """The command line."""
    RESULTS.mkdir(exist_ok=True)
    # what it prints is JSON, asked for or not
    for scenario in [one for one in sys.argv[1:] if one != "--json"] or SCENARIOS:
        report = walk(scenario)
        (RESULTS / f"demo_{scenario}.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        print(json.dumps({"bench": f"demo {scenario}", "figures": report["figures"]}))


if __name__ == "__main__":
    main()

"""Writes the tables of the docs from `bench/results/*.json`.

    python tools/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; nothing else of a page is touched. `--check` changes
nothing and fails where a page is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TABLE = re.compile(r"(<!-- table: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ROWS = (
    ("teacher, before the change", "teacher_accuracy"),
    ("student, before", "student_accuracy"),
    ("student as int8, before", "int8_accuracy"),
    ("the same after the change", "shifted_accuracy"),
    ("next student without evidence (control), after", "control_accuracy"),
    ("next student from evidence, after", "updated_accuracy"),
    ("next student from evidence, before", "kept_accuracy"),
    ("share of the loss won back", "recovered_share"),
    ("share won back by the control", "control_recovered_share"),
    ("share of inputs asked about, after the change", "escalated_share"),
)


def demo_table(name: str) -> str:
    """The figures of one scenario."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    figures = report["figures"]
    lines = ["| figure | value | 95 % interval | samples | groups |", "|---|---|---|---|---|"]
    for text, key in ROWS:
        low, high = figures[f"{key}_ci95"]
        n, groups = figures[f"{key}_n"], figures[f"{key}_groups"]
        lines.append(f"| {text} | {figures[key]:.1%} | {low:.1%} to {high:.1%} | {n} | {groups} |")
    lines.append(f"| teacher's file over student's | {figures['size_ratio']:.1f} | | | |")
    lines.append(f"| wall time, {report['machine']['cores']} cores | {figures['wall_s']:.0f} s | | | |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """The page with its tables as the results say."""
    return TABLE.sub(lambda found: found[1] + demo_table(found[2]) + found[3], page)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is stale")
    check, stale = parser.parse_args().check, 0
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text()
        if filled(page) != page:
            print(path.relative_to(ROOT))
            stale += 1
            if not check:
                path.write_text(filled(page))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

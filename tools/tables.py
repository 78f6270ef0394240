"""Writes the tables of the docs from `bench/results/*.json`, and those of keys from the classes that read them.

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
from typing import Any

from cascade_tables import CASCADE_TABLES
from delivery_tables import DELIVERY_TABLES
from drift_tables import DRIFT_TABLES
from job_tables import KINDS, keys_table
from learn_tables import LEARN_TABLES
from quality_tables import digits_table, intents_table, labels_table
from search_tables import SEARCH_TABLES
from sums_tables import SUMS_TABLES
from training_tables import TRAINING_TABLES
from watch_tables import WATCH_TABLES

from edgestill.demo.tables import ACCURACIES, LEARNING, SHARES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TABLE = re.compile(r"(<!-- table: ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Figure -> what it is of; the words are the demonstration's own.
ROWS = {f"{key}_accuracy": text for key, text in ACCURACIES.items()} | SHARES
ROWS |= {f"{key}_accuracy": text for key, text in LEARNING.items()}

SHORT = {
    "teacher_accuracy": "teacher's accuracy (95 % interval)",
    "int8_accuracy": "student's, as shipped",
    "shifted_accuracy": "student's, when the world has changed",
    "updated_accuracy": "next student's, made from what devices sent",
}


def demo_table(name: str) -> str:
    """The figures of one scenario."""
    report = results(name)
    figures, machine = report["figures"], report["about"]["machine"]
    lines = ["| figure | value | 95 % interval | samples | groups |", "|---|---|---|---|---|"]
    for key, text in ROWS.items():
        low, high = figures[f"{key}_ci95"]
        interval = "none" if low is None else f"{low:.1%} to {high:.1%}"
        n, groups = figures[f"{key}_n"], figures[f"{key}_groups"]
        lines.append(f"| {text} | {figures[key]:.1%} | {interval} | {n} | {groups} |")
    lines.append(f"| teacher's model file over student's | {figures['size_ratio']:.1f} | | | |")
    lines.append(
        f"| wall time, {machine['cores']} cores, load {machine['load']} before | {figures['wall_s']:.0f} s | | | |"
    )
    return "\n".join(lines) + "\n"


def short_table(_name: str) -> str:
    """Both scenarios in a few rows, for the README."""
    found = {name: results(f"demo_{name}")["figures"] for name in ("watch", "images")}
    lines = ["| | smart watches | cameras |", "|---|---|---|"]
    for key, text in SHORT.items():
        shares = (_percent(figures, key) for figures in found.values())
        lines.append(f"| {text} | {' | '.join(shares)} |")
    ratios = (f"{figures['size_ratio']:.0f}" for figures in found.values())
    lines.append(f"| student's model file is smaller | {' times | '.join(ratios)} times |")
    bundles = (
        f"{report['live']['bundle_bytes'] / 1000:.0f} kB of {report['live']['teacher_bytes'] / 1000:.0f} kB"
        for report in (results(f"demo_{name}") for name in found)
    )
    lines.append(f"| whole bundle, of the teacher's file | {' | '.join(bundles)} |")
    return "\n".join(lines) + "\n"


def _percent(figures: dict[str, Any], key: str) -> str:
    low, high = figures[f"{key}_ci95"]
    return f"{figures[key]:.1%} ({low:.0%} to {high:.0%})"


def speed_table(name: str) -> str:
    """One pair of `bench distill`: who trains it how fast."""
    pair = results("distill")["pairs"][name.removeprefix("distill_")]
    lines = [
        "| who | samples/s | time, over edgestill cached | quartiles | by wall time |",
        "|---|---|---|---|---|",
    ]
    times = pair["microseconds_per_sample"]["cpu"]
    for one, title in sorted(pair["titles"].items(), key=lambda each: -times[each[0]]["median"]):
        rate = f"{1e6 / times[one]['median']:.0f}"
        if one == "cached":
            lines.append(f"| **{title}** | **{rate}** | **1** | | |")
            continue
        by_cpu, by_wall = (pair["over_cached"][clock][one] for clock in ("cpu", "wall"))
        low, high = by_cpu["quartiles"]
        lines.append(
            f"| {title} | {rate} | {by_cpu['median']:.2f} | {low:.2f} to {high:.2f} | {by_wall['median']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def cache_table(_name: str) -> str:
    """What the cache of each pair costs."""
    lines = [
        "| pair | filling, ms a sample | bytes a sample | has paid in epoch, over plain | over channels-last |",
        "|---|---|---|---|---|",
    ]
    for pair in results("distill")["pairs"].values():
        cost = pair["cache"]
        epochs = (cost["break_even_epoch"][who] for who in ("plain", "plain_channels_last"))
        each = f"{cost['build_microseconds_per_sample'] / 1000:.2f} | {cost['bytes_per_sample']:.0f}"
        lines.append(f"| {pair['title']} | {each} | {' | '.join(map(str, epochs))} |")
    return "\n".join(lines) + "\n"


def tried_table(_name: str) -> str:
    """What was tried to make a student's step faster."""
    report = results("distill")
    lines = ["| pair | tried | time, over float32 | first step |", "|---|---|---|---|"]
    for name, tries in report["tried"].items():
        for what, found in tries.items():
            said = found.get("failed")
            if said is None:
                said = f"{found['over_float32']['median']:.2f} | {found['first_step_s']:.1f} s"
            lines.append(f"| {report['pairs'][name]['title']} | {what.replace('_', ' ')} | {said} |")
    return "\n".join(lines) + "\n"


def machine_table(_name: str) -> str:
    """Where and how often the speed was measured; `load` is of other work too."""
    report = results("distill")
    machine = report["machine"]
    rounds = " and ".join(str(pair["rounds"]) for pair in report["pairs"].values())
    return (
        "| processor | cores | load | torch | rounds of the two pairs |\n|---|---|---|---|---|\n"
        f"| {machine['architecture']}, {machine['instructions']} | {machine['cores']} | {machine['load']} "
        f"| {machine['versions']['torch']} | {rounds} |\n"
    )


TABLES = {
    "quality_intents": lambda _name: intents_table(),
    "quality_digits": lambda _name: digits_table(),
    "quality_labels": lambda _name: labels_table(),
    "distill_machine": machine_table,
    "demo_short": short_table,
    "demo_watch": demo_table,
    "demo_images": demo_table,
    "distill_reference": speed_table,
    "distill_resnet": speed_table,
    "distill_cache": cache_table,
    "distill_tried": tried_table,
    **dict.fromkeys(KINDS, keys_table),
    **{
        name: lambda _name, table=table: table()
        for name, table in (
            SEARCH_TABLES
            | CASCADE_TABLES
            | DELIVERY_TABLES
            | DRIFT_TABLES
            | LEARN_TABLES
            | SUMS_TABLES
            | TRAINING_TABLES
            | WATCH_TABLES
        ).items()
    },
}


def results(name: str) -> dict[str, Any]:
    """What a bench has kept."""
    read: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return read


def filled(page: str) -> str:
    """The page with its tables as the results say."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]](found[2]) + found[3], page)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is stale")
    check, stale = parser.parse_args().check, 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        page = path.read_text()
        if filled(page) != page:
            print(path.relative_to(ROOT))
            stale += 1
            if not check:
                path.write_text(filled(page))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

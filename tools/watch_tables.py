"""The tables of docs/learn.md about betting, and about a watch on the other wrist; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "learn.json"
ROUNDS: Final = {"1": "once", "2": "twice", "3": "three times", "6": "six times"}
WAYS: Final = {
    "labels": "labels are told",
    "asked": "the teacher's answers in their place",
    "worn": "labels are told, and were on the right wrist before",
}
CEILINGS: Final = {
    "all of it, labels, prior 1": "a head of all labelled samples, the prior counts as much",
    "all of it, labels, prior 0.1": "the same, the prior counts a tenth",
    "all of it, asked, prior 1": "a head of all of the teacher's answers, the prior counts as much",
    "all of it, asked, prior 0.1": "the same, the prior counts a tenth",
    "unjudged, head": "the head trained",
    "unjudged, last block": "the last two layers trained",
    "unjudged, all": "all layers trained",
}


def _part(name: str) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(RESULTS.read_text())["parts"][name]
    return part


def contest_table() -> str:
    """Tosses until a challenger is seen to be better."""
    part = _part("betting")
    lines = [
        "| won before | won from then on | tosses until that is seen | with a plain bet |",
        "|---|---|---|---|",
    ]
    for one in part["cases"]:
        before = f"{100 * one['before']:.0f} % of {one['tosses']}" if one["tosses"] else "no toss"
        lines.append(f"| {before} | {100 * one['after']:.0f} % | {one['ours']} | {one['plain']} |")
    ours, plain = (f"{100 * part['fair'][name]:.1f} % are ever seen as better" for name in ("ours", "plain"))
    lines.append(f"| no toss | 50 %, 1,000 tosses | {ours} | {plain} |")
    return "\n".join(lines) + "\n"


def runs_table() -> str:
    """The share of contests in which a challenger that is no better is adopted."""
    runs = _part("betting")["runs"]
    lengths = list(runs["equal"])
    lines = [f"| alike inputs in a row | {' | '.join(lengths)} |", "|---|" + "---|" * len(lengths)]
    ways = {"plain": "each input a toss", "ours": "as a device counts"}
    said = {"equal": "right as often as what serves (80 %)", "worse": "right less often (70 %)"}
    lines += [
        f"| {said[name]}, {ways[way]} | {' | '.join(f'{100 * one[way]:.0f} %' for one in found.values())} |"
        for name, found in runs.items()
        for way in ways
    ]
    return "\n".join(lines) + "\n"


def _recovered(row: dict[str, Any]) -> str:
    one = row["recovered"]
    return f"{one['share']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def watch_table() -> str:
    """The share that is won back, by seconds and by how often each exercise comes."""
    part = _part("watch")
    rows = part["rows"]
    home, away = (100 * sum(part[name]) / len(part[name]) for name in ("home", "away"))
    lines = [
        "| what a device hears | seconds | windows | each exercise comes | won back | devices that adopted a head | its samples |",
        "|---|---|---|---|---|---|---|",
        f"| nothing: {home:.1f} % right on the right wrist, {away:.1f} % on the left | | | | 0 | | |",
    ]
    for way, title in WAYS.items():
        keys = [key for key in rows if key.startswith(f"{way}/")]
        for key in sorted(keys, key=lambda one: [int(part) for part in one.split("/")[1:]]):
            row, (_, seconds, rounds) = rows[key], key.split("/")
            lines.append(
                f"| {title} | {seconds} | {row['windows']:.0f} | {ROUNDS[rounds]} | {_recovered(row)} "
                f"| {100 * row['adopted']:.0f} % | {row['made_of']:.0f} |"
            )
    row = rows["shipped/all/4"]
    lines.append(
        f"| the teacher's answers where the policy as shipped asks, {row['heard']:.0f} windows | all there is "
        f"| {row['windows']:.0f} | four times | {_recovered(row)} | {100 * row['adopted']:.0f} % | {row['made_of']:.0f} |"
    )
    return "\n".join(lines) + "\n"


def ceiling_table() -> str:
    """What there is to be had without a judge, and what the device's training does."""
    rows = _part("watch")["rows"]
    seconds = sorted({key.rpartition("/")[2] for key in rows if key.startswith("all of it")}, key=int)
    lines = [f"| | {' | '.join(f'{one} s' for one in seconds)} |", "|---" * (1 + len(seconds)) + "|"]
    for name, title in CEILINGS.items():
        each = (rows.get(f"{name}/{one}") for one in seconds)
        lines.append(f"| {title} | {' | '.join('' if one is None else _recovered(one) for one in each)} |")
    for name in ("head", "last block", "all"):
        each = (rows.get(f"judged, {name}/{one}") for one in seconds)
        cells = ("" if one is None else _judged(one) for one in each)
        lines.append(f"| what a device trains by itself, {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _judged(row: dict[str, Any]) -> str:
    """What the device came to, and of how many windows."""
    share, through = row["recovered"]["share"], 100 * row["adopted"]
    return f"{share:.2f}; {row['to_train']:.0f} windows to train on, {row['held']:.0f} held back; {through:.0f} % let through"


WATCH_TABLES: Final = {
    "learn_contest": contest_table,
    "learn_contest_runs": runs_table,
    "learn_watch": watch_table,
    "learn_watch_ceiling": ceiling_table,
}

"""The tables of docs/lab.md about quality; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "quality.json"
WAYS: Final = (
    "plain",
    "plain_views",
    "distilled",
    "texts",
    "views",
    "torchdistill",
    "unlabelled",
    "bare",
    "bare_distilled",
    "linear",
)
COURSES: Final = ("sgd", "adamw", "long")
STARTS: Final = ("scratch", "inconsistent", "first", "uniform", "random", "magnitude")


def _part(name: str) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(RESULTS.read_text())["parts"][name]
    return part


def _accuracy(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1f} ± {found['spread']:.1f}"


def _gain(found: dict[str, Any]) -> str:
    """In points with the interval over seeds; a difference that is none is said to be none."""
    low, high = found["ci95_seeds"]
    told = f"{found['points']:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"{told}, not shown" if found["verdict"] == "no difference shown" else told


def intents_table() -> str:
    """CLINC150: each way to train, by questions an intent."""
    part = _part("intents")
    sizes = ["each_20", "each_100"]
    names = " | ".join(f"{key.removeprefix('each_')} an intent" for key in sizes)
    lines = [f"| trained | {names} |", "|---|" + "---|" * len(sizes)]
    for way in WAYS:
        row = [part[size]["ways"].get(way) for size in sizes]
        cells = ["" if one is None else _accuracy(one) for one in row]
        lines.append(f"| {row[0]['title']} | {' | '.join(cells)} |")
    lines.append(f"| teacher | {part['teacher']['mean']:.1f} | {part['teacher']['mean']:.1f} |")
    for gain, first in part[sizes[0]]["gains"].items():
        cells = " | ".join(_gain(part[size]["gains"][gain]) for size in sizes)
        lines.append(f"| gain: {first['of']} *over* {first['over']} | {cells} |")
    return "\n".join(lines) + "\n"


def digits_table() -> str:
    """Inheritance on digits, by how the first weights are chosen."""
    courses = _part("digits")["courses"]
    first = courses["sgd"]["starts"]
    lines = ["| first weights | before training | epoch 1 of 8, SGD |", "|---|---|---|"]
    for name in COURSES:
        lines[0] += f" {courses[name]['title']} | gain |"
        lines[1] += "---|---|"
    for start in STARTS:
        cells = [first[start]["before"]["title"]]
        cells += [_accuracy(first[start][moment]) for moment in ("before", "epoch1")]
        for one in (courses[name] for name in COURSES):
            cells.append(_accuracy(one["starts"][start]["end"]))
            cells.append("" if start == "scratch" else _gain(one["gains"][start]["end"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def labels_table() -> str:
    """CIFAR-10: each way to train, by share of labels."""
    part = _part("labels")
    lines = ["| labelled | plain | inherited | distilled | both |", "|---|---|---|---|---|"]
    for share, row in sorted(part["shares"].items(), key=lambda each: int(each[0])):
        cells = [_accuracy(row["ways"]["plain"])]
        cells += [
            f"{_accuracy(row['ways'][way])}; {_gain(row['gains'][way])}"
            for way in ("inherited", "distilled", "both")
        ]
        lines.append(f"| {share} % ({row['labelled']:,}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

"""The tables of docs/measured.md about quality; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "quality.json"
WAYS: Final = (
    "plain",
    "plain_views",
    "distilled",
    "views_kd",
    "torchdistill",
    "views",
    "torchdistill_bare",
    "unlabelled",
    "bare",
    "bare_distilled",
    "linear",
)
COURSES: Final = ("one", "two", "four", "sgd", "adamw", "long", "described")
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
    """Inheritance on digits: budgets as rows, first weights as columns."""
    courses = _part("digits")["courses"]
    main = courses["sgd"]
    titles = [main["starts"][start]["end"]["title"] for start in STARTS]
    lines = [f"| trained | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    lines.append(_digits_row("not at all", main, "before"))
    lines.append(_digits_row(f"1 of {main['title']}", main, "epoch1"))
    lines += [_digits_row(courses[name]["title"], courses[name], "end") for name in COURSES]
    return "\n".join(lines) + "\n"


def _digits_row(title: str, course: dict[str, Any], moment: str) -> str:
    cells = [title]
    for start in STARTS:
        accuracy = _accuracy(course["starts"][start][moment])
        gain = "" if start == "scratch" else f"; {_gain(course['gains'][start][moment])}"
        cells.append(accuracy + gain)
    return f"| {' | '.join(cells)} |"


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

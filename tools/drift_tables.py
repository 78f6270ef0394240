"""The tables of docs/learn.md about drift; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "drift.json"
WORLDS: Final = {
    "independent": "made up, independent",
    "overlapping": "made up, overlapping",
    "cifar": "images",
    "cifar-bouts": "images in bouts",
    "watch": "smart watch",
}
LATE: Final = 2_000


def _parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    return {name: parts[name] for name in WORLDS if name in parts}


def still_table() -> str:
    """False alarms of each detector in each world, any of the three signals."""
    parts = _parts()
    lines = [
        "| detector | " + " | ".join(WORLDS[name] for name in parts) + " | a value takes |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for name, title in _titles(parts).items():
        cells = [_rate(part["detectors"][name]["still"]["all"]) for part in parts.values()]
        time = max(part["detectors"][name]["microseconds"] for part in parts.values())
        lines.append(f"| {title} | {' | '.join(cells)} | {time:.1f} us |")
    return "\n".join(lines) + "\n"


def changes_table() -> str:
    """How long each change stays unnoticed."""
    parts = _parts()
    titles = _titles(parts)
    lines = [
        "| world | change | moves leverage, doubt, surprise by | " + " | ".join(titles.values()) + " |",
        "|---" * (len(titles) + 3) + "|",
    ]
    for world, part in parts.items():
        for change, moved in part["moved"].items():
            cells = [_delay(part["detectors"][name]["changes"][change]["all"]) for name in titles]
            by = ", ".join(f"{moved[signal]:+.1f}" for signal in ("leverage", "doubt", "surprise"))
            lines.append(f"| {WORLDS[world]} | {change} | {by} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _titles(parts: dict[str, Any]) -> dict[str, str]:
    first = next(iter(parts.values()))["detectors"]
    return {name: one["title"] for name, one in sorted(first.items(), key=lambda each: each[1]["place"])}


def _rate(one: dict[str, Any]) -> str:
    low, high = one["ci95"]
    return f"{one['per_10000']:.2f} ({low:.2f} to {high:.2f})"


def _delay(one: dict[str, Any]) -> str:
    if one["median"] >= LATE:
        return f"later ({one['found']:.0%} in time)"
    low, high = one["quartiles"]
    upper = "later" if high >= LATE else str(high)
    return f"{one['median']} ({low} to {upper})"


DRIFT_TABLES: Final = {"drift_still": still_table, "drift_changes": changes_table}

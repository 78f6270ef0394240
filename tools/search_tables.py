"""The tables of docs/search.md; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from edgestill.core.units import format_duration, format_size

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "search.json"
FRONTS: Final = ("reference", "resnet20")
SPEED: Final = {
    "eager": "teacher, PyTorch eager",
    "teacher_onnxruntime": "teacher in floats, onnxruntime",
    "teacher_openvino": "teacher in floats, OpenVINO",
    "teacher_litert": "teacher in floats, LiteRT",
    "student_onnxruntime": "student in int8, onnxruntime",
    "predict": "the same with all that `predict` does",
    "student_openvino": "student in int8, OpenVINO",
    "student_litert": "student in int8, LiteRT",
}
EXAMPLES: Final = {"intents": "intents", "reference": "reference pair, CIFAR-10", "watch": "smart watch"}


def _parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    return parts


def budgets_table() -> str:
    """Each random budget: what was allowed, what the bundle took when it was measured again, and what was gained."""
    lines = [
        "| teacher | latency allowed | taken, p95 | size allowed | taken | over the uniform student that is as fast |",
        "|---|---|---|---|---|---|",
    ]
    for part in _fronts():
        for one in sorted(part["budgets"], key=lambda each: each["latency"]):
            if one["picked"] is None:
                continue
            gain = one["gain"]
            allowed = "" if one["size"] is None else format_size(one["size"])
            lines.append(
                f"| {part['title']} | {format_duration(one['latency'])} | {format_duration(one['latency_found'])} "
                f"| {allowed} | {format_size(one['size_found'])} "
                f"| {'none is' if gain is None else f'{gain:+.1f} points'} |"
            )
    return "\n".join(lines) + "\n"


def fronts_table() -> str:
    """The students that no other beats, for each teacher."""
    lines = ["| teacher | latency, p95 | size | precision | right (95 % interval) |", "|---|---|---|---|---|"]
    for part in _fronts():
        for one in part["front"]:
            low, high = one["unseen"]["ci95"]
            lines.append(
                f"| {part['title']}, {part['teacher']:.1%} | {format_duration(one['footprint']['latency'])} "
                f"| {format_size(one['footprint']['size'])} | {one['shape']['precision']} "
                f"| {one['unseen']['value']:.1%} ({low:.1%} to {high:.1%}) |"
            )
    return "\n".join(lines) + "\n"


def int8_table() -> str:
    """What int8 cost each shipped example."""
    lines = [
        "| example | in floats | in int8 | points lost (95 % interval) | on | written as |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in EXAMPLES.items():
        one = _parts()["int8"][name]
        if "floats" not in one:
            lines.append(f"| {title} | | | {one['drop']:+.2f} | [the demonstration](demo.md) | |")
            continue
        low, high = one["ci95"]
        lines.append(
            f"| {title} | {one['floats']:.1f} % | {one['int8']:.1f} % | {one['drop']:+.2f} ({low:+.2f} to {high:+.2f}) "
            f"| {one['n']} samples | {one['written'][-1]['way']} |"
        )
    return "\n".join(lines) + "\n"


def speed_table() -> str:
    """The reference pair, one image at a time on one thread."""
    found = _parts()["latency"]
    fastest = min(one["p50"] for name, one in found.items() if name.startswith("student"))
    lines = [
        "| who | p50 (quartiles over rounds) | p95 | time, over the fastest student |",
        "|---|---|---|---|",
    ]
    for name, title in SPEED.items():
        one = found[name]
        low, high = one["p50_quartiles"]
        lines.append(
            f"| {title} | {1e6 * one['p50']:.1f} us ({1e6 * low:.1f} to {1e6 * high:.1f}) "
            f"| {1e6 * one['p95']:.1f} us | {one['p50'] / fastest:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _fronts() -> list[dict[str, Any]]:
    parts = _parts()
    return [parts[name] for name in FRONTS if name in parts]


SEARCH_TABLES: Final = {
    "search_budgets": budgets_table,
    "search_fronts": fronts_table,
    "search_int8": int8_table,
    "search_speed": speed_table,
}

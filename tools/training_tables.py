"""The table of docs/training.md; `tools/tables.py` puts it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "train-step.json"


def steps_table() -> str:
    """Each student and what is trained of it, and both processes' memory."""
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    lines = [
        "| student, trained | ours | torch | ours over torch | largest difference |",
        "|---|---|---|---|---|",
    ]
    for title, one in parts["time"].items():
        student, _, trained = title.partition(", ")
        apart = f"{parts['error'][student]['parameters']:.0e}" if trained == "all" else ""
        low, high = one["ratio"]["quartiles"]
        lines.append(
            f"| {title} | {one['ours_ms']['median']:.2f} ms | {one['torch_ms']['median']:.2f} ms "
            f"| {one['ratio']['median']:.2f} ({low:.2f} to {high:.2f}) | {apart} |"
        )
    ours, torch = (parts["memory"][who]["rss_mb"] for who in ("ours", "torch"))
    lines.append(f"| memory of the process | {ours:.0f} MB | {torch:.0f} MB | {ours / torch:.2f} | |")
    return "\n".join(lines) + "\n"


TRAINING_TABLES: Final = {"train_step": steps_table}

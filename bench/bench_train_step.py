"""A step of training without torch beside torch's own: how long it takes, in how much memory, and how far apart the two end.

    EDGESTILL_DATA=FOLDER python bench/bench_train_step.py [--json] [--quick] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "train-step", "figures": {...}}`; `--json` leaves the rest out. The whole goes into
`bench/results/train-step.json`; `python tools/tables.py` writes the table of docs/training.md. One thread each, in turns within one
process; memory is that of processes which do nothing else. `--only` runs some of the parts and takes the others from the last
results. `--quick` only shows that it runs: its figures mean nothing, and are not kept.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

from typing import TYPE_CHECKING, Any, Final

from parted import Parted

if TYPE_CHECKING:
    from pathlib import Path

PARTS: Final = ("time", "error", "memory")
LIBRARIES: Final = ("edgestill", "torch", "onnx", "onnxruntime", "numpy")


def measure(part: str, _data: Path, _folder: Path, quick: bool) -> Any:  # noqa: FBT001  # as `Parted` calls it
    """One part."""
    from training import memory, steps

    if part == "time":
        return steps.times(quick=quick)
    return steps.errors(quick=quick) if part == "error" else memory.measured(quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to, of the reference student."""
    found: dict[str, float] = {}
    if "time" in parts:
        found["step_over_torch"] = round(parts["time"]["reference, all"]["ratio"]["median"], 3)
        found["head_step_over_torch"] = round(parts["time"]["reference, head"]["ratio"]["median"], 3)
    if "memory" in parts:
        found["rss_mb"] = round(parts["memory"]["ours"]["rss_mb"], 1)
    if "error" in parts:
        found["max_error"] = max(one["parameters"] for one in parts["error"].values())
    return found


def undrawn(part: str, _found: Any) -> None:
    """No part has a plot."""
    raise AssertionError(part)


if __name__ == "__main__":
    Parted(
        name="train-step",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=(),
        draw=undrawn,
    ).main()
    sys.exit(0)

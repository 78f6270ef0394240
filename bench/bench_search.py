"""A budget in, a student out: are random budgets kept, is the student better than the uniform one, what does int8 cost, how fast is it.

    EDGESTILL_DATA=FOLDER python bench/bench_search.py [--json] [--quick] [--keep FOLDER] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "search", "figures": {...}}`; `--json` leaves the rest out. The whole goes into
`bench/results/search.json`, plots of the fronts into `docs/images/search_TEACHER.svg`; `python tools/tables.py` writes the tables of
docs/search.md. `--only` runs some of the parts `reference`, `resnet20` (the fronts of two teachers), `int8` and `latency`, and takes the
others from the last results; each part is written as soon as it is there. A front takes an hour or two; `--keep` keeps trials,
weights and the teachers' answers, so that the next call goes on.

Latencies are measured on one thread on a machine that should do nothing else. `--quick` only shows that it runs: its figures mean
nothing, and are not kept.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from parted import Parted
from searching.plots import draw

from edgestill.core.hardware import ENGINES

if TYPE_CHECKING:
    from pathlib import Path

TEACHERS: Final = ("reference", "resnet20")
PARTS: Final = (*TEACHERS, "int8", "latency")
LIBRARIES: Final = ("edgestill", "torch", "onnxruntime", "optuna", "numpy")


def measure(part: str, data: Path, folder: Path, quick: bool) -> Any:  # noqa: FBT001  # as `Parted` calls it
    """One part."""
    if part == "latency":
        from searching.measured import reference_pair

        return reference_pair()
    if part == "int8":
        from searching.int8 import drops

        return drops(data, quick=quick)
    from searching.budgets import measured

    return measured(part, data, folder / part, quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to."""
    found: dict[str, float] = {}
    fronts = [parts[name] for name in TEACHERS if name in parts]
    if fronts:
        budgets = [one for front in fronts for one in front["budgets"]]
        gains = [one["gain"] for one in budgets]
        found["budgets_tried"] = len(budgets)
        found["budget_violations"] = sum(not one["kept"] for one in budgets)
        found["gain_over_uniform_median"] = round(median(one for one in gains if one is not None), 2)
        found["budgets_refused"] = sum(one["picked"] is None for one in budgets)
        found["budgets_no_uniform_keeps"] = gains.count(None) - found["budgets_refused"]
    if "int8" in parts:
        found["int8_drop_max"] = round(max(one["drop"] for one in parts["int8"].values()), 3)
    if "latency" in parts:
        p50 = {name: one["p50"] for name, one in parts["latency"].items()}
        # the engine is chosen by measurement
        engine = min(ENGINES, key=lambda name: p50.get(f"student_{name}", inf))
        found["eager_teacher_over_student"] = round(p50["eager"] / p50[f"student_{engine}"], 2)
        found["same_runtime_teacher_over_student"] = round(
            p50[f"teacher_{engine}"] / p50[f"student_{engine}"], 2
        )
        found["predict_added_us"] = round(1e6 * (p50["predict"] - p50[f"student_{ENGINES[0]}"]), 1)
    return found


if __name__ == "__main__":
    Parted(
        name="search",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=TEACHERS,
        draw=draw,
    ).main()
    sys.exit(0)

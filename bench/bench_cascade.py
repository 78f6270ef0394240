"""Small and large together: what is recovered, what it costs, whether promises and budgets hold, and what a dead cloud does.

    EDGESTILL_DATA=FOLDER python bench/bench_cascade.py [--json] [--quick] [--keep FOLDER] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "cascade", "figures": {...}}`; `--json` leaves the rest out. The whole goes
into `bench/results/cascade.json`; `python tools/tables.py` writes the tables of docs/cascade.md. `--only` runs some of the parts and
takes the others from the last results. `intents`, `cifar` and `watch` train a student each, which takes an hour together on one core, and so
do the same with `-features`, where an adapter is asked in the teacher's place; `--keep` keeps weights and the teachers' answers. `--quick` only shows that it runs: its figures mean nothing, and are not kept.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

from typing import TYPE_CHECKING, Any, Final

from cascading.plots import draw
from cascading.sets import NAMES, SHARE
from parted import Parted

if TYPE_CHECKING:
    from pathlib import Path

BY_FEATURES: Final = {f"{name}-features": name for name in NAMES}
PARTS: Final = (*NAMES, *BY_FEATURES, "risk", "payload", "faults", "speed")
LIBRARIES: Final = ("edgestill", "torch", "onnxruntime", "numpy")


def measure(part: str, data: Path, folder: Path, quick: bool) -> Any:  # noqa: FBT001  # as `Parted` calls it
    """One part."""
    if part == "risk":
        from cascading.risk import measured as risk

        return risk(quick=quick)
    if part == "faults":
        from cascading.faults import measured as faults

        return faults(quick=quick)
    if part == "speed":
        from cascading.speed import measured as speed

        return speed(data, quick=quick)
    if part == "payload":
        from cascading.payload import measured as payload

        return payload(data)
    if part in BY_FEATURES:
        from cascading.features import measured as by_features

        return by_features(BY_FEATURES[part], data, folder / BY_FEATURES[part], quick=quick)
    from cascading.quality import measured

    return measured(part, data, folder / part, quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to; the worst of the data sets."""
    found: dict[str, float] = {}
    sets = {name: parts[name] for name in NAMES if name in parts}
    if sets:
        found["gap_recovered"] = round(min(one["at_share"]["recovered"] for one in sets.values()), 3)
        found["escalated_share"] = round(max(one["at_share"]["share"] for one in sets.values()), 4)
        found["bytes_share"] = round(max(one["at_share"]["bytes"] for one in sets.values()), 4)
        found["fused_minus_best_points"] = round(min(_fused(one["accuracy"]) for one in sets.values()), 2)
        shares = [
            half[key] for one in sets.values() for half in one["budget"] for key in ("steady", "shifted")
        ]
        found["budget_error"] = round(max(abs(share / SHARE - 1) for share in shares), 4)
    if "intents" in sets:
        found["clinc_accuracy_kept"] = round(sets["intents"]["at_share"]["kept_of_teacher"], 4)
    if "risk" in parts:
        found["risk_violation_rate"] = max(one["violations"] for one in parts["risk"]["populations"])
        found["risk_bound"] = parts["risk"]["bound"]
    if "payload" in parts:
        found["payload_over_json"] = round(parts["payload"]["over_json"]["lossless"], 4)
        found["payload_jpeg_over_json"] = round(parts["payload"]["over_json"]["jpeg"], 4)
    if "faults" in parts:
        each = parts["faults"].values()
        found["fault_p99_over_deadline_ms"] = round(max(one["p99_over_deadline_ms"] for one in each), 2)
        found["fault_errors"] = sum(one["errors"] for one in each)
        recoveries = [one["recovery"]["over_interval"] for one in each]
        found["recovery_over_probe_interval"] = round(max(recoveries), 3)
    if "speed" in parts:
        found["predict_added_us"] = round(parts["speed"]["predict"]["added_us"]["student"], 1)
        found["teacher_throughput_ratio"] = round(parts["speed"]["throughput"]["ratio"], 3)
    return found


def _fused(accuracy: dict[str, float]) -> float:
    """Points of the fused answer over the better of both, where everything is escalated."""
    return 100 * (accuracy["fused"] - max(accuracy["student"], accuracy["teacher"]))


if __name__ == "__main__":
    Parted(
        name="cascade",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=NAMES,
        draw=draw,
    ).main()
    sys.exit(0)

"""Drift: how often still streams alarm, and how long a change stays unnoticed; beside river.

    EDGESTILL_DATA=FOLDER python bench/bench_drift.py [--json] [--quick] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "drift", "figures": {...}}`; `--json` leaves the rest out. The whole goes into
`bench/results/drift.json`; `python tools/tables.py` writes the table of docs/learn.md. `--only` runs some of the parts, which are worlds that streams come from, and takes
the others from the last results. `--quick` only shows that it runs: its figures mean nothing, and are not kept.
"""

from __future__ import annotations

from peers import enter

if __name__ == "__main__":
    enter(__file__)

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from parted import Parted

if TYPE_CHECKING:
    from pathlib import Path

    from learning.worlds import Images

PARTS: Final = ("independent", "overlapping", "cifar", "cifar-bouts", "watch")
LIBRARIES: Final = ("edgestill", "river", "torch", "numpy")
OURS: Final = "device"
LARGEST: Final = {
    "independent": "2 deviations",
    "overlapping": "2 deviations",
    "cifar": "noise of 16",
    "cifar-bouts": "noise of 16",
    "watch": "the left wrist",
}
"""Part -> the change whose delay is a figure."""


def measure(part: str, data: Path, folder: Path, quick: bool) -> Any:  # noqa: ARG001, FBT001  # as `Parted` calls it
    """One part."""
    from learning.drifting import measured

    if part in {"independent", "overlapping"}:
        from learning.streams import MadeUp

        return measured(MadeUp(depends=part == "overlapping"), quick=quick)
    if part == "watch":
        from learning.worlds import people

        return measured(people(), quick=quick)
    return measured(_images(data, quick=quick)[part == "cifar-bouts"], quick=quick)


@cache
def _images(data: Path, *, quick: bool) -> dict[bool, Images]:
    from learning.worlds import images

    return images(data, quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to: of a device, the worst of the worlds, any of its three signals."""
    ours = {part: one["detectors"][OURS] for part, one in parts.items()}
    found: dict[str, float] = {}
    if ours:
        found["false_alarms_per_10000"] = max(one["still"]["all"]["per_10000"] for one in ours.values())
        delays = [one["changes"][LARGEST[part]]["all"]["median"] for part, one in ours.items()]
        found["delay_inputs"] = max(delays)
    return found


def undrawn(part: str, _found: Any) -> None:
    """No part has a plot."""
    raise AssertionError(part)


if __name__ == "__main__":
    Parted(
        name="drift",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=(),
        draw=undrawn,
    ).main()

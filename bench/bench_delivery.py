"""Delivery: how small patches are, what a crash can lose, which attacks get through, what an idle agent takes, how far a bad model comes.

    EDGESTILL_DATA=FOLDER python bench/bench_delivery.py [--json] [--quick] [--keep FOLDER] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "delivery", "figures": {...}}`; `--json` leaves the rest out. The whole goes into
`bench/results/delivery.json`; `python tools/tables.py` writes the tables of docs/delta.md. `--only` runs some of the parts and takes
the others from the last results. `delta` trains two students and four updates of each, which takes a quarter of an hour on one core;
`--keep` keeps its teacher. `attacks` runs the tests that are named after one, in the project's own environment. `--quick` only shows that it
runs: its figures mean nothing, and are not kept.
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

PARTS: Final = ("delta", "crashes", "attacks", "idle", "exposed")
LIBRARIES: Final = ("edgestill", "torch", "onnxruntime", "zstandard", "bsdiff4", "detools", "tuf")
UPDATES: Final = {"delta_small_share": "small", "delta_200_share": "more", "delta_head_share": "head"}
"""Figure -> the update that it is of."""
GENERIC: Final = ("zstd", "patch_from", "bsdiff4")
SLACK: Final = 64
"""Bytes by which a patch may be longer than the shortest generic one: its header says what it belongs to."""


def measure(part: str, data: Path, folder: Path, quick: bool) -> Any:  # noqa: FBT001  # as `Parted` calls it
    """One part."""
    if part == "crashes":
        from delivering.crashes import measured as crashes

        return crashes(quick=quick)
    if part == "attacks":
        from delivering.attacks import measured as attacks

        return attacks()
    if part == "delta":
        from delivering.updates import measured as updates

        return updates(data, folder, quick=quick)
    from delivering import fleet

    return (fleet.idle if part == "idle" else fleet.exposed)(quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to; of patches those of the int8 file, the worst student's."""
    found: dict[str, float] = {}
    if "crashes" in parts:
        found["crash_cases"] = sum(parts["crashes"]["cases"].values())
        found["crash_losses"] = len(parts["crashes"]["lost"])
    if "attacks" in parts:
        found["attacks_tried"] = sum(parts["attacks"]["tried"].values())
        found["attacks_accepted"] = len(parts["attacks"]["accepted"])
    if "delta" in parts:
        students = parts["delta"].values()
        for figure, update in UPDATES.items():
            found[figure] = round(
                max(one[update]["file"]["ours"] / one[update]["file"]["zstd"] for one in students), 4
            )
        pairs = [
            one[update][what]
            for one in students
            for update in (*UPDATES.values(), "retrained")
            for what in ("file", "bundle")
        ]
        found["delta_over_best_generic"] = round(
            max((one["ours"] - SLACK) / min(one[way] for way in GENERIC) for one in pairs), 4
        )
    if "idle" in parts:
        found["agent_idle_rss_mb"] = round(parts["idle"]["rss_mb"], 1)
        found["poll_bytes"] = parts["idle"]["poll_bytes"]
    if "exposed" in parts:
        found["exposed_share"] = round(parts["exposed"]["touched"] / parts["exposed"]["devices"], 3)
        found["bad_version_stopped"] = int(parts["exposed"]["stopped"])
    return found


def undrawn(part: str, _found: Any) -> None:
    """No part has a plot."""
    raise AssertionError(part)


if __name__ == "__main__":
    Parted(
        name="delivery",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=(),
        draw=undrawn,
    ).main()
    sys.exit(0)

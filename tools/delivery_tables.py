"""The tables of docs/delta.md and docs/threats.md; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "delivery.json"
WAYS: Final = {
    "ours": "ours",
    "patch_from": "zstd --patch-from",
    "bsdiff4": "bsdiff4",
    "detools": "detools",
}
_FAULTS: Final = {
    "before": "power cuts before a write",
    "after": "power cuts after one",
    "torn": "torn writes",
    "ENOSPC": "writes without room",
    "ENOSPC for good": "disks that stay full",
    "EIO": "failing disks",
    "kill at an effect": "kills before or after an effect",
}
UPDATES: Final = ("small", "more", "head", "retrained")


def _parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    return parts


def sizes_table() -> str:
    """Each update of each student, as file and as bundle."""
    lines = [
        "| of | update | bytes changed | new file, zstd -19 | "
        + " | ".join(WAYS.values())
        + " | made in | applied in |",
        "|---" * (6 + len(WAYS)) + "|",
    ]
    for title, student in _parts()["delta"].items():
        for what in ("file", "bundle"):
            for update in UPDATES:
                one = student[update][what]
                shares = (f"{one[way] / one['zstd']:.2%}" for way in WAYS)
                lines.append(
                    f"| {title}, {what} | {update} | {student[update]['changed']:.1%} | {one['zstd'] / 1000:.1f} kB | {' | '.join(shares)} "
                    f"| {one['make_s']:.1f} s | {one['apply_s']:.2f} s |"
                )
    return "\n".join(lines) + "\n"


def tried_table() -> str:
    """What was done to devices, hubs and fleets, and what came of it."""
    parts = _parts()
    cases, tried = parts["crashes"]["cases"], parts["attacks"]["tried"]
    idle, exposed = parts["idle"], parts["exposed"]
    kinds = ", ".join(f"{count} {_FAULTS.get(kind, kind)}" for kind, count in cases.items())
    rooms = ", ".join(f"{count} on `{room}`" for room, count in sorted(tried.items()))
    return (
        "\n".join(
            [
                "| what was tried | how often | what came of it |",
                "|---|---|---|",
                (
                    f"| a device is disturbed during an update: {kinds} | {sum(cases.values())} "
                    f"| {len(parts['crashes']['lost'])} models lost |"
                ),
                f"| attacks, each a named test: {rooms} | {sum(tried.values())} | {len(parts['attacks']['accepted'])} got through |",
                (
                    f"| a bad model that can be installed, to a fleet of {exposed['devices']} devices in stages of a tenth, a half and all | 1 "
                    f"| {'stopped' if exposed['stopped'] else 'not stopped'} after {exposed['seconds']:.0f} s, on {exposed['touched']} of them |"
                ),
                (
                    f"| an idle agent asks for news | {idle['polls']} polls | {idle['poll_bytes']} bytes of HTTP each at most; "
                    f"the agent has {idle['rss_mb']:.0f} MB of resident memory |"
                ),
            ]
        )
        + "\n"
    )


DELIVERY_TABLES: Final = {"delta_sizes": sizes_table, "delivery_tried": tried_table}

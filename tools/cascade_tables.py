"""The tables of docs/cascade.md; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "cascade.json"
SETS: Final = {"intents": "intents, CLINC150", "cifar": "pictures, CIFAR-10", "watch": "smart watch"}
PAYLOADS: Final = {
    "json": "JSON integers",
    "raw": "raw bytes",
    "lossless": "lossless (WebP)",
    "jpeg": "JPEG",
    "webp-lossy": "WebP, lossy",
}


def _parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    return parts


def _sets() -> list[tuple[str, dict[str, Any]]]:
    return [(title, _parts()[name]) for name, title in SETS.items() if name in _parts()]


def quality_table() -> str:
    """What a fifth of the inputs buys."""
    lines = [
        "| data | told by | student | teacher | both, all asked | both, a fifth asked | of the gap | by the oracle |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, part in _sets():
        right, at = part["accuracy"], part["at_share"]
        lines.append(
            f"| {title} | {part['n']} | {right['student']:.1%} | {right['teacher']:.1%} | {right['fused']:.1%} "
            f"| {at['accuracy']:.1%} | {at['recovered']:.0%} | {at['oracle']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def budget_table() -> str:
    """The share of 10,000 inputs that was asked about, the worst of each data set's streams."""
    lines = [
        "| data | streams | share, one world | share, another world from the middle on | its second half |",
        "|---|---|---|---|---|",
    ]
    for title, part in _sets():
        streams = part["budget"]
        worst = {
            key: max((one[key] for one in streams), key=lambda share: abs(share - 0.2))
            for key in ("steady", "shifted", "shifted_second_half")
        }
        lines.append(
            f"| {title} | {len(streams)} | {worst['steady']:.1%} | {worst['shifted']:.1%} "
            f"| {worst['shifted_second_half']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def risk_table() -> str:
    """Promises on populations whose risk is known."""
    part = _parts()["risk"]
    lines = [
        f"| population | samples | promised, of {part['draws']} draws | broken, of all draws (bound: {part['bound']:.1%}) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['title']} | {one['n']} | {one['promised']:.1%} | {one['violations']:.1%} |"
        for one in part["populations"]
    ]
    return "\n".join(lines) + "\n"


def payload_table() -> str:
    """Bytes of a question about one CIFAR-10 image, head included."""
    part = _parts()["payload"]
    lines = ["| as | bytes of the body | over JSON |", "|---|---|---|"]
    lines += [
        f"| {title} | {part['bytes'][name]:.0f} | {part['over_json'][name]:.3f} |"
        for name, title in PAYLOADS.items()
    ]
    return "\n".join(lines) + "\n"


def splits_table() -> str:
    """Promises on halves of real answers, held against the other halves."""
    lines = [
        "| data | samples in a half | splits | promised | mean loss of the other half above 5% |",
        "|---|---|---|---|---|",
    ]
    for title, part in _sets():
        one = part.get("splits")
        if one is not None:
            lines.append(
                f"| {title} | {one['n']} | {one['draws']} | {one['promised']:.1%} | {one['above_epsilon']:.1%} |"
            )
    return "\n".join(lines) + "\n"


def faults_table() -> str:
    """What a caller notices of a cloud in trouble."""
    lines = [
        "| the cloud is | errors | 99 of 100 answers come within the deadline of 50 ms and | longest | back after | pause kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in _parts().get("faults", {}).items():
        back = one["recovery"]
        lines.append(
            f"| {name} | {one['errors']} | {one['p99_over_deadline_ms']:+.1f} ms | {one['longest_ms']:.0f} ms "
            f"| {back['seconds']:.1f} s | {back['interval']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def speed_table() -> str:
    """What serving and answering add."""
    lines = ["| what | figure |", "|---|---|"]
    if "speed" in _parts():
        throughput, added = _parts()["speed"]["throughput"], _parts()["speed"]["predict"]
        rates = throughput["images_per_second"]
        low, high = min(throughput["ratios"]), max(throughput["ratios"])
        served = (
            f"{rates['served']:.0f} images/s, {throughput['ratio']:.2f} of that ({low:.2f} to {high:.2f})"
        )
        lines += [
            f"| teacher in process, batches of 32 | {rates['in_process']:.0f} images/s |",
            f"| teacher served | {served} |",
            f"| `session.run` of the reference student | {added['p50_us']['run']:.1f} us |",
            f"| a student's `predict` | {added['added_us']['student']:.1f} us more |",
            f"| a cascade's that may ask nobody | {added['added_us']['offline']:.1f} us more |",
            f"| a cascade's that is sure | {added['added_us']['sure']:.1f} us more |",
        ]
    return "\n".join(lines) + "\n"


def features_table() -> str:
    """What an adapter brings back, asked with features."""
    lines = [
        "| data | bundles with an adapter | student | teacher | both, a fifth asked | of the gap | bytes of a question | with the input |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in SETS.items():
        part = _parts().get(f"{name}-features")
        if part is not None:
            right, at, sent = part["accuracy"], part["at_share"], part["bytes_each"]
            lines.append(
                f"| {title} | {part['adapters']} of {part['bundles']} | {right['student']:.1%} | {right['teacher']:.1%} "
                f"| {at['accuracy']:.1%} | {at['recovered']:.0%} | {sent['features']:.0f} | {sent['inputs']:.0f} |"
            )
    return "\n".join(lines) + "\n"


CASCADE_TABLES: Final = {
    "cascade_quality": quality_table,
    "cascade_features": features_table,
    "cascade_budget": budget_table,
    "cascade_risk": risk_table,
    "cascade_splits": splits_table,
    "cascade_payload": payload_table,
    "cascade_faults": faults_table,
    "cascade_speed": speed_table,
}

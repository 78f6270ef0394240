"""The tables of docs/learn.md and docs/hub.md on messages of sums: their bytes, noise, liars, how long they take, and a hub that is killed; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "learn.json"
RIDGE: Final = "0.001"
"""The share that devices use."""
SIZED: Final = "digits, 256"
"""Whose messages' bytes are told."""
LIARS: Final = "digits, 64"
NOBODY: Final = "nobody lies"
TITLES: Final = {"digits": "digits", "cifar10": "CIFAR-10"}


def _part(name: str) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(RESULTS.read_text())["parts"][name]
    return part


def _worlds(name: str) -> dict[str, Any]:
    """A part by data and width, digits before pictures, narrow before wide; results are kept in the order of letters."""
    part = _part(name)
    return {one: part[one] for one in sorted(part, key=lambda one: (one[0] != "d", _width(one)))}


def _table(*rows: list[str]) -> str:
    """The first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"


def _ways(width: int) -> dict[str, str]:
    """Heading -> name in the results."""
    shares = {"all coordinates": width, "half of them": width // 2, "a quarter": width // 4}
    coded = {f"int8, {title}": f"int8, {kept} coordinates" for title, kept in shares.items()}
    return {one: one for one in ("float32", "float16", "int8")} | coded


def encodings_table() -> str:
    """Accuracy, and the share of answers that are not the central head's, of each way to send."""
    part = _worlds("encodings")
    rows = [["data, features", "one place", *_ways(1)]]
    for name, ways in part.items():
        each = [ways[way]["ridges"][RIDGE] for way in _ways(_width(name)).values()]
        rows.append([name, f"{each[0]['central']:.2f} %", *map(_differing, each)])
    sizes = [part[SIZED][way]["bytes"] for way in _ways(_width(SIZED)).values()]
    rows.append([f"bytes at {_width(SIZED)}", "", *(f"{one:,}" for one in sizes)])
    return _table(*rows)


def _differing(one: dict[str, float | None]) -> str:
    if one["accuracy"] is None:
        return "none"
    return f"{one['accuracy']:.2f} % ({one['differ']:.2f} %)"


def shipped_table() -> str:
    """Eight and four bits in all coordinates: the worst of the ridges."""
    rows = [
        ["data, features", "eight bits: points lost", "answers changed", "bytes over float32's", "four bits"]
    ]
    for name, ways in _worlds("encodings").items():
        width = _width(name)
        eight, four = (ways[f"{bits}, {width} coordinates"] for bits in ("int8", "four bits"))
        share = eight["bytes"] / ways["float32"]["bytes"]
        rows.append([name, *_worst(eight), f"{share:.0%}".replace("%", " %"), ", ".join(_worst(four))])
    return _table(*rows)


def _worst(way: dict[str, Any]) -> list[str]:
    """Points and share of answers; none where one ridge has no solution."""
    told = way["ridges"].values()
    if any(one["accuracy"] is None for one in told):
        return ["none", "none"]
    lost = max(one["central"] - one["accuracy"] for one in told)
    return [f"{lost:.2f}", f"{max(one['differ'] for one in told):.2f} %"]


def _width(name: str) -> int:
    return int(name.rpartition(" ")[2])


def noise_table() -> str:
    """The noisy sum alone, and with the bundle's own statistics, by devices, coordinates and unit."""
    part = _worlds("noisy")
    keys = [key.rpartition("/") for key in next(iter(part.values())) if "/" in key]
    epsilons = sorted({epsilon for *_, epsilon in keys}, key=float)
    heads = [f"{_title(name)}, epsilon {epsilon}" for name in part for epsilon in epsilons]
    rows = [["devices, coordinates, unit", *heads]]
    for setting in sorted({setting for setting, *_ in keys}, key=_by_numbers):
        each = [one[f"{setting}/{epsilon}"] for one in part.values() for epsilon in epsilons]
        cells = [f"{one['alone']:.1f}, prior {one['prior']:.1f}" for one in each]
        rows.append([setting.replace("/", ", "), *cells])
    for title, key in (("all samples, no noise", "exact"), ("the bundle's own, no device", "reference")):
        cells = [f"{one[key]:.1f}" for one in part.values() for _ in epsilons]
        rows.append([title, *cells])
    return _table(*rows)


def _by_numbers(setting: str) -> tuple[int, int, bool]:
    """Devices, coordinates, and samples before messages."""
    devices, kept, unit = setting.split("/")
    return int(devices), int(kept), unit == "message"


def _title(name: str) -> str:
    return TITLES[name.partition(",")[0]]


def liars_table() -> str:
    """Each attack and each sum, at both skews."""
    skews = _skews(_part("hostile")[LIARS])
    sums = {
        "plain": "plain",
        "screened": "screened",
        "with the bundle's own": "prior",
        "robust": "robust",
        "robust, as shipped": "shipped",
        "robust, discriminant": "discriminant",
        "within 0.1": "within",
    }
    named = " and ".join(skews)
    rows = [[f"{LIARS} features, Dirichlet {named}", "refused", *sums]]
    first = next(iter(skews.values()))
    for attack in sorted(first, key=lambda one: (one != "none", first[one]["refused"]["most"], one)):
        each = [one[attack] for one in skews.values()]
        refused = "" if attack == "none" else _refused([one["refused"] for one in each])
        cells = [
            " · ".join(f"{one[key]['mean']:.1f} ({one[key]['least']:.1f})" for one in each)
            for key in sums.values()
        ]
        rows.append([NOBODY if attack == "none" else attack, refused, *cells])
    return _table(*rows)


def _skews(world: dict[str, Any]) -> dict[str, Any]:
    """The wider mixture of labels first."""
    return dict(sorted(world.items(), key=lambda one: -float(one[0])))


def _refused(told: list[dict[str, float]]) -> str:
    """Whether the screens refused the hostile message in every deal, in none, or in some."""
    if all(one["least"] == 1 for one in told):
        return "yes"
    return "no" if all(one["most"] == 0 for one in told) else "in some deals"


def losses_table() -> str:
    """What the worst of all attacks takes from the robust head."""
    head = [
        "data, features",
        "Dirichlet",
        "robust, nobody lies",
        "worst attack in the mean",
        "worst attack in the worst deal",
    ]
    rows = [head]
    for name, skews in _worlds("hostile").items():
        for skew, found in _skews(skews).items():
            calm = found["none"]["robust"]
            cells = [_worst_attack(found, calm, kind) for kind in ("mean", "least")]
            rows.append([name, skew, f"{calm['mean']:.1f} ({calm['least']:.1f})", *cells])
    return _table(*rows)


def _worst_attack(found: dict[str, Any], calm: dict[str, float], kind: str) -> str:
    worst = min((one for one in found if one != "none"), key=lambda one: float(found[one]["robust"][kind]))
    least = found[worst]["robust"][kind]
    return f"{least:.1f}, {calm[kind] - least:.1f} less: {worst}"


def rounds_table() -> str:
    """What a round brings and costs, by what devices see."""
    rows = [["images", "a device sends", "a device gets", "bundle", "right before", "right after"]]
    for world, one in _part("rounds").items():
        sizes = [f"{one[what]:,} bytes" for what in ("message", "patch", "bundle")]
        rows.append([world, *sizes, *(f"{one[what]:.1f} %" for what in ("before", "after"))])
    return _table(*rows)


def summing_table() -> str:
    """Seconds, of the processor and on the wall."""
    part = _part("summing")
    rows = [["elements", "bytes a message", "reading and adding alone", "from the database", "taking 50 in"]]
    for dtype in ("float32", "int8"):
        one = part[dtype]
        cells = [_seconds(one[what]) for what in ("read", "hub", "intake_of_50")]
        rows.append([dtype, f"{one['bytes']:,}", *cells])
    return _table(*rows)


def _seconds(clock: dict[str, float]) -> str:
    return f"{clock['cpu_seconds']:.1f} s ({clock['seconds']:.1f} s)"


def killed_table() -> str:
    """What was lost, how long it took, and what dead devices cost."""
    part = _part("killed")
    figures = json.loads(RESULTS.read_text())["figures"]
    load = json.loads(RESULTS.read_text())["machines"]["killed"]["load"]
    calm, dead = part["calm"]["without_dead"], part["calm"]["with_dead"]
    kills = f"{part['kills']} kills, {part['devices']['living']} devices that send, {part['devices']['dead']} dead"
    return _table(
        [f"{kills}, 2 cores at load {load}", ""],
        ["messages acknowledged", f"{part['acknowledged']:,}"],
        ["of these lost, or counted otherwise than once", f"{figures['lost_acknowledged']}"],
        ["answers that a kill cut off after the message was taken", f"{part['heard_as_known']}"],
        [
            "kill to the next acknowledgement, worst (median)",
            f"{figures['restart_s']:.1f} s ({figures['restart_median_s']:.1f} s)",
        ],
        ["of it the processor's, to start", f"{part['start_cpu_s']:.1f} s"],
        ["acknowledgement without dead devices, median (95 %)", _waited(calm)],
        ["beside dead devices, median (95 %)", _waited(dead)],
    )


def _waited(spread: dict[str, float]) -> str:
    return f"{1000 * spread['median_s']:.0f} ms ({1000 * spread['p95_s']:.0f} ms)"


SUMS_TABLES: Final = {
    "learn_encodings": encodings_table,
    "learn_shipped": shipped_table,
    "learn_noise": noise_table,
    "learn_liars": liars_table,
    "learn_liars_worst": losses_table,
    "learn_rounds": rounds_table,
    "hub_summing": summing_table,
    "learn_killed": killed_table,
}

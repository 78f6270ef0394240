"""The tables of docs/learn.md; `tools/tables.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "learn.json"
BACKBONES: Final = {"reference": "reference student's network", "resnet20": "ResNet-20 (published)"}


def _parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]
    return parts


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    mean = _mean(values)
    deviation = (sum((one - mean) ** 2 for one in values) / max(1, len(values) - 1)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def _size(count: float) -> str:
    return f"{count:.0f} B" if count < 1000 else f"{count / 1000:.1f} kB"


def _points(ours: list[float], theirs: list[float]) -> str:
    return f"{100 * (_mean(ours) - _mean(theirs)):+.1f}"


def digits_table() -> str:
    """Accuracy of each method at each skew, and its bytes."""
    part = _parts()["digits"]
    skews = part["skews"] = dict(sorted(part["skews"].items(), key=lambda one: -float(one[0])))
    lines = [
        "| method | up, a device | down | " + " | ".join(f"Dirichlet {skew}" for skew in skews) + " |",
        "|---" * (3 + len(skews)) + "|",
    ]
    lines += [
        f"| {title} | {up} | {down} | {' | '.join(_spread(one['accuracy']) for one in each)} |"
        for title, up, down, each in _rows(part)
    ]
    return "\n".join(lines) + "\n"


def _rows(part: dict[str, Any]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """(title, bytes up, bytes down, result at each skew)."""
    skews, key = list(part["skews"].values()), f"{part['width']} float32"
    summed = [one["statistics"] for one in skews]
    rows = [
        (
            "all samples in one place, closed form",
            "",
            "",
            [{"accuracy": one[key]["central"]} for one in summed],
        )
    ]
    rows.append(
        ("all samples in one place, softmax by SGD", "", "", [one["central_softmax"] for one in skews])
    )
    for encoding in dict.fromkeys(name.partition(" ")[2] for name in summed[0]):
        each = [one[f"{part['width']} {encoding}"] for one in summed]
        up, down = (_size(max(one[way] for one in each)) for way in ("up", "down"))
        rows.append((f"**sums, one message, {encoding}**", up, down, each))
    for title, method in (("FedAvg", "fedavg"), ("FedProx", "fedprox")):
        each = [one[method][key] for one in skews]
        up, down = (_size(each[0]["rounds"] * each[0][f"round_{way}"]) for way in ("up", "down"))
        rows.append((f"{title}, {each[0]['rounds']} rounds", up, down, each))
    limit = f"{part['vote_limit']:g}"
    for title, each in (
        ("**votes with abstention**", [one["votes"][limit] for one in skews]),
        ("**the same, ten different students**", [one["votes_of_different_students"] for one in skews]),
        ("hard votes without abstention", [one["votes"]["inf"] for one in skews]),
        ("mean of soft labels", [one["soft_labels"] for one in skews]),
    ):
        low, high = min(one["up"] for one in each), max(one["up"] for one in each)
        up = _size(low) if low == high else f"{low:.0f} to {high:.0f} B"
        rows.append((title, up, f"{_size(each[0]['down'])} and the shared set", each))
    return rows


def cifar_table() -> str:
    """Our message against as many bytes of FedAvg, and against all its rounds."""
    part = _parts()["cifar"]
    lines = [
        "| features | D | sums, one message | bytes both ways | FedAvg, as many bytes | points | bytes over FedAvg's | FedAvg, 20 rounds | points | its bytes over ours | softmax, one place | points over closed form, one place |",
        "|---" * 12 + "|",
    ]
    for name, backbone in part["backbones"].items():
        lines += [_features_row(BACKBONES[name], title, one) for title, one in backbone["features"].items()]
    return "\n".join(lines) + "\n"


def _features_row(name: str, title: str, one: dict[str, Any]) -> str:
    ours, equal, whole = one["ours"], one["fedavg_equal"], one["fedavg_whole"]
    size = ours["up"] + ours["down"]
    each = equal["round_up"] + equal["round_down"]
    gains = [_points(ours["accuracy"], other["accuracy"]) for other in (equal, whole)]
    return (
        f"| {name}, {title} | {one['width']} | {_spread(ours['accuracy'])} | {_size(size)} "
        f"| {_spread(equal['accuracy'])} ({equal['rounds']} rounds) | {gains[0]} | {size / (equal['rounds'] * each):.2f} "
        f"| {_spread(whole['accuracy'])} | {gains[1]} | {whole['rounds'] * each / size:.1f} "
        f"| {_spread(one['central_softmax'])} | {_points(one['central_softmax'], ours['central'])} |"
    )


def shipped_table() -> str:
    """Our message in `int8`, all coordinates, against FedAvg of as many bytes: as float32, and as `int8`."""
    heads = [
        f"FedAvg in {precision}, as many bytes | points | bytes over FedAvg's"
        for precision in ("float32", "int8")
    ]
    lines = [
        f"| features | D | sums, int8 | bytes both ways | {' | '.join(heads)} | the same, not rounded |",
        "|---" * 11 + "|",
    ]
    for name, backbone in _parts()["cifar"]["backbones"].items():
        lines += [_shipped_row(BACKBONES[name], title, one) for title, one in backbone["features"].items()]
    return "\n".join(lines) + "\n"


def _shipped_row(name: str, title: str, one: dict[str, Any]) -> str:
    coded = one["shipped"]
    ours = coded["ours"]
    size = ours["up"] + ours["down"]
    cells = [f"{name}, {title}", str(one["width"]), _spread(ours["accuracy"]), _size(size)]
    for theirs in (coded["fedavg_float32"], coded["fedavg_int8"]):
        rounds = theirs["rounds"]
        share = size / (rounds * (theirs["round_up"] + theirs["round_down"]))
        cells += [
            f"{_spread(theirs['accuracy'])} ({rounds} round{'s' * (rounds > 1)})",
            _points(ours["accuracy"], theirs["accuracy"]),
            f"{share:.2f}",
        ]
    return f"| {' | '.join(cells)} | {_spread(coded['fedavg_int8_unrounded']['accuracy'])} |"


def others_table() -> str:
    """On each backbone's own features: FedProx, votes, a rounded message, and FedAvg of any width within our bytes."""
    lines = [
        "| features | own head | sums, float16 | FedAvg without momentum, as many bytes | FedProx, 20 rounds | votes | hard votes | FedAvg of the best width within the bytes of our message |",
        "|---" * 8 + "|",
    ]
    for name, backbone in _parts()["cifar"]["backbones"].items():
        one = backbone["features"]["own"]
        within = backbone["fedavg_within_our_bytes"]
        best = max(within, key=lambda title: _mean(within[title]["accuracy"]))
        votes, hard = one["votes"], one["hard_votes"]
        lines.append(
            f"| {BACKBONES[name]} | {100 * backbone['own_head']:.1f} | {_spread(one['float16']['accuracy'])} | {_spread(one['fedavg_equal_plain']['accuracy'])} | {_spread(one['fedprox_whole']['accuracy'])} "
            f"| {_spread(votes['accuracy'])}, {_size(votes['up'])} | {_spread(hard['accuracy'])}, {_size(hard['up'])} "
            f"| {_spread(within[best]['accuracy'])} ({best}, {within[best]['rounds']} rounds) |"
        )
    return "\n".join(lines) + "\n"


LEARN_TABLES: Final = {
    "learn_digits": digits_table,
    "learn_cifar": cifar_table,
    "learn_cifar_shipped": shipped_table,
    "learn_cifar_others": others_table,
}

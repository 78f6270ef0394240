"""Bytes against accuracy, as pictures for docs/learn.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from edgestill.lab.page import BLUE, GREEN, GREY, INK, ORANGE, plot, svg
from learning.summed import SHIPPED, SMALL_REFERENCE

IMAGES: Final = Path(__file__).resolve().parents[2] / "docs" / "images"
DRAWN: Final = ("digits", "cifar")
SKEW: Final = "0.1"
_LINES: Final = {"float64": ":", "float32": "-", "float16": "--"}
_OTHERS: Final = (GREEN, INK, GREEN, INK)


def draw(part: str, found: dict[str, Any]) -> None:
    """Writes `learn_PART.svg`."""
    points = (
        _of_digits(found["skews"][SKEW]) if part == "digits" else _of_cifar(found["backbones"]["reference"])
    )
    picture, axes = plot(7.2, 4.0)
    for title, style, bytes_, right in points:
        axes.plot(bytes_, right, label=title, linewidth=1.3, markersize=4, **style)
    axes.set_xscale("log")
    axes.set_xlabel("bytes to and from a device")
    axes.set_ylabel("right")
    axes.legend(fontsize=7, loc="lower right")
    (IMAGES / f"learn_{part}.svg").write_text(svg(picture), encoding="utf-8")


Line = tuple[str, dict[str, Any], list[float], list[float]]


def _of_digits(skew: dict[str, Any]) -> list[Line]:
    """Sums by width and encoding, FedAvg by round and width, votes and soft labels as points."""
    lines = _sums(skew["statistics"])
    rounds = sorted(skew["fedavg"].items(), key=lambda one: _width(one[0]))
    lines += [
        _rounds(f"FedAvg, D = {_width(key)}, {key.partition(' ')[2]}", one, shade)
        for shade, (key, one) in zip(np.linspace(0.3, 1, len(rounds)).tolist(), rounds, strict=True)
    ]
    finite = [one for limit, one in skew["votes"].items() if limit != "inf"]
    ballots = max(finite, key=lambda one: float(np.mean(one["validation"])))
    for title, one, marker, colour in (
        ("votes with abstention, the shared set not counted", ballots, "^", GREEN),
        ("hard votes, likewise", skew["votes"]["inf"], "v", GREY),
        ("soft labels, likewise", skew["soft_labels"], "s", GREY),
    ):
        style = {"marker": marker, "color": colour, "linestyle": ""}
        lines.append((title, style, [one["up"] + one["down"]], [float(np.mean(one["accuracy"]))]))
    return lines


def _of_cifar(backbone: dict[str, Any]) -> list[Line]:
    """Sums and FedAvg on each of the features."""
    each = _by_bytes(backbone)
    lines = [
        _message("float32", BLUE, [one["ours"] for one in each]),
        _message(SHIPPED, GREEN, [one["shipped"]["ours"] for one in each]),
    ]
    shades = np.linspace(0.3, 1.0, len(backbone["features"]))
    for shade, one in zip(shades, _by_bytes(backbone), strict=True):
        lines.append(_rounds(f"FedAvg, D = {one['width']}", one["fedavg_whole"], float(shade)))
    return lines


def _message(encoding: str, colour: str, ours: list[dict[str, Any]]) -> Line:
    """Ours, over the features."""
    return (
        f"sums, one message each ({encoding})",
        {"marker": "o", "color": colour, "linestyle": "-"},
        [one["up"] + one["down"] for one in ours],
        [float(np.mean(one["accuracy"])) for one in ours],
    )


def _by_bytes(backbone: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(backbone["features"].values(), key=lambda one: float(one["ours"]["up"]))


def _sums(statistics: dict[str, Any]) -> list[Line]:
    """One line an encoding, over the widths at which all sums have a solution; none of the reference that is too small, which is in the tables."""
    lines: list[Line] = []
    names = [
        name for name in dict.fromkeys(key.partition(" ")[2] for key in statistics) if name != SMALL_REFERENCE
    ]
    for index, name in enumerate(names):
        keys = sorted((key for key in statistics if key.partition(" ")[2] == name), key=_width)
        mine = [statistics[key] for key in keys if min(statistics[key]["accuracy"]) > 0]
        style = {
            "marker": "o",
            "color": BLUE if name in _LINES else _OTHERS[index % len(_OTHERS)],
            "linestyle": _LINES.get(name, "-"),
        }
        accuracy = [float(np.mean(one["accuracy"])) for one in mine]
        lines.append((f"sums, {name}", style, [one["up"] + one["down"] for one in mine], accuracy))
    return lines


def _width(key: str) -> int:
    return int(key.split(maxsplit=1)[0])


def _rounds(title: str, told: dict[str, Any], shade: float) -> Line:
    """FedAvg by round."""
    each = told["round_up"] + told["round_down"]
    count = len(told["curve"])
    style = {"color": ORANGE, "alpha": shade, "marker": "."}
    return title, style, [each * (number + 1) for number in range(count)], told["curve"]

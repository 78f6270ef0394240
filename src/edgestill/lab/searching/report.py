"""`report.html` of a search: the front, the chosen student, and a closer look at it; the same as `report.json`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Final

from edgestill.core.units import format_duration, format_size
from edgestill.lab.page import BLUE, GREEN, GREY, INK, ORANGE, note, page, plot, svg, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

Told = dict[str, Any]

_MANY: Final = 40
"""Classes of which the best and the worst are shown."""


def drawn(report: Told) -> str:
    """The page.

    Args:
        report: as `report.json` holds it.
    """
    points: Told = report["points"]
    parts = [
        "<h1>A budget in, a student out</h1>",
        (
            f"<p>Students trained to the end: {len(points)}; that no other beats in everything: {len(report['front'])}. "
            "Scores are of held-out data that no choice has seen; bars are 95 % intervals.</p>"
        ),
        svg(front_plot(report)),
        _front_table(report),
        note(
            f"Latencies: {report['latencies'] or 'none were asked for'}. Each is what 95 of 100 answers keep, one at a time."
        ),
    ]
    if "picked" in report:
        parts += [f"<h2>The student: {html.escape(_shape(points[report['picked']]))}</h2>", _budget(report)]
        parts.append(f"<p>As the bundle's file answers, {report['closer']['file']:.4f} are right.</p>")
        parts += _closer(report["closer"])
    return page("edgestill search", "".join(parts))


def front_plot(report: Told) -> Plot:
    """Score over latency, or over size where nobody timed; the front is a line, the uniform students are marked."""
    points, front = report["points"], report["front"]
    timed = all(one["footprint"]["latency"] is not None for one in points.values())
    what, factor = ("latency", 1e3) if timed else ("size", 1e-3)
    picture, axes = plot(7.2, 3.8)

    def place(name: str) -> tuple[float, float]:
        return points[name]["footprint"][what] * factor, points[name]["unseen"]["value"]

    for name, one in points.items():
        x, y = place(name)
        colour = GREY if one["uniform"] else BLUE
        if one["unseen"]["ci95"]:
            axes.plot([x, x], one["unseen"]["ci95"], color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([x], [y], marker="s" if one["uniform"] else "o", color=colour, markersize=5)
    axes.plot(*zip(*sorted(map(place, front)), strict=True), color=BLUE, linewidth=1.2, label="front")
    axes.plot([], [], marker="s", linestyle="", color=GREY, label="uniform width")
    axes.plot([], [], marker="o", linestyle="", color=BLUE, label="found")
    if "picked" in report:
        x, y = place(report["picked"])
        axes.plot([x], [y], marker="o", color=GREEN, markersize=11, fillstyle="none", label="picked")
    axes.set_xscale("log")
    axes.set_xlabel("latency, ms" if timed else "size, kB")
    axes.set_ylabel("score")
    axes.legend(fontsize=8, loc="lower right")
    return picture


def _front_table(report: Told) -> str:
    rows = []
    for name in report["front"]:
        one = report["points"][name]
        gain = one["over_uniform"]
        rows.append(
            (
                _shape(one) + (" (picked)" if name == report.get("picked") else ""),
                format_size(one["footprint"]["size"]),
                "" if one["footprint"]["latency"] is None else format_duration(one["footprint"]["latency"]),
                _share(one["unseen"]),
                "uniform" if one["uniform"] else "" if gain is None else _gain(gain),
            )
        )
    return table(("student", "size", "latency", "score", "over uniform width"), rows)


def _budget(report: Told) -> str:
    rows = []
    for name, one in report["budget"].items():
        show = format_duration if name == "latency" else format_size
        rows.append((name, show(one["bound"]), show(one["value"]), f"{one['slack']:.1%}"))
    return table(("", "allowed", "taken", "left over"), rows)


def _closer(told: Told) -> list[str]:
    found = []
    if told["latencies"]:
        found += ["<h2>Answer by answer</h2>", svg(_latency_plot(told["latencies"]))]
        found.append(
            note(
                f"{told['latencies']['slower']} answers were slower than the plot shows, the slowest took "
                f"{format_duration(told['latencies']['slowest'])}."
            )
        )
    classes = sorted(told["classes"].items(), key=lambda one: one[1]["value"])
    if len(classes) > _MANY:
        classes = classes[: _MANY // 2] + classes[-_MANY // 2 :]
    rows = [(name, _share(one), one["n"]) for name, one in classes]
    found += ["<h2>Class by class</h2>", table(("class", "right", "samples"), rows)]
    calibration = told["calibration"]
    found += ["<h2>How sure, and how often right</h2>", svg(_calibration_plot(calibration))]
    found.append(
        note(f"Expected calibration error {calibration['ece']:.3f}, after the bundle's temperature.")
    )
    written = [
        (one["way"], format_size(one["bytes"]), f"{100 * one['drop']:+.2f}") for one in told["written"]
    ]
    found += ["<h2>What int8 costs</h2>", table(("written as", "file", "points lost"), written)]
    found.append(
        note(
            "Points lost on the data that decides about it, of which there is little; the figure above is of other data."
        )
    )
    if told["layers"]:
        found.append(svg(_layer_plot(told["layers"])))
        found.append(note("How far answers move where a layer alone is in int8: mean divergence, in nats."))
    return found


def _latency_plot(told: Told) -> Plot:
    picture, axes = plot(7.2, 2.4)
    axes.stairs(told["counts"], [1e3 * one for one in told["borders"]], fill=True, color=BLUE)
    axes.set_xlabel("ms")
    axes.set_ylabel("answers")
    return picture


def _calibration_plot(told: Told) -> Plot:
    picture, axes = plot(4.2, 3.6)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    bins = told["bins"]
    axes.plot([one["confidence"] for one in bins], [one["right"] for one in bins], marker="o", color=BLUE)
    for one in bins:
        axes.annotate(str(one["n"]), (one["confidence"], one["right"]), fontsize=7, color=INK)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    return picture


def _layer_plot(layers: dict[str, float]) -> Plot:
    picture, axes = plot(7.2, 0.6 + 0.22 * len(layers))
    names = list(layers)[::-1]
    axes.barh(range(len(names)), [layers[one] for one in names], color=ORANGE)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    return picture


def _shape(point: Told) -> str:
    widths = ", ".join(f"{name} {units}" for name, units in list(point["widths"].items())[:4])
    more = len(point["widths"]) - 4  # as many as are named
    left = sum(point["shape"]["left_out"].values())
    return (
        f"{widths}{f' and {more} more' if more > 0 else ''}"
        f"{f', {left} blocks left out' if left else ''}; {point['shape']['precision']}"
    )


def _share(one: Told) -> str:
    ends = one["ci95"]
    return f"{one['value']:.4f}" + (f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else "")


def _gain(one: Told) -> str:
    ends = one["ci95"]
    return f"{one['value']:+.4f}" + (f" [{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "")

"""`report.html`: one self-contained page with plots, and the same figures as `report.json`."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import PUBLIC, replace
from edgestill.demo.tables import (
    DEVICES_HEAD,
    DEVICES_NOTE,
    FIGURES_HEAD,
    byte_rows,
    device_rows,
    figure_rows,
    fused_parameters,
    helped,
    summed,
    won_back,
)
from edgestill.lab.page import BLUE, GREEN, GREY, INK, ORANGE, note, page, plot, svg, table

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

    from edgestill.demo.story import Story

_STEPS: Final = (
    ("teacher", "teacher\nbefore", GREY),
    ("int8", "student\nbefore", BLUE),
    ("teacher_after", "teacher\nafter", GREY),
    ("shifted", "student\nafter", ORANGE),
    ("control", "control\nafter", GREY),
    ("updated", "updated\nafter", GREEN),
    ("kept", "updated\nbefore", BLUE),
)


def write_report(story: Story, folder: Path) -> tuple[Path, Path]:
    """Writes both files whole or not at all; their paths.

    Raises:
        PathError: the folder cannot be written.
    """
    path, figures = folder / "report.html", folder / "report.json"
    drawn, told = _page(story), json.dumps(story.as_json(), indent=2)
    replace(figures, told.encode(), mode=PUBLIC)
    replace(path, drawn.encode(), mode=PUBLIC)
    return path, figures


def _page(story: Story) -> str:
    what, change = (html.escape(one) for one in story.told)
    return page(
        f"edgestill: {story.scenario}",
        f"<h1>edgestill demo: {html.escape(story.scenario)}</h1>"
        f"<p>{what}. Halfway, {change}. All figures but the last three are of devices that shared nothing, so "
        f"that nothing was learned from them; the last three of those that did. {html.escape(won_back(story))}</p>"
        f"<h2>Accuracy along the route</h2>{svg(_route_plot(story))}{table(FIGURES_HEAD, figure_rows(story))}"
        f"<h2>Device by device</h2><p>{html.escape(DEVICES_NOTE)}</p>{svg(_device_plot(story))}"
        f"{table(DEVICES_HEAD, device_rows(story))}<p>{html.escape(helped(story))}</p>"
        f"<h2>Bytes</h2>{table(('', 'bytes'), byte_rows(story))}"
        + "".join(
            note(one)
            for one in (summed(story), fused_parameters(story), f"Promise on the risk: {story.promise}.")
        )
        + note(f"The teacher has weight {story.alpha:.2f} (alpha) in fused answers. {_about(story)}"),
    )


def _about(story: Story) -> str:
    machine = story.about["machine"]
    told = (
        ", ".join(f"{name} {value}" for name, value in machine.items()) if isinstance(machine, dict) else ""
    )
    about = (f"{name} {story.about[name]}" for name in ("version", "date", "seed"))
    return f"edgestill {', '.join(about)}; {told}. Wall time {story.wall_s:.0f} s."


def _route_plot(story: Story) -> Plot:
    drawn, axes = _axes(7.2, 3.4)
    figures = story.accuracies()
    for index, (key, _, colour) in enumerate(_STEPS):
        one = figures[key]
        axes.bar(index, one.value, color=colour, width=0.62)
        axes.plot([index, index], [one.low, one.high], color=INK, linewidth=1.4)
        axes.text(index + 0.08, one.value + 0.015, f"{one.value:.1%}", fontsize=9)
    axes.set_xticks(range(len(_STEPS)), [label for _, label, _ in _STEPS])
    return drawn


def _device_plot(story: Story) -> Plot:
    drawn, axes = _axes(7.2, 3.2)
    for row in story.live.rows:
        line = axes.plot(
            [row.before, row.shipped, row.updated],
            marker="o",
            linestyle="-" if row.shares else "--",
            label=f"{row.device}{'' if row.shares else ' (shares nothing)'}",
        )[0]
        line.set_linewidth(1.6)
    axes.set_xticks(range(3), ["before", "after the change,\nas shipped", "after the update"])
    for name in axes.legend(fontsize=8, loc="lower right").get_texts():
        name.set_parse_math(False)  # a device's name is no formula
    return drawn


def _axes(width: float, height: float) -> tuple[Plot, Axes]:
    drawn, axes = plot(width, height)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("accuracy")
    return drawn, axes

"""`report.html`: one self-contained page with plots, and the same figures as `report.json`."""

from __future__ import annotations

import html
import io
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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

    from edgestill.demo.story import Story

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d5dde5; }
th { text-align: left; } td + td { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } .note { color: #52616f; }
td:first-child { white-space: nowrap; }
"""
_BLUE, _GREY, _ORANGE, _GREEN = "#2b6cb0", "#8795a1", "#c05621", "#2f855a"
_STEPS: Final = (
    ("teacher", "teacher\nbefore", _GREY),
    ("int8", "student\nbefore", _BLUE),
    ("teacher_after", "teacher\nafter", _GREY),
    ("shifted", "student\nafter", _ORANGE),
    ("control", "control\nafter", _GREY),
    ("updated", "updated\nafter", _GREEN),
    ("kept", "updated\nbefore", _BLUE),
)


def write_report(story: Story, folder: Path) -> tuple[Path, Path]:
    """Writes both files whole or not at all; their paths.

    Raises:
        PathError: the folder cannot be written.
    """
    page, figures = folder / "report.html", folder / "report.json"
    drawn, told = _page(story), json.dumps(story.as_json(), indent=2)
    replace(figures, told.encode(), mode=PUBLIC)
    replace(page, drawn.encode(), mode=PUBLIC)
    return page, figures


def _page(story: Story) -> str:
    what, change = (html.escape(one) for one in story.told)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>edgestill: {html.escape(story.scenario)}</title>'
        f"<style>{_STYLE}</style><h1>edgestill demo: {html.escape(story.scenario)}</h1>"
        f"<p>{what}. Halfway, {change}. All figures but the last three are of devices that shared nothing, so "
        f"that nothing was learned from them; the last three of those that did. {html.escape(won_back(story))}</p>"
        f"<h2>Accuracy along the route</h2>{_svg(_route_plot(story))}{_table(FIGURES_HEAD, figure_rows(story))}"
        f"<h2>Device by device</h2><p>{html.escape(DEVICES_NOTE)}</p>{_svg(_device_plot(story))}"
        f"{_table(DEVICES_HEAD, device_rows(story))}<p>{html.escape(helped(story))}</p>"
        f"<h2>Bytes</h2>{_table(('', 'bytes'), byte_rows(story))}"
        + "".join(
            f'<p class="note">{html.escape(one)}</p>'
            for one in (summed(story), fused_parameters(story), f"Promise on the risk: {story.promise}.")
        )
        + f'<p class="note">The teacher has weight {story.alpha:.2f} (alpha) in fused answers. '
        f"{html.escape(_about(story))}</p></html>"
    )


def _about(story: Story) -> str:
    machine = story.about["machine"]
    told = (
        ", ".join(f"{name} {value}" for name, value in machine.items()) if isinstance(machine, dict) else ""
    )
    about = (f"{name} {story.about[name]}" for name in ("version", "date", "seed"))
    return f"edgestill {', '.join(about)}; {told}. Wall time {story.wall_s:.0f} s."


def _route_plot(story: Story) -> Plot:
    plot, axes = _axes(7.2, 3.4)
    figures = story.accuracies()
    for index, (key, _, colour) in enumerate(_STEPS):
        one = figures[key]
        axes.bar(index, one.value, color=colour, width=0.62)
        axes.plot([index, index], [one.low, one.high], color="#1b2733", linewidth=1.4)
        axes.text(index + 0.08, one.value + 0.015, f"{one.value:.1%}", fontsize=9)
    axes.set_xticks(range(len(_STEPS)), [label for _, label, _ in _STEPS])
    return plot


def _device_plot(story: Story) -> Plot:
    plot, axes = _axes(7.2, 3.2)
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
    return plot


def _axes(width: float, height: float) -> tuple[Plot, Axes]:
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(width, height), layout="constrained")
    axes = plot.subplots()
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    return plot, axes


def _svg(plot: Plot) -> str:
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    top = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"

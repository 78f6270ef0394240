"""`report.html`: one self-contained page with plots, and the same figures as `report.json`."""

from __future__ import annotations

import html
import io
import json
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import PUBLIC, replace

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
        f"<p>{what}. Halfway, {change}. All figures are of devices that shared nothing, so that nothing was learned "
        f"from them. {_won_back(story)}</p>"
        f"<h2>Accuracy along the route</h2>{_svg(_route_plot(story))}{_accuracy_table(story)}"
        f"<h2>Device by device</h2><p>Accuracy of each student alone; of answers that the teacher helped with, see below."
        f"</p>{_svg(_device_plot(story))}{_device_table(story)}"
        f"<p>Devices that share answered {_fused(story)}</p>"
        f"<h2>Bytes</h2>{_bytes_table(story)}"
        f'<p class="note">Policy: alpha = {story.alpha:.2f}. Promise on the risk: {html.escape(story.promise)}. '
        f"Parameter fusion: alpha = {story.absorption.alpha:g} chosen on held-out data takes the teacher from "
        f"{story.absorption.before:.1%} to {story.absorption.after:.1%}. Wall time {story.wall_s:.0f} s.</p></html>"
    )


def _won_back(story: Story) -> str:
    won, control = story.recovered(), story.recovered_by_control()
    if won is None or control is None:
        return "Nothing was lost by the change, so nothing could be won back."
    return (
        f"The update won back <b>{won.value:.0%}</b> (95 % interval {won.low:.0%} to {won.high:.0%}) of the "
        f"accuracy lost; the same training without evidence {control.value:.0%}."
    )


def _fused(story: Story) -> str:
    live, figures = story.live, story.accuracies()
    helped = (
        f"{live.fused_before:.1%} rightly before the change with the teacher's help, {live.alone_before:.1%} alone; "
        f"after it {live.fused_shifted:.1%} and {live.alone_shifted:.1%}."
    )
    if "personal" not in figures:
        return helped
    own, without = figures["personal"], figures["personal_without"]
    return (
        f"{helped} On later data, with what each had learned by itself, {own.value:.1%} alone ({own.low:.1%} to "
        f"{own.high:.1%}), against {without.value:.1%} as shipped (n = {own.n}, {own.groups} groups)."
    )


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
            [row.before, row.shifted, row.updated],
            marker="o",
            linestyle="-" if row.shares else "--",
            label=f"{row.device}{'' if row.shares else ' (shares nothing)'}",
        )[0]
        line.set_linewidth(1.6)
    axes.set_xticks(range(3), ["before", "after the change", "after the update"])
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


def _accuracy_table(story: Story) -> str:
    rows = [
        (label.replace("\n", ", "), f"{one.value:.1%}", f"{one.low:.1%} to {one.high:.1%}", one.n, one.groups)
        for key, label, _ in _STEPS
        for one in (story.accuracies()[key],)
    ]
    return _table(("model", "accuracy", "95 % interval", "samples", "groups"), rows)


def _device_table(story: Story) -> str:
    rows = [
        (
            row.device,
            "yes" if row.shares else "no",
            f"{row.before:.1%}",
            f"{row.shifted:.1%}",
            f"{row.own:.1%}" if row.learned and row.own is not None else "none",
            f"{row.updated:.1%}",
            f"{row.escalated:.0%}",
            f"{row.bytes_up:,}",
            row.drift,
            f"{row.latency_ms:.2f} ms",
        )
        for row in story.live.rows
    ]
    head = (
        "device",
        "shares",
        "before",
        "after",
        "own head",
        "updated",
        "asked",
        "bytes sent",
        "noticed",
        "latency",
    )
    return _table(head, rows)


def _bytes_table(story: Story) -> str:
    live = story.live
    rows = [
        ("teacher, fp32", f"{live.teacher_bytes:,}"),
        ("student, int8", f"{live.model_bytes:,}"),
        ("bundle 1.1.0", f"{live.bundle_bytes:,}"),
        ("patch from 1.0.0", "none" if live.patch_bytes is None else f"{live.patch_bytes:,}"),
        ("summed statistics, one message", f"{live.statistics_bytes:,}"),
    ]
    return _table(("what", "bytes"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    top = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"

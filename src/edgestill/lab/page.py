"""Pages for people: one file that needs nothing else, with plots as SVG."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

BLUE, GREY, ORANGE, GREEN, INK = "#2b6cb0", "#8795a1", "#c05621", "#2f855a", "#1b2733"
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d5dde5; }
th { text-align: left; } td + td { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } .note { color: #52616f; }
td:first-child { white-space: nowrap; }
"""


def page(title: str, body: str) -> str:
    """A whole page; `body` is HTML, the title is not."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>{body}</html>"
    )


def note(text: str) -> str:
    """A paragraph in a lighter colour."""
    return f'<p class="note">{html.escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; all cells are text."""
    top = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def plot(width: float, height: float) -> tuple[Plot, Axes]:
    """An empty plot of so many inches, with two of its four sides."""
    from matplotlib.figure import Figure as Plot

    drawn = Plot(figsize=(width, height), layout="constrained")
    axes = drawn.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def svg(drawn: Plot) -> str:
    """As part of a page; the same bytes for the same plot."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "edgestill"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

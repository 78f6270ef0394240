"""Accuracy against the share that is asked about, as pictures for docs/cascade.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cascading.sets import SHARE
from edgestill.lab.page import BLUE, GREEN, GREY, plot, svg

IMAGES: Final = Path(__file__).resolve().parents[2] / "docs" / "images"
_WAYS: Final = {
    "oracle": ("the oracle", GREEN, "--"),
    "cascade": ("the least sure first", BLUE, "-"),
    "random": ("at random", GREY, ":"),
}


def draw(name: str, part: dict[str, Any]) -> None:
    """Writes `cascade_NAME.svg`: what asking gains, in three orders, with student and teacher by themselves."""
    picture, axes = plot(7.2, 3.6)
    curve = part["curve"]
    for way, (title, colour, line) in _WAYS.items():
        axes.plot(curve["share"], curve[way], color=colour, linestyle=line, linewidth=1.4, label=title)
    for who in ("student", "teacher"):
        axes.axhline(part["accuracy"][who], color=GREY, linewidth=0.8)
        axes.annotate(who, (1.0, part["accuracy"][who]), fontsize=8, ha="right", va="bottom")
    at = part["at_share"]
    axes.plot(
        [at["share"]], [at["accuracy"]], marker="o", color=BLUE, linestyle="", label=f"streams at {SHARE:.0%}"
    )
    axes.set_xlabel("share of inputs that the teacher is asked about")
    axes.set_ylabel("right")
    axes.legend(fontsize=8, loc="lower right")
    (IMAGES / f"cascade_{name}.svg").write_text(svg(picture), encoding="utf-8")

"""The fronts as pictures for docs/search.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgestill.lab.page import svg
from edgestill.lab.searching.report import front_plot

IMAGES: Final = Path(__file__).resolve().parents[2] / "docs" / "images"


def draw(name: str, part: dict[str, Any]) -> None:
    """Writes `search_NAME.svg`: every student that was trained to the end, the front, the uniform ones."""
    picture = svg(front_plot({"points": part["points"], "front": [one["name"] for one in part["front"]]}))
    (IMAGES / f"search_{name}.svg").write_text(picture, encoding="utf-8")

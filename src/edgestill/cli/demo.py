"""`edgestill demo`: the whole route on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgestill.core.extras import require


def demo(
    *,
    scenario: Annotated[str, typer.Option(help="watch or images.")] = "watch",
    data: Annotated[Path | None, typer.Option(help="npz file of images (x_train, y_train, ...).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report, bundles, logs; default demo-SCENARIO.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of splits and training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Walk the whole route on real data: hub and devices are processes on this machine."""
    for module in ("torch", "starlette", "matplotlib"):
        require(module, extra="demo", purpose="for the demonstration")
    from edgestill.demo.view import Silence, Stage, closing_tables, closing_words
    from edgestill.demo.walk import scenario_named, walk

    chosen = scenario_named(scenario, seed=seed, data=data)
    folder = out or Path(f"demo-{scenario}")
    if as_json:
        typer.echo(json.dumps(walk(chosen, folder, Silence(), seed=seed).as_json()))
        return
    from rich.console import Console

    console = Console()
    console.print(f"[bold]{chosen.story}[/]; halfway, {chosen.change}.")
    with Stage(console) as stage:
        story = walk(chosen, folder, stage, seed=seed)
    for table in closing_tables(story):
        console.print(table)
    for words in closing_words(story):
        console.print(words, markup=False, highlight=False)
    console.print(
        f"{story.wall_s:.0f} s. Plots and figures: {folder / 'report.html'}, {folder / 'report.json'}"
    )

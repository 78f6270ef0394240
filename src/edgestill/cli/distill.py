"""`edgestill distill`: teacher, data and budget in, a folder with the student out."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgestill.cli.terminal import plain
from edgestill.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from edgestill.core.jsonio import JsonObject


def distill(
    job: Annotated[Path, typer.Argument(help="TOML file that names teacher, student, data and recipe.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for student, bundle, report; default run-JOB.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Instead of the file's, such as size=120kB,escalation=20%.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Distil a student as a TOML file says; the same call goes on where it was stopped."""
    for module in ("torch", "lightning_fabric"):
        require(module, extra="lab", purpose="to distil")
    from edgestill.core.budget import Budget
    from edgestill.lab.job import Job

    read = Job.read(job)
    if budget is not None:
        read = replace(read, budget=Budget.parse(budget))
    folder = out or Path(f"run-{job.stem}")
    if as_json:
        typer.echo(json.dumps(read.run(folder)))
        return
    from rich.console import Console

    console = Console()
    with _epochs(console) as advance:
        report = read.run(folder, progress=advance)
    for line in _told(report, folder):
        console.print(plain(line), markup=False, highlight=False)


@contextmanager
def _epochs(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """A bar with the time that is left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("asking the teacher", total=None, note="")

        def advance(done: int, of: int, loss: float) -> None:
            progress.update(
                task,
                description="training",
                completed=done,
                total=of,
                note=f"epoch {done} of {of}, loss {loss:.4f}",
            )

        yield advance


def _told(report: JsonObject, folder: Path) -> Iterator[str]:
    """The report in sentences."""
    figures, parameters = report["figures"], report["parameters"]
    assert isinstance(figures, dict)
    assert isinstance(parameters, dict)
    for name in ("teacher", "student"):
        text = f"{name}: {parameters[name]:,} parameters"
        if f"{name}_score" in figures:
            low, high = figures[f"{name}_score_ci95"]  # type: ignore[misc,str-unpack]  # the report's own pair
            text += f", score {figures[f'{name}_score']:.4f} [{low:.4f}, {high:.4f}] on {figures[f'{name}_score_n']}"
        yield text
    comparison = report["comparison"]
    if isinstance(comparison, dict):
        yield str(comparison["sentence"])
    yield f"{report['seconds']} s; everything is in {folder}"

"""`edgestill distill`: teacher, data and budget in, a folder with the student out."""

from __future__ import annotations

import json
import warnings
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

    from edgestill.core.jsonio import Json, JsonObject


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
    from rich.console import Console

    from edgestill.core.budget import Budget
    from edgestill.lab.job import Job

    read = Job.read(job)
    if budget is not None:
        read = replace(read, budget=Budget.parse(budget))
    folder, console = out or Path(f"run-{job.stem}"), Console()
    with _warnings_told():
        if as_json:
            typer.echo(json.dumps(read.run(folder), allow_nan=False))
            return
        with _bar(console) if console.is_terminal else _lines() as advance:
            report = read.run(folder, progress=advance)
    for line in _told(report, folder):
        typer.echo(plain(line))


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Our warning as one line that begins with its code, as errors do; those of libraries concern nobody here."""
    from edgestill.lab.compare import DistillingHurtsWarning

    def show(message: Warning | str, *_rest: object, **_more: object) -> None:
        if isinstance(message, DistillingHurtsWarning):
            typer.echo(plain(str(message)), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DistillingHurtsWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _lines() -> Iterator[Callable[[int, int, float], None]]:
    """A line now and then, for a file or a pipe; twenty at most."""

    def advance(done: int, of: int, loss: float) -> None:
        if done == of or done % max(1, of // 10) == 0:
            typer.echo(f"epoch {done} of {of}, loss {loss:.4f}")

    yield advance


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int, float], None]]:
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
            text += f", score {figures[f'{name}_score']:.4f}{_interval(figures[f'{name}_score_ci95'])}"
            text += f" on {figures[f'{name}_score_n']}"
        yield text
    comparison, bundle = report["comparison"], report["bundle"]
    if isinstance(comparison, dict):
        yield str(comparison["sentence"])
    if isinstance(bundle, dict):
        yield f"bundle: {bundle['file']}, {bundle['bytes']:,} bytes"
    yield f"{report['seconds']} s; everything is in {folder}"


def _interval(ends: Json) -> str:
    """Empty where there is none: held-out data of one group has no spread."""
    if not isinstance(ends, list):
        return ""
    low, high = (one for one in ends if isinstance(one, float))
    return f" [{low:.4f}, {high:.4f}]"

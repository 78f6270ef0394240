"""`edgestill distill`: teacher, data and budget in, a folder with the student out."""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgestill.cli.terminal import plain
from edgestill.core.clock import SystemClock
from edgestill.core.extras import require
from edgestill.core.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import TaskID

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.lab.progress import Progress as Now
    from edgestill.lab.progress import Show

_SECONDS: Final = 10.0
_PHASES: Final = {
    "comparing": "compared with plain training: pair",
    "asking": "asked the teacher about",
    "training": "trained: epoch",
}


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
    folder, console = out or Path(f"run-{job.stem}"), Console(stderr=True)
    with _warnings_told(), _bars(console) if console.is_terminal else _lines(SystemClock()) as show:
        report = read.run(folder, progress=show)
    if as_json:
        typer.echo(json.dumps(report, allow_nan=False))
        return
    for line in _told(report, folder):
        typer.echo(plain(line))


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Our warnings as one line that begins with its code, as errors do; those of libraries concern nobody here."""
    from edgestill.lab.notices import LabWarning

    def show(message: Warning | str, *_rest: object, **_more: object) -> None:
        if isinstance(message, LabWarning):
            typer.echo(plain(str(message)), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LabWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _lines(clock: Clock) -> Iterator[Show]:
    """A line at the beginning and the end of each phase and now and then between, for a file or a pipe."""
    began: dict[str, float] = {}
    told: dict[str, float] = {}

    def show(now: Now) -> None:
        time = clock.monotonic()
        start = began.setdefault(now.phase, time)
        if now.done == now.of or time - told.get(now.phase, -inf) >= _SECONDS:
            told[now.phase] = time
            typer.echo(f"{_note(now)}{_left(now, time - start)}", err=True)

    yield show


def _left(now: Now, passed: float) -> str:
    """Nothing at the very beginning, when nobody can know, nor at the end."""
    if passed <= 0 or now.done == now.of:
        return ""
    return f", {format_duration(passed / now.done * (now.of - now.done))} left"


def _note(now: Now) -> str:
    loss = "" if now.loss is None else f", loss {now.loss:.4f}"
    return f"{_PHASES[now.phase]} {now.done:,} of {now.of:,}{loss}"


@contextmanager
def _bars(console: Console) -> Iterator[Show]:
    """A bar for each phase, with the time that is left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[note]}", markup=False),
        BarColumn(bar_width=32),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(now: Now) -> None:
            if now.phase not in tasks:
                tasks[now.phase] = bars.add_task(now.phase, total=now.of, note="")
            bars.update(tasks[now.phase], completed=now.done, total=now.of, note=_note(now))

        yield show


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
        yield (
            f"bundle: {bundle['file']}, {bundle['bytes']:,} bytes"
            if bundle["file"]
            else f"no bundle: {bundle['why']}"
        )
    yield f"{report['seconds']} s; everything is in {folder}"


def _interval(ends: Json) -> str:
    """Empty where there is none: held-out data of one group has no spread."""
    if not isinstance(ends, list):
        return ""
    low, high = (one for one in ends if isinstance(one, float))
    return f" [{low:.4f}, {high:.4f}]"

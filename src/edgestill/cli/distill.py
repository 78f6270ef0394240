"""`edgestill distill`: teacher, data and budget in, a folder with the student out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgestill.cli.terminal import bundle_line, plain
from edgestill.cli.watching import watched
from edgestill.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    from edgestill.core.budget import Budget
    from edgestill.lab.job import Job

    read = Job.read(job)
    if budget is not None:
        read = replace(read, budget=Budget.parse(budget))
    folder = out or Path(f"run-{job.stem}")
    with watched() as show:
        report = read.run(folder, progress=show)
    if as_json:
        typer.echo(json.dumps(report, allow_nan=False))
        return
    for line in _told(report, folder):
        typer.echo(plain(line))


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
        yield bundle_line(bundle) if bundle["file"] else f"no bundle: {bundle['why']}"
    yield f"{report['seconds']} s; everything is in {folder}"


def _interval(ends: Json) -> str:
    """Empty where there is none: held-out data of one group has no spread."""
    if not isinstance(ends, list):
        return ""
    low, high = (one for one in ends if isinstance(one, float))
    return f" [{low:.4f}, {high:.4f}]"

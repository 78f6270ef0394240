"""`edgestill search`: the best students within a budget, or a front of them from small to large."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from edgestill.cli.terminal import bundle_line, plain
from edgestill.cli.watching import watched
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.searching.profile import Profile


def search(
    job: Annotated[Path, typer.Argument(help="TOML file that names teacher, data and recipe.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all that is found; default search-JOB.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Instead of the file's, such as size=120kB,latency=1.5ms.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that search side by side.")] = 1,
    storage: Annotated[
        str, typer.Option(help="Database that machines share, such as postgresql://...; default a file.")
    ] = "",
    profile: Annotated[
        Path | None, typer.Option(help="Latencies that were taken on the device the student is for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    helper: Annotated[bool, typer.Option("--helper", hidden=True)] = False,
) -> None:
    """Search for the best students of a teacher; the same call goes on where it was stopped."""
    for module in ("torch", "lightning_fabric", "optuna"):
        require(module, extra="lab", purpose="to search")
    from edgestill.core.budget import Budget
    from edgestill.lab.job import Job
    from edgestill.lab.jobsearch import run_search

    read = Job.read(job)
    if budget is not None:
        read = replace(read, budget=Budget.parse(budget))
    if trials is not None:
        read = replace(read, search=replace(read.search, trials=trials))
    folder = out or Path(f"search-{job.stem}")
    with watched() as show:
        report = run_search(
            read,
            folder,
            profile=None if profile is None else _profile(profile),
            storage=storage,
            helpers=_Helpers(
                workers - 1,
                [
                    str(job),
                    *_options(out=folder, budget=budget, trials=trials, storage=storage, profile=profile),
                ],
            ),
            measure=not helper,
            progress=None if helper else show,
        )
    if as_json and not helper:
        typer.echo(json.dumps(report, allow_nan=False))
    elif not helper:
        for line in _told(report, folder):
            typer.echo(plain(line))


class _Helpers:
    """More processes of this very command, which take part in the trials."""

    def __init__(self, count: int, options: list[str]) -> None:
        self._count, self._options = count, options
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "edgestill.cli", "search", *self._options, "--helper"]
        self._running = [subprocess.Popen(command) for _ in range(self._count)]  # noqa: S603  # ourselves
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Waits for their last trials; where this process was stopped, they are stopped too."""
        for one in self._running:
            if kind is not None:
                one.terminate()
            status = one.wait()
            if kind is None and status != 0:
                typer.echo(
                    f"a helper ended with status {status}; its trials were done by the others", err=True
                )


def _options(**values: object) -> list[str]:
    """The options of a command line that have a value."""
    return [part for name, value in values.items() if value for part in (f"--{name}", str(value))]


def _profile(path: Path) -> Profile:
    from edgestill.infer.outlines import MAX_BYTES
    from edgestill.lab.searching.profile import Profile

    return Profile.from_bytes(read_plain(path, what="a profile", at_most=MAX_BYTES), where=str(path))


def _counted(students: int) -> str:
    """How many there are, in words."""
    return "1 student" if students == 1 else f"{students} students"


def _told(report: JsonObject, folder: Path) -> Iterator[str]:
    """The report in sentences."""
    points: dict[str, Any] = report["points"]  # type: ignore[assignment]  # our own report
    front: list[str] = report["front"]  # type: ignore[assignment]
    if report["latencies"]:
        yield str(report["latencies"])
    yield f"{_counted(len(points))} trained to the end; {len(front)} that no other beats:"
    for name in front:
        mark = "  <- picked" if name == report.get("picked") else ""
        yield f"  {_line(points[name])}{mark}"
    bundle: Any = report.get("bundle")
    if bundle:
        yield bundle_line(bundle)
    yield f"{report['seconds']} s; everything is in {folder}"


def _line(point: dict[str, Any]) -> str:
    footprint, unseen, gain = point["footprint"], point["unseen"], point["over_uniform"]
    latency = footprint["latency"]
    text = f"{format_size(footprint['size'])}"
    if latency is not None:
        text += f", {format_duration(latency)} {footprint['source']}"
    text += f", score {unseen['value']:.4f}"
    if gain is not None and not point["uniform"]:
        text += f" ({gain['value']:+.4f} over the uniform student)"
    return f"{text}, {point['shape']['precision']}"

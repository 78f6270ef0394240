"""How far a long run is: bars on a terminal, now and then a line elsewhere; and our warnings, one line each."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Final

import typer

from edgestill.cli.terminal import plain
from edgestill.core.clock import SystemClock
from edgestill.core.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import TaskID

    from edgestill.core.protocols import Clock
    from edgestill.lab.progress import Progress as Now
    from edgestill.lab.progress import Show

_SECONDS: Final = 10.0
_PHASES: Final = {
    "comparing": "compared with plain training: pair",
    "asking": "asked the teacher about",
    "training": "trained: epoch",
    "profiling": "made to be timed: model",
    "searching": "searched: student",
}


@contextmanager
def watched() -> Iterator[Show]:
    """What to call with how far each phase is; shown on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    with _warnings_told(), _bars(console) if console.is_terminal else _lines(SystemClock()) as show:
        yield show


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

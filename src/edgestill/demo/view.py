"""The steps as they happen, for people (Rich) or not at all (`--json`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from rich import box
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgestill.demo.tables import (
    DEVICES_HEAD,
    DEVICES_NOTE,
    FIGURES_HEAD,
    byte_rows,
    device_rows,
    figure_rows,
    fused_parameters,
    helped,
    summed,
    won_back,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.progress import TaskID

    from edgestill.demo.story import Story


@final
class Silence:
    """Shows nothing."""

    def begin(self, step: str) -> None:
        """Nothing."""

    def advance(self, done: int, of: int, note: str) -> None:
        """Nothing."""

    def end(self, note: str) -> None:
        """Nothing."""


@final
class Stage:
    """One line a step, the running one with a bar.

    Args:
        console: to write to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._step = ""

    def __enter__(self) -> Stage:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def begin(self, step: str) -> None:
        """A step begins."""
        self._step = step
        self._task = self._progress.add_task(step, total=None, note="")

    def advance(self, done: int, of: int, note: str) -> None:
        """So far within the step."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=of, note=note)

    def end(self, note: str) -> None:
        """The step is done."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._console.print(Text.assemble(("done ", "green"), (self._step, "bold")), highlight=False)
        if note:
            self._console.print(Padding(Text(note), (0, 0, 0, 5)), highlight=False)


def closing_tables(story: Story) -> list[Table]:
    """What a person reads last: figures with intervals, then a row a device, then bytes."""
    folds = len(story.outcomes)
    return [
        _table(
            "On devices that shared nothing; the last three rows: on those that did",
            FIGURES_HEAD,
            figure_rows(story),
            note=f"Over {folds} folds; what was asked, and the accuracies that the steps told, of the first, the live fleet."
            if folds > 1
            else "",
        ),
        _table("The live fleet", DEVICES_HEAD, device_rows(story), note=f"{DEVICES_NOTE}\n{helped(story)}"),
        _table("Bytes", ("", "bytes"), byte_rows(story)),
    ]


def closing_words(story: Story) -> list[str]:
    """What stands below the tables, a paragraph each."""
    return [won_back(story), summed(story), fused_parameters(story), f"Promise on the risk: {story.promise}."]


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, note: str = "") -> Table:
    table = Table(
        title=title,
        caption=Text(note) if note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in head:
        table.add_column(name, justify="left" if name in {"", "device", "noticed"} else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table

"""The steps as they happen, for people (Rich) or not at all (`--json`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from rich import box
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from edgestill.demo.story import Story
    from edgestill.lab.measure import Figure


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
    """What a person reads last: accuracies with intervals, then a row a device, then bytes."""
    return [_accuracies(story), _devices(story), _bytes(story)]


def _accuracies(story: Story) -> Table:
    table = Table(
        title="Accuracy on devices that shared nothing; the last two: on those that did",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("", "accuracy", "95 % interval", "of"):
        table.add_column(name, justify="left" if not name else "right")
    named = {
        "teacher": "teacher, before the change",
        "student": "student, before",
        "int8": "shipped as int8, before",
        "teacher_after": "teacher, after the change",
        "shifted": "shipped as int8, after",
        "control": "next without evidence, after",
        "updated": "next from evidence, after",
        "kept": "next from evidence, before",
    }
    figures = story.accuracies()
    for key, text in named.items():
        one = figures[key]
        table.add_row(text, f"{one.value:.1%}", f"{one.low:.1%} to {one.high:.1%}", _units(one))
    for text, share in (
        ("share of the loss won back", story.recovered()),
        ("by the control", story.recovered_by_control()),
    ):
        table.add_row(text, *(_share(share)), "")
    for key, text in (
        ("personal_without", "learning devices, as shipped"),
        ("personal", "with what each learned"),
    ):
        if key in figures:
            one = figures[key]
            table.add_row(text, f"{one.value:.1%}", f"{one.low:.1%} to {one.high:.1%}", _units(one))
    return table


def _units(figure: Figure) -> str:
    return f"{figure.n}" if figure.n == figure.groups else f"{figure.n} in {figure.groups} groups"


def _share(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "nothing was lost", ""
    return f"{figure.value:.0%}", f"{figure.low:.0%} to {figure.high:.0%}"


def _devices(story: Story) -> Table:
    table = Table(
        title="The live fleet: accuracy of each student alone",
        caption=f"After the change sharing devices answered {story.live.fused_shifted:.1%} rightly with the teacher's help.",
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("device", "before", "after", "own head", "updated", "asked", "sent", "noticed"):
        table.add_column(name, justify="left" if name in {"device", "noticed"} else "right")
    for row in story.live.rows:
        table.add_row(
            Text(row.device),
            f"{row.before:.1%}",
            f"{row.shifted:.1%}",
            f"{row.own:.1%}" if row.learned and row.own is not None else "none",
            f"{row.updated:.1%}",
            f"{row.escalated:.0%}" if row.shares else "0",
            f"{row.bytes_up / 1000:.0f} kB" if row.shares else "0",
            Text(row.drift),
        )
    return table


def _bytes(story: Story) -> Table:
    live = story.live
    table = Table(title="Bytes", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("bytes", justify="right")
    table.add_row("teacher, fp32", f"{live.teacher_bytes:,}")
    table.add_row(f"student, int8 ({story.size_ratio:.1f} times smaller)", f"{live.model_bytes:,}")
    table.add_row("whole bundle 1.1.0", f"{live.bundle_bytes:,}")
    table.add_row("patch from 1.0.0", "none" if live.patch_bytes is None else f"{live.patch_bytes:,}")
    table.add_row("summed statistics, one message", f"{live.statistics_bytes:,}")
    return table

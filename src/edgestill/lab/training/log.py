"""What an epoch was like, a row each, in a CSV file that grows as the run goes on."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import PathError

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS: Final = ("epoch", "step", "loss", "lr", "seconds_per_step")


@final
class EpochLog:
    """The file; see `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Makes the file with its first row, where there is none: what cannot be written is found before the training.

        Raises:
            PathError: it cannot be written.
        """
        log = cls(path)
        log._write(*(() if path.exists() else (_COLUMNS,)))
        return log

    def add(self, epoch: int, step: int, *, loss: float, rate: float, seconds: float) -> None:
        """One epoch more.

        Args:
            epoch: that is done, from 1.
            step: that was its last.
            loss: its mean.
            rate: the learning rate at its end.
            seconds: a step took.

        Raises:
            PathError: it cannot be written.
        """
        self._write((epoch, step, f"{loss:.6g}", f"{rate:.6g}", f"{seconds:.6f}"))

    def _write(self, *rows: tuple[object, ...]) -> None:
        try:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise PathError(
                "cannot write the log",
                where=self._path,
                got=error.strerror,
                expected="a file that can be written",
                fix="name another file",
            ) from error

"""The data of a job: an npz file, or a callable of the user's."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import DataError, PathError, SettingError
from edgestill.lab.data.samples import Samples
from edgestill.lab.distil import Asking  # noqa: TC001  # `from_table` reads the annotations
from edgestill.lab.models import callable_named

if TYPE_CHECKING:
    from edgestill.lab.data.source import Source

# What numpy and zipfile raise for files that are empty, cut off, damaged, encrypted, pickled, or a single array.
_NOT_NPZ: Final = (ValueError, EOFError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataName:
    """Which data.

    Attributes:
        file: npz of plain arrays `x_train, y_train`, optionally `groups_train`, and the same with `_validation`.
        source: a callable that gives (training, held-out) data, each `Samples` or a `Source`, instead of a file.
        arguments: what it is given.
        classes: how many there are; 0 takes the largest label + 1.
        validation: share of the groups held out, where the file has no `x_validation`.
        ask: when the teacher is asked: `cached`, `live` or `onnx`.
    """

    file: Path | None = None
    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    validation: float = 0.2
    ask: Asking = "cached"

    def __post_init__(self) -> None:
        if (self.file is None) == (not self.source):
            raise SettingError(
                "one place for the data", where="data", expected="file = PATH, or source = NAME"
            )
        if not 0 < self.validation < 1:
            raise SettingError(
                "a data's value is out of range",
                where="validation",
                expected="more than 0, less than 1",
                got=self.validation,
            )

    def load(self, folder: Path, seed: int) -> tuple[Samples | Source, Samples | Source]:
        """Training and held-out data.

        Raises:
            DataError, PathError: it cannot be read. SettingError: no such callable, or one that gives something else.
        """
        if self.file is not None:
            return _from_file(self.file, classes=self.classes or None, share=self.validation, seed=seed)
        given = callable_named(self.source, folder)(**self.arguments)
        if not isinstance(given, tuple) or len(given) != 2:
            raise SettingError(
                "a source of data gives two things",
                where=self.source,
                expected="(training, held-out) data",
                got=type(given).__name__,
            )
        return given


def _from_file(path: Path, *, classes: int | None, share: float, seed: int) -> tuple[Samples, Samples]:
    arrays = _arrays(path)
    train = _samples(arrays, "train", classes, path)
    if "x_validation" in arrays:
        return train, _samples(arrays, "validation", train.classes, path)
    names = np.unique(train.groups)
    held = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    mask = np.isin(train.groups, held)
    if mask.all():
        raise DataError(
            "nothing is left to train on", where=path, expected="two groups or more", got=len(names)
        )
    return train.where(~mask), train.where(mask)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return {name: found[name] for name in found}
    except OSError as error:
        raise PathError("cannot read the data", where=path, got=error.strerror or error) from error
    except _NOT_NPZ as error:
        raise DataError("not an npz file of plain arrays", where=path, got=error) from error


def _samples(arrays: dict[str, np.ndarray[Any, Any]], part: str, classes: int | None, path: Path) -> Samples:
    wanted = (f"x_{part}", f"y_{part}")
    if not set(wanted) <= arrays.keys():
        raise DataError(
            "arrays are missing", where=path, expected=" and ".join(wanted), got=", ".join(sorted(arrays))
        )
    x, y = (arrays[name] for name in wanted)
    return Samples.of(x, y, classes=classes, groups=arrays.get(f"groups_{part}"))

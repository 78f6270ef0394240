"""The data of a job: an npz file, or a callable of the user's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import ClassCountError, DataError, EdgestillError, SettingError
from edgestill.infer.arrayfile import read_npz
from edgestill.lab.data.samples import Samples, class_names
from edgestill.lab.models import called
from edgestill.lab.settings import nearest
from edgestill.lab.teacher.asking import When  # noqa: TC001  # `from_table` reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.lab.data.source import Source

_PARTS: Final = ("train", "validation")
_KINDS: Final = ("x", "y", "groups")
_LABELS: Final = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataName:
    """Which data.

    Attributes:
        file: npz of plain arrays `x_train, y_train`, optionally `groups_train`, and the same with `_validation`; a text
            array `labels` may name the classes. Arrays that end in `_test` are left alone.
        source: a callable that gives (training, held-out) data, each `Samples` or a `Source`, instead of a file.
        arguments: what it is given.
        classes: how many there are; 0 takes the number of `labels`, or else the largest label + 1.
        labels: names of the classes, for the bundle; they go before the file's.
        validation: share of the groups held out, where the file has no `x_validation`.
        ask: when the teacher is asked: `cached`, `live` or `onnx`.
    """

    file: Path | None = None
    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    labels: tuple[str, ...] = ()
    validation: float = 0.2
    ask: When = "cached"

    def __post_init__(self) -> None:
        if (self.file is None) == (not self.source):
            raise SettingError(
                "one place for the data",
                where="data",
                expected="file = PATH, or source = NAME",
                got="both" if self.source else "neither",
                fix="keep one of the two",
            )
        if (
            self.classes < 0
            or self.classes == 1
            or (self.classes and len(self.labels) not in {0, self.classes})
        ):
            raise SettingError(
                "a data's value is out of range",
                where="classes",
                expected=f"{len(self.labels)} (the labels)" if self.labels else "2 or more, or 0",
                got=self.classes,
                fix="leave it out where you are unsure",
            )
        if not 0 < self.validation < 1:
            raise SettingError(
                "a data's value is out of range",
                where="validation",
                expected="more than 0, less than 1",
                got=self.validation,
                fix="leave it out where you are unsure",
            )

    def load(self, folder: Path, seed: int) -> Data:
        """Training and held-out data.

        Args:
            folder: what a file's path in `source` is relative to.
            seed: of the choice of what is held out.

        Raises:
            DataError, PathError: it cannot be read. SettingError: no such callable, or one that gives something else.
            ModelError: the callable fails. ClassCountError: labels outside the classes, or another number of names.
        """
        data = self._from_callable(folder) if self.file is None else _from_file(self.file, self, seed)
        if data.labels and isinstance(data.train, Samples) and len(data.labels) != data.train.classes:
            raise ClassCountError(
                "names and classes of the data disagree",
                where="labels",
                expected=f"{data.train.classes} (the classes)",
                got=len(data.labels),
                fix="give one name a class, or say how many `classes` there are",
            )
        return data

    def _from_callable(self, folder: Path) -> Data:
        given = called(self.source, self.arguments, folder)
        pair = given if isinstance(given, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(one, Samples) or hasattr(one, "batches") for one in pair):
            kinds = ", ".join(type(one).__name__ for one in pair) or type(given).__name__
            raise SettingError(
                "a source of data gives two things",
                where=self.source,
                expected="(training, held-out) data, each Samples or a Source",
                got=kinds,
                fix="return a pair from it",
            )
        return Data(train=pair[0], heldout=pair[1], labels=self.labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """What a job is taught on.

    Attributes:
        train: shown to the student.
        heldout: not shown to it.
        labels: names of the classes, or empty.
    """

    train: Samples | Source
    heldout: Samples | Source
    labels: tuple[str, ...]


def _from_file(path: Path, name: DataName, seed: int) -> Data:
    arrays = read_npz(path, what="the data")
    _check_names(arrays, path)
    labels = name.labels or class_names(arrays.get(_LABELS), f"{path}: {_LABELS}")
    train = _samples(arrays, "train", name.classes or len(labels) or None, path)
    if any(f"{kind}_validation" in arrays for kind in _KINDS):
        return Data(train=train, heldout=_samples(arrays, "validation", train.classes, path), labels=labels)
    names = np.unique(train.groups)
    held = np.random.default_rng(seed).permutation(names)[: max(1, round(name.validation * len(names)))]
    mask = np.isin(train.groups, held)
    if mask.all():
        raise DataError(
            "nothing is left to train on",
            where=path,
            expected="two groups or more",
            got=len(names),
            fix="bring x_validation and y_validation, or more groups",
        )
    return Data(train=train.where(~mask), heldout=train.where(mask), labels=labels)


def _check_names(arrays: Mapping[str, object], path: Path) -> None:
    """A misspelt array must not be left out in silence."""
    known = {f"{kind}_{part}": None for part in _PARTS for kind in _KINDS} | {_LABELS: None}
    for name in arrays:
        if name not in known and not name.endswith("_test"):
            raise DataError(
                "unknown array in the data",
                where=f"{path}: {name}",
                fix=nearest(name, known),
                expected=", ".join(known),
                got=repr(name),
            )


def _samples(arrays: dict[str, np.ndarray[Any, Any]], part: str, classes: int | None, path: Path) -> Samples:
    wanted = (f"x_{part}", f"y_{part}")
    if not set(wanted) <= arrays.keys():
        raise DataError(
            "arrays are missing",
            where=path,
            expected=" and ".join(wanted),
            got=", ".join(sorted(arrays)),
            fix=f"save them with numpy.savez({path.name!r}, {wanted[0]}=..., {wanted[1]}=...)",
        )
    x, y = (arrays[name] for name in wanted)
    try:
        return Samples.of(x, y, classes=classes, groups=arrays.get(f"groups_{part}"))
    except EdgestillError as error:  # which knows neither the file nor the arrays' names in it
        error.where = f"{path}: {_named(str(error.where), part)}"
        raise


def _named(where: str, part: str) -> str:
    """`labels` of `Samples.of` as the file calls them."""
    for word, kind in (("inputs", "x"), ("labels", "y"), ("groups", "groups")):
        where = where.replace(word, f"{kind}_{part}")
    return where

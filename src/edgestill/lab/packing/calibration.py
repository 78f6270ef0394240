"""Calibration data from files: arrays, or what a sensor wrote, with classes where folders name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import DataError, EdgestillError, PathError, ShapeError
from edgestill.infer.arrayfile import read_npy, read_npz
from edgestill.infer.recordings import read_inputs
from edgestill.lab.data.samples import Samples, class_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MOST_FILES: Final = 100_000
_ARRAYS: Final = ("x", "y", "groups", "labels")

Given = tuple["Samples | NDArray[np.generic]", tuple[str, ...]]
"""The data, and the names of its classes where it has names."""


def read_calibration(
    path: Path, dtype: np.dtype[Any], shape: tuple[int | None, ...], *, labels: Sequence[str] = ()
) -> Given:
    """What a student is calibrated on.

    Args:
        path: an `.npz` of arrays `x`, and `y`, `groups` and the text array `labels` where they are known; an `.npy` of `x`; or a
            folder of files as `infer.recordings` reads them, each of which is a group. Folders in it are classes.
        dtype: of the model's input.
        shape: of the model's input; None where an axis is free, as the first is.
        labels: names of the classes, in their order; by default the file's, or the folders' names in alphabetical order.

    Raises:
        PathError: it cannot be read. DataError: it is none of these, or no data. ShapeError: inputs of another shape.
        ClassCountError: a label outside the classes.
    """
    if path.is_dir():
        return _of_folder(path, dtype, shape, tuple(labels))
    if path.suffix.lower() == ".npy":
        return read_npy(path, what="the calibration data"), tuple(labels)
    arrays = read_npz(path, what="the calibration data")
    unknown = sorted(arrays.keys() - set(_ARRAYS))
    if "x" not in arrays or unknown:
        raise DataError(
            "arrays of other names",
            where=path,
            expected="x, and optionally y, groups, labels",
            got=", ".join(arrays) or "none",
            fix=f"save them with numpy.savez({path.name!r}, x=..., y=...)",
        )
    names = tuple(labels) or class_names(arrays.get("labels"), f"{path}: labels")
    if "y" not in arrays:
        if "groups" in arrays:
            raise DataError(
                "groups of data without labels",
                where=path,
                expected="y beside groups, or neither",
                got="groups alone",
                fix="leave them out: without labels nothing is told of groups",
            )
        return arrays["x"], names
    try:
        count = len(names) or None
        return Samples.of(arrays["x"], arrays["y"], classes=count, groups=arrays.get("groups")), names
    except EdgestillError as error:  # which does not know the file
        error.where = f"{path}: {error.where}"
        raise


def _of_folder(
    folder: Path, dtype: np.dtype[Any], shape: tuple[int | None, ...], labels: tuple[str, ...]
) -> Given:
    found = sorted(one for one in _entries(folder) if not one.name.startswith("."))
    classes = [one for one in found if one.is_dir()]
    if not classes:
        return np.concatenate(_read(found, folder, dtype, shape)), labels
    if len(classes) != len(found):
        raise DataError(
            "files beside the folders of classes",
            where=folder,
            expected="a folder for each class, or files only",
            got=next(one.name for one in found if not one.is_dir()),
            fix="move the files into the folders of their classes, or elsewhere",
        )
    names = labels or tuple(one.name for one in classes)
    unknown = [one.name for one in classes if one.name not in names]
    if unknown:
        raise DataError(
            "a folder of no class",
            where=folder / unknown[0],
            expected=", ".join(names),
            got=unknown[0],
            fix="name the folders as the classes, or give all names with --labels",
        )
    inputs: list[NDArray[np.generic]] = []
    targets: list[NDArray[np.int64]] = []
    groups: list[NDArray[np.int64]] = []
    for one in classes:
        files = sorted(each for each in _entries(one) if not each.name.startswith("."))
        for part in _read(files, one, dtype, shape):
            inputs.append(part)
            targets.append(np.full(len(part), names.index(one.name)))
            groups.append(np.full(len(part), len(groups)))
    whole = [np.concatenate(each) for each in (inputs, targets, groups)]
    return Samples.of(whole[0], whole[1], classes=len(names), groups=whole[2]), names


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise PathError(
            "a folder cannot be read",
            where=folder,
            expected="a folder that may be listed",
            got=error.strerror or type(error).__name__,
            fix="look at its permissions",
        ) from error


def _read(
    files: list[Path], folder: Path, dtype: np.dtype[Any], shape: tuple[int | None, ...]
) -> list[NDArray[np.generic]]:
    """The inputs of each file."""
    if not 0 < len(files) <= MOST_FILES:
        raise DataError(
            "no files to calibrate on" if not files else "more files than calibrating takes",
            where=folder,
            expected=f"1 to {MOST_FILES:,} files",
            got=len(files),
            fix="some hundred of each class are enough",
        )
    found = [read_inputs(one, dtype, shape) for one in files]
    for one, inputs in zip(files, found, strict=True):
        if inputs.shape[1:] != found[0].shape[1:]:
            raise ShapeError(
                "files of different sizes",
                where=one,
                expected=f"{list(found[0].shape[1:])} (as in {files[0].name})",
                got=list(inputs.shape[1:]),
                fix="bring them to one size, as the device will give them",
            )
    return found

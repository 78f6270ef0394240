"""Calibration data is read from arrays and from folders of what a sensor wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edgestill.core.errors import ClassCountError, DataError, PathError, ShapeError
from edgestill.lab.data.samples import Samples
from edgestill.lab.packing.calibration import read_calibration

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PICTURE: tuple[Any, tuple[int | None, ...]] = (np.dtype(np.uint8), (None, 4, 4, 3))
MOTION: tuple[Any, tuple[int | None, ...]] = (np.dtype(np.float32), (None, 5, 2))
X = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


def draw(path: Path, pixels: NDArray[np.uint8]) -> None:
    """A picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_arrays_with_classes_and_groups(tmp_path: Path) -> None:
    """`x`, `y`, `groups` and the classes' names of one file."""
    np.savez(tmp_path / "d.npz", x=X, y=[0, 1, 2, 0, 1, 2], groups=[0, 0, 0, 1, 1, 1], labels=["a", "b", "c"])
    data, names = read_calibration(tmp_path / "d.npz", *PICTURE)
    assert isinstance(data, Samples)
    np.testing.assert_array_equal(data.inputs, X)
    assert data.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert names == ("a", "b", "c")
    _, given = read_calibration(tmp_path / "d.npz", *PICTURE, labels=["x", "y", "z"])
    assert given == ("x", "y", "z")


def test_arrays_without_classes(tmp_path: Path) -> None:
    """Inputs alone, of either kind of file."""
    np.savez(tmp_path / "d.npz", x=X)
    np.save(tmp_path / "d.npy", X)
    for name in ("d.npz", "d.npy"):
        data, names = read_calibration(tmp_path / name, *PICTURE)
        assert isinstance(data, np.ndarray)
        np.testing.assert_array_equal(data, X)
        assert names == ()


def test_a_folder_of_pictures_is_data_without_classes(tmp_path: Path) -> None:
    """In the order of their names; hidden files are left out."""
    for at, one in enumerate(X):
        draw(tmp_path / f"{at}.png", one)
    (tmp_path / ".hidden").write_text("no picture")
    data, _ = read_calibration(tmp_path, *PICTURE)
    assert isinstance(data, np.ndarray)
    np.testing.assert_array_equal(data, X)


def test_folders_of_pictures_are_classes(tmp_path: Path) -> None:
    """A class each, by name; every file is a group of its own."""
    for at, one in enumerate(X):
        draw(tmp_path / ("dog" if at % 2 else "cat") / f"{at}.png", one)
    data, names = read_calibration(tmp_path, *PICTURE)
    assert isinstance(data, Samples)
    assert names == ("cat", "dog")
    np.testing.assert_array_equal(data.inputs, np.concatenate([X[::2], X[1::2]]))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.groups.tolist() == [0, 1, 2, 3, 4, 5]
    again, order = read_calibration(tmp_path, *PICTURE, labels=["wolf", "dog", "cat"])
    assert isinstance(again, Samples)
    assert again.labels.tolist() == [2, 2, 2, 1, 1, 1]
    assert (again.classes, order) == (3, ("wolf", "dog", "cat"))


def test_a_recording_is_a_group_of_windows(tmp_path: Path) -> None:
    """Windows of one table are not independent, and are not counted as if they were."""
    for name, rows in (("a/one.csv", 10), ("a/two.csv", 5), ("b/three.csv", 15)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, np.random.default_rng(rows).normal(size=(rows, 2)), delimiter=",")
    data, _ = read_calibration(tmp_path, *MOTION)
    assert isinstance(data, Samples)
    assert data.inputs.shape == (6, 5, 2)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.groups.tolist() == [0, 0, 1, 2, 2, 2]


def test_arrays_of_other_names_are_refused(tmp_path: Path) -> None:
    """A misspelt one must not be left out in silence."""
    np.savez(tmp_path / "d.npz", x=X, lables=["a"])
    with pytest.raises(DataError, match=r"arrays of other names; at .*d\.npz; expected x, .*; got x, lables"):
        read_calibration(tmp_path / "d.npz", *PICTURE)
    np.savez(tmp_path / "e.npz", y=[1, 2])
    with pytest.raises(DataError, match="got y"):
        read_calibration(tmp_path / "e.npz", *PICTURE)


def test_labels_outside_the_named_classes_are_refused(tmp_path: Path) -> None:
    """The file is named."""
    np.savez(tmp_path / "d.npz", x=X, y=[0, 1, 2, 3, 0, 1], labels=["a", "b", "c"])
    with pytest.raises(ClassCountError, match=r"d\.npz: labels"):
        read_calibration(tmp_path / "d.npz", *PICTURE)


def test_files_beside_folders_of_classes_are_refused(tmp_path: Path) -> None:
    """Nobody knows which class they are."""
    draw(tmp_path / "cat" / "0.png", X[0])
    draw(tmp_path / "1.png", X[1])
    with pytest.raises(DataError, match=r"files beside the folders.*got 1\.png"):
        read_calibration(tmp_path, *PICTURE)


def test_a_folder_of_no_class_is_refused(tmp_path: Path) -> None:
    """Where the names are given, and it has another."""
    draw(tmp_path / "cat" / "0.png", X[0])
    with pytest.raises(DataError, match=r"a folder of no class; at .*cat; expected dog, wolf; got cat"):
        read_calibration(tmp_path, *PICTURE, labels=["dog", "wolf"])


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    """One of a class as well: it would be a class without samples by mistake."""
    with pytest.raises(DataError, match="no files to calibrate on"):
        read_calibration(tmp_path, *PICTURE)
    draw(tmp_path / "cat" / "0.png", X[0])
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"no files to calibrate on; at .*dog"):
        read_calibration(tmp_path, *PICTURE)


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    """With the size that would be right."""
    draw(tmp_path / "0.png", X[0, :3])
    with pytest.raises(ShapeError, match=r"0\.png; expected 4 x 4"):
        read_calibration(tmp_path, *PICTURE)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(PathError, match="none"):
        read_calibration(tmp_path / "none.npz", *PICTURE)


def test_names_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    """Bytes would be called `b'a'`, and numbers belong elsewhere."""
    for labels in (np.array([b"a", b"b"]), np.array([0, 1]), np.array("a")):
        np.savez(tmp_path / "d.npz", x=X, labels=labels)
        with pytest.raises(DataError, match=r"d\.npz: labels; expected an array \[classes\] of texts"):
            read_calibration(tmp_path / "d.npz", *PICTURE)


def test_groups_without_labels_are_not_dropped_in_silence(tmp_path: Path) -> None:
    """They would mean nothing."""
    np.savez(tmp_path / "d.npz", x=X, groups=np.zeros(6, dtype=np.int64))
    with pytest.raises(DataError, match="groups of data without labels"):
        read_calibration(tmp_path / "d.npz", *PICTURE)


def test_files_of_different_sizes_are_named(tmp_path: Path) -> None:
    """Where the model takes any: they cannot be one batch."""
    draw(tmp_path / "a.png", X[0])
    draw(tmp_path / "b.png", X[0, :3])
    with pytest.raises(
        ShapeError, match=r"different sizes; at .*b\.png; expected \[4, 4, 3\] \(as in a\.png\)"
    ):
        read_calibration(tmp_path, np.dtype(np.uint8), (None, None, None, 3))

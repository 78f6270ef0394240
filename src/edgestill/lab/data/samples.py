"""Labelled data, checked once at the door.

A group says which samples belong together (a person, a device, a recording): splits and intervals go by group, since
two windows of one recording are nearly one sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Inputs with their classes and groups.

    Attributes:
        inputs: `[N, ...]`, what the sensor gives.
        labels: int64 `[N]`, in `[0, classes)`.
        groups: int64 `[N]`.
        classes: the number of classes of the lineage, at least 2.
    """

    inputs: NDArray[np.generic]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: int

    @classmethod
    def of(
        cls,
        inputs: ArrayLike,
        labels: ArrayLike,
        *,
        classes: int | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Checks and keeps the arrays.

        Args:
            inputs: `[N, ...]`.
            labels: `[N]`, whole numbers from 0.
            classes: how many there are; by default the largest label + 1.
            groups: `[N]`; by default every sample is its own group.

        Raises:
            DataError: empty, or of one class only. ShapeError: lengths differ. NotFiniteError: NaN or infinity.
            ClassCountError: a label outside `[0, classes)`.
        """
        x, y = np.asarray(inputs), np.asarray(labels)
        if len(x) == 0:
            raise DataError("no samples", expected="at least one sample of each of two classes", got=x.shape)
        if x.ndim < 2 or y.shape != (len(x),):
            raise ShapeError(
                "inputs and labels do not belong together",
                expected="inputs [N, ...] and labels [N]",
                got=(x.shape, y.shape),
            )
        if not np.issubdtype(y.dtype, np.integer):
            raise DataError(
                "labels are not whole numbers", where="labels", expected="integers from 0", got=y.dtype
            )
        _check_finite(x)
        count = int(y.max()) + 1 if classes is None else classes
        if y.min() < 0 or y.max() >= count:
            raise ClassCountError(
                "a label outside the classes", expected=f"0 to {count - 1}", got=f"{y.min()} to {y.max()}"
            )
        if len(np.unique(y)) < 2:
            raise DataError(
                "only one class", where="labels", expected="two classes or more", got=f"class {y[0]} only"
            )
        g = np.arange(len(x)) if groups is None else np.asarray(groups)
        if g.shape != y.shape:
            raise ShapeError("one group a sample", where="groups", expected=y.shape, got=g.shape)
        if not np.issubdtype(g.dtype, np.integer):
            raise DataError("groups are not whole numbers", where="groups", expected="integers", got=g.dtype)
        return cls(x, y.astype(np.int64), g.astype(np.int64), count)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> Samples:
        """Those of the mask; may be empty or of one class, since a part need not be trainable."""
        return Samples(self.inputs[mask], self.labels[mask], self.groups[mask], self.classes)

    def of_groups(self, groups: ArrayLike) -> Samples:
        """Those of these groups."""
        return self.where(np.isin(self.groups, np.asarray(groups)))

    def __add__(self, other: Samples) -> Samples:
        """Both, one after the other."""
        if self.classes != other.classes:
            raise ClassCountError("different classes", expected=self.classes, got=other.classes)
        return Samples(
            np.concatenate([self.inputs, other.inputs]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.groups, other.groups]),
            self.classes,
        )

    @property
    def digest(self) -> Digest:
        """Of inputs, shapes and labels: what the lineage names as the data."""
        head = f"{self.inputs.dtype.str}{self.inputs.shape}{self.classes}".encode()
        return Digest.of_chunks(
            (head, np.ascontiguousarray(self.inputs).tobytes(), np.ascontiguousarray(self.labels).tobytes())
        )


def _check_finite(x: NDArray[np.generic]) -> None:
    if not np.issubdtype(x.dtype, np.floating):
        return
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if bad.any():
        raise NotFiniteError(
            "NaN or infinity in the inputs",
            where=f"sample {int(np.flatnonzero(bad)[0])} and {int(bad.sum()) - 1} more",
            expected="finite numbers",
            fix="drop or repair these samples",
        )

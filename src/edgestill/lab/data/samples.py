"""Labelled data, checked once at the door.

A group says which samples belong together (a person, a device, a recording): splits and intervals go by group, since
two windows of one recording are nearly one sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, DtypeError, NotFiniteError, ShapeError
from edgestill.infer.arrayfile import native

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_LARGEST: Final = 2**63 - 1


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

    def __repr__(self) -> str:
        shape, kind = list(self.inputs.shape), self.inputs.dtype
        return f"Samples({shape} {kind}, {self.classes} classes, {len(np.unique(self.groups))} groups)"

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
            DataError: empty, of one class only, no array, or labels or groups that are no int64. ShapeError: lengths
                differ. DtypeError: inputs that are no numbers. NotFiniteError: NaN or infinity.
            ClassCountError: a label outside `[0, classes)`.
        """
        x, y = _array(inputs, "inputs"), _array(labels, "labels")
        if len(x) == 0:
            raise DataError(
                "no samples",
                where="inputs",
                expected="at least one sample of each of two classes",
                got=x.shape,
                fix="look at what the data were chosen by",
            )
        if x.ndim < 2 or y.shape != (len(x),):
            raise ShapeError(
                "inputs and labels do not belong together",
                where="inputs and labels",
                expected="inputs [N, ...] and labels [N]",
                got=f"inputs {list(x.shape)} and labels {list(y.shape)}",
                fix="give one label a sample, and the samples along the first axis",
            )
        _check_numbers(x)
        y = _whole(y, "labels")
        count = _classes(y, classes)
        g = np.arange(len(x)) if groups is None else _array(groups, "groups")
        if g.shape != y.shape:
            raise ShapeError(
                "one group a sample",
                where="groups",
                expected=y.shape,
                got=g.shape,
                fix="give each sample the number of its person, device or recording",
            )
        return cls(x, y, _whole(g, "groups"), count)

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
            raise ClassCountError(
                "different classes",
                where="classes",
                expected=self.classes,
                got=other.classes,
                fix="say `classes=` when reading either",
            )
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


def class_names(found: NDArray[np.generic] | None, where: str) -> tuple[str, ...]:
    """The names of the classes that stand in an array; empty where there is none.

    Args:
        found: `[classes]`, texts.
        where: it was found, for the error.

    Raises:
        DataError: it is no such array.
    """
    if found is None:
        return ()
    if found.ndim != 1 or found.dtype.kind != "U":
        raise DataError(
            "labels that are no names",
            where=where,
            expected="an array [classes] of texts",
            got=f"{found.dtype} {list(found.shape)}",
            fix="save numpy.array([NAME, ...]), in the order of the classes",
        )
    return tuple(map(str, found.tolist()))


def _array(given: object, name: str) -> NDArray[np.generic]:
    """Whatever numpy can make one array of."""
    try:
        made = native(np.asarray(given))
    except Exception as error:  # of lists of uneven lengths, and whatever a class of the user's raises
        raise _no_array(name, f"{type(given).__name__}: {error}") from error
    if made.ndim == 0:
        raise _no_array(name, type(given).__name__)
    return made


def _no_array(name: str, got: str) -> DataError:
    return DataError(
        f"the {name} are no array",
        where=name,
        expected="an array, or lists of equal lengths",
        got=got,
        fix="make an array of them first: numpy.stack(...), or tensor.detach().cpu().numpy()",
    )


def _check_numbers(x: NDArray[np.generic]) -> None:
    if x.dtype.kind not in "buif":
        raise DtypeError(
            "inputs are not numbers",
            where="inputs",
            expected="whole numbers or floats",
            got=x.dtype,
            fix="convert them, for example with .astype('float32')",
        )
    if x.dtype.kind != "f":
        return
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if bad.any():
        raise NotFiniteError(
            "NaN or infinity in the inputs",
            where=f"inputs, sample {int(np.flatnonzero(bad)[0])} and {int(bad.sum()) - 1} more",
            expected="finite numbers",
            got="NaN or infinity",
            fix="drop or repair these samples",
        )


def _whole(numbers: NDArray[np.generic], name: str) -> NDArray[np.int64]:
    if not np.issubdtype(numbers.dtype, np.integer):
        raise DataError(
            f"{name} are not whole numbers",
            where=name,
            expected="integers from 0",
            got=numbers.dtype,
            fix=f"number the {name}: numpy.unique(names, return_inverse=True)[1]",
        )
    if int(numbers.max()) > _LARGEST:
        raise DataError(
            f"{name} are too large",
            where=name,
            expected=f"at most {_LARGEST}",
            got=int(numbers.max()),
            fix=f"number the {name} from 0",
        )
    return numbers.astype(np.int64)


def _classes(y: NDArray[np.int64], classes: int | None) -> int:
    count = int(y.max()) + 1 if classes is None else classes
    if y.min() < 0 or y.max() >= count:
        raise ClassCountError(
            "a label outside the classes",
            where="labels",
            expected=f"0 to {count - 1}",
            got=f"{y.min()} to {y.max()}",
            fix="number the classes from 0, and name all of them with `classes`",
        )
    if len(np.unique(y)) < 2:
        raise DataError(
            "only one class",
            where="labels",
            expected="two classes or more",
            got=f"class {y[0]} only",
            fix="take samples of another class in; one alone teaches nothing",
        )
    return count

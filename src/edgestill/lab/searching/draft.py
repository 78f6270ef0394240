"""A student before it is trained: its file, which is as large and as fast as the trained one's will be.

Widths and blocks decide what a network takes; weights decide what it knows. So a candidate is carved, exported and quantised
first, in about a second, and trained only if it fits.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final

import torch

from edgestill.lab.packing.export import export_onnx, head_of
from edgestill.lab.packing.leverage import room_for
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise
from edgestill.lab.searching.shape import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass
    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.searching.shape import Space

Precision = Literal["int8", "floats"]
PRECISIONS: Final[tuple[Precision, ...]] = ("int8", "floats")
LEAST_SCALE: Final = 0.01
"""Where a width of a hundred units has one left."""
_KEPT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A student's outer measures.

    Attributes:
        direction: how its widths stand to each other.
        scale: of all of them.
        precision: of its file.
    """

    direction: Direction
    scale: float
    precision: Precision

    def as_json(self) -> JsonObject:
        """As JSON."""
        told: dict[str, Any] = dict(self.direction.as_json())
        return told | {"scale": self.scale, "precision": self.precision}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """From `as_json`."""
        direction = Direction(shares=told["shares"], left_out=told["left_out"])
        return cls(direction=direction, scale=told["scale"], precision=told["precision"])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """The file of an untrained student.

    Attributes:
        shape: its measures.
        widths: units of each width.
        model: the ONNX file.
        size: bytes of the bundle that it will be in.
    """

    shape: Shape
    widths: dict[str, int]
    model: bytes
    size: int


@final
class Drafts:
    """Makes drafts, and keeps the last ones.

    Args:
        space: the students.
        shown: `[N, ...]`, inputs to export and calibrate with; a few dozen.
        hardware_class: where the students will run.
        wrapping: features -> bytes of a bundle beside its model.
    """

    def __init__(
        self,
        space: Space,
        shown: NDArray[np.generic],
        hardware_class: HardwareClass,
        wrapping: Callable[[int], int],
    ) -> None:
        self.space, self.hardware_class = space, hardware_class
        self.shown = shown
        self._wrapping = wrapping
        self._floats: OrderedDict[str, _Exported] = OrderedDict()

    def of(self, shape: Shape) -> Draft:
        """The draft of a shape.

        Raises:
            ModelError: it cannot be carved, exported or quantised. SettingError: the direction is of another space.
        """
        widths = self.space.widths(shape.direction, shape.scale)
        key = repr((sorted(widths.items()), sorted(shape.direction.left_out.items())))
        exported = self._floats.pop(key, None) or self._exported(shape)
        self._floats[key] = exported
        if len(self._floats) > _KEPT:
            self._floats.popitem(last=False)
        model = shippable(exported.model(shape.precision, self))
        size = len(model) + exported.wrapping + room_for(exported.features, len(model))
        return Draft(shape=shape, widths=widths, model=model, size=size)

    def _exported(self, shape: Shape) -> _Exported:
        student = self.space.built(shape.direction, shape.scale).eval()
        floats = export_onnx(student, torch.from_numpy(self.shown[:2]))
        features = head_of(student)[1].in_features
        return _Exported({"floats": floats}, self._wrapping(features), features)


@dataclass(frozen=True, slots=True)
class _Exported:
    """The files of one student, by precision, and what a bundle adds to them."""

    files: dict[Precision, bytes]
    wrapping: int
    features: int

    def model(self, precision: Precision, drafts: Drafts) -> bytes:
        if precision not in self.files:
            self.files[precision] = quantise(self.files["floats"], drafts.shown, drafts.hardware_class)
        return self.files[precision]

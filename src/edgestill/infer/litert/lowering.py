"""What is known of each value while an ONNX graph is written down as TFLite.

- ONNX puts channels first, TFLite last. A value remembers in which order its axes are *stored*; a transposition only changes what is
  remembered, and axes are moved where an operator needs them elsewhere.
- ONNX writes int8 as floats between `QuantizeLinear` and `DequantizeLinear`. A value can therefore be there as floats, as codes, or as both;
  an operator between codes and codes is written on codes, and everything else on floats, which are made when somebody needs them.
- Codes of uint8 become int8 by subtracting 128 from them and from their zero: the same numbers.
- There is one row: a batch is asked row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from edgestill.core.errors import EngineError
from edgestill.infer.litert.flat import Flat, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.infer.onnxgraph import Graph, Node

UNIT: Final = -1
"""A stored axis of size 1 that ONNX does not have."""
_SHIFT: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value is stored.

    Attributes:
        tensor: its number.
        axes: ONNX's axes in the order in which they are stored.
        kind: numpy's name of the stored numbers.
        scale: of codes; None for floats.
        zero: of codes; it may be no whole number while a sensor's bytes are only being scaled.
        folded: (C, H, W, ...) where the last axis was these, and is stored with C last.
    """

    tensor: int
    axes: tuple[int, ...]
    kind: str = "float32"
    scale: float | None = None
    zero: float = 0.0
    folded: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """Weights as codes: `(codes - 0) * scale`, along an axis."""

    codes: NDArray[np.integer]
    scale: NDArray[np.float32]
    axis: int


@dataclass(slots=True, kw_only=True, eq=False)
class Value:
    """A value of the ONNX graph, for one row.

    Attributes:
        shape: as ONNX has it.
        constant: its numbers, where they stand in the file.
        stored: the same as codes.
        floats: where it is as floats (or whole numbers that are no codes).
        codes: where it is as codes.
    """

    shape: tuple[int, ...]
    constant: NDArray[Any] | None = None
    stored: Stored | None = None
    floats: Place | None = None
    codes: Place | None = None


@final
class Lowering:
    """A TFLite graph in the making.

    Args:
        graph: the ONNX graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.flat = Flat()
        self.graph = graph
        self.values = {
            name: Value(shape=array.shape, constant=array) for name, array in graph.constants.items()
        }
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    def value(self, name: str) -> Value:
        """Of this name."""
        return self.values[name]

    def constant(self, node: Node, at: int) -> NDArray[Any] | None:
        """The numbers of an input, where they stand in the file; None where it is left out or computed."""
        if at >= len(node.inputs) or not node.inputs[at]:
            return None
        return self.values[node.inputs[at]].constant

    def wanted_codes(self, name: str) -> tuple[float, int] | None:
        """Scale and zero (of int8) where whoever reads the value reads it as codes of one grid; None otherwise."""
        readers = self._readers.get(name, [])
        if name in self.graph.outputs or not readers:
            return None
        grids = {self.grid(one) for one in readers if one.kind == "QuantizeLinear"}
        if len(grids) != 1 or any(one.kind != "QuantizeLinear" for one in readers):
            return None
        return grids.pop()

    def grid(self, node: Node) -> tuple[float, int]:
        """Scale and zero (of int8) of a `QuantizeLinear` or `DequantizeLinear` of activations."""
        scale, zero = self.constant(node, 1), self.constant(node, 2)
        if scale is None or scale.size != 1 or zero is None or zero.dtype.name not in {"uint8", "int8"}:
            raise unsupported(node, "codes of 8 bits with one scale for all")
        shift = _SHIFT if zero.dtype == np.uint8 else 0
        return float(scale.reshape(())), int(zero.reshape(())) - shift

    # places

    def new(self, value_shape: Sequence[int], axes: Sequence[int], grid: tuple[float, int] | None) -> Place:
        """A place for a value: as int8 codes on a grid, or as floats."""
        stored = [1 if axis == UNIT else value_shape[axis] for axis in axes]
        if grid is None:
            return Place(tensor=self.flat.tensor(stored, "float32"), axes=tuple(axes))
        scale, zero = grid
        tensor = self.flat.tensor(stored, "int8", grid=Grid(np.float32(scale), zero))  # type: ignore[arg-type]  # one number is an array of no axes
        return Place(tensor=tensor, axes=tuple(axes), kind="int8", scale=scale, zero=zero)

    def like(self, place: Place, shape: Sequence[int], axes: Sequence[int]) -> Place:
        """A new place for the same kind of numbers."""
        grid = None if place.scale is None else (place.scale, int(place.zero))
        if place.kind in {"float32", "int8"}:
            return self.new(shape, axes, grid)
        stored = [1 if axis == UNIT else shape[axis] for axis in axes]
        kind = place.kind.removeprefix("raw ")
        return replace(place, tensor=self.flat.tensor(stored, kind), axes=tuple(axes), folded=())

    def result(self, name: str, shape: Sequence[int], place: Place) -> None:
        """The value of this name is here."""
        value = Value(shape=tuple(shape))
        if place.scale is None:
            value.floats = place
        else:
            value.codes = place
        self.values[name] = value

    def floats(self, name: str) -> Place:
        """Where the value is as floats; they are made where it is not."""
        value = self.values[name]
        if value.floats is None:
            if value.constant is not None:
                tensor = self.flat.constant(as_floats(value.constant))
                value.floats = Place(tensor=tensor, axes=tuple(range(value.constant.ndim)))
            else:
                assert value.codes is not None
                value.floats = self._decoded(value, value.codes)
        return value.floats

    def codes(self, name: str) -> Place | None:
        """Where the value is as int8 codes; None where it is not."""
        codes = self.values[name].codes
        return codes if codes is not None and codes.kind == "int8" else None

    def _decoded(self, value: Value, codes: Place) -> Place:
        assert codes.scale is not None
        made = replace(self.new(value.shape, codes.axes, None), folded=codes.folded)
        if codes.kind == "int8":
            self.flat.add("DEQUANTIZE", [codes.tensor], [made.tensor])
            return made
        self.flat.add("CAST", [codes.tensor], [made.tensor])  # a sensor's numbers
        for operator, number, idle in (("SUB", codes.zero, 0.0), ("MUL", codes.scale, 1.0)):
            if number != idle:
                after = self.new(value.shape, codes.axes, None)
                by = self.flat.constant(np.array([number], dtype=np.float32))
                self.flat.add(operator, [made.tensor, by], [after.tensor])
                made = after
        return made

    def in_order(self, value: Value, place: Place, axes: Sequence[int]) -> Place:
        """The same numbers with their axes stored so."""
        place = self.unfolded(value, place)
        axes = tuple(axes)
        if place.axes == axes:
            return place
        inner = tuple(axis for axis in place.axes if axis != UNIT)
        wanted = tuple(axis for axis in axes if axis != UNIT)
        if inner != place.axes:
            place = self._reshaped(value, place, inner)
        if inner != wanted:
            moved = self.like(place, value.shape, wanted)
            order = np.array([inner.index(axis) for axis in wanted], dtype=np.int32)
            self.flat.add("TRANSPOSE", [place.tensor, self.flat.constant(order)], [moved.tensor])
            place = moved
        return place if wanted == axes else self._reshaped(value, place, axes)

    def unfolded(self, value: Value, place: Place) -> Place:
        """With channels first again in an axis that was made of several."""
        if not place.folded:
            return place
        channels, *rest = place.folded
        shape = (1, *rest, channels)
        wide = self.like(place, shape, range(len(shape)))
        self.reshape(place.tensor, wide.tensor, shape)
        first = (1, channels, *rest)
        moved = self.like(place, first, range(len(first)))
        order = np.array([0, len(shape) - 1, *range(1, len(shape) - 1)], dtype=np.int32)
        self.flat.add("TRANSPOSE", [wide.tensor, self.flat.constant(order)], [moved.tensor])
        narrow = self.like(place, value.shape, place.axes)
        self.reshape(moved.tensor, narrow.tensor, value.shape)
        return narrow

    def _reshaped(self, value: Value, place: Place, axes: tuple[int, ...]) -> Place:
        made = self.like(place, value.shape, axes)
        self.reshape(place.tensor, made.tensor, [1 if axis == UNIT else value.shape[axis] for axis in axes])
        return made

    def reshape(self, tensor: int, into: int, shape: Sequence[int]) -> None:
        """Writes a `RESHAPE`."""
        target = self.flat.constant(np.array(shape, dtype=np.int32))
        self.flat.add("RESHAPE", [tensor, target], [into], newShape=list(shape))

    def file(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """The TFLite file, and the outputs that are constants.

        Raises:
            EngineError: several inputs, or an output that nothing computes.
        """
        places, fixed = [], {}
        for name in self.graph.outputs:
            value = self.values[name]
            if value.constant is not None:
                fixed[name] = value.constant
                continue
            place = self.in_order(value, self.floats(name), range(len(value.shape)))
            # an output's name must be its own: two outputs may be one value
            own = self.like(place, value.shape, place.axes)
            self.reshape(place.tensor, own.tensor, value.shape)
            self.flat.name(own.tensor, name)
            places.append(own.tensor)
        return self.flat.finished([self.input], places), fixed

    def take_input(self) -> None:
        """The graph's input, as it is given.

        Raises:
            EngineError: several, or a free axis behind the first.
        """
        ((name, (kind, shape)),) = self.graph.inputs.items()
        row = (1, *shape[1:])
        if not shape or None in row or prod(row[1:]) == 0:  # type: ignore[arg-type]  # None was looked for
            raise EngineError(
                "the engine cannot load the model",
                where="litert: input",
                expected="all axes but the first fixed",
                got=list(shape),
                fix="export it with fixed axes, or run it with onnxruntime",
            )
        fixed = tuple(one or 1 for one in row)
        self.input = self.flat.tensor(fixed, kind, name=name)
        place = Place(tensor=self.input, axes=tuple(range(len(fixed))), kind=kind)
        self.values[name] = Value(shape=fixed, floats=place)


def as_floats(array: NDArray[Any]) -> NDArray[Any]:
    """Floats of any width as float32; other numbers as they are."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def unsupported(node: Node, expected: str, got: object = None) -> EngineError:
    """An operator, or a way of using it, that is not written down as TFLite."""
    return EngineError(
        "the engine cannot load the model",
        where=f"litert: {node.kind} {node.outputs[0] if node.outputs else ''}".rstrip(),
        expected=expected,
        got=node.kind if got is None else got,
        fix="run it with onnxruntime or openvino",
    )

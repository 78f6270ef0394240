"""Operators with weights, and those that look at several places at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.infer.litert.flat import Grid
from edgestill.infer.litert.lowering import UNIT, Place, Stored, Value, as_floats, unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.infer.litert.lowering import Lowering
    from edgestill.infer.onnxgraph import Node

_LAST: Final = {3: (0, UNIT, 2, 1), 4: (0, 2, 3, 1)}
"""Rank -> the order with channels last, as height and width; a row of places has height 1."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a window moves over height and width.

    Attributes:
        kernel, stride, dilation: each (height, width).
        pads: (top, left, bottom, right).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, node: Node, kernel: Sequence[int]) -> Window:
        """Of a convolution or a pooling; EngineError where it pads by itself."""
        if node.attributes.get("auto_pad", "NOTSET") not in {"NOTSET", ""}:
            raise unsupported(node, "pads in numbers", node.attributes["auto_pad"])
        rank = len(kernel)
        if rank not in {1, 2}:
            raise unsupported(node, "one or two axes of places", rank)
        pads = list(node.attributes.get("pads") or [0] * (2 * rank))
        if rank == 1:
            pads = [0, pads[0], 0, pads[1]]
        return cls(
            _pair(kernel),
            _pair(node.attributes.get("strides") or [1] * rank),
            _pair(node.attributes.get("dilations") or [1] * rank),
            (pads[0], pads[1], pads[2], pads[3]),
        )

    def given(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of what comes out."""
        found = [
            (size[at] + self.pads[at] + self.pads[at + 2] - self._reach(at)) // self.stride[at] + 1
            for at in range(2)
        ]
        return found[0], found[1]

    def is_same(self, size: Sequence[int]) -> bool:
        """Whether TFLite's `SAME` pads as this window does."""
        for at in range(2):
            out = -(-size[at] // self.stride[at])
            total = max(0, (out - 1) * self.stride[at] + self._reach(at) - size[at])
            before, after = self.pads[at], self.pads[at + 2]
            if out != self.given(size)[at] or (before, after) != (total // 2, total - total // 2):
                return False
        return True

    def _reach(self, at: int) -> int:
        return self.dilation[at] * (self.kernel[at] - 1) + 1


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def conv(low: Lowering, node: Node) -> None:
    """`Conv` of one or two axes, with one group, or with a group for each channel."""
    value, name = low.value(node.inputs[0]), node.outputs[0]
    weights = low.value(node.inputs[1])
    if weights.constant is None or len(value.shape) not in _LAST:
        raise unsupported(node, "constant weights, and one or two axes of places")
    channels, given = value.shape[1], weights.shape[0]
    groups = node.attributes.get("group", 1)
    deep = groups == channels and weights.shape[1] == 1 and groups > 1
    if groups != 1 and not deep:
        raise unsupported(node, "one group, or one for each channel", f"{groups} groups")
    window = Window.of(node, weights.shape[2:])
    codes, wanted = low.codes(node.inputs[0]), low.wanted_codes(name)
    coded = codes if codes is not None and wanted is not None and _fits(weights.stored, 0) else None
    place = low.in_order(value, coded or low.floats(node.inputs[0]), _LAST[len(value.shape)])
    size = (1, *value.shape[2:]) if len(value.shape) == 3 else value.shape[2:]
    place, same = _padded(low, place, value, window, size)
    inputs = [
        place.tensor,
        _kernel(low, weights, deep=deep, coded=coded is not None),
        _bias(low, node, given, coded, weights.stored),
    ]
    height, width = window.given(size)
    shape = (1, given, width) if len(value.shape) == 3 else (1, given, height, width)
    made = low.new(shape, _LAST[len(value.shape)], wanted if coded is not None else None)
    settings: dict[str, Any] = {
        "padding": low.flat.padding(same=same),
        "strideH": window.stride[0],
        "strideW": window.stride[1],
        "dilationHFactor": window.dilation[0],
        "dilationWFactor": window.dilation[1],
    }
    if deep:
        settings["depthMultiplier"] = given // channels
    low.flat.add("DEPTHWISE_CONV_2D" if deep else "CONV_2D", inputs, [made.tensor], **settings)
    low.result(name, shape, made)


def _fits(stored: Stored | None, axis: int) -> bool:
    """Whether weights are int8 codes along the axis on which LiteRT has its channels."""
    return stored is not None and stored.codes.dtype == np.int8 and stored.axis == axis


def _padded(
    low: Lowering, place: Place, value: Value, window: Window, size: Sequence[int]
) -> tuple[Place, bool]:
    """The place, padded where TFLite's own padding is another one, and whether `SAME` is right for it."""
    if not any(window.pads):
        return place, False
    if window.is_same(size):
        return place, True
    top, left, bottom, right = window.pads
    shape = [1, size[0] + top + bottom, size[1] + left + right, value.shape[1]]
    made = low.like(place, shape, range(4))
    pads = low.flat.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], dtype=np.int32))
    low.flat.add("PAD", [place.tensor, pads], [made.tensor])
    return made, False


def _kernel(low: Lowering, weights: Value, *, deep: bool, coded: bool) -> int:
    """`[O, H, W, I]`, or `[1, H, W, O]` where each channel has its own."""
    assert weights.constant is not None
    stored = weights.stored
    array = stored.codes if coded and stored is not None else as_floats(weights.constant)
    if array.ndim == 3:
        array = array[:, :, None, :]
    array = array.transpose(1, 2, 3, 0) if deep else array.transpose(0, 2, 3, 1)
    grid = Grid(stored.scale, 0, 3 if deep else 0) if coded and stored is not None else None
    return low.flat.constant(np.ascontiguousarray(array), grid=grid)


def _bias(low: Lowering, node: Node, count: int, coded: Place | None, stored: Stored | None) -> int:
    """A term for each channel: as int32 codes beside int8 weights, else as floats."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    value = low.value(name) if name else Value(shape=(count,), constant=np.zeros(count, dtype=np.float32))
    if value.constant is None:
        raise unsupported(node, "a constant bias")
    floats = np.broadcast_to(as_floats(value.constant).reshape(-1), (count,))
    if coded is None or stored is None or coded.scale is None:
        return low.flat.constant(np.ascontiguousarray(floats))
    scale = (stored.scale * np.float32(coded.scale)).astype(np.float32)
    codes = np.clip(np.rint(floats / scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    return low.flat.constant(codes, grid=Grid(scale, 0, 0))


def linear(low: Lowering, node: Node) -> None:
    """`Gemm` and `MatMul` with constant weights, over the last axis."""
    value, weights = low.value(node.inputs[0]), low.value(node.inputs[1])
    attributes = node.attributes
    if weights.constant is None or weights.constant.ndim != 2:
        raise unsupported(node, "constant weights of two axes")
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise unsupported(node, "a product and a sum, as they are", "transA, alpha or beta")
    turned = not attributes.get("transB", 0)
    stored, wanted = weights.stored, low.wanted_codes(node.outputs[0])
    codes = low.codes(node.inputs[0])
    coded = codes if codes is not None and wanted and _fits(stored, 1 if turned else 0) else None
    place = coded or low.floats(node.inputs[0])
    if not place.folded:
        place = low.in_order(value, place, range(len(value.shape)))
    array = stored.codes if coded is not None and stored is not None else as_floats(weights.constant)
    array = array.T if turned else array
    if place.folded:
        channels, *rest = place.folded
        array = array.reshape(len(array), channels, prod(rest)).transpose(0, 2, 1).reshape(len(array), -1)
    grid = Grid(stored.scale, 0, 0) if coded is not None and stored is not None else None
    inputs = [place.tensor, low.flat.constant(np.ascontiguousarray(array), grid=grid)]
    if len(node.inputs) > 2:
        inputs.append(_bias(low, node, len(array), coded, stored))
    shape = (*value.shape[:-1], len(array))
    made = low.new(shape, range(len(shape)), wanted if coded is not None else None)
    low.flat.add("FULLY_CONNECTED", inputs, [made.tensor], keepNumDims=len(shape) != 2)
    low.result(node.outputs[0], shape, made)


def pool(low: Lowering, node: Node) -> None:
    """`MaxPool` and `AveragePool`."""
    value, name = low.value(node.inputs[0]), node.outputs[0]
    if len(value.shape) not in _LAST or len([one for one in node.outputs if one]) > 1:
        raise unsupported(node, "one or two axes of places, and one output")
    window = Window.of(node, node.attributes["kernel_shape"])
    largest = node.kind == "MaxPool"
    size = (1, *value.shape[2:]) if len(value.shape) == 3 else value.shape[2:]
    same = any(window.pads)
    if same and (not window.is_same(size) or (not largest and node.attributes.get("count_include_pad", 0))):
        raise unsupported(node, "pads that are left out of account", list(window.pads))
    if window.dilation != (1, 1) or (node.attributes.get("ceil_mode", 0) and not _even(window, size)):
        raise unsupported(node, "windows side by side that fit in", "dilations or ceil_mode")
    codes, wanted = low.codes(node.inputs[0]), low.wanted_codes(name)
    coded = codes if codes is not None and wanted == (codes.scale, codes.zero) else None
    place = low.in_order(value, coded or low.floats(node.inputs[0]), _LAST[len(value.shape)])
    height, width = window.given(size)
    shape = (1, value.shape[1], width) if len(value.shape) == 3 else (1, value.shape[1], height, width)
    made = low.new(shape, _LAST[len(value.shape)], wanted if coded is not None else None)
    low.flat.add(
        "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D",
        [place.tensor],
        [made.tensor],
        padding=low.flat.padding(same=same),
        strideH=window.stride[0],
        strideW=window.stride[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )
    low.result(name, shape, made)


def _even(window: Window, size: Sequence[int]) -> bool:
    """Whether the last window ends where the places do: then rounding up or down is the same."""
    return all(
        (size[at] + window.pads[at] + window.pads[at + 2] - window.kernel[at]) % window.stride[at] == 0
        for at in range(2)
    )


def mean(low: Lowering, node: Node) -> None:
    """`ReduceMean` and `GlobalAveragePool`."""
    value, name = low.value(node.inputs[0]), node.outputs[0]
    rank = len(value.shape)
    axes, keep = _mean_axes(low, node, rank)
    if 0 in axes or not axes:
        raise unsupported(node, "axes behind the first", list(axes))
    codes, wanted = low.codes(node.inputs[0]), low.wanted_codes(name)
    coded = codes if wanted is not None else None
    place = low.unfolded(value, coded or low.floats(node.inputs[0]))
    where = [at for at, axis in enumerate(place.axes) if axis in axes]
    if not keep:
        where += [at for at, axis in enumerate(place.axes) if axis == UNIT]
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    left = place.axes
    if not keep:
        kept = [axis for axis in range(rank) if axis not in axes]
        shape = tuple(value.shape[axis] for axis in kept)
        left = tuple(kept.index(axis) for axis in place.axes if axis in kept)
    made = low.new(shape, left, wanted if coded is not None else None)
    by = low.flat.constant(np.array(sorted(where), dtype=np.int32))
    low.flat.add("MEAN", [place.tensor, by], [made.tensor], keepDims=bool(keep))
    low.result(name, shape, made)


def _mean_axes(low: Lowering, node: Node, rank: int) -> tuple[set[int], bool]:
    if node.kind == "GlobalAveragePool":
        return set(range(2, rank)), True
    told: NDArray[Any] | list[int] | None = low.constant(node, 1)
    if told is None:
        told = node.attributes.get("axes")
    axes = set(range(rank)) if told is None else {int(one) % rank for one in told}
    return axes, bool(node.attributes.get("keepdims", 1))

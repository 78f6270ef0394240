"""Operators that move numbers about and change none."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgestill.infer.litert.lowering import UNIT, Place, Value, unsupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.infer.litert.lowering import Lowering
    from edgestill.infer.onnxgraph import Node


def transpose(low: Lowering, node: Node) -> None:
    """Nothing is moved: the axes have other numbers."""
    value = low.value(node.inputs[0])
    order = node.attributes.get("perm") or list(range(len(value.shape)))[::-1]
    if value.constant is not None:
        low.values[node.outputs[0]] = Value(
            shape=value.constant.transpose(order).shape, constant=value.constant.transpose(order)
        )
        return

    def renamed(place: Place | None) -> Place | None:
        if place is None:
            return None
        place = low.unfolded(value, place)
        return replace(place, axes=tuple(axis if axis == UNIT else order.index(axis) for axis in place.axes))

    if order[0] != 0:
        raise unsupported(node, "rows that stay the first axis", order)
    low.values[node.outputs[0]] = Value(
        shape=tuple(value.shape[axis] for axis in order),
        floats=renamed(value.floats),
        codes=renamed(value.codes),
    )


def reshape(low: Lowering, node: Node) -> None:
    """`Reshape`, `Flatten`, `Squeeze` and `Unsqueeze`."""
    value = low.value(node.inputs[0])
    shape = _target(low, node, value.shape)
    if prod(shape) != prod(value.shape) or not shape or shape[0] != 1:
        raise unsupported(node, "rows that stay the first axis", list(shape))
    if value.constant is not None:
        low.values[node.outputs[0]] = Value(shape=shape, constant=value.constant.reshape(shape))
        return
    codes = low.codes(node.inputs[0])
    place = codes if codes is not None and _same_grid(low, node, codes) else low.floats(node.inputs[0])
    low.result(node.outputs[0], shape, _as_shape(low, value, place, shape))


def _same_grid(low: Lowering, node: Node, codes: Place) -> bool:
    return low.wanted_codes(node.outputs[0]) == (codes.scale, codes.zero)


def _as_shape(low: Lowering, value: Value, place: Place, shape: tuple[int, ...]) -> Place:
    """The numbers in ONNX's order under another shape; channels that are last may stay so in an axis made of all."""
    inner = [axis for axis in place.axes if axis != UNIT]
    channels, rest = (value.shape[1], value.shape[2:]) if len(value.shape) > 2 else (1, ())
    last = inner == [0, *range(2, len(value.shape)), 1]
    if last and len(shape) == 2:  # all in one axis
        made = low.like(place, shape, range(2))
        low.reshape(place.tensor, made.tensor, shape)
        return replace(made, folded=(channels, *rest) if channels > 1 and prod(rest) > 1 else ())
    place = low.in_order(value, place, range(len(value.shape)))
    made = low.like(place, shape, range(len(shape)))
    low.reshape(place.tensor, made.tensor, shape)
    return made


def _target(low: Lowering, node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    if node.kind == "Flatten":
        axis = node.attributes.get("axis", 1)
        return (prod(shape[:axis]), prod(shape[axis:]))
    told: NDArray[Any] | list[int] | None = low.constant(node, 1)
    if node.kind in {"Squeeze", "Unsqueeze"}:
        axes = told if told is not None else node.attributes.get("axes")
        if axes is None:
            return (1, *(size for size in shape[1:] if size != 1))
        rank = len(shape) + (len(axes) if node.kind == "Unsqueeze" else 0)
        places = {int(one) % rank for one in axes}
        if node.kind == "Squeeze":
            return tuple(size for at, size in enumerate(shape) if at not in places)
        sizes = iter(shape)
        return tuple(1 if at in places else next(sizes) for at in range(rank))
    if told is None:
        raise unsupported(node, "a constant shape")
    wanted = [int(one) for one in told]
    if not node.attributes.get("allowzero", 0):
        wanted = [shape[at] if one == 0 else one for at, one in enumerate(wanted)]
    # an exported batch of one stands for any row
    known = prod(one for one in wanted if one != -1)
    return tuple(prod(shape) // max(1, known) if one == -1 else one for one in wanted)


def concat(low: Lowering, node: Node) -> None:
    """`Concat` along an axis behind the first."""
    values = [low.value(name) for name in node.inputs]
    rank = len(values[0].shape)
    axis = node.attributes["axis"] % rank
    if axis == 0 or any(one.constant is not None for one in values):
        raise unsupported(node, "computed values, put together behind the first axis")
    wanted = low.wanted_codes(node.outputs[0])
    codes = [low.codes(name) for name in node.inputs]
    if any(one is None or (one.scale, one.zero) != wanted for one in codes):
        wanted, codes = None, [low.floats(name) for name in node.inputs]
    first = codes[0]
    assert first is not None
    order = low.unfolded(values[0], first).axes
    places = [
        low.in_order(value, one, order) for value, one in zip(values, codes, strict=True) if one is not None
    ]
    shape = list(values[0].shape)
    shape[axis] = sum(one.shape[axis] for one in values)
    made = low.new(shape, order, wanted)
    low.flat.add("CONCATENATION", [one.tensor for one in places], [made.tensor], axis=order.index(axis))
    low.result(node.outputs[0], shape, made)


def pad(low: Lowering, node: Node) -> None:
    """`Pad` with zeros."""
    value = low.value(node.inputs[0])
    rank = len(value.shape)
    told: Any = low.constant(node, 1)
    pads = [int(one) for one in (told if told is not None else node.attributes.get("pads", []))]
    filled, axes = low.constant(node, 2), low.constant(node, 3)
    if axes is not None:
        wide = [0] * (2 * rank)
        for at, axis in enumerate(int(one) % rank for one in axes):
            wide[axis], wide[axis + rank] = pads[at], pads[at + len(axes)]
        pads = wide
    zero = filled is None or not filled.any()
    if (
        node.attributes.get("mode", "constant") != "constant"
        or not zero
        or min(pads, default=-1) < 0
        or len(pads) != 2 * rank
    ):
        raise unsupported(node, "zeros around what is there")
    codes = low.codes(node.inputs[0])
    place = codes if codes is not None and _same_grid(low, node, codes) else low.floats(node.inputs[0])
    place = low.unfolded(value, place)
    shape = [size + pads[at] + pads[at + rank] for at, size in enumerate(value.shape)]
    by = [[0, 0] if axis == UNIT else [pads[axis], pads[axis + rank]] for axis in place.axes]
    made = low.like(place, shape, place.axes)
    low.flat.add("PAD", [place.tensor, low.flat.constant(np.array(by, dtype=np.int32))], [made.tensor])
    low.result(node.outputs[0], shape, made)


def cut(low: Lowering, node: Node) -> None:
    """`Slice` with constant ends and steps forward."""
    value = low.value(node.inputs[0])
    rank = len(value.shape)
    told = [low.constant(node, at) for at in range(1, 5)]
    starts, ends = told[0], told[1]
    if starts is None or ends is None:
        raise unsupported(node, "constant ends")
    axes = range(len(starts)) if told[2] is None else [int(one) % rank for one in told[2]]
    steps = np.ones(len(starts), np.int64) if told[3] is None else told[3]
    first, last, step = [0] * rank, list(value.shape), [1] * rank
    for at, axis in enumerate(axes):
        chosen = slice(int(starts[at]), int(ends[at]), int(steps[at])).indices(value.shape[axis])
        first[axis], last[axis], step[axis] = chosen
    if (
        min(step) < 1
        or (first[0], last[0]) != (0, 1)
        or any(a >= b for a, b in zip(first, last, strict=True))
    ):
        raise unsupported(node, "steps forward, behind the first axis")
    codes = low.codes(node.inputs[0])
    place = codes if codes is not None and _same_grid(low, node, codes) else low.floats(node.inputs[0])
    place = low.unfolded(value, place)
    shape = [len(range(a, b, c)) for a, b, c in zip(first, last, step, strict=True)]
    made = low.like(place, shape, place.axes)
    numbers = [
        low.flat.constant(
            np.array([whole if axis == UNIT else each[axis] for axis in place.axes], dtype=np.int32)
        )
        for each, whole in ((first, 0), (last, 1), (step, 1))
    ]
    low.flat.add("STRIDED_SLICE", [place.tensor, *numbers], [made.tensor])
    low.result(node.outputs[0], shape, made)

"""Operators that change numbers one by one, and what makes codes of floats and floats of codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.infer.litert.flat import Grid
from edgestill.infer.litert.lowering import Place, Stored, Value, as_floats, unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.infer.litert.lowering import Lowering
    from edgestill.infer.onnxgraph import Node

_BINARY: Final = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}
_ON_CODES: Final = frozenset({"Add", "Sub", "Mul"})
_UNARY: Final = {
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "HardSwish": "HARD_SWISH",
    "Exp": "EXP",
    "Sqrt": "SQRT",
    "Abs": "ABS",
    "Neg": "NEG",
}
_SENSORS: Final = frozenset({"uint8", "int8"})
_NEAR: Final = 1e-6
_MOST: Final = {"uint8": 255, "int8": 127}
_LEAST: Final = {"uint8": 0, "int8": -128}


def identity(low: Lowering, node: Node) -> None:
    """The same value under another name."""
    low.values[node.outputs[0]] = low.value(node.inputs[0])


def cast(low: Lowering, node: Node) -> None:
    """A sensor's bytes to floats: codes whose scale is 1, until they are scaled; floats to floats."""
    value = low.value(node.inputs[0])
    kind = {1: "float32", 10: "float32", 11: "float32"}.get(node.attributes.get("to", 0))
    if value.constant is not None and kind is not None:
        low.values[node.outputs[0]] = Value(shape=value.shape, constant=value.constant.astype(np.float32))
        return
    place = value.floats
    if kind is None or place is None:
        raise unsupported(node, "a cast to float32")
    if place.kind == kind:
        low.values[node.outputs[0]] = value
    elif place.kind in _SENSORS:
        low.result(
            node.outputs[0], value.shape, replace(place, scale=1.0, zero=0.0, kind=f"raw {place.kind}")
        )
    else:
        made = low.new(value.shape, place.axes, None)
        low.flat.add("CAST", [place.tensor], [made.tensor])
        low.result(node.outputs[0], value.shape, replace(made, folded=place.folded))


def quantize(low: Lowering, node: Node) -> None:
    """`QuantizeLinear` of an activation."""
    value, (scale, zero) = low.value(node.inputs[0]), low.grid(node)
    codes = low.codes(node.inputs[0])
    if codes is not None and (codes.scale, codes.zero) == (scale, zero):
        low.result(node.outputs[0], value.shape, codes)
        return
    source = _sensor_codes(low, value) or low.floats(node.inputs[0])
    made = replace(low.new(value.shape, source.axes, (scale, zero)), folded=source.folded)
    low.flat.add("QUANTIZE", [source.tensor], [made.tensor])
    low.result(node.outputs[0], value.shape, made)


def _sensor_codes(low: Lowering, value: Value) -> Place | None:
    """The sensor's bytes as codes that LiteRT can read; None where their zero is no code, or the tensor has another grid."""
    codes = value.codes
    if codes is None or not codes.kind.startswith("raw ") or codes.scale is None or codes.scale <= 0:
        return None
    kind = codes.kind.removeprefix("raw ")
    zero = round(codes.zero)
    if abs(zero - codes.zero) > _NEAR or not _LEAST[kind] <= zero <= _MOST[kind]:
        return None
    return codes if low.flat.grid_of(codes.tensor, Grid(np.array(codes.scale, np.float32), zero)) else None


def dequantize(low: Lowering, node: Node) -> None:
    """`DequantizeLinear`: of weights a constant, of an activation the same codes."""
    value = low.value(node.inputs[0])
    if value.constant is None:
        if low.codes(node.inputs[0]) is None:
            raise unsupported(node, "codes that a QuantizeLinear made")
        low.grid(node)
        low.values[node.outputs[0]] = value
        return
    scale, zero = low.constant(node, 1), low.constant(node, 2)
    codes = value.constant
    if scale is None or (zero is not None and zero.any() and zero.dtype != np.uint8):
        raise unsupported(node, "weights whose zero is 0")
    axis = node.attributes.get("axis", 1) % max(1, codes.ndim)
    offset = 0 if zero is None else zero.astype(np.int64).reshape(-1)
    along = _along(scale, codes.ndim, axis)
    floats = ((codes.astype(np.int64) - _along(np.asarray(offset), codes.ndim, axis)) * along).astype(
        np.float32
    )
    made = Value(shape=codes.shape, constant=floats)
    if codes.dtype.name in {"int8", "int32"} and not np.any(offset):
        many = np.broadcast_to(scale.reshape(-1), (codes.shape[axis] if codes.ndim else 1,))
        made.stored = Stored(codes=codes, scale=many.astype(np.float32), axis=axis)
    low.values[node.outputs[0]] = made


def _along(numbers: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    """As many axes as the weights have, the numbers along one of them."""
    if numbers.size == 1:
        return numbers.reshape((1,) * rank)
    shape = [1] * rank
    shape[axis] = -1
    return numbers.reshape(shape)


def binary(low: Lowering, node: Node) -> None:
    """Add, Sub, Mul, Div of two values, or of a value and a constant."""
    first, second = (low.value(name) for name in node.inputs[:2])
    if first.constant is not None and second.constant is not None:
        raise unsupported(node, "a computed operand", "two constants")
    if _scaled_sensor(low, node, first, second):
        return
    shape = np.broadcast_shapes(first.shape, second.shape)
    wanted = low.wanted_codes(node.outputs[0])
    places = [low.codes(name) for name in node.inputs[:2]]
    if node.kind in _ON_CODES and wanted and None not in places and first.shape == second.shape == shape:
        grid: tuple[float, int] | None = wanted
    else:
        grid, places = None, [_operand(low, node, at, shape) for at in range(2)]
    left, right = (one for one in places if one is not None)
    lead = left if first.constant is None else right
    whole = Value(shape=shape)
    left, right = (
        one if value.constant is not None else low.in_order(_wide(value, shape), one, lead.axes)
        for value, one in ((first, left), (second, right))
    )
    lead = left if first.constant is None else right
    made = low.new(whole.shape, lead.axes, grid)
    low.flat.add(_BINARY[node.kind], [left.tensor, right.tensor], [made.tensor])
    low.result(node.outputs[0], shape, made)


def _wide(value: Value, shape: tuple[int, ...]) -> Value:
    return value if len(value.shape) == len(shape) else Value(shape=shape)


def _operand(low: Lowering, node: Node, at: int, shape: tuple[int, ...]) -> Place:
    """An operand as floats; a constant with its axes as the other operand stores them."""
    name, other = node.inputs[at], node.inputs[1 - at]
    value = low.value(name)
    if value.constant is None:
        if len(value.shape) != len(shape):
            raise unsupported(node, "operands of as many axes", [list(value.shape), list(shape)])
        return low.unfolded(value, low.floats(name))
    axes = low.unfolded(low.value(other), low.floats(other)).axes
    array = as_floats(value.constant)
    if array.size == 1:
        return Place(tensor=low.flat.constant(array.reshape(1)), axes=axes)
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    stored = array.transpose([axis for axis in axes if axis >= 0])
    shaped = [1 if axis < 0 else array.shape[axis] for axis in axes]
    return Place(tensor=low.flat.constant(stored.reshape(shaped)), axes=axes)


def _scaled_sensor(low: Lowering, node: Node, first: Value, second: Value) -> bool:
    """Whether a sensor's bytes were scaled by one number: then only what their codes mean has changed."""
    codes, by = first.codes, second.constant
    if (
        codes is None
        or codes.scale is None
        or not codes.kind.startswith("raw ")
        or by is None
        or by.size != 1
    ):
        return False
    number = float(by.reshape(()))
    scale, zero = codes.scale, codes.zero
    if node.kind in {"Mul", "Div"}:
        if number <= 0:
            return False
        scale = scale * number if node.kind == "Mul" else scale / number
    else:
        zero = zero + (number if node.kind == "Sub" else -number) / scale
    low.result(node.outputs[0], first.shape, replace(codes, scale=scale, zero=zero))
    return True


def unary(low: Lowering, node: Node) -> None:
    """An operator of one operand, on floats; a rectifier on codes where it is between codes."""
    value, name = low.value(node.inputs[0]), node.outputs[0]
    codes, wanted = low.codes(node.inputs[0]), low.wanted_codes(name)
    grid = wanted if node.kind == "Relu" and codes is not None else None
    place = codes if grid is not None and codes is not None else low.floats(node.inputs[0])
    made = replace(low.new(value.shape, place.axes, grid), folded=place.folded)
    low.flat.add(_UNARY[node.kind], [place.tensor], [made.tensor])
    low.result(name, value.shape, made)


def _with_numbers(low: Lowering, value: Value, place: Place, steps: Sequence[tuple[str, float]]) -> Place:
    """One operator after the other, each with a number."""
    for operator, number in steps:
        made = replace(low.new(value.shape, place.axes, None), folded=place.folded)
        by = low.flat.constant(np.array([number], dtype=np.float32))
        low.flat.add(operator, [place.tensor, by], [made.tensor])
        place = made
    return place


def clip(low: Lowering, node: Node) -> None:
    """Between two numbers, either of which may be left out."""
    value, steps = low.value(node.inputs[0]), []
    for at, operator, attribute in ((1, "MAXIMUM", "min"), (2, "MINIMUM", "max")):
        bound = low.constant(node, at)
        number = node.attributes.get(attribute) if bound is None else float(bound.reshape(()))
        if number is not None and np.isfinite(number):
            steps.append((operator, number))
    low.result(node.outputs[0], value.shape, _with_numbers(low, value, low.floats(node.inputs[0]), steps))


def hard_sigmoid(low: Lowering, node: Node) -> None:
    """`alpha * x + beta`, between 0 and 1."""
    value = low.value(node.inputs[0])
    steps = [
        ("MUL", node.attributes.get("alpha", 0.2)),
        ("ADD", node.attributes.get("beta", 0.5)),
        ("MAXIMUM", 0.0),
        ("MINIMUM", 1.0),
    ]
    low.result(node.outputs[0], value.shape, _with_numbers(low, value, low.floats(node.inputs[0]), steps))


def leaky(low: Lowering, node: Node) -> None:
    """`LeakyRelu`: the larger of a number and a part of it."""
    value, place = low.value(node.inputs[0]), low.floats(node.inputs[0])
    small = _with_numbers(low, value, place, [("MUL", node.attributes.get("alpha", 0.01))])
    made = replace(low.new(value.shape, place.axes, None), folded=place.folded)
    low.flat.add("MAXIMUM", [place.tensor, small.tensor], [made.tensor])
    low.result(node.outputs[0], value.shape, made)


def batch_norm(low: Lowering, node: Node) -> None:
    """`BatchNormalization` in inference: a factor and a term for each channel."""
    scale, shift, mean, variance = (low.constant(node, at) for at in range(1, 5))
    if scale is None or shift is None or mean is None or variance is None:
        raise unsupported(node, "constant statistics")
    value, place = low.value(node.inputs[0]), low.floats(node.inputs[0])
    place = low.unfolded(value, place)
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    for operator, numbers in (("MUL", factor), ("ADD", shift - mean * factor)):
        shape = [len(numbers) if axis == 1 else 1 for axis in place.axes]
        made = low.new(value.shape, place.axes, None)
        by = low.flat.constant(numbers.astype(np.float32).reshape(shape))
        low.flat.add(operator, [place.tensor, by], [made.tensor])
        place = made
    low.result(node.outputs[0], value.shape, place)


def softmax(low: Lowering, node: Node) -> None:
    """Over the last axis."""
    value = low.value(node.inputs[0])
    if node.attributes.get("axis", -1) not in {-1, len(value.shape) - 1}:
        raise unsupported(node, "a softmax over the last axis", node.attributes.get("axis"))
    place = low.in_order(value, low.floats(node.inputs[0]), range(len(value.shape)))
    made = low.new(value.shape, place.axes, None)
    low.flat.add("SOFTMAX", [place.tensor], [made.tensor], beta=1.0)
    low.result(node.outputs[0], value.shape, made)

"""Pools and means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from edgestill.lab.gradient.rules.windows import Windows
from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgestill.lab.gradient.sweep import Site

    Grads = Sequence[ir.Value | None]

_MOST_IN_A_TILE: Final = 16


def _max_pool(site: Site) -> Grads:
    """To the first of the largest in each window.

    Where windows tile the input, it is found by comparing what they saw with what came out: the operator's own indices
    take it off the fast path of engines (30 times as long in onnxruntime as the pool itself).
    """
    kernel = site.numbers("kernel_shape", [])
    windows = Windows.of(site, kernel)
    if windows.tile and math.prod(kernel) <= _MOST_IN_A_TILE:
        return [_to_the_first(site, windows)]
    return [_by_indices(site)]


def _to_the_first(site: Site, windows: Windows) -> ir.Value:
    """What each place of a window gets: the gradient where it equals the largest, and none before it did."""
    tape = site.tape
    parts: list[ir.Value] = []
    found: ir.Value | None = None
    for seen in windows.seen(tape, site.x()):
        equal = tape.op("Equal", seen, site.y)
        first = equal if found is None else tape.op("And", equal, tape.op("Not", found))
        found = equal if found is None else tape.op("Or", equal, found)
        parts.append(tape.op("Mul", tape.op("Cast", first, to=int(ir.DataType.FLOAT)), site.grad))
    return windows.woven(tape, parts)


def _by_indices(site: Site) -> ir.Value:
    """Windows that overlap: the pool once more, with the places it took from; gradients add up there."""
    tape = site.tape
    attributes = {name: one.value for name, one in site.node.attributes.items() if name != "storage_order"}
    _, indices = tape.ops("MaxPool", site.x(), names=("", "indices"), **attributes)
    flat = tape.whole(-1)
    shape = tape.op("Shape", site.x())
    size = tape.op("ReduceProd", shape, keepdims=1)
    added = tape.op(
        "ScatterElements",
        tape.op("Expand", tape.constant([0.0]), size),
        tape.op("Reshape", indices, flat),
        tape.op("Reshape", site.grad, flat),
        axis=0,
        reduction="add",
    )
    return tape.op("Reshape", added, shape)


def _average_pool(site: Site) -> Grads:
    """An equal share to each number of the window."""
    kernel = site.numbers("kernel_shape", [])
    windows = Windows.of(site, kernel)
    tape = site.tape
    share = tape.op("Mul", site.grad, tape.constant(_shares(site, windows)))
    if windows.tile:
        return [windows.woven(tape, [share] * math.prod(kernel))]
    return [_spread(site, windows, share)]


def _shares(site: Site, windows: Windows) -> NDArray[np.float32]:
    """1 over what each window divided by: all its numbers, or those of them that are no padding, `[*outputs]`."""
    ones = [np.ones(size, int) for size in windows.sizes]
    counted: NDArray[np.float32] = np.ones([1] * windows.rank, np.float32)
    pads = site.numbers("pads", [0] * 2 * windows.rank)
    for axis, one in enumerate(ones):
        before, behind = pads[axis], pads[axis + windows.rank]
        counts = site.whole("count_include_pad", 0)
        line = np.pad(one, (before, behind), constant_values=counts)
        places = [
            line[
                place * windows.strides[axis] : place * windows.strides[axis]
                + windows.dilations[axis] * windows.kernel[axis] : windows.dilations[axis]
            ].sum()
            for place in range(windows.outputs[axis])
        ]
        shape = [-1 if at == axis else 1 for at in range(windows.rank)]
        counted = counted * np.asarray(places, np.float32).reshape(shape)
    return np.asarray(1 / counted, np.float32)


def _spread(site: Site, windows: Windows, share: ir.Value) -> ir.Value:
    """Windows that overlap: a transposed convolution with ones, each channel by itself."""
    channels = site.shape()[1]
    assert channels is not None
    ones = site.tape.constant(np.ones((channels, 1, *windows.kernel), np.float32))
    return transposed(site, windows, share, ones, group=channels)


def transposed(site: Site, windows: Windows, grad: ir.Value, weight: ir.Value, *, group: int) -> ir.Value:
    """The transposed convolution that gives back the input's size."""
    # behind the input, windows may see padding, or they may not reach its end
    seen, missed = ([max(sign * size, 0) for size in windows.after] for sign in (1, -1))
    return site.tape.op(
        "ConvTranspose",
        grad,
        weight,
        group=group,
        strides=list(windows.strides),
        dilations=list(windows.dilations),
        pads=[*windows.before, *seen],
        output_padding=missed if any(missed) else None,
    )


def _global_average(site: Site) -> Grads:
    dims = site.shape()[2:]
    if None in dims:
        raise unsupported(site.node, "sizes that may change", ["an input of a fixed size, but for the batch"])
    return [_shared(site, 1 / math.prod(dim or 1 for dim in dims), site.grad)]


def _shared(site: Site, factor: float, grad: ir.Value) -> ir.Value:
    tape = site.tape
    scaled = grad if factor == 1 else tape.op("Mul", grad, tape.constant(factor))
    return tape.op("Expand", scaled, tape.op("Shape", site.x()))


def _reduce_sum(site: Site) -> Grads:
    return _reduced(site, mean=False)


def _reduce_mean(site: Site) -> Grads:
    return _reduced(site, mean=True)


def _reduced(site: Site, *, mean: bool) -> Grads:
    """To every number that was summed; divided by how many there were, if it was their mean."""
    tape, dims = site.tape, site.shape()
    axes = _axes(site)
    grad = site.grad
    if not axes:
        return [grad, None]
    if not site.whole("keepdims", 1):
        grad = tape.op("Unsqueeze", grad, tape.whole(*axes))
    if not mean:
        return [_shared(site, 1.0, grad), None]
    sizes = [dims[axis] for axis in axes]
    if None not in sizes:
        return [_shared(site, 1 / math.prod(size or 1 for size in sizes), grad), None]
    counted = tape.op("Gather", tape.op("Shape", site.x()), tape.whole(*axes))
    count = tape.op("Cast", tape.op("ReduceProd", counted, keepdims=0), to=int(ir.DataType.FLOAT))
    return [_shared(site, 1.0, tape.op("Div", grad, count)), None]


def _axes(site: Site) -> list[int]:
    rank = len(site.shape())
    given: list[int] = []
    if len(site.node.inputs) > 1 and site.node.inputs[1] is not None:
        numbers = constant(site.node.inputs[1])
        if numbers is None:
            raise unsupported(site.node, "axes that are computed", ["axes that are constants"])
        given = sorted(int(axis) % rank for axis in np.ravel(numbers))
    if not given and site.whole("noop_with_empty_axes", 0):
        return []
    return given or list(range(rank))


RULES: Final[dict[str, Callable[[Site], Grads]]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
}

"""Operators that only move numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from edgestill.lab.gradient.rules.arithmetic import narrowed
from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.lab.gradient.sweep import Site

    Grads = Sequence[ir.Value | None]


def reshaped_as(site: Site, grad: ir.Value, at: int = 0) -> ir.Value:
    """The gradient in the shape of an input."""
    tape, dims = site.tape, site.shape(at)
    if sum(dim is None for dim in dims) <= 1:
        return tape.op("Reshape", grad, tape.whole(*(-1 if dim is None else dim for dim in dims)))
    return tape.op("Reshape", grad, tape.op("Shape", site.x(at)))


def zeros_like(site: Site, value: ir.Value) -> ir.Value:
    """Zeros in the shape of a value."""
    return site.tape.op("Expand", site.tape.constant(0.0), site.tape.op("Shape", value))


def _reshaped(site: Site) -> Grads:
    return [reshaped_as(site, site.grad), *[None] * (len(site.wanted) - 1)]


def _transpose(site: Site) -> Grads:
    rank = len(site.shape())
    perm = site.numbers("perm", range(rank)[::-1])
    return [site.tape.op("Transpose", site.grad, perm=[perm.index(at) for at in range(rank)])]


def _expand(site: Site) -> Grads:
    return [narrowed(site, site.grad, 0), None]


def _concat(site: Site) -> Grads:
    """Each its own part, cut out where it was put."""
    rank = len(site.shape())
    axis = site.whole("axis", 0) % rank
    tape, found, start = site.tape, [], 0
    for at, wanted in enumerate(site.wanted):
        size = site.shape(at)[axis]
        if size is None:
            raise unsupported(site.node, "parts of a size that may change", ["parts of fixed sizes"])
        bounds = (tape.whole(start), tape.whole(start + size), tape.whole(axis))
        found.append(tape.op("Slice", site.grad, *bounds) if wanted else None)
        start += size
    return found


def _split(site: Site) -> Grads:
    """The parts' gradients side by side; zeros for a part that nothing came from."""
    parts = [
        zeros_like(site, value) if grad is None else grad
        for value, grad in zip(site.node.outputs, site.grads, strict=True)
    ]
    return [site.tape.op("Concat", *parts, axis=site.whole("axis", 0)), None]


def _slice(site: Site) -> Grads:
    """Put back by padding, where every number in a range was taken; by adding at its place otherwise."""
    dims = site.shape()
    starts, ends, axes, steps = _ranges(site)
    taken = [range(0) for _ in dims]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = dims[axis]
        if size is None:
            raise unsupported(
                site.node, "a slice along an axis that may change", ["a slice along a fixed one"]
            )
        taken[axis] = range(size)[slice(start, _end(end, step), step)]
    grad = site.grad
    for axis in axes:
        size, places = dims[axis], taken[axis]
        assert size is not None
        grad = _spread(site, grad, axis, places, size)
    return [grad, *[None] * (len(site.wanted) - 1)]


def _ranges(site: Site) -> tuple[list[int], list[int], list[int], list[int]]:
    given = [constant(value) for value in site.node.inputs[1:]]
    if any(one is None for one in given) or len(given) < 2:  # starts and ends
        raise unsupported(site.node, "a slice whose bounds are computed", ["a slice with constant bounds"])
    starts, ends, *more = ([int(one) for one in np.ravel(one)] for one in given if one is not None)
    rank = len(site.shape())
    axes = [axis % rank for axis in more[0]] if more else list(range(len(starts)))
    return starts, ends, axes, more[1] if len(more) > 1 else [1] * len(starts)


def _end(end: int, step: int) -> int | None:
    """Python's slice has no number for "before the first" when it goes backwards."""
    return None if step < 0 and end < -(2**30) else end


def _spread(site: Site, grad: ir.Value, axis: int, places: range, size: int) -> ir.Value:
    """The gradient with zeros between and around, so that its slices come to lie at these places."""
    tape = site.tape
    if places.step == 1:
        return _padded(site, grad, axis, places.start, size - places.stop)
    table = np.full(size, len(places))
    table[list(places)] = np.arange(len(places))
    with_zero = _padded(site, grad, axis, 0, 1)  # the place behind the last is a zero
    return tape.op("Gather", with_zero, tape.constant(table, np.int64), axis=axis)


def _padded(site: Site, grad: ir.Value, axis: int, before: int, after: int) -> ir.Value:
    if not (before or after):
        return grad
    tape = site.tape
    return tape.op("Pad", grad, tape.whole(before, after), tape.constant(0.0), tape.whole(axis))


def _pad(site: Site) -> Grads:
    """What was put around is cut off again."""
    rest = [None] * (len(site.wanted) - 1)
    pads = constant(site.x(1))
    if site.text("mode", "constant") != "constant" or pads is None or pads.min() < 0:
        raise unsupported(
            site.node, "padding of another kind", ["padding with a constant, by sizes that are not negative"]
        )
    tape, sizes = site.tape, [int(one) for one in pads]
    axes = constant(site.node.inputs[3]) if len(site.node.inputs) > 3 else None  # its fourth input
    chosen = range(len(site.shape())) if axes is None else [int(one) for one in axes]
    half = len(sizes) // 2
    starts = tape.whole(*sizes[:half])
    ends = tape.whole(*(-size if size else 2**62 for size in sizes[half:]))
    return [tape.op("Slice", site.grad, starts, ends, tape.whole(*chosen)), *rest]


def _gather(site: Site) -> Grads:
    """Added up at the places that were read: an embedding's table, or a part of what was computed."""
    tape, axis = site.tape, site.whole("axis", 0) % len(site.shape())
    rank, index_rank = len(site.shape()), len(site.shape(1))
    chosen = constant(site.x(1))
    if chosen is not None and chosen.ndim == 0 and site.shape()[axis] is not None:
        size = site.shape()[axis]
        assert size is not None
        kept = tape.op("Unsqueeze", site.grad, tape.whole(axis))
        place = int(chosen) % size
        return [_padded(site, kept, axis, place, size - place - 1), None]
    places = tape.op("Cast", site.x(1), to=int(ir.DataType.INT64))
    places = tape.op("Unsqueeze", places, tape.whole(-1))
    zeros = zeros_like(site, site.x(0))
    if axis == 0:
        return [tape.op("ScatterND", zeros, places, site.grad, reduction="add"), None]
    first = [axis, *range(axis), *range(axis + 1, rank)]
    indices = range(axis, axis + index_rank)
    others = [at for at in range(rank + index_rank - 1) if at not in indices]
    grad = tape.op("Transpose", site.grad, perm=[*indices, *others])
    added = tape.op("ScatterND", tape.op("Transpose", zeros, perm=first), places, grad, reduction="add")
    return [tape.op("Transpose", added, perm=[first.index(at) for at in range(rank)]), None]


def _depth_to_space(site: Site) -> Grads:
    """The way back: of PixelShuffle, whose channels are in another order, by its own transposition."""
    tape, block = site.tape, site.whole("blocksize", 1)
    if site.text("mode", "DCR") == "DCR":
        return [tape.op("SpaceToDepth", site.grad, blocksize=block)]
    _, channels, height, width = site.shape()
    if channels is None or height is None or width is None:
        raise unsupported(site.node, "sizes that may change", ["an input of a fixed size, but for the batch"])
    parts = tape.op("Reshape", site.grad, tape.whole(-1, channels // block**2, height, block, width, block))
    return [reshaped_as(site, tape.op("Transpose", parts, perm=[0, 1, 3, 5, 2, 4]))]


def _dropped(site: Site) -> Grads:
    """In a file that answers, nothing is dropped."""
    return [site.grad, *[None] * (len(site.wanted) - 1)]


RULES: Final[dict[str, Callable[[Site], Grads]]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropped,
    "Expand": _expand,
    "Flatten": _reshaped,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshaped,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshaped,
    "Transpose": _transpose,
    "Unsqueeze": _reshaped,
}

"""What operations that compute say about dimensions: which meet, which are summed away, which are positions.

- Anything elementwise follows one rule, by the tag that PyTorch gives such operations.
- An operation without a rule keeps every dimension it touches whole: never wrong, at worst not small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgestill.lab.inherit.axes import Dim, freeze, fresh, hold, mark_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.lab.inherit.calls import Context


def unknown(op: Context) -> None:
    """Elementwise by its tag, or kept whole."""
    if torch.Tag.pointwise in op.func.tags:
        pointwise(op)
    else:
        op.keep_whole()


def pointwise(op: Context) -> None:
    """Aligned from the right; size 1 is repeated."""
    rank = op.outs()[0].ndim
    found: list[Dim] = [()] * rank
    for tensor in op.tensors():
        for back, dim in enumerate(reversed(op.book.dims(tensor)), 1):
            if dim and back <= rank and found[-back]:
                op.equal(found[-back], dim)
            elif dim and back <= rank:
                found[-back] = dim
    op.put(*found)


def same(op: Context) -> None:
    """Comes out as it went in."""
    op.put(*op.dims("self"))


def running(op: Context) -> None:
    """Sums or products of all entries up to each."""
    same(op)


def share(op: Context) -> None:
    """A softmax: every entry as its share of all; a share of fewer would be another figure, so carving keeps them all."""
    dims = op.dims("self")
    if dims:
        hold(dims[op.axis("dim", len(dims))], f"{op.why} is over all of it")
    same(op)


def made(op: Context) -> None:
    """A constant of the shape that was asked for; all its entries are alike."""
    for tensor in op.outs():
        op.book.put(tensor, [fresh(length) for length in tensor.shape])


def contract(op: Context) -> None:
    """`[..., n, k] @ [..., k, m]`, with or without something added; what stands beside `k` in a weight are units."""
    one, other = ("mat1", "mat2") if op.dims("mat1") else ("self", "mat2")
    if op.name == "baddbmm":
        one, other = "batch1", "batch2"
    left, right = op.dims(one), op.dims(other)
    op.equal(left[-1], right[-2])
    for mine, theirs in zip(left[:-2], right[:-2], strict=True):
        op.equal(mine, theirs)
    found = [*left[:-1], right[-1]]
    if len(found) == 2 or op.is_weight(other):
        mark_units(found[-1])
    if op.is_weight(one):
        mark_units(found[-2])
    if one != "self":
        _add(op, found)
    op.put(*found)


def vector(op: Context) -> None:
    """`[n, k] @ [k]` and `[k] @ [k]`."""
    left, right = op.dims("self"), op.dims("vec") or op.dims("tensor")
    op.equal(left[-1], right[0])
    op.put(*left[:-1])


def convolve(op: Context) -> None:
    """`[N, I, ...]` with `[O, I / groups, ...]`; transposed with `[I, O / groups, ...]`."""
    inputs, weight = op.dims("input"), op.dims("weight")
    groups = op.number("groups", 1)
    for dim in weight[2:]:
        freeze(dim, f"the kernel of {op.why}")
    channels, first = inputs[1], weight[0]
    if op.flag("transposed"):
        op.equal(channels, first)
        found = weight[1]
        if groups > 1:
            found = op.split(first, groups)[0] + found
    else:
        found = first
        inner = channels
        if groups > 1:
            group, inner = op.split(channels, groups)
            op.equal(group, op.split(first, groups)[0])
        op.equal(inner, weight[1])
    op.book.groups(op.split(channels, groups)[0] if groups > 1 else ())
    mark_units(found)
    if bias := op.dims("bias"):
        op.equal(bias[0], found)
    op.put(inputs[0], found, *[op.position(length) for length in op.outs()[0].shape[2:]])


def normalise_batch(op: Context) -> None:
    """Each channel of `[N, C, ...]` by itself."""
    inputs = op.dims("input")
    _along(op, inputs[1], "weight", "bias", "running_mean", "running_var")
    op.put(*inputs)


def normalise_layer(op: Context) -> None:
    """Over the last dimensions."""
    inputs = op.dims("input")
    for name in ("weight", "bias"):
        dims = op.dims(name)
        for back in range(1, len(dims) + 1):
            op.equal(inputs[-back], dims[-back])
    op.put(*inputs)


def normalise_group(op: Context) -> None:
    """Over each group of the channels of `[N, C, ...]`; mean and deviation of each `[N, groups]` come out too."""
    inputs = op.dims("input")
    groups = op.split(inputs[1], op.number("group", 1))[0]
    op.book.groups(groups)
    _along(op, inputs[1], "weight", "bias")
    out, *figures = op.outs()
    op.book.put(out, inputs)
    for figure in figures:
        op.book.put(figure, [inputs[0], groups])


def look_up(op: Context) -> None:
    """Rows of a table: which row stands where is data, the width is units."""
    table = op.dims("weight")
    freeze(table[0], f"rows are looked up by {op.why}")
    mark_units(table[1])
    if op.name == "embedding":
        op.put(*op.dims("indices"), table[1])
    else:
        op.put(op.position(op.outs()[0].shape[0]), table[1])


def gate(op: Context) -> None:
    """One half multiplies the other."""
    dims = op.dims("self")
    at = op.number("dim", -1) % len(dims)
    value, gates = op.cut(dims[at], op.outs()[0].shape[at])
    op.equal(value, gates)
    dims[at] = value
    op.put(*dims)


def spatial(op: Context) -> None:
    """Pooling, resizing, padding of the last dimensions; their number is in the operation's name."""
    name = op.name
    rank = next(
        int(name[at - 1]) for at in range(len(name), 0, -1) if name[at - 1 : at + 1] in {"1d", "2d", "3d"}
    )
    dims = op.dims("self") or op.dims("input")
    out = op.outs()[0]
    for dim in dims[len(dims) - rank :]:
        op.freeze(dim)
    op.put(*dims[: len(dims) - rank], *[op.position(length) for length in out.shape[out.ndim - rank :]])


def reduce(op: Context) -> None:
    """Sums, means, largest values over some dimensions."""
    dims = op.dims("self")
    over = {at % max(len(dims), 1) for at in op.numbers("dim", range(len(dims)))}
    if op.flag("keepdim"):
        op.put(*[() if at in over else dim for at, dim in enumerate(dims)])
    else:
        op.put(*[dim for at, dim in enumerate(dims) if at not in over])


def reduce_by_position(op: Context) -> None:
    """Which one is the largest: a question about positions."""
    dims = op.dims("self")
    for at in op.numbers("dim", range(len(dims))):
        op.freeze(dims[at])
    reduce(op)


def triangle(op: Context) -> None:
    """Above or below the diagonal: positions of the last two dimensions."""
    for dim in op.dims("self")[-2:]:
        op.freeze(dim)
    same(op)


def _along(op: Context, channels: Dim, *names: str) -> None:
    for name in names:
        if dims := op.dims(name):
            op.equal(channels, dims[0])


def _add(op: Context, found: Sequence[Dim]) -> None:
    """What is added is repeated where its size is 1."""
    for back, dim in enumerate(reversed(op.dims("self")), 1):
        if dim:
            op.equal(found[-back], dim)

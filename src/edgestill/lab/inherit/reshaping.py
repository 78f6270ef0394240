"""What operations that only move entries say about dimensions: views make products, slices and concatenations sums."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from edgestill.lab.inherit.axes import Dim, fresh, run, size, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.lab.inherit.calls import Context


def view(op: Context) -> None:
    """Neighbouring dimensions are merged or taken apart."""
    dims = op.dims("self")
    wanted = list(op.outs()[0].shape)
    op.put(*_regrouped(dims, wanted, op.why))


def permute(op: Context) -> None:
    """In another order."""
    dims = op.dims("self")
    op.put(*[dims[at] for at in op.numbers("dims", [])])


def transpose(op: Context) -> None:
    """Two change places; `t` of a vector changes nothing."""
    dims = op.dims("self")
    if len(dims) > 1:
        one, other = op.number("dim0", 0), op.number("dim1", 1)
        dims[one], dims[other] = dims[other], dims[one]
    op.put(*dims)


def squeeze(op: Context) -> None:
    """Dimensions of size 1 go, those named or all."""
    dims = op.dims("self")
    named = {at % max(len(dims), 1) for at in op.numbers("dim", range(len(dims)))}
    op.put(*[dim for at, dim in enumerate(dims) if at not in named or size(dim) > 1])


def unsqueeze(op: Context) -> None:
    """One of size 1 comes."""
    dims = op.dims("self")
    dims.insert(op.axis("dim", len(dims) + 1), ())
    op.put(*dims)


def expand(op: Context) -> None:
    """Size 1 is repeated; new dimensions come on the left."""
    dims = op.dims("self")
    wanted = list(op.outs()[0].shape)
    dims = [()] * (len(wanted) - len(dims)) + dims
    op.put(*[dim or fresh(length) for dim, length in zip(dims, wanted, strict=True)])


def repeat(op: Context) -> None:
    """The whole stands several times one after the other."""
    dims = op.dims("self")
    times = op.numbers("repeats", [])
    dims = [()] * (len(times) - len(dims)) + dims
    op.put(*[(*fresh(many), *dim) for dim, many in zip(dims, times, strict=True)])


def restride(op: Context) -> None:
    """Another layout in memory: the same tensor only where strides are those of a tensor without gaps."""
    dims, shape = op.dims("self"), op.outs()[0].shape
    plain = [prod(shape[at + 1 :]) for at in range(len(shape))]
    given = op.numbers("stride", [])
    if any(length > 1 and one != other for length, one, other in zip(shape, plain, given, strict=True)):
        op.keep_whole()
    else:
        op.put(*dims)


def slice_(op: Context) -> None:
    """A run of a dimension; every second entry is a question about positions."""
    dims, length = op.dims("self"), op.outs()[0]
    at = op.axis("dim", len(dims))
    full, taken, start = size(dims[at]), length.shape[at], op.number("start", 0)
    start = min(max(start + full if start < 0 else start, 0), full)
    if op.number("step", 1) != 1 or taken == 0:
        op.freeze(dims[at])
        dims[at] = op.position(taken)
    elif taken < full:
        dims[at] = _pieces(op, dims[at], [start, taken, full - start - taken])[1]
    op.put(*dims)


def select(op: Context) -> None:
    """One entry, by its position."""
    dims = op.dims("self")
    op.freeze(dims.pop(op.axis("dim", len(dims))))
    op.put(*dims)


def unbind(op: Context) -> None:
    """Every entry for itself, by its position."""
    dims = op.dims("self")
    op.freeze(dims.pop(op.axis("dim", len(dims))))
    for out in op.outs():
        op.book.put(out, dims)


def part(op: Context) -> None:
    """Into pieces one after the other."""
    dims = op.dims("self")
    at = op.axis("dim", len(dims))
    outs = op.outs()
    pieces = _pieces(op, dims[at], [out.shape[at] for out in outs])
    if "with_sizes" not in op.name and len({size(piece) for piece in pieces}) == 1:
        op.book.alike(pieces)
    for out, piece in zip(outs, pieces, strict=True):
        op.book.put(out, [*dims[:at], piece, *dims[at + 1 :]])


def concatenate(op: Context) -> None:
    """One after the other; the other dimensions meet."""
    shape = op.outs()[0]
    parts = [list(op.book.dims(one)) for one in op.tensors() if one.ndim == shape.ndim and one.numel()]
    at = op.axis("dim", shape.ndim)
    for other in parts[1:]:
        for back, (mine, theirs) in enumerate(zip(parts[0], other, strict=True)):
            if back != at:
                op.equal(mine, theirs)
    if parts:
        op.put(*parts[0][:at], run([one[at] for one in parts]), *parts[0][at + 1 :])


def stack(op: Context) -> None:
    """Side by side along a new dimension, which stays."""
    parts = [list(op.book.dims(one)) for one in op.tensors()]
    for other in parts[1:]:
        for mine, theirs in zip(parts[0], other, strict=True):
            op.equal(mine, theirs)
    found = parts[0]
    found.insert(op.axis("dim", len(found) + 1), run([()] * len(parts)))
    op.put(*found)


def pad(op: Context) -> None:
    """A constant before and after, from the last dimension on."""
    dims = op.dims("self")
    widths = op.numbers("pad", [])
    for back, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), 1):
        dim = dims[-back]
        if min(before, after) < 0:
            op.freeze(dim)
            dims[-back] = op.position(size(dim) + before + after)
        elif before or after:
            why = f"padding by {op.why}"
            sides = [fresh(width, held=why) if width else None for width in (before, after)]
            dims[-back] = run([one for one in (sides[0], dim, sides[1]) if one is not None])
    op.put(*dims)


def pick(op: Context) -> None:
    """Entries by their positions, along each dimension that is indexed."""
    dims, out = op.dims("self"), op.outs()[0]
    given = op.chosen("indices")
    at = [place for place, there in enumerate(given) if there]
    new = [op.position(length) for length in out.shape]
    if at != list(range(at[0], at[-1] + 1)):  # the new dimensions then come first; rare enough to keep all
        at = list(range(len(dims)))
    for place in at:
        op.freeze(dims[place])
    before, after = dims[: at[0]], dims[at[-1] + 1 :]
    op.put(*before, *new[len(before) : len(new) - len(after)], *after)


def by_position(op: Context) -> None:
    """Some dimensions are picked from or turned by position."""
    _fix(op, op.numbers("dims", [op.number("dim", 0)]))


def roll(op: Context) -> None:
    """Some dimensions are shifted; where none is named, the whole tensor is, as if it were one row."""
    _fix(op, op.numbers("dims", range(len(op.dims("self")))))


def shuffle_pixels(op: Context) -> None:
    """`[N, C r r, H, W]` to `[N, C, H r, W r]`."""
    *before, channels, high, wide = op.dims("self")
    factor = op.number("upscale_factor", 1)
    outer, inner = op.split(channels, size(channels) // factor**2)
    for dim in (inner, high, wide):
        op.freeze(dim)
    op.put(*before, outer, *[op.position(length) for length in op.outs()[0].shape[-2:]])


def shuffle_channels(op: Context) -> None:
    """The groups of the channels are interleaved."""
    dims = op.dims("self")
    outer, inner = op.split(dims[1], op.number("groups", 1))
    op.freeze(outer)
    dims[1] = (*inner, *outer)
    op.put(*dims)


def _fix(op: Context, along: Sequence[int]) -> None:
    """The operation looks at these dimensions by position."""
    dims = op.dims("self")
    for at in along:
        op.freeze(dims[at])
        dims[at] = op.position(op.outs()[0].shape[at])
    op.put(*dims)


def _pieces(op: Context, dim: Dim, lengths: Sequence[int]) -> list[Dim]:
    """One dimension for each length; together they are the whole, and none is taken for length 0."""
    found: list[Dim] = []
    rest, left = dim, size(dim)
    for length in lengths:
        if length in {0, left}:
            found.append(rest)
        else:
            piece, rest = op.cut(rest, length)
            found.append(piece)
        left -= length
    return found


def _regrouped(dims: list[Dim], wanted: list[int], why: str) -> list[Dim]:
    """Matches runs of dimensions whose sizes have the same product, and takes each apart."""
    found: list[Dim] = []
    at, todo = 0, list(wanted)
    while todo:
        lengths = [todo.pop(0)]
        taken: list[Dim] = []
        while True:
            have, need = prod(map(size, taken)), prod(lengths)
            if have == need and (taken or need == 1):
                break
            if have < need:
                taken.append(dims[at])
                at += 1
            else:
                lengths.append(todo.pop(0))
        found += split(tuple(factor for dim in taken for factor in dim), lengths, why)
    return found

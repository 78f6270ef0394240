"""Convolutions over one, two or three axes, with groups, strides and dilations.

The gradient of the weights is one matrix product of what all windows saw (im2col; Chellapilla et al. 2006) with the gradient of what came
out. Written as a convolution over swapped axes, as the textbook has it, it has a kernel as large as a picture, which engines are slow at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.lab.gradient.rules.pooling import transposed
from edgestill.lab.gradient.rules.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from edgestill.lab.gradient.sweep import Site

    Grads = Sequence[ir.Value | None]


def _conv(site: Site) -> Grads:
    """X `[N, C, *sizes]`, W `[O, C / groups, *kernel]`, b `[O]`."""
    shape = [int(dim or 0) for dim in site.shape(1)]
    windows = Windows.of(site, shape[2:])
    groups = site.whole("group", 1)
    seen = weight = bias = None
    if site.wanted[0]:
        seen = transposed(site, windows, site.grad, site.x(1), group=groups)
    if any(site.wanted[1:]):
        rows = _rows(site, groups, shape[0])
        if site.wanted[1]:
            weight = _weight(site, windows, rows, groups, shape)
        if len(site.wanted) > 2 and site.wanted[2]:  # the third input
            bias = site.tape.op("Reshape", site.tape.summed(rows, [-1]), site.tape.whole(-1))
    return [seen, weight, bias]


def _rows(site: Site, groups: int, outputs: int) -> ir.Value:
    """The gradient with a row for each output: `[O, N P]`, of several groups `[groups, O / groups, N P]`."""
    tape = site.tape
    turned = _channels_first(site, site.grad)
    if groups == 1:
        return tape.op("Reshape", turned, tape.whole(outputs, -1))
    return tape.op("Reshape", turned, tape.whole(groups, outputs // groups, -1))


def _channels_first(site: Site, value: ir.Value) -> ir.Value:
    rank = len(site.shape())
    return site.tape.op("Transpose", value, perm=[1, 0, *range(2, rank)])


def _weight(site: Site, windows: Windows, rows: ir.Value, groups: int, shape: list[int]) -> ir.Value:
    tape = site.tape
    seen = windows.seen(tape, _channels_first(site, site.x()))  # [C, N, *outputs] for each place
    outputs, channels, places = shape[0], shape[1], len(seen)
    if groups == 1:
        columns = seen[0] if places == 1 else tape.op("Concat", *seen, axis=0)
        columns = tape.op("Reshape", columns, tape.whole(places * channels, -1))
        grad = tape.op("Gemm", rows, columns, transB=1)  # [O, places C]
    else:
        apart = [tape.op("Reshape", one, tape.whole(groups, channels, -1)) for one in seen]
        columns = apart[0] if places == 1 else tape.op("Concat", *apart, axis=1)
        grad = tape.op("MatMul", rows, tape.op("Transpose", columns, perm=[0, 2, 1]))
    if places > 1:
        by_place = tape.op("Reshape", grad, tape.whole(outputs, places, channels))
        grad = tape.op("Transpose", by_place, perm=[0, 2, 1])
    return tape.op("Reshape", grad, tape.whole(*shape))


RULES: Final[dict[str, Callable[[Site], Grads]]] = {"Conv": _conv}

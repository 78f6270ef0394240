"""Normalisations over a batch and over a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.lab.gradient.rules.arithmetic import narrowed_to
from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from edgestill.lab.gradient.sweep import Site
    from edgestill.lab.gradient.tape import Tape

    Grads = Sequence[ir.Value | None]


def _batch_norm(site: Site) -> Grads:
    """Y = (x - mean) / sqrt(var + eps) scale + shift, with figures `[C]`: frozen ones, or the batch's own."""
    if site.whole("training_mode", 0):
        raise unsupported(
            site.node,
            "a node in training mode",
            ["one in evaluation mode, as `Training.statistics` makes it"],
        )
    if not _of_the_batch(site) and any(constant(site.x(at)) is None for at in (3, 4)):
        raise unsupported(site.node, "figures that are computed", ["figures that stand in the file"])
    tape, rank = site.tape, len(site.shape())
    wide = tape.whole(*range(1, rank - 1))
    epsilon = tape.constant(site.number("epsilon", 1e-5))
    inverse = tape.op("Reciprocal", tape.op("Sqrt", tape.op("Add", site.x(4), epsilon)))
    others = [0, *range(2, rank)]
    normal = seen = None
    if site.wanted[1] or _of_the_batch(site):
        centred = tape.op("Sub", site.x(0), _wide(tape, site.x(3), wide))
        normal = tape.op("Mul", centred, _wide(tape, inverse, wide))
    if site.wanted[0]:
        grad = tape.op("Mul", site.grad, _wide(tape, site.x(1), wide))
        if normal is not None and _of_the_batch(site):
            seen = through_normal(tape, grad, normal, _wide(tape, inverse, wide), others)
        else:
            seen = tape.op("Mul", grad, _wide(tape, inverse, wide))
    scale = tape.summed(tape.op("Mul", site.grad, normal), others) if site.wanted[1] else None
    shift = tape.summed(site.grad, others) if site.wanted[2] else None
    return [seen, scale, shift, None, None]


def _wide(tape: Tape, figures: ir.Value, axes: ir.Value) -> ir.Value:
    """`[C]` as it is broadcast over `[N, C, ...]`."""
    return tape.op("Unsqueeze", figures, axes)


def _of_the_batch(site: Site) -> bool:
    """Whether its figures are the batch's own, and so depend on what comes in."""
    return site.node in site.tape.of_the_batch


def _layer_norm(site: Site) -> Grads:
    """Ba et al. 2016: with z the normalised x and g = dy scale, dx = (g - mean(g) - z mean(g z)) / deviation."""
    tape, rank = site.tape, len(site.shape())
    first = site.whole("axis", -1) % rank
    axes = list(range(first, rank))
    normal, inverse = _normalised(site, axes)
    seen = scale = shift = None
    if site.wanted[0]:
        seen = through_normal(tape, tape.op("Mul", site.grad, site.x(1)), normal, inverse, axes)
    if site.wanted[1]:
        scale = narrowed_to(site, tape.op("Mul", site.grad, normal), 1, site.shape())
    if len(site.wanted) > 2 and site.wanted[2]:  # the third input
        shift = narrowed_to(site, site.grad, 2, site.shape())
    return [seen, scale, shift]


def _instance_norm(site: Site) -> Grads:
    """Each channel of each sample by itself (Ulyanov et al. 2016); group normalisation is exported as this, too."""
    tape, rank = site.tape, len(site.shape())
    axes, wide = list(range(2, rank)), tape.whole(*range(1, rank - 1))
    normal, inverse = _normalised(site, axes)
    seen = None
    if site.wanted[0]:
        grad = tape.op("Mul", site.grad, _wide(tape, site.x(1), wide))
        seen = through_normal(tape, grad, normal, inverse, axes)
    others = [0, *axes]
    scale = tape.summed(tape.op("Mul", site.grad, normal), others) if site.wanted[1] else None
    shift = tape.summed(site.grad, others) if site.wanted[2] else None
    return [seen, scale, shift]


def _normalised(site: Site, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """(x - mean) / deviation, and 1 / deviation."""
    tape, over = site.tape, site.tape.whole(*axes)
    centred = tape.op("Sub", site.x(), tape.op("ReduceMean", site.x(), over, keepdims=1))
    variance = tape.op("ReduceMean", tape.op("Mul", centred, centred), over, keepdims=1)
    padded = tape.op("Add", variance, tape.constant(site.number("epsilon", 1e-5)))
    inverse = tape.op("Reciprocal", tape.op("Sqrt", padded))
    return tape.op("Mul", centred, inverse), inverse


def through_normal(
    tape: Tape, grad: ir.Value, normal: ir.Value, inverse: ir.Value, axes: Sequence[int]
) -> ir.Value:
    """The gradient of what was normalised over some axes, from that of the normal values (Ioffe and Szegedy 2015, section 3)."""
    over = tape.whole(*axes)
    mean = tape.op("ReduceMean", grad, over, keepdims=1)
    along = tape.op("ReduceMean", tape.op("Mul", grad, normal), over, keepdims=1)
    rest = tape.op("Sub", tape.op("Sub", grad, mean), tape.op("Mul", normal, along))
    return tape.op("Mul", rest, inverse)


RULES: Final[dict[str, Callable[[Site], Grads]]] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
}

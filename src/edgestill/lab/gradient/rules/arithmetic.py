"""Elementwise operators of one or two inputs, which may be broadcast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.lab.gradient.sweep import Site
    from edgestill.lab.gradient.tape import Shape

    Grads = Sequence[ir.Value | None]


def narrowed(site: Site, grad: ir.Value, at: int) -> ir.Value:
    """The gradient of an input that was broadcast: summed over what it was repeated along, in that input's shape."""
    return narrowed_to(site, grad, at, site.tape.shape(site.y))


def narrowed_to(site: Site, grad: ir.Value, at: int, out: Shape) -> ir.Value:
    """The same of a gradient of another shape than the output's."""
    mine = site.shape(at)
    axes = _repeated(mine, out)
    if not axes:
        return grad
    summed = site.tape.summed(grad, axes, keep=True)
    if len(mine) == len(out):
        return summed
    return site.tape.op("Squeeze", summed, site.tape.whole(*range(len(out) - len(mine))))


def _repeated(mine: Shape, out: Shape) -> list[int]:
    """Axes of the output along which an input of this shape was repeated."""
    more = len(out) - len(mine)
    stretched = [more + at for at, dim in enumerate(mine) if dim == 1 and out[more + at] != 1]
    return [*range(more), *stretched]


def _add(site: Site) -> Grads:
    return [narrowed(site, site.grad, at) if site.wanted[at] else None for at in (0, 1)]


def _sub(site: Site) -> Grads:
    left = narrowed(site, site.grad, 0) if site.wanted[0] else None
    right = site.tape.op("Neg", narrowed(site, site.grad, 1)) if site.wanted[1] else None
    return [left, right]


def _mul(site: Site) -> Grads:
    return [
        narrowed(site, site.tape.op("Mul", site.grad, site.x(1 - at)), at) if site.wanted[at] else None
        for at in (0, 1)
    ]


def _div(site: Site) -> Grads:
    """Y = a / b: dy / b, and -dy y / b."""
    over = site.tape.op("Div", site.grad, site.x(1))
    left = narrowed(site, over, 0) if site.wanted[0] else None
    if not site.wanted[1]:
        return [left, None]
    right = site.tape.op("Neg", site.tape.op("Mul", over, site.y))
    return [left, narrowed(site, right, 1)]


def _pow(site: Site) -> Grads:
    """Y = x^c: c x^(c-1) dy, for a constant c."""
    power = constant(site.x(1))
    if power is None or power.size != 1 or site.wanted[1]:
        raise unsupported(site.node, "an exponent that is computed", ["an exponent that is one constant"])
    exponent = float(power.reshape(()))
    slope = site.tape.op("Pow", site.x(), site.tape.constant(exponent - 1))
    grad = site.tape.op("Mul", site.grad, site.tape.op("Mul", slope, site.tape.constant(exponent)))
    return [narrowed(site, grad, 0), None]


def _extreme(site: Site) -> Grads:
    """Max and Min of two: to the one that came out; where both did, half to each, as torch does."""
    if len(site.wanted) != 2:  # of two
        raise unsupported(site.node, f"of {len(site.wanted)} values", ["of two values"])
    tape = site.tape
    chosen = [
        tape.op("Cast", tape.op("Equal", site.x(at), site.y), to=int(ir.DataType.FLOAT)) for at in (0, 1)
    ]
    share = tape.op("Div", site.grad, tape.op("Add", *chosen))
    return [
        narrowed(site, tape.op("Mul", share, chosen[at]), at) if site.wanted[at] else None for at in (0, 1)
    ]


def _sum(site: Site) -> Grads:
    return [narrowed(site, site.grad, at) if wanted else None for at, wanted in enumerate(site.wanted)]


def _where(site: Site) -> Grads:
    tape, zero = site.tape, site.tape.constant(0.0)
    left = tape.op("Where", site.x(0), site.grad, zero) if site.wanted[1] else None
    right = tape.op("Where", site.x(0), zero, site.grad) if site.wanted[2] else None
    return [
        None,
        None if left is None else narrowed(site, left, 1),
        None if right is None else narrowed(site, right, 2),
    ]


def _cast(site: Site) -> Grads:
    if site.whole("to", 0) != int(ir.DataType.FLOAT):
        raise unsupported(
            site.node, "another precision than float32 between what is trained and the loss", ["float32"]
        )
    return [site.grad]


def _neg(site: Site) -> Grads:
    return [site.tape.op("Neg", site.grad)]


def _exp(site: Site) -> Grads:
    return [site.tape.op("Mul", site.grad, site.y)]


def _log(site: Site) -> Grads:
    return [site.tape.op("Div", site.grad, site.x())]


def _sqrt(site: Site) -> Grads:
    halved = site.tape.op("Mul", site.grad, site.tape.constant(0.5))
    return [site.tape.op("Div", halved, site.y)]


def _reciprocal(site: Site) -> Grads:
    squared = site.tape.op("Mul", site.y, site.y)
    return [site.tape.op("Neg", site.tape.op("Mul", site.grad, squared))]


def _abs(site: Site) -> Grads:
    return [site.tape.op("Mul", site.grad, site.tape.op("Sign", site.x()))]


def _erf(site: Site) -> Grads:
    """2 / sqrt(pi) exp(-x^2) dy."""
    tape = site.tape
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", site.x(), site.x())))
    return [tape.op("Mul", site.grad, tape.op("Mul", bell, tape.constant(2 / math.sqrt(math.pi))))]


def _identity(site: Site) -> Grads:
    return [site.grad]


RULES: Final[dict[str, Callable[[Site], Grads]]] = {
    "Abs": _abs,
    "Add": _add,
    "Cast": _cast,
    "Div": _div,
    "Erf": _erf,
    "Exp": _exp,
    "Identity": _identity,
    "Log": _log,
    "Max": _extreme,
    "Min": _extreme,
    "Mul": _mul,
    "Neg": _neg,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Sqrt": _sqrt,
    "Sub": _sub,
    "Sum": _sum,
    "Where": _where,
}

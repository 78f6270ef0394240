"""Activations, and softmax with its logarithm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from edgestill.lab.gradient.rules.arithmetic import narrowed
from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.lab.gradient.sweep import Site

    Grads = Sequence[ir.Value | None]

_INFINITE: Final = math.inf


def _times(site: Site, slope: ir.Value) -> Grads:
    return [site.tape.op("Mul", site.grad, slope)]


def _as_numbers(site: Site, truth: ir.Value) -> ir.Value:
    """1 and 0. To multiply by them takes a fraction of the time of a choice by `Where`."""
    return site.tape.op("Cast", truth, to=int(ir.DataType.FLOAT))


def _above(site: Site, value: ir.Value) -> ir.Value:
    """1 where a value is positive, else 0."""
    return _as_numbers(site, site.tape.op("Greater", value, site.tape.constant(0.0)))


def _relu(site: Site) -> Grads:
    return _times(site, _above(site, site.y))


def _leaky_relu(site: Site) -> Grads:
    """From the slope below 0 to 1 above it."""
    tape, slope = site.tape, site.number("alpha", 0.01)
    rise = tape.op("Mul", _above(site, site.x()), tape.constant(1 - slope))
    return _times(site, tape.op("Add", rise, tape.constant(slope)))


def _prelu(site: Site) -> Grads:
    tape, above = site.tape, _above(site, site.x())
    below = tape.op("Sub", tape.constant(1.0), above)
    own = slope = None
    if site.wanted[0]:
        (own,) = _times(site, tape.op("Add", above, tape.op("Mul", below, site.x(1))))
    if site.wanted[1]:
        slope = narrowed(site, tape.op("Mul", site.grad, tape.op("Mul", below, site.x())), 1)
    return [own, slope]


def _sigmoid(site: Site) -> Grads:
    """Y (1 - y)."""
    return _times(site, site.tape.op("Sub", site.y, site.tape.op("Mul", site.y, site.y)))


def _tanh(site: Site) -> Grads:
    """1 - y^2."""
    return _times(site, site.tape.op("Sub", site.tape.constant(1.0), site.tape.op("Mul", site.y, site.y)))


def _mish(site: Site) -> Grads:
    """Misra 2019: x t with t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x)."""
    tape, x = site.tape, site.x()
    bent = tape.op("Tanh", tape.op("Softplus", x))
    flat = tape.op("Sub", tape.constant(1.0), tape.op("Mul", bent, bent))
    return _times(site, tape.op("Add", bent, tape.op("Mul", tape.op("Mul", x, flat), tape.op("Sigmoid", x))))


def _softplus(site: Site) -> Grads:
    return _times(site, site.tape.op("Sigmoid", site.x()))


def _elu(site: Site) -> Grads:
    """1 above 0, y + alpha below, which is min(y, 0) + alpha less alpha - 1 above."""
    tape, alpha = site.tape, site.number("alpha", 1.0)
    below = tape.op("Min", site.y, tape.constant(0.0))
    at_zero = tape.op("Add", below, tape.constant(alpha))
    return _times(
        site, tape.op("Add", at_zero, tape.op("Mul", _above(site, site.x()), tape.constant(1 - alpha)))
    )


def _between(site: Site, value: ir.Value, low: float, high: float) -> ir.Value:
    """True where a value lies strictly between two bounds."""
    tape = site.tape
    if high == _INFINITE:
        return tape.op("Greater", value, tape.constant(low))
    under = tape.op("Less", value, tape.constant(high))
    if low == -_INFINITE:
        return under
    return tape.op("And", tape.op("Greater", value, tape.constant(low)), under)


def _clip(site: Site) -> Grads:
    """As ReLU6 has it: nothing at the bounds themselves."""
    low, high = (_bound(site, at, usual) for at, usual in ((1, -_INFINITE), (2, _INFINITE)))
    inside = _as_numbers(site, _between(site, site.x(), low, high))
    return [*_times(site, inside), None, None]


def _bound(site: Site, at: int, usual: float) -> float:
    value = site.node.inputs[at] if at < len(site.node.inputs) else None
    if value is None:
        return usual
    numbers = constant(value)
    if numbers is None or site.wanted[at]:
        raise unsupported(site.node, "a bound that is computed", ["bounds that are constants"])
    return float(numbers.reshape(()))


def _hard_sigmoid(site: Site) -> Grads:
    """Alpha where the output is neither 0 nor 1."""
    tape, slope = site.tape, site.number("alpha", 0.2)
    inside = _as_numbers(site, _between(site, site.y, 0.0, 1.0))
    return _times(site, tape.op("Mul", inside, tape.constant(slope)))


def _hard_swish(site: Site) -> Grads:
    """X clip(x / 6 + 1/2, 0, 1): that factor, and x / 6 where it is not clipped."""
    tape = site.tape
    sixth = tape.op("Mul", site.x(), tape.constant(1 / 6))
    factor = tape.op(
        "Clip", tape.op("Add", sixth, tape.constant(0.5)), tape.constant(0.0), tape.constant(1.0)
    )
    inside = _as_numbers(site, _between(site, site.x(), -3.0, 3.0))
    return _times(site, tape.op("Add", factor, tape.op("Mul", inside, sixth)))


def _gelu(site: Site) -> Grads:
    """Hendrycks and Gimpel 2016: x Phi(x), or its approximation by tanh."""
    if site.text("approximate", "none") == "tanh":
        return _times(site, _tanh_gelu_slope(site))
    tape, x = site.tape, site.x()
    erf = tape.op("Erf", tape.op("Mul", x, tape.constant(math.sqrt(0.5))))
    below = tape.op("Add", tape.op("Mul", erf, tape.constant(0.5)), tape.constant(0.5))
    bell = tape.op("Exp", tape.op("Mul", tape.op("Mul", x, x), tape.constant(-0.5)))
    density = tape.op("Mul", tape.op("Mul", x, bell), tape.constant(1 / math.sqrt(2 * math.pi)))
    return _times(site, tape.op("Add", below, density))


def _tanh_gelu_slope(site: Site) -> ir.Value:
    """With u = sqrt(2/pi) (x + .044715 x^3): (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2."""
    tape, x = site.tape, site.x()
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = tape.op("Mul", x, x)
    inner = tape.op("Add", tape.op("Mul", square, tape.constant(scale * cubic)), tape.constant(scale))
    bent = tape.op("Tanh", tape.op("Mul", x, inner))
    slope = tape.op("Add", tape.op("Mul", square, tape.constant(3 * scale * cubic)), tape.constant(scale))
    flat = tape.op("Sub", tape.constant(1.0), tape.op("Mul", bent, bent))
    right = tape.op("Mul", x, tape.op("Mul", flat, slope))
    return tape.op("Mul", tape.op("Add", tape.op("Add", bent, tape.constant(1.0)), right), tape.constant(0.5))


def _softmax(site: Site) -> Grads:
    """Y (dy - sum(dy y))."""
    tape = site.tape
    weighted = tape.op("Mul", site.grad, site.y)
    total = tape.summed(weighted, [site.whole("axis", -1)], keep=True)
    return [tape.op("Sub", weighted, tape.op("Mul", site.y, total))]


def _log_softmax(site: Site) -> Grads:
    """Dy - softmax(x) sum(dy)."""
    tape = site.tape
    total = tape.summed(site.grad, [site.whole("axis", -1)], keep=True)
    return [tape.op("Sub", site.grad, tape.op("Mul", tape.op("Exp", site.y), total))]


RULES: Final[dict[str, Callable[[Site], Grads]]] = {
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "Mish": _mish,
    "PRelu": _prelu,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Softplus": _softplus,
    "Tanh": _tanh,
}

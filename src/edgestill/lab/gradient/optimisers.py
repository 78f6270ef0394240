"""What gradients do to parameters: stochastic gradient descent with momentum, and Adam, as torch has them.

The state of an optimiser is as many tensors as it needs for each parameter; they begin as zeros, go into a step and come out of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

import numpy as np

from edgestill.core.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from edgestill.lab.gradient.tape import Tape


class Optimiser(Protocol):
    """Writes the step of one parameter."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the states of a parameter, each of its shape."""
        ...

    @property
    def counts(self) -> bool:
        """Whether it must know how many steps there were."""
        ...

    def step(
        self,
        tape: Tape,
        parameter: ir.Value,
        grad: ir.Value,
        states: list[ir.Value],
        *,
        rate: ir.Value,
        count: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The next parameter and states.

        Args:
            tape: to write on.
            parameter: now.
            grad: its gradient.
            states: now, in the order of `slots`.
            rate: the learning rate, one number.
            count: this step's number, the first being 1, as one float; None unless `counts`.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """v = momentum v + g + weight_decay p; p = p - rate v (torch.optim.SGD; Sutskever et al. 2013, without dampening).

    Attributes:
        momentum: from 0 to below 1.
        weight_decay: not negative.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(momentum=self.momentum, weight_decay=self.weight_decay)

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def counts(self) -> bool:
        """No."""
        return False

    def step(
        self,
        tape: Tape,
        parameter: ir.Value,
        grad: ir.Value,
        states: list[ir.Value],
        *,
        rate: ir.Value,
        count: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """As `Optimiser.step`."""
        del count
        velocity = _decayed(tape, grad, parameter, self.weight_decay)
        if self.momentum:
            kept = tape.op("Mul", states[0], tape.constant(self.momentum))
            velocity = tape.op("Add", kept, velocity)
        moved = tape.op("Sub", parameter, tape.op("Mul", velocity, rate))
        return moved, [velocity] if self.momentum else []


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Kingma and Ba 2015, algorithm 1, as torch.optim.Adam; with `decoupled`, Loshchilov and Hutter 2019 (AdamW).

    Attributes:
        first: decay of the mean of gradients (beta 1).
        second: decay of the mean of their squares (beta 2).
        epsilon: positive; added to the root.
        weight_decay: not negative.
        decoupled: whether weights decay by themselves rather than through the gradient.
    """

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        _check(first=self.first, second=self.second, weight_decay=self.weight_decay)
        if not 0 < self.epsilon < np.inf:
            raise _out_of_range("epsilon", "a positive number", self.epsilon)

    @property
    def slots(self) -> tuple[str, ...]:
        """The running means of gradients and of their squares."""
        return ("mean", "square")

    @property
    def counts(self) -> bool:
        """Yes: young means are corrected."""
        return True

    def step(
        self,
        tape: Tape,
        parameter: ir.Value,
        grad: ir.Value,
        states: list[ir.Value],
        *,
        rate: ir.Value,
        count: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """As `Optimiser.step`."""
        assert count is not None
        if self.decoupled and self.weight_decay:
            lost = tape.op("Mul", tape.op("Mul", parameter, rate), tape.constant(self.weight_decay))
            parameter = tape.op("Sub", parameter, lost)
        else:
            grad = _decayed(tape, grad, parameter, self.weight_decay)
        mean = _blended(tape, states[0], grad, self.first)
        square = _blended(tape, states[1], tape.op("Mul", grad, grad), self.second)
        root = tape.op("Sqrt", tape.op("Div", square, _young(tape, self.second, count)))
        size = tape.op("Div", rate, _young(tape, self.first, count))
        direction = tape.op("Div", mean, tape.op("Add", root, tape.constant(self.epsilon)))
        return tape.op("Sub", parameter, tape.op("Mul", direction, size)), [mean, square]


OPTIMISERS: Final[dict[str, Callable[[], Optimiser]]] = {"sgd": Sgd, "adam": Adam}
"""By name, with the usual settings."""


def clipped(tape: Tape, grads: list[ir.Value], norm: float) -> list[ir.Value]:
    """All gradients shortened together, so that their common norm is at most this (Pascanu et al. 2013; torch's clip_grad_norm_)."""
    squares = [tape.op("ReduceSumSquare", grad, keepdims=0) for grad in grads]
    total = squares[0] if len(squares) == 1 else tape.op("Sum", *squares)
    length = tape.op("Add", tape.op("Sqrt", total), tape.constant(_AWAY_FROM_ZERO))
    factor = tape.op("Min", tape.op("Div", tape.constant(norm), length), tape.constant(1.0))
    return [tape.op("Mul", grad, factor) for grad in grads]


_AWAY_FROM_ZERO: Final = 1e-6


def _decayed(tape: Tape, grad: ir.Value, parameter: ir.Value, decay: float) -> ir.Value:
    if not decay:
        return grad
    return tape.op("Add", grad, tape.op("Mul", parameter, tape.constant(decay)))


def _blended(tape: Tape, old: ir.Value, new: ir.Value, share: float) -> ir.Value:
    """Share old + (1 - share) new."""
    kept, added = (
        tape.op("Mul", value, tape.constant(part)) for value, part in ((old, share), (new, 1 - share))
    )
    return tape.op("Add", kept, added)


def _young(tape: Tape, share: float, count: ir.Value) -> ir.Value:
    """1 - share^count: by what a mean that began at zero is too small."""
    return tape.op("Sub", tape.constant(1.0), tape.op("Pow", tape.constant(share), count))


def _check(*, weight_decay: float, **shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise _out_of_range(name, "from 0 to below 1", share)
    if not 0 <= weight_decay < np.inf:
        raise _out_of_range("weight_decay", "a number that is not negative", weight_decay)


def _out_of_range(name: str, expected: str, got: float) -> SettingError:
    return SettingError(
        "a setting of the optimiser is out of range",
        where=name,
        expected=expected,
        got=got,
        fix="correct it, or leave it out for the default",
    )

"""What a part of a network computes, found within the whole network: the measure that a carved student is held to.

- The teacher runs once more and its units stay where they are. Whatever goes unit by unit (anything elementwise, views,
  pooling) is left as it is. An operation in which units meet (a contraction, a sum, a norm over a width, a softmax) is
  computed from the units that stay, and its result put where they stand. So at the kept places every tensor holds what
  the part computes, whatever sizes the modules believe in.
- Where units meet only through weights, this is the teacher with every other weight 0. A mean, a norm or a softmax over a
  width that was cut is that of the units that stay.
- Nothing here looks at the student, so that a mistake in it cannot hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.lab.inherit import arithmetic
from edgestill.lab.inherit.axes import Axis, Dim, axes, kept, resolve
from edgestill.lab.inherit.returned import tensors_within
from edgestill.lab.inherit.rules import rule_of
from edgestill.lab.inherit.trace import Example, Frame, Watch, place, ran

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch._ops import OpOverload

    from edgestill.lab.inherit.calls import Context
    from edgestill.lab.inherit.select import Choice
    from edgestill.lab.inherit.trace import Trace

_MEETING: Final = {
    arithmetic.contract,
    arithmetic.vector,
    arithmetic.convolve,
    arithmetic.normalise_layer,
    arithmetic.normalise_group,
    arithmetic.reduce,
    arithmetic.running,
    arithmetic.share,
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a student has to do in one call of a module.

    Attributes:
        module: its name; empty for the network itself.
        steps: the operations it runs itself: name, and for each tensor that comes out the size of each dimension that was
            cut; None where it stays.
        values: the tensors that it returns.
    """

    module: str
    steps: list[tuple[str, list[list[int | None]]]]
    values: list[Tensor]


def expected_of_part(teacher: nn.Module, trace: Trace, choice: Choice, example: Example) -> list[Expected]:
    """What each module of a student has to return, in the order in which they end.

    Args:
        teacher: it runs once more.
        trace: of it. What its axes are bound to may change: let this be the last to look at them.
        choice: the units of each axis that stay.
        example: as for `traced`.

    Raises:
        ModelError: it takes another way on this run than on the one that was traced, and there the choice is none.
    """
    watch = _Part(teacher, trace.tensors, choice)
    ran(watch, teacher, example, who="teacher")
    units = watch.units()
    return [_expected(frame, units) for frame in watch.trace.frames]


def steady(op: OpOverload, out: object) -> None:
    """Gives one figure to whatever an operation drew at random, so that two networks of other widths can be compared."""
    if torch.Tag.nondeterministic_seeded in op.tags:
        for tensor in tensors_within(out):
            tensor.fill_(0.5 if tensor.is_floating_point() else 0)


class _Units(dict[Axis, "Sequence[int]"]):
    """Which units of an axis stay: all, where nothing else was chosen."""

    def __missing__(self, axis: Axis) -> Sequence[int]:
        return range(axis.size)

    def cuts(self, dim: Dim) -> bool:
        """Whether some of it is dropped."""
        return any(len(self[axis]) < axis.size for axis in axes(dim))

    def part(self, tensor: Tensor, dims: Sequence[Dim]) -> Tensor:
        """What is left of a tensor of these dimensions."""
        for at, dim in enumerate(dims):
            if self.cuts(dim):
                tensor = tensor.index_select(at, torch.tensor(kept(dim, self), device=tensor.device))
        return tensor

    def replace_(self, tensor: Tensor, dims: Sequence[Dim], part: Tensor) -> None:
        """Puts that back where it stands within the whole."""
        places = [
            torch.tensor(kept(dim, self), device=tensor.device).reshape([-1] + [1] * (len(dims) - at - 1))
            for at, dim in enumerate(dims)
        ]
        tensor[tuple(places)] = part


class _Part(Watch):  # type: ignore[no-untyped-call]  # as its base
    """Sees every operation, and computes those in which units meet from those that stay."""

    def __init__(self, teacher: nn.Module, known: Mapping[str, tuple[Dim, ...]], choice: Choice) -> None:
        super().__init__(teacher, known)
        self._teacher = teacher
        self._units = _Units(choice)

    def see(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> Context:
        """One operation, run and read; what came out is corrected."""
        meeting = rule_of(func.overloadpacket.__name__) in _MEETING
        writes = func._schema.is_mutable  # noqa: SLF001  # the only place that tells
        before = {id(one): one.clone() for one in tensors_within(args)} if meeting and writes else {}
        op = super().see(func, args, kwargs)
        steady(func, op.out)
        if meeting:
            self._correct(op, before)
        return op

    def keep_values(self, frame: Frame, returned: list[Tensor]) -> None:
        """As they are now: an operation in place may come later."""
        frame.values = [tensor.clone() for tensor in returned]

    def units(self) -> _Units:
        """Which units stay, also of axes that others were bound to since.

        Raises:
            ModelError: an axis that was cut is now a part of something else, or has to stay whole.
        """
        for axis in [axis for axis in self._units if axis.bound is not None]:
            units = self._units.pop(axis)
            now = resolve((axis,))
            if len(now) == 1 and isinstance(now[0], Axis):
                same = list(self._units.setdefault(now[0], units)) == list(units)
            else:
                same = len(units) == axis.size and not self._units.cuts(now)
            if not same:
                raise self._another_way("two widths are one there")
        for axis, units in self._units.items():
            if axis.frozen is not None and len(units) < axis.size:
                raise self._another_way(axis.frozen)
        return self._units

    def _correct(self, op: Context, before: Mapping[int, Tensor]) -> None:
        units = self.units()
        if not any(units.cuts(dim) for tensor in op.tensors() for dim in self.dims(tensor)):
            return
        given = {
            name: units.part(before.get(id(value), value), self.dims(value))
            if isinstance(value, Tensor)
            else value
            for name, value in op.given.items()
        }
        found = op.func(**given | _numbers(op, given, units))
        for whole, part in zip(op.outs(), tensors_within(found), strict=True):
            units.replace_(whole, self.dims(whole), part)

    def _another_way(self, why: str) -> ModelError:
        return ModelError(
            "the teacher's way through its layers depends on the data",
            where=place(self._teacher, self.running),
            expected="the same operations for a part of the teacher as for the whole",
            got=f"others: {why}",
            fix="name the layer in keep",
        )


def _numbers(op: Context, given: Mapping[str, object], units: _Units) -> dict[str, object]:
    """The sizes among the arguments of an operation, as they are for the part."""
    rule, inputs = rule_of(op.name), given.get("input")
    if rule is arithmetic.convolve and op.number("groups", 1) > 1:
        return {"groups": _kept_groups(op, op.number("groups", 1), units)}
    if rule is arithmetic.normalise_layer and isinstance(inputs, Tensor):
        rank = len(op.numbers("normalized_shape", []))
        return {"normalized_shape": list(inputs.shape[-rank:])}
    if rule is arithmetic.normalise_group and isinstance(inputs, Tensor):
        return {"C": inputs.shape[1], "group": _kept_groups(op, op.number("group", 1), units)}
    return {}


def _kept_groups(op: Context, groups: int, units: _Units) -> int:
    return len(kept(op.split(op.dims("input")[1], groups)[0], units))


def _expected(frame: Frame, units: _Units) -> Expected:
    steps = [
        (name, [[len(kept(dim, units)) if units.cuts(dim) else None for dim in dims] for dims in made])
        for name, made in frame.steps
    ]
    values = [units.part(value, dims) for value, dims in zip(frame.values, frame.made, strict=True)]
    return Expected(frame.module, steps, values)

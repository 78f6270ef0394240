"""What can be chosen of a teacher when a student is carved out of it: each width, and the blocks to leave out.

- A width stands at many places (a residual stream runs through a whole stage); it is one knob, named by the first module
  that gives it. What must stay as wide as something else (heads and the width around them, the layers of a recurrent
  module) turns with it.
- A block can be left out where it stands in a row of its like, and gives what it takes in the same shape: what remains is
  a network of the same kind, and its weights are the teacher's as they were.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from torch import Tensor, nn

from edgestill.core.errors import SettingError
from edgestill.lab.inherit.axes import axes, size
from edgestill.lab.inherit.trace import called, quiet, traced
from edgestill.lab.inherit.widths import Wish, decided

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgestill.lab.inherit.axes import Axis, Dim
    from edgestill.lab.inherit.trace import Example, Trace

Network = TypeVar("Network", bound=nn.Module)

_HALF: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A width that can be chosen by itself.

    Attributes:
        name: of a module whose output has it; `carve(widths={name: share})` cuts it.
        units: that the teacher has of it; of heads and groups, how many these are.
    """

    name: str
    units: int


def knobs(teacher: nn.Module, example: Example) -> tuple[Knob, ...]:
    """The widths of a network, in the order in which they are computed.

    Args:
        teacher: left as it was.
        example: one batch it takes, as for `carve`.

    Raises:
        ModelError: it does not run on the example.
    """
    trace = traced(copy.deepcopy(teacher), example, who="teacher")
    names = dict.fromkeys(frame.module for frame in trace.frames if frame.module)
    turned = {name: _turned(teacher, trace, name) for name in names}
    found: dict[frozenset[Axis], Knob] = {}
    for name, changed in turned.items():
        smallest = not any(other < changed for other in turned.values() if other)
        if changed and changed not in found and smallest:
            found[changed] = Knob(name=name, units=_units(trace.made(name), changed))
    return tuple(found.values())


def _turned(teacher: nn.Module, trace: Trace, name: str) -> frozenset[Axis]:
    """The axes that get smaller where a module's output gets half as wide; none where it cannot."""
    wish = Wish(ratio=1.0, probability=None, keep=(), widths={name: _HALF}, multiple_of=1)
    try:
        widths = decided(teacher, trace, wish, seed=0)
    except SettingError:
        return frozenset()
    return frozenset(axis for axis, units in widths.items() if units < axis.size)


def _units(dims: Sequence[Dim], changed: frozenset[Axis]) -> int:
    """Of the outermost of the changed axes in a module's output."""
    mine = [axis for dim in dims for axis in axes(dim) if axis in changed]
    return mine[-1].size if mine else max(map(size, dims))


def droppable(teacher: nn.Module, example: Example) -> dict[str, tuple[int, ...]]:
    """Rows of blocks -> the places of those that can be left out, all at once; a row that none can be left out of is not told.

    One block of a row stays: where all of them could go, the first is not among them.

    Args:
        teacher: left as it was.
        example: one batch it takes, as for `carve`.

    Raises:
        ModelError: it does not run on the example.
    """
    same: set[nn.Module] = set()

    def look(block: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        first = inputs[0] if inputs else None
        if isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape:
            same.add(block)

    rows = dict(_rows(teacher))
    handles = [block.register_forward_hook(look) for row in rows.values() for block in row]
    try:
        with quiet(teacher):
            called(teacher, example)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: tuple(at for at, block in enumerate(row) if block in same) for name, row in rows.items()}
    found = {name: places[1:] if len(places) == len(rows[name]) else places for name, places in found.items()}
    return {name: places for name, places in found.items() if places}


def without_blocks(teacher: Network, left_out: Mapping[str, Sequence[int]]) -> Network:
    """A copy of the network without some of its blocks; those that remain are numbered anew.

    Args:
        teacher: left as it was.
        left_out: row of blocks -> places in it, as `droppable` tells.

    Raises:
        SettingError: no such row, or no such place in it.
    """
    shallower = copy.deepcopy(teacher)
    rows = dict(_rows(shallower))
    for name, places in left_out.items():
        row = rows.get(name)
        if row is None or not set(places) <= set(range(len(row))) or len(set(places)) >= len(row):
            raise SettingError(
                "no such blocks to leave out",
                where=name,
                expected=f"some of {', '.join(rows) or 'no row of blocks'}, and not all of its blocks",
                got=list(places),
                fix="take rows and places from droppable()",
            )
        remaining = [block for at, block in enumerate(row) if at not in places]
        parent, _, own = name.rpartition(".")
        kept = nn.Sequential(*remaining) if isinstance(row, nn.Sequential) else nn.ModuleList(remaining)
        setattr(shallower.get_submodule(parent), own, kept.train(row.training))
    return shallower


def _rows(model: nn.Module) -> Iterator[tuple[str, nn.Sequential | nn.ModuleList]]:
    """Plain rows of two or more blocks of which several are of one class."""
    for name, module in model.named_modules():
        if name and type(module) in {nn.Sequential, nn.ModuleList} and len(list(module.children())) > 1:
            assert isinstance(module, nn.Sequential | nn.ModuleList)
            kinds = [type(block) for block in module]
            if len(set(kinds)) < len(kinds) and any(list(block.parameters()) for block in module):
                yield name, module

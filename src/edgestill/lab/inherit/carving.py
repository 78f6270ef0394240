"""A student made out of its teacher: the same modules with fewer units."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar, get_args

import torch
from torch import nn

from edgestill.core.errors import SettingError
from edgestill.lab.inherit.axes import shrunk
from edgestill.lab.inherit.index_map import IndexMap
from edgestill.lab.inherit.layers import Resized, Setting, attributes, resize_layers_
from edgestill.lab.inherit.part import expected_of_part
from edgestill.lab.inherit.probe import telling_example, telling_network
from edgestill.lab.inherit.select import Choice, check_consistent, chosen, indices
from edgestill.lab.inherit.settle import settled
from edgestill.lab.inherit.trace import Example, Trace, traced
from edgestill.lab.inherit.widths import Wish, decided
from edgestill.lab.recipe import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Network = TypeVar("Network", bound=nn.Module)


def carve(
    teacher: Network,
    example: Example,
    *,
    ratio: float = 0.5,
    probability: float | None = None,
    selection: Selection = "random",
    seed: int = 0,
    keep: tuple[str, ...] = (),
    widths: Mapping[str, float] | None = None,
    multiple_of: int = 1,
) -> tuple[Network, IndexMap]:
    """Makes a narrower student of the teacher's kind, which begins as a consistent part of it.

    Every width that a layer makes is cut; attention heads and the groups of grouped convolutions and group norms are
    dropped or kept whole; what the network takes and returns keeps its size. An attention layer's heads and the width it
    works in are cut alike where they are equal in the teacher. The numbers that modules keep of their sizes (`num_heads`,
    `out_channels`, ...) are set to the student's where it needs that to compute what its part of the teacher does on the
    example: every module's answer is compared. So copies of teacher and student run several times.

    Args:
        teacher: any module that runs on the example; left as it was.
        example: one batch it takes: a tensor, a tuple of positional or a mapping of keyword tensors.
        ratio: share of the units that stay, in (0, 1]; at least one stays.
        probability: each unit stays with this probability, in (0, 1], instead of `ratio`; at least one stays.
        selection: which units stay, as in `inherit_`.
        seed: of every random choice.
        keep: names of modules whose outputs keep their width, besides the network's own.
        widths: module name -> what stays of its output's width: a share in (0, 1] (float) or a number of units (int).
        multiple_of: widths are rounded to a multiple of it, where the teacher's has one.

    Returns:
        The student, of the teacher's class, and the index map.

    Raises:
        SettingError: a ratio out of range, an unknown selection or module, or a width that a module cannot have.
        ModelError: the teacher does not run on the example, or its code holds a size that only fits its own widths,
            or nothing of it can be cut.
    """
    if selection not in get_args(Selection):
        raise SettingError(
            "unknown selection",
            expected=", ".join(get_args(Selection)),
            got=selection,
            where="selection",
            fix="leave it out where you are unsure",
        )
    trace = traced(copy.deepcopy(teacher), example, who="teacher")
    wish = Wish(ratio=ratio, probability=probability, keep=keep, widths=widths or {}, multiple_of=multiple_of)
    wanted = decided(teacher, trace, wish, seed)
    choice = chosen(teacher, trace, wanted, selection, seed)
    index_map = IndexMap({name: indices(trace, name, choice) for name in trace.tensors})
    check_consistent(trace, index_map.kept)
    groups = {name: shrunk(dim, wanted) for name, dim in trace.groups.items()}
    student = _cut_copy(teacher, index_map, groups)
    for setting in _settings(teacher, trace, choice, (index_map, groups), example):
        setting.apply_(student)
    return student, IndexMap({name: index_map.kept[name] for name in teacher.state_dict()})


def _cut_copy(teacher: Network, index_map: IndexMap, groups: Mapping[str, int]) -> Network:
    """A copy with every parameter and buffer cut; a shared tensor stays shared, numbers in modules are still the teacher's."""
    student = copy.deepcopy(teacher)
    parameters = dict(student.named_parameters(remove_duplicate=False))
    buffers = dict(student.named_buffers(remove_duplicate=False))
    done: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, tensor in (parameters | buffers).items():
            if id(tensor) not in done:
                part = index_map.select(name, tensor).clone()
                needs = tensor.requires_grad
                done[id(tensor)] = nn.Parameter(part, requires_grad=needs) if name in parameters else part
            path, _, leaf = name.rpartition(".")
            setattr(student.get_submodule(path), leaf, done[id(tensor)])
    resize_layers_(student, groups)
    return student


def _settings(
    teacher: nn.Module,
    trace: Trace,
    choice: Choice,
    cut: tuple[IndexMap, Mapping[str, int]],
    example: Example,
) -> list[Setting]:
    """The numbers in a student's modules with which it computes what its teacher's part does."""
    known = attributes(teacher, trace, Resized({axis: len(units) for axis, units in choice.items()}))
    telling, shown = telling_network(teacher), telling_example(example)
    student = _cut_copy(telling, *cut)
    return settled(student, known, shown, expected_of_part(telling, trace, choice, shown))

"""A student made out of its teacher: the same modules with fewer units."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar, get_args

import torch
from torch import nn

from edgestill.core.errors import ModelError, SettingError
from edgestill.lab.inherit.axes import shrunk, size
from edgestill.lab.inherit.index_map import IndexMap
from edgestill.lab.inherit.layers import Resized, attribute_choices, resize_layers_
from edgestill.lab.inherit.match import matched
from edgestill.lab.inherit.select import Choice, check_consistent, chosen, indices
from edgestill.lab.inherit.trace import Example, Trace, traced
from edgestill.lab.inherit.widths import Wish, decided
from edgestill.lab.recipe import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgestill.lab.inherit.axes import Axis

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
    `out_channels`, ...) are set to the student's, and the student runs once on the example before it is returned.

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
        ModelError: the teacher does not run on the example, or its code holds a size that only fits its own widths.
    """
    if selection not in get_args(Selection):
        raise SettingError(
            "unknown selection",
            expected=", ".join(get_args(Selection)),
            got=selection,
            where="selection",
            fix="leave it out where you are unsure",
        )
    trace = traced(teacher, example, who="teacher")
    wish = Wish(ratio=ratio, probability=probability, keep=keep, widths=widths or {}, multiple_of=multiple_of)
    wanted = decided(teacher, trace, wish, seed)
    choice = chosen(teacher, trace, wanted, selection, seed)
    kept = {name: indices(trace, name, choice) for name in trace.tensors}
    check_consistent(trace, kept)
    student = _cut_copy(teacher, trace, choice, IndexMap(kept))
    _settle_(student, trace, wanted, example)
    return student, IndexMap({name: kept[name] for name in teacher.state_dict()})


def _cut_copy(teacher: Network, trace: Trace, choice: Choice, index_map: IndexMap) -> Network:
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
    resize_layers_(student, {name: shrunk(dim, _counts(choice)) for name, dim in trace.groups.items()})
    return student


def _settle_(student: nn.Module, trace: Trace, wanted: dict[Axis, int], example: Example) -> None:
    """Finds the numbers in the modules with which the student computes what its teacher's part does."""
    problem: ModelError | None = None
    for choices in attribute_choices(student, trace, Resized(wanted)):
        for module, name, value in choices:
            setattr(module, name, value)
        try:
            ours = traced(student, example, who="student")
        except ModelError as error:
            problem = problem or error
            continue
        wrong = _difference(trace, ours, wanted)
        if wrong is None:
            return
        problem = problem or ModelError(
            "computes in other shapes",
            where=wrong,
            expected="the teacher's shapes, scaled",
            fix="name the layer in keep",
            got="other shapes",
        )
    raise ModelError(
        "the carved student does not work as a part of its teacher",
        where=problem.where if problem else type(student).__name__,
        got=problem.got or problem.what if problem else None,
        fix="its forward pass must take sizes from tensors or attributes, not from numbers; or name the layer in keep",
        expected="a student that answers the example",
    )


def _difference(trace: Trace, ours: Trace, wanted: dict[Axis, int]) -> str | None:
    """The first tensor whose dimensions are built in another way than the teacher's; None if there is none."""
    if [size(dim) for dim in ours.output] != [shrunk(dim, wanted) for dim in trace.output]:
        return "the output"
    for name, dims in trace.tensors.items():
        for theirs, mine in zip(dims, ours.tensors[name], strict=True):
            pairs = matched(theirs, mine, wanted)
            if pairs is None or any(wanted[axis] != width for axis, width in pairs):
                return name
    return None


def _counts(choice: Choice) -> dict[Axis, int]:
    return {axis: len(units) for axis, units in choice.items()}

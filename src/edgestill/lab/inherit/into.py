"""Into a student that the user brings."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, get_args

import torch

from edgestill.core.errors import ClassCountError, ModelError, SettingError
from edgestill.lab.inherit.axes import Axis, size
from edgestill.lab.inherit.index_map import IndexMap
from edgestill.lab.inherit.match import Link, UnmatchedError, links, solved, step_links
from edgestill.lab.inherit.pairing import Blocks, Pairs, paired
from edgestill.lab.inherit.select import check_consistent, chosen, indices
from edgestill.lab.inherit.trace import Example, Trace, named_tensors, traced
from edgestill.lab.recipe import Selection

if TYPE_CHECKING:
    from torch import Tensor, nn


def inherit_(
    student: nn.Module,
    teacher: nn.Module,
    example: Example,
    *,
    selection: Selection = "random",
    seed: int = 0,
    blocks: Blocks = "first",
) -> IndexMap:
    """Overwrites the student's weights and buffers with a consistent part of the teacher's.

    Both networks run once on the example. Every kept weight is bit-equal to the teacher's at the mapped indices, nothing is
    rescaled, and the teacher is left as it was. Selecting weights for a smaller network follows Xu et al. 2023, "Initializing
    Models with Larger Ones"; that all layers that share a width take the same units is ours (see `axes`).

    Args:
        student: of the teacher's family: the same layer names, each dimension at most as wide, possibly fewer of the
            numbered blocks.
        teacher: any module that runs on the example.
        example: one batch that both take: a tensor, a tuple of positional or a mapping of keyword tensors.
        selection: `random` units, `uniform` spacing, the `first` ones, or those of largest `magnitude`.
        seed: of the random choice.
        blocks: where the student has fewer numbered blocks, the `first` ones give their weights, or `uniform`ly spaced ones.

    Returns:
        The index map, for every tensor of the student's `state_dict`.

    Raises:
        SettingError: an unknown selection.
        ClassCountError: the two differ in the number of classes.
        ModelError: one does not run on the example, they are not of one family, a student's layer is wider than its
            teacher's or built in another way, or a width has to stay whole. The student is unchanged.
    """
    _check_name(selection, get_args(Selection), "selection")
    _check_name(blocks, get_args(Blocks), "choice of blocks")
    theirs, ours = traced(teacher, example, who="teacher"), traced(student, example, who="student")
    _check_answers(theirs, ours)
    pairs = paired(ours.tensors, theirs.tensors, blocks)
    widths = _widths(theirs, ours, pairs)
    choice = chosen(teacher, theirs, widths, selection, seed)
    kept = {name: indices(theirs, source, choice) for name, source in pairs.names.items()}
    check_consistent(theirs, {pairs.names[name]: arrays for name, arrays in kept.items()})
    index_map = IndexMap(kept, {name: source for name, source in pairs.names.items() if name != source})
    _fill_(student, teacher, index_map)
    return _of_state(student, index_map)


def _fill_(student: nn.Module, teacher: nn.Module, index_map: IndexMap) -> None:
    """Writes every parameter and buffer, those too that `state_dict` leaves out; nothing where one does not fit."""
    weights, mine = dict(named_tensors(teacher)), dict(named_tensors(student))
    part = {name: index_map.select(name, weights[index_map.source(name)]) for name in index_map.kept}
    _check_shapes(part, mine, weights, index_map)
    state = student.state_dict()
    state.update(
        (name, part[name]) for name in state.keys() & part.keys()
    )  # it carries the formats' versions
    student.load_state_dict(state)
    with torch.no_grad():
        for name in part.keys() - state.keys():
            mine[name].copy_(part[name])


def _of_state(student: nn.Module, index_map: IndexMap) -> IndexMap:
    """Of the tensors that travel with the student."""
    names = student.state_dict().keys()
    return IndexMap(
        {name: index_map.kept[name] for name in names if name in index_map.kept},
        {name: source for name, source in index_map.sources.items() if name in names},
    )


def _check_name(given: str, known: tuple[str, ...], what: str) -> None:
    if given not in known:
        raise SettingError(
            f"unknown {what}",
            expected=", ".join(known),
            got=given,
            where=what,
            fix="leave it out where you are unsure",
        )


def _check_answers(theirs: Trace, ours: Trace) -> None:
    """Each tensor that the networks return has the same number of entries in the end; the rest follows from weights."""
    wide, narrow = ([[size(dim) for dim in dims] for dims in trace.outputs] for trace in (theirs, ours))
    for at, (one, other) in enumerate(zip_longest(wide, narrow)):
        if one is None or other is None or one[-1:] != other[-1:] or len(one) != len(other):
            raise ClassCountError(
                "teacher and student answer in different shapes",
                expected=f"{one or 'no tensor'} (the teacher's on the example)",
                got=other or "no tensor",
                fix="give the student a head with as many outputs as the teacher's",
                where=f"output {at}" if at else "the output",
            )


def _widths(theirs: Trace, ours: Trace, pairs: Pairs) -> dict[Axis, int]:
    """How many units of each of the teacher's axes the student has."""
    weights = [
        link
        for name, source in pairs.names.items()
        for link in links(name, theirs.tensors[source], ours.tensors[name])
    ]
    for name, source in pairs.names.items():
        if len(theirs.tensors[source]) != len(ours.tensors[name]):
            raise _misfit(name, "it has another number of dimensions", theirs, ours, pairs)

    def check(link: Link, axis: Axis, width: int) -> None:
        _check_width(axis, width, link.where, (theirs, ours, pairs))

    try:
        found = solved(weights, step_links(theirs, ours, pairs.source), check)
    except UnmatchedError as error:
        raise _unmatched(error, theirs, ours, pairs) from error
    return {axis: found.get(axis, axis.size) for axis in theirs.axes()}


def _unmatched(error: UnmatchedError, theirs: Trace, ours: Trace, pairs: Pairs) -> ModelError:
    if error.conflict is not None:
        first, before, width = error.conflict
        return ModelError(
            "two of the student's layers differ in a width that is one in the teacher",
            where=error.link.where,
            expected=f"{before} (as in {first})",
            got=width,
            fix="give both layers the same width, or pass inherit=False",
        )
    if error.link.where in pairs.names:
        return _misfit(error.link.where, "its units are grouped in another way", theirs, ours, pairs)
    return ModelError(
        "a layer groups its units in another way than its teacher's",
        where=error.link.where,
        expected=f"a part of the teacher's {size(error.link.theirs)}, as its weights have it",
        got=size(error.link.ours),
        fix="build the student's layer as the teacher's is, or pass inherit=False",
    )


def _check_width(axis: Axis, width: int, name: str, where: tuple[Trace, Trace, Pairs]) -> None:
    if axis.frozen is not None and width != axis.size:
        raise _misfit(name, f"a dimension stays whole, {axis.frozen}", *where)
    if width > axis.size:
        raise ModelError(
            "a student layer is wider than its teacher's",
            where=name.rpartition(".")[0] or name,
            expected=f"<= {axis.size}",
            got=width,
            fix="make the student narrower there, or pass inherit=False",
        )


def _misfit(name: str, why: str, theirs: Trace, ours: Trace, pairs: Pairs) -> ModelError:
    wide, narrow = (
        tuple(size(dim) for dim in dims) for dims in (theirs.tensors[pairs.names[name]], ours.tensors[name])
    )
    return ModelError(
        "a layer does not fit its teacher's",
        where=name,
        expected=f"{narrow} (the student's)",
        got=f"{wide}: {why}",
        fix="build the student with the teacher's size there",
    )


def _check_shapes(
    part: dict[str, Tensor], mine: dict[str, Tensor], weights: dict[str, Tensor], index_map: IndexMap
) -> None:
    for name, tensor in part.items():
        if tensor.shape != mine[name].shape:
            raise ModelError(
                "a layer does not fit its teacher's",
                where=name,
                expected=f"{list(mine[name].shape)} (the student's)",
                got=f"{list(tensor.shape)} from {list(weights[index_map.source(name)].shape)}",
                fix="build the student with the teacher's size there, or pass inherit=False",
            )

"""Into a student that the user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from edgestill.core.errors import ClassCountError, ModelError, SettingError
from edgestill.lab.inherit.axes import Axis, Dim, size
from edgestill.lab.inherit.index_map import IndexMap
from edgestill.lab.inherit.match import is_plain, matched
from edgestill.lab.inherit.pairing import Blocks, paired
from edgestill.lab.inherit.select import check_consistent, chosen, indices
from edgestill.lab.inherit.trace import Example, Trace, traced
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
    _check_classes(theirs, ours)
    weights, mine = teacher.state_dict(), student.state_dict()
    pairs = paired(mine, weights, blocks)
    widths = _widths(theirs, ours, pairs)
    choice = chosen(teacher, theirs, widths, selection, seed)
    kept = {name: indices(theirs, source, choice) for name, source in pairs.items()}
    check_consistent(theirs, {pairs[name]: arrays for name, arrays in kept.items()})
    index_map = IndexMap(kept, {name: source for name, source in pairs.items() if name != source})
    part = {name: index_map.select(name, weights[source]) for name, source in pairs.items()}
    _check_shapes(part, mine, weights, pairs)
    mine.update(part)  # in place: it carries the versions of the modules' formats
    student.load_state_dict(mine)
    return index_map


def _check_name(given: str, known: tuple[str, ...], what: str) -> None:
    if given not in known:
        raise SettingError(
            f"unknown {what}",
            expected=", ".join(known),
            got=given,
            where=what,
            fix="leave it out where you are unsure",
        )


def _check_classes(theirs: Trace, ours: Trace) -> None:
    wide, narrow = ([size(dim) for dim in (trace.outputs or [()])[0]] for trace in (theirs, ours))
    if wide[-1:] != narrow[-1:] or len(wide) != len(narrow):
        raise ClassCountError(
            "teacher and student answer in different shapes",
            expected=f"{wide} (the teacher's on the example)",
            got=narrow,
            fix="give the student a head with as many outputs as the teacher's",
            where="the output",
        )


def _widths(theirs: Trace, ours: Trace, pairs: dict[str, str]) -> dict[Axis, int]:
    """How many units of each of the teacher's axes the student has."""
    found: dict[Axis, tuple[int, str]] = {}
    together: list[tuple[str, Dim, Dim]] = []
    for name, source in pairs.items():
        wide, narrow = theirs.tensors[source], ours.tensors[name]
        if len(wide) != len(narrow):
            raise _misfit(name, "it has another number of dimensions", theirs, ours, pairs)
        together += [(name, one, other) for one, other in zip(wide, narrow, strict=True)]
    for name, one, other in sorted(together, key=lambda entry: not is_plain(*entry[1:])):
        pair = matched(one, other, {axis: width for axis, (width, _) in found.items()})
        if pair is None:
            raise _misfit(name, "its units are grouped in another way", theirs, ours, pairs)
        for axis, width in pair:
            _check_width(axis, width, name, (theirs, ours, pairs))
            before, first = found.setdefault(axis, (width, name))
            if before != width:
                raise ModelError(
                    "two of the student's layers differ in a width that is one in the teacher",
                    where=name,
                    expected=f"{before} (as in {first})",
                    got=width,
                    fix="give both layers the same width, or pass inherit=False",
                )
    return {axis: found[axis][0] if axis in found else axis.size for axis in theirs.axes()}


def _check_width(axis: Axis, width: int, name: str, where: tuple[Trace, Trace, dict[str, str]]) -> None:
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


def _misfit(name: str, why: str, theirs: Trace, ours: Trace, pairs: dict[str, str]) -> ModelError:
    wide, narrow = (
        tuple(size(dim) for dim in dims) for dims in (theirs.tensors[pairs[name]], ours.tensors[name])
    )
    return ModelError(
        "a layer does not fit its teacher's",
        where=name,
        expected=f"{narrow} (the student's)",
        got=f"{wide}: {why}",
        fix="build the student with the teacher's size there",
    )


def _check_shapes(
    part: dict[str, Tensor], mine: dict[str, Tensor], weights: dict[str, Tensor], pairs: dict[str, str]
) -> None:
    for name, tensor in part.items():
        if tensor.shape != mine[name].shape:
            raise ModelError(
                "a layer does not fit its teacher's",
                where=name,
                expected=f"{list(mine[name].shape)} (the student's)",
                got=f"{list(tensor.shape)} from {list(weights[pairs[name]].shape)}",
                fix="build the student with the teacher's size there, or pass inherit=False",
            )

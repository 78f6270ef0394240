"""How wide a student is, read from all dimensions that it and its teacher both have.

- One dimension may answer to the teacher's in several ways: 4 units may be 2 groups of 2, or 1 of 4. All dimensions
  together must be answered by one width for each of the teacher's axes; the first of the ways that agree is taken.
- Weights say most. Where a layer runs the same operations in both networks, the tensors that they make are read as well:
  only there is seen how a view by hand groups the units.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Final, TypeAlias

from edgestill.lab.inherit.axes import Axis, Dim, Factor, Run, axes, resolve, run, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edgestill.lab.inherit.trace import Frame, Trace

Widths: TypeAlias = dict[Axis, int]

_MOST_WAYS: Final = 64


@dataclass(frozen=True, slots=True)
class Link:
    """A dimension that both have.

    Attributes:
        where: the tensor, or the module that made it.
        theirs: the teacher's.
        ours: the student's.
    """

    where: str
    theirs: Dim
    ours: Dim


class UnmatchedError(Exception):
    """A dimension that no width answers together with those before; it never leaves the package.

    Attributes:
        link: the dimension.
        conflict: where two dimensions give one axis two widths: the first one's place, its width, and this one's width.
    """

    def __init__(self, link: Link, conflict: tuple[str, int, int] | None = None) -> None:
        super().__init__(link.where)
        self.link, self.conflict = link, conflict


def ways(theirs: Dim, ours: Dim) -> list[Widths]:
    """Every way in which a student's dimension may answer to its teacher's, the likeliest first.

    - Products: each of the teacher's factors has some of the student's that follow each other, or none (then it has size 1
      in the student). Likeliest is factor by factor, then what cuts the fewest (fewer heads, of the same size).
    - Sums: segment by segment, where one of the teacher's may have several of the student's.

    Returns:
        None of them where the student's is built in another way, or where there are too many to tell anything.
    """
    wide, narrow = resolve(theirs), resolve(ours)
    if len(wide) == 1 and isinstance(wide[0], Axis):
        return [{wide[0]: size(narrow)}]
    found = list(islice(_products(wide, narrow), _MOST_WAYS + 1))
    if len(found) > _MOST_WAYS:
        return []
    if not found:
        return _outermost(wide, size(narrow))
    even = _factor_by_factor(wide, narrow)
    found.sort(key=lambda way: (way not in even, -sum(axis.size == width for axis, width in way.items())))
    return _distinct(found)


def solved(
    weights: Iterable[Link], steps: Iterable[Link], check: Callable[[Link, Axis, int], None]
) -> Widths:
    """One width for each axis that is read somewhere.

    Args:
        weights: dimensions of weights and buffers; each must be answered.
        steps: those of tensors made on the way; one that tells nothing, or of frozen axes only, is passed over.
        check: raises for a width that an axis cannot have.

    Raises:
        UnmatchedError: there is none.
    """
    known: Widths = {}
    first: dict[Axis, str] = {}
    undecided: list[tuple[Link, list[Widths]]] = []
    for link in weights:
        found = ways(link.theirs, link.ours)
        if len(found) == 1:
            for axis, width in found[0].items():
                check(link, axis, width)
                if known.setdefault(axis, width) != width:
                    raise UnmatchedError(link, (first[axis], known[axis], width))
                first.setdefault(axis, link.where)
        else:
            undecided.append((link, found))
    for link in steps:
        found = _of_free_axes(ways(link.theirs, link.ours))
        if found and {} not in found:
            undecided.append((link, found))
    return _searched(undecided, known)


def links(where: str, theirs: Sequence[Dim], ours: Sequence[Dim]) -> list[Link]:
    """One for each dimension of a tensor that both have; none where the two are of another rank."""
    if len(theirs) != len(ours):
        return []
    return [Link(where, one, other) for one, other in zip(theirs, ours, strict=True)]


def step_links(theirs: Trace, ours: Trace, source: Callable[[str], str]) -> list[Link]:
    """The dimensions of what layers make on their way, as far as the two networks' layers run the same operations.

    Args:
        theirs: the teacher's trace.
        ours: the student's.
        source: the student's module -> the teacher's.
    """
    found: dict[tuple[object, ...], Link] = {}
    wide, narrow = _calls(theirs), _calls(ours)
    for module, frames in narrow.items():
        for one, other in zip(wide.get(source(module), []), frames, strict=False):
            for link in _frame_links(one, other):
                found.setdefault(_key(link), link)
    return list(found.values())


def _calls(trace: Trace) -> dict[str, list[Frame]]:
    found: dict[str, list[Frame]] = {}
    for frame in trace.frames:
        found.setdefault(frame.module, []).append(frame)
    return found


def _frame_links(theirs: Frame, ours: Frame) -> Iterator[Link]:
    for (name, wide), (other_name, narrow) in zip(theirs.steps, ours.steps, strict=False):
        if name != other_name:
            return  # they do something else, or a size of 1 spares an operation
        for one, other in zip(wide, narrow, strict=False):
            yield from links(theirs.module or "the forward pass", one, other)


def _key(link: Link) -> tuple[object, ...]:
    return tuple((size(dim), *map(id, axes(dim))) for dim in (link.theirs, link.ours))


def _searched(undecided: list[tuple[Link, list[Widths]]], known: Widths) -> Widths:
    """The first ways that agree with each other and with what is known."""
    known = dict(known)
    while True:
        left: list[tuple[Link, list[Widths]]] = []
        for link, found in undecided:
            fitting = [
                way for way in found if all(known.get(axis, width) == width for axis, width in way.items())
            ]
            if not fitting:
                raise UnmatchedError(link)
            if len(fitting) == 1:
                known |= fitting[0]
            else:
                left.append((link, fitting))
        if not left:
            return known
        if len(left) == len(undecided):
            break
        undecided = left
    link, options = left[0]
    for way in options:
        try:
            return _searched(left[1:], known | way)
        except UnmatchedError as error:
            last = error
    raise last


def _products(wide: Dim, narrow: Dim) -> Iterator[Widths]:
    """Every way to give the student's factors, in order, to the teacher's."""
    if not wide:
        if not narrow:
            yield {}
        return
    for many in range(len(narrow) + 1):
        for way in _answers(wide[0], narrow[:many]):
            for others in _products(wide[1:], narrow[many:]):
                if (joined := _joined([way, others])) is not None:
                    yield joined


def _answers(factor: Factor, part: Dim) -> Iterator[Widths]:
    """Every way in which some of the student's factors are one of the teacher's."""
    width = size(part)
    if isinstance(factor, Axis):
        if width == factor.size or (width < factor.size and factor.frozen is None):
            yield {factor: width}
    elif len(part) == 1 and isinstance(part[0], Run):
        yield from _sums(factor.segments, part[0].segments)


def _sums(wide: tuple[Dim, ...], narrow: tuple[Dim, ...]) -> Iterator[Widths]:
    """Every way to give the student's segments, in order, to the teacher's; rows of size 1 look like more segments."""
    if not wide:
        if not narrow:
            yield {}
        return
    for many in range(1, len(narrow) - len(wide) + 2):
        for way in ways(wide[0], run(narrow[:many])):
            for others in _sums(wide[1:], narrow[many:]):
                if (joined := _joined([way, others])) is not None:
                    yield joined


def _factor_by_factor(wide: Dim, narrow: Dim) -> list[Widths]:
    if len(wide) != len(narrow):
        return []
    each = [list(_answers(one, (other,))) for one, other in zip(wide, narrow, strict=True)]
    return [way for choice in islice(product(*each), _MOST_WAYS) if (way := _joined(choice)) is not None]


def _outermost(wide: Dim, length: int) -> list[Widths]:
    """The outermost factor alone is cut."""
    inner = size(wide[1:])
    if not wide or length % inner or length // inner > wide[0].size or not isinstance(wide[0], Axis):
        return []
    return [{wide[0]: length // inner} | {axis: axis.size for axis in axes(wide[1:])}]


def _joined(parts: Sequence[Widths]) -> Widths | None:
    """All together; None where they differ in the width of an axis."""
    found: Widths = {}
    for part in parts:
        if any(found.get(axis, width) != width for axis, width in part.items()):
            return None
        found |= part
    return found


def _of_free_axes(found: list[Widths]) -> list[Widths]:
    """What ways say of axes that may be cut; without those that make one wider."""
    possible = [way for way in found if all(width <= axis.size for axis, width in way.items())]
    return _distinct({axis: width for axis, width in way.items() if axis.frozen is None} for way in possible)


def _distinct(found: Iterable[Widths]) -> list[Widths]:
    return list({tuple(way.items()): way for way in found}.values())

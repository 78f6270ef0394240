"""Dimensions as sums of products of axes, found by unification.

- A *dimension* of a tensor is a product of factors, outermost first; no factor at all is size 1. A *factor* is an axis,
  or a sum of dimensions that stand one after the other.
- An *axis* is a run of units that are kept or dropped together wherever it stands. Two dimensions that meet (a sum, a
  contraction) are made equal; a view makes a product of an axis, a slice or a concatenation a sum. So one choice for each
  axis that is left is consistent through the whole network by construction.
- What cannot be made equal, and what an operation looks at by position, is *frozen*: kept whole, with the reason.
  That is always a valid sub-network, only not a small one.

This does for dimensions what type inference (Hindley 1969, Milner 1978) does for types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Dim: TypeAlias = "tuple[Factor, ...]"


@dataclass(eq=False, slots=True)
class Axis:
    """A run of units.

    Attributes:
        size: how many units, at least 2.
        bound: what it was found to be equal to.
        frozen: why all its units stay.
        held: why carving keeps all its units; a given student may still be narrower.
        unit: whether a layer makes these units out of others, so that carving may drop some.
    """

    size: int
    bound: Dim | None = None
    frozen: str | None = None
    held: str | None = None
    unit: bool = False


@dataclass(eq=False, slots=True)
class Run:
    """Dimensions that stand one after the other."""

    segments: tuple[Dim, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(size, self.segments))


Factor: TypeAlias = "Axis | Run"


def fresh(length: int, *, frozen: str | None = None, held: str | None = None) -> Dim:
    """A dimension of which nothing is known yet."""
    return () if length == 1 else (Axis(length, frozen=frozen, held=held),)


def run(segments: Sequence[Dim]) -> Dim:
    """These dimensions one after the other."""
    return segments[0] if len(segments) == 1 else (Run(tuple(segments)),)


def size(dim: Dim) -> int:
    """How long it is."""
    return prod(factor.size for factor in dim)


def resolve(dim: Dim) -> Dim:
    """The same with every axis replaced by what it is known to be."""
    found: list[Factor] = []
    for factor in dim:
        if isinstance(factor, Run):
            found.append(Run(tuple(_segments(factor))))
        elif factor.bound is None:
            found.append(factor)
        else:
            factor.bound = resolve(factor.bound)
            found.extend(factor.bound)
    return tuple(found)


def axes(dim: Dim) -> Iterator[Axis]:
    """The axes it is made of, from the outside in and from the left; one may come several times."""
    for factor in resolve(dim):
        if isinstance(factor, Axis):
            yield factor
        else:
            for segment in factor.segments:
                yield from axes(segment)


def freeze(dim: Dim, why: str) -> None:
    """Keeps all of it."""
    for axis in axes(dim):
        axis.frozen = axis.frozen or why


def hold(dim: Dim, why: str) -> None:
    """Keeps carving from cutting any of it."""
    for axis in axes(dim):
        axis.held = axis.held or why


def mark_units(dim: Dim) -> None:
    """Says that a layer makes these units."""
    for axis in axes(dim):
        axis.unit = True


def unify(one: Dim, other: Dim, why: str) -> None:
    """Makes two dimensions equal; where their structures do not fit each other, both are kept whole."""
    left, right = resolve(one), resolve(other)
    while left and right:
        first, second = left[0], right[0]
        if first is second:
            left, right = left[1:], right[1:]
        elif len(left) == 1 and isinstance(first, Axis) and first.size == size(right):
            return _bind(first, right)
        elif len(right) == 1 and isinstance(second, Axis) and second.size == size(left):
            return _bind(second, left)
        elif first.size == second.size:
            _unify_factors(first, second, why)
            left, right = left[1:], right[1:]
        elif first.size > second.size:
            parts = _outer_and_inner(first, second.size, why)
            left = () if parts is None else (*parts[0], *parts[1], *left[1:])
        else:
            parts = _outer_and_inner(second, first.size, why)
            right = () if parts is None else (*parts[0], *parts[1], *right[1:])
        left, right = resolve(left), resolve(right)
    if left or right:
        freeze(one, why)
        freeze(other, why)
    return None


def split(dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
    """As a product of these sizes, outermost first (a view)."""
    found: list[Dim] = []
    rest = resolve(dim)
    for wanted in sizes:
        taken, rest = _take(rest, wanted, why)
        if size(taken) != wanted:
            freeze(dim, why)
            return [fresh(length, frozen=why) for length in sizes]
        found.append(taken)
        rest = resolve(rest)
    return found


def cut(dim: Dim, at: int, why: str) -> tuple[Dim, Dim]:
    """As two dimensions one after the other, the first of size `at` (a slice)."""
    dim = resolve(dim)
    first, *others = dim
    inner = size(tuple(others))
    if at % inner:
        freeze(dim, why)
        return fresh(at, frozen=why), fresh(size(dim) - at, frozen=why)
    if others:
        head, tail = cut((first,), at // inner, why)
        return (*head, *others), (*tail, *others)
    if isinstance(first, Axis):
        pieces = fresh(at), fresh(first.size - at)
        _bind(first, run(pieces))
        return pieces
    return _cut_run(first, at, why)


def kept(dim: Dim, choice: Mapping[Axis, Sequence[int]]) -> list[int]:
    """Positions within the dimension that stay, where `choice` gives each axis' units that stay."""
    found = [0]
    for factor in resolve(dim):
        if isinstance(factor, Axis):
            units: Sequence[int] = choice[factor]
        else:
            units, start = [], 0
            for segment in factor.segments:
                units += [start + at for at in kept(segment, choice)]
                start += size(segment)
        found = [outer * factor.size + at for outer in found for at in units]
    return found


def shrunk(dim: Dim, widths: Mapping[Axis, int]) -> int:
    """How many positions stay, where `widths` gives the number of units of each axis that stay."""
    return prod(
        widths[factor]
        if isinstance(factor, Axis)
        else sum(shrunk(segment, widths) for segment in factor.segments)
        for factor in resolve(dim)
    )


def _segments(of: Run) -> Iterator[Dim]:
    for segment in of.segments:
        known = resolve(segment)
        if len(known) == 1 and isinstance(known[0], Run):
            yield from known[0].segments
        else:
            yield known


def _bind(axis: Axis, to: Dim) -> None:
    axis.bound = to
    for one in axes(to):
        one.frozen = one.frozen or axis.frozen
        one.held = one.held or axis.held
        one.unit = one.unit or axis.unit


def _unify_factors(first: Factor, second: Factor, why: str) -> None:
    if isinstance(first, Axis):
        return _bind(first, (second,))
    if isinstance(second, Axis):
        return _bind(second, (first,))
    left, right = list(first.segments), list(second.segments)
    while left and right:
        one, other = left.pop(0), right.pop(0)
        if size(one) > size(other):
            one, rest = cut(one, size(other), why)
            left.insert(0, rest)
        elif size(one) < size(other):
            other, rest = cut(other, size(one), why)
            right.insert(0, rest)
        unify(one, other, why)
    return None


def _outer_and_inner(factor: Factor, outer: int, why: str) -> tuple[Dim, Dim] | None:
    """The factor as a product whose outer part has this size; None where it is not one."""
    inner, rest = divmod(factor.size, outer)
    if rest:
        return None
    if isinstance(factor, Axis):
        parts = fresh(outer), fresh(inner)
        _bind(factor, (*parts[0], *parts[1]))
        return parts
    pairs = [pair for chunk in _chunks(factor, inner) for pair in _rows(chunk, inner, why)]
    for _, other in pairs[1:]:
        unify(pairs[0][1], other, why)
    return run([one for one, _ in pairs]), pairs[0][1]


def _chunks(of: Run, inner: int) -> Iterator[Dim]:
    """Its segments, those put together that only together are a multiple of that size."""
    open_: list[Dim] = []
    for segment in of.segments:
        open_.append(segment)
        if sum(map(size, open_)) % inner == 0:
            yield run(open_)
            open_ = []


def _rows(chunk: Dim, inner: int, why: str) -> Iterator[tuple[Dim, Dim]]:
    """A dimension as products whose inner part has this size, one after the other."""
    known = resolve(chunk)
    if not (len(known) == 1 and isinstance(known[0], Run)):
        outer, rest = split(chunk, [size(chunk) // inner, inner], why)
        yield outer, rest
        return
    while size(known) > inner:
        row, known = cut(known, inner, why)
        yield (), row
    yield (), known


def _take(dim: Dim, wanted: int, why: str) -> tuple[Dim, Dim]:
    """The outermost factors that make the wanted size, and the rest; too few where there are none."""
    taken: Dim = ()
    while dim and (missing := wanted // size(taken)) > 1:
        first, dim = dim[0], dim[1:]
        if missing < first.size:
            parts = _outer_and_inner(first, missing, why)
            if parts is None:
                break
            taken, dim = (*taken, *parts[0]), (*parts[1], *dim)
        else:
            taken = (*taken, first)
    return taken, dim


def _cut_run(first: Run, at: int, why: str) -> tuple[Dim, Dim]:
    left: list[Dim] = []
    right = list(first.segments)
    while (missing := at - sum(map(size, left))) > 0:
        segment = right.pop(0)
        if size(segment) > missing:
            segment, rest = cut(segment, missing, why)
            right.insert(0, rest)
        left.append(segment)
    return run(left), run(right)

"""How a student's dimensions answer to its teacher's."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, TypeAlias

from edgestill.lab.inherit.axes import Axis, Dim, Factor, resolve, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Widths: TypeAlias = list[tuple[Axis, int]]


def matched(theirs: Dim, ours: Dim, known: Mapping[Axis, int]) -> Widths | None:
    """How many units of each of the teacher's axes the student has, read from one dimension that both have.

    - Both are products: factor by factor, where the student lacks those that have size 1 in it. Of several ways, the one
      that agrees best with what is known, then the one that leaves most factors whole (fewer heads, of the same size).
    - Both are sums: segment by segment.

    Args:
        theirs: the teacher's dimension.
        ours: the student's.
        known: widths that were read elsewhere.

    Returns:
        Axis and width; None where the student's dimension is built in another way.
    """
    wide, narrow = resolve(theirs), resolve(ours)
    lengths = [factor.size for factor in narrow]
    if len(wide) == 1 and isinstance(wide[0], Axis):
        return [(wide[0], prod(lengths))]
    if len(wide) == len(narrow):
        return _joined([_factor(one, other, known) for one, other in zip(wide, narrow, strict=True)])
    mixed = any(not isinstance(factor, Axis) for factor in (*wide, *narrow))
    if not mixed and (ways := list(_ways(wide, lengths))):
        best = max(ways, key=lambda way: _merit(wide, way, known))
    elif (way := _inner_whole(wide, prod(lengths))) is not None:
        best = way
    else:
        return None
    return [(axis, width) for axis, width in zip(wide, best, strict=True) if isinstance(axis, Axis)]


def is_plain(theirs: Dim, ours: Dim) -> bool:
    """Whether there is only one way to match them."""
    return len(resolve(theirs)) in {1, len(resolve(ours))}


def _merit(wide: Dim, way: list[int], known: Mapping[Axis, int]) -> tuple[int, int]:
    pairs = list(zip(wide, way, strict=True))
    agreeing = sum(known.get(factor) == width for factor, width in pairs if isinstance(factor, Axis))
    return agreeing, sum(width == factor.size for factor, width in pairs)


def _factor(theirs: Factor, ours: Factor, known: Mapping[Axis, int]) -> Widths | None:
    if isinstance(theirs, Axis):
        return [(theirs, ours.size)]
    if isinstance(ours, Axis) or len(ours.segments) != len(theirs.segments):
        return None
    pairs = zip(theirs.segments, ours.segments, strict=True)
    return _joined([matched(one, other, known) for one, other in pairs])


def _joined(parts: list[Widths | None]) -> Widths | None:
    found: Widths = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _ways(wide: Dim, lengths: list[int]) -> Iterator[list[int]]:
    """Every way to give the lengths, in order, to the factors; a factor may get several, or none (size 1)."""
    if not wide:
        if not lengths:
            yield []
        return
    for many in range(len(lengths) + 1):
        width = prod(lengths[:many])
        if width > wide[0].size:
            break
        if width < wide[0].size and isinstance(wide[0], Axis) and wide[0].frozen is not None:
            continue
        for others in _ways(wide[1:], lengths[many:]):
            yield [width, *others]


def _inner_whole(wide: Dim, length: int) -> list[int] | None:
    """The outermost factor alone is cut."""
    inner = size(wide[1:])
    if not wide or length % inner or length // inner > wide[0].size or not isinstance(wide[0], Axis):
        return None
    return [length // inner, *[factor.size for factor in wide[1:]]]

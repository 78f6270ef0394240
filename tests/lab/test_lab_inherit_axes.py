"""Dimensions are sums of products of axes: whatever is unified, split and cut, sizes and positions agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from edgestill.lab.inherit.axes import (
    Axis,
    Dim,
    Run,
    axes,
    cut,
    freeze,
    fresh,
    kept,
    mark_units,
    resolve,
    run,
    shrunk,
    size,
    split,
    unify,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

sizes = st.integers(1, 6)


def whole(*dims: Dim) -> dict[Axis, list[int]]:
    """Every unit of every axis."""
    return {axis: list(range(axis.size)) for dim in dims for axis in axes(dim)}


def halves(*dims: Dim) -> dict[Axis, list[int]]:
    """Every second unit of every axis that is not frozen."""
    return {axis: list(range(0, axis.size, 1 if axis.frozen else 2)) for dim in dims for axis in axes(dim)}


@given(st.lists(sizes, min_size=1, max_size=4))
def test_a_split_dimension_keeps_its_positions(lengths: Sequence[int]) -> None:
    """A view's parts, put together again, are the whole; what is kept is the product of what the parts keep."""
    dim = fresh(size(run([fresh(2)])) * 3 if not lengths else _product(lengths))
    parts = split(dim, lengths, "test")
    assert [size(part) for part in parts] == list(lengths)
    assert kept(dim, whole(dim)) == list(range(size(dim)))
    choice = halves(dim)
    strides = [_product(lengths[at + 1 :]) for at in range(len(lengths))]
    expected = [0]
    for part, stride in zip(parts, strides, strict=True):
        expected = [before + at * stride for before in expected for at in kept(part, choice)]
    assert kept(dim, choice) == expected


@given(st.lists(sizes, min_size=1, max_size=5), st.data())
def test_cutting_at_any_place_gives_pieces_that_follow_each_other(
    lengths: list[int], data: st.DataObject
) -> None:
    """A slice of a concatenation, within a part or between two."""
    dim = run([fresh(length) for length in lengths])
    if size(dim) == 1:
        return
    at = data.draw(st.integers(1, size(dim) - 1))
    left, right = cut(dim, at, "test")
    assert (size(left), size(right)) == (at, size(dim) - at)
    choice = halves(dim)
    assert kept(dim, choice) == kept(left, choice) + [at + one for one in kept(right, choice)]


@given(st.lists(sizes, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_two_ways_to_cut_one_length_become_the_same_axes(lengths: list[int], random: st.DataObject) -> None:
    """After unification, both dimensions keep the same positions, whatever each was made of."""
    other = list(lengths)
    random.shuffle(other)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    one, two = run([fresh(length) for length in lengths]), run([fresh(length) for length in other])
    unify(one, two, "test")
    choice = halves(one, two)
    assert kept(one, choice) == kept(two, choice)


@given(st.lists(sizes, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_two_products_of_one_size_become_equal_or_whole(lengths: list[int], random: st.DataObject) -> None:
    """Where factors do not divide each other nothing is cut, so that positions still agree."""
    other = list(lengths)
    random.shuffle(other)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    one, two = fresh(_product(lengths)), fresh(_product(lengths))
    split(one, lengths, "test")
    split(two, other, "test")
    unify(one, two, "test")
    choice = halves(one, two)
    assert kept(one, choice) == kept(two, choice)
    assert len(kept(one, choice)) == shrunk(one, {axis: len(units) for axis, units in choice.items()})


def test_factors_that_do_not_divide_each_other_are_kept_whole() -> None:
    """Four by six and six by four have no common parts."""
    one, two = fresh(24), fresh(24)
    split(one, [4, 6], "test")
    split(two, [6, 4], "because")
    unify(one, two, "because")
    assert {axis.frozen for dim in (one, two) for axis in axes(dim)} == {"because"}


def test_gates_that_stand_one_after_the_other_become_one_axis() -> None:
    """A concatenation of three equal parts, viewed as three by the rest, ties the parts to each other."""
    parts = [fresh(5) for _ in range(3)]
    outer, inner = split(run(parts), [3, 5], "test")
    assert {axis for part in parts for axis in axes(part)} == set(axes(inner))
    assert not list(axes(outer))


def test_segments_that_only_together_fill_a_row_are_viewed_as_rows() -> None:
    """A concatenation of (2, 4) and (6) as two rows of six: the second row's parts are those of the first."""
    two, four, six = fresh(2), fresh(4), fresh(6)
    outer, inner = split(run([two, four, six]), [2, 6], "test")
    assert not list(axes(outer))
    assert list(axes(inner)) == [*axes(two), *axes(four)] == list(axes(six))


def test_a_row_may_end_within_a_segment() -> None:
    """A concatenation of (2) and (6) as two rows of four: the long one is cut, and nothing is frozen."""
    dim = run([fresh(2), fresh(6)])
    _, inner = split(dim, [2, 4], "test")
    assert size(inner) == 4
    assert {axis.frozen for axis in axes(dim)} == {None}


def test_a_bound_axis_passes_on_what_is_known_of_it() -> None:
    """Frozen, held and made by a layer: all of it survives unification."""
    one, two = fresh(6, held="held"), fresh(6)
    freeze(one, "frozen")
    mark_units(one)
    unify(two, one, "test")
    (axis,) = resolve(two)
    assert isinstance(axis, Axis)
    assert (axis.frozen, axis.held, axis.unit) == ("frozen", "held", True)


def test_runs_within_runs_are_flat() -> None:
    """A concatenation of concatenations is one."""
    inner = run([fresh(2), fresh(3)])
    (flat,) = resolve(run([inner, fresh(4)]))
    assert isinstance(flat, Run)
    assert [size(segment) for segment in flat.segments] == [2, 3, 4]


def _product(lengths: Sequence[int]) -> int:
    found = 1
    for length in lengths:
        found *= length
    return found

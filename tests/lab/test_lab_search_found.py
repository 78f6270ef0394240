"""Which students are worth a look, and which one is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.budget import Budget
from edgestill.core.errors import SettingError
from edgestill.core.footprint import Footprint
from edgestill.lab.recipe import Recipe
from edgestill.lab.searching.draft import Shape
from edgestill.lab.searching.found import Point, front, pick
from edgestill.lab.searching.shape import UNIFORM


def point(size: int, latency: float, judged: float) -> Point:
    """With these figures."""
    return Point(
        name=f"{size}/{latency}/{judged}",
        budget=Budget(size=size),
        shape=Shape(direction=UNIFORM, scale=0.5, precision="int8"),
        widths={},
        recipe=Recipe(),
        uniform=False,
        footprint=Footprint(size=size, latency=latency, hardware_class="x86_64-base-onnxruntime"),
        judged=judged,
        weights=Path("nowhere"),
    )


POINTS = st.lists(
    st.builds(point, st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.5, 0.6, 0.7])),
    min_size=1,
    max_size=12,
)


def beats(one: Point, other: Point) -> bool:
    """In everything at least as good, in something better."""
    ours = (-one.footprint.size, -(one.footprint.latency or 0), one.judged)
    theirs = (-other.footprint.size, -(other.footprint.latency or 0), other.judged)
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


@given(POINTS)
def test_nobody_beats_the_front(points: list[Point]) -> None:
    """A law: none of it is beaten, and everybody else is, or is the like of one of it."""
    found = front(points)
    assert not any(beats(other, one) for one in found for other in points)
    for one in points:
        like = [
            other
            for other in found
            if (other.footprint.size, other.footprint.latency, other.judged)
            == (one.footprint.size, one.footprint.latency, one.judged)
        ]
        assert like or any(beats(other, one) for other in found)


@given(POINTS, st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.3]))
def test_the_best_that_fits_is_taken(points: list[Point], size: int, latency: float) -> None:
    """A law: it keeps the budget, and no other that does is better; where none does, an error says what is nearest."""
    budget = Budget(size=size, latency=latency)
    fitting = [
        one for one in points if one.footprint.size <= size and (one.footprint.latency or 0) <= latency
    ]
    if fitting:
        found = pick(points, budget)
        assert found in fitting
        assert found.judged == max(one.judged for one in fitting)
    else:
        with pytest.raises(SettingError, match="no student that was found fits"):
            pick(points, budget)


def test_where_none_fits_the_bound_and_the_nearest_are_named() -> None:
    """The nearest exceeds its tightest bound least."""
    with pytest.raises(SettingError, match="the latency is bound too tightly; at budget: latency") as caught:
        pick([point(5, 0.3, 0.7), point(2, 0.2, 0.5)], Budget(size=4, latency=0.19))
    assert "got 2/0.2/0.5" in str(caught.value)

"""The scale that fits: below the budget, near it, and found with few looks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgestill.lab.searching.fit import fitting_scale

LEAST = 0.01


@given(st.floats(0.3, 3), st.floats(0.05, 50), st.floats(0.02, 1), st.floats(0, 0.9))
def test_the_scale_fits_and_nearly_fills_the_budget(
    power: float, factor: float, begin: float, floor: float
) -> None:
    """A law, for powers of the scale above a floor: at most 1, and little less unless all of the teacher fits."""

    def cost(scale: float) -> float:
        return float(floor + factor * scale**power)

    scale = fitting_scale(cost, least=LEAST, begin=begin)
    if scale is None:
        assert cost(LEAST) > 1
    else:
        assert cost(scale) <= 1
        assert scale == 1 or cost(scale) > 0.8


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=12), st.floats(0.02, 1))
def test_a_cost_in_steps_is_kept_as_well(steps: list[float], begin: float) -> None:
    """Widths are whole numbers: the cost jumps. What is returned was looked at, or is the least, and fits."""
    levels = sorted(steps)

    def cost(scale: float) -> float:
        return levels[min(len(levels) - 1, int(scale * len(levels)))]

    scale = fitting_scale(cost, least=LEAST, begin=begin)
    if scale is None:
        assert levels[0] > 1
    else:
        assert cost(scale) <= 1


@given(st.floats(0.5, 2.5), st.floats(0.5, 500))
def test_few_looks_are_enough(power: float, factor: float) -> None:
    """Each is an export: a power of the scale takes at most nine, and mostly three or four."""
    looked = []

    def cost(scale: float) -> float:
        looked.append(scale)
        return float(factor * scale**power)

    fitting_scale(cost, least=LEAST)
    assert len(looked) <= 9


def test_nothing_is_free() -> None:
    """A cost of nothing takes the most there is; an infinite one nothing."""
    assert fitting_scale(lambda _: 0.0, least=LEAST) == 1.0
    assert fitting_scale(lambda _: float("inf"), least=LEAST) is None

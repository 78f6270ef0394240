"""What is held back: whole stretches of time, with gaps, a fair share, at all hours."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import SettingError
from edgestill.device.holding import Holding

SEED = b"sixteen bytes ok"
times = st.floats(0, 1e10)


@given(
    a=times,
    near=st.floats(-1_500, 1_500),
    seed=st.binary(min_size=16, max_size=16),
    stretch=st.floats(1, 1_000),
    share=st.floats(0, 1),
    every=st.integers(2, 9),
)
def test_what_is_trained_on_is_never_near_what_judges(
    *, a: float, near: float, seed: bytes, stretch: float, share: float, every: int
) -> None:
    """Two samples, one of either part, are at least a gap apart, whatever the settings."""
    holding = Holding(stretch=stretch, every=every, gap=stretch * share)
    b = a + near
    if {holding.role(a, seed), holding.role(b, seed)} == {"train", "held"}:
        assert abs(a - b) >= holding.gap * (1 - 1e-6) - 1e-5


@given(seed=st.binary(min_size=16, max_size=16), period=st.integers(0, 10**6), every=st.integers(2, 20))
def test_of_so_many_stretches_exactly_one_is_held_back(seed: bytes, period: int, every: int) -> None:
    """A device has something to judge by after that time at the latest."""
    holding = Holding(stretch=10, every=every, gap=0)
    roles = [holding.role(10.0 * (period * every + one) + 5, seed) for one in range(every)]
    assert sorted(roles) == ["held"] + ["train"] * (every - 1)


def test_over_days_each_stretch_of_the_day_is_held_back_sometimes() -> None:
    """24 stretches of an hour, over 100 days: none is always in one part."""
    holding = Holding(stretch=3600, every=4, gap=0)
    held = Counter(
        hour
        for day in range(100)
        for hour in range(24)
        if holding.role(86_400.0 * day + 3_600 * hour, SEED) == "held"
    )
    assert sum(held.values()) == 600
    assert all(8 <= held[hour] <= 45 for hour in range(24))


def test_a_gap_lies_on_both_sides() -> None:
    """From a gap before until a gap after; what lies there is neither trained on nor judged."""
    holding = Holding(stretch=100, every=5, gap=20)
    roles = [holding.role(float(second), SEED) for second in range(5_000)]
    runs: list[tuple[str, int]] = []
    for role in roles:
        if not runs or runs[-1][0] != role:
            runs.append((role, 0))
        runs[-1] = (role, runs[-1][1] + 1)
    assert "held" in dict(runs)
    inner = runs[1:-1]
    assert {length for role, length in inner if role == "held"} <= {100, 200}
    assert all(20 <= length <= 21 for role, length in inner if role == "gap")
    assert all({a, b} != {"train", "held"} for (a, _), (b, _) in pairwise(runs))


def test_another_seed_holds_back_other_stretches() -> None:
    """Devices of a fleet do not all judge by the same hours."""
    holding = Holding()
    one, other = (
        [holding.role(600.0 * number, seed) for number in range(100)] for seed in (SEED, SEED[::-1])
    )
    assert one != other


@pytest.mark.parametrize(
    "wrong",
    [{"stretch": 0.5}, {"stretch": float("nan")}, {"every": 1}, {"every": 1001}, {"gap": -1}, {"gap": 601}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """With what is allowed."""
    with pytest.raises(
        SettingError, match="what is held back is out of range; at holding; expected stretch from 1"
    ):
        Holding(**wrong)  # type: ignore[arg-type]  # wrong on purpose

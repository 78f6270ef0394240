"""How often one caller may ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import RateError, SettingError
from edgestill.infer.serving.limits import Rate, RateLimit, take
from edgestill.testing.clock import FakeClock


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    """The refusal tells how long to wait, and waiting so long helps."""
    clock = FakeClock()
    limit = RateLimit(Rate(2, 3), clock=clock)
    for _ in range(3):
        limit.require("a")
    with pytest.raises(RateError, match="at most 2 a second, and 3 at once") as caught:
        limit.require("a")
    assert caught.value.seconds == pytest.approx(0.5)
    limit.require("b")
    clock.advance(0.5)
    limit.require("a")


@given(
    gaps=st.lists(st.floats(0, 10), min_size=1, max_size=60),
    per_second=st.floats(0.1, 50),
    burst=st.integers(1, 20),
)
def test_nobody_gets_more_than_the_rate_and_the_burst(
    gaps: list[float], per_second: float, burst: int
) -> None:
    """Over any stretch, whatever the pattern; and who is refused is let in once the time it was told has passed."""
    rate, bucket, now, let_in = Rate(per_second, burst), None, 0.0, 0
    for gap in gaps:
        now += gap
        bucket, seconds = take(bucket, rate, now)
        let_in += seconds == 0
        assert let_in <= burst + now * per_second + 1e-6
        if seconds:
            _, after = take(bucket, rate, now + seconds + 1e-6)
            assert after == 0


def test_a_clock_that_stands_still_or_goes_back_fills_nothing() -> None:
    """A bucket is never fuller than before for it."""
    bucket, _ = take(None, Rate(1, 1), 100.0)
    assert take(bucket, Rate(1, 1), 50.0)[1] > 0


def test_attack_callers_without_number_take_no_memory() -> None:
    """Whoever was silent for longest is forgotten."""
    limit = RateLimit(Rate(1, 1), clock=FakeClock(), most_callers=10)
    for number in range(1000):
        limit.require(f"caller {number}")
    assert len(limit) == 10
    with pytest.raises(RateError):
        limit.require("caller 999")
    limit.require("caller 0")


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (1, 0), (1e9, 1), (float("nan"), 1)])
def test_a_rate_out_of_range_is_refused(per_second: float, burst: int) -> None:
    """Nothing at all, and without end."""
    with pytest.raises(SettingError, match="a rate is out of range"):
        Rate(per_second, burst)

"""The data budget counts every byte once and forgets only what it should."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError, SpentError
from edgestill.link.allowance import SECONDS_PER_DAY, Allowance, Meter
from edgestill.testing.clock import FakeClock

NOON = 20_000 * SECONDS_PER_DAY + SECONDS_PER_DAY / 2


def test_spending_stops_at_the_budget() -> None:
    """What fits is counted, what does not is refused whole."""
    allowance = Allowance(bytes_per_day=1_000).spend(600, NOON)
    assert allowance.left(NOON) == 400
    with pytest.raises(
        SpentError,
        match=r"used up; at allowance; expected at most 400 B of 1 kB; got 401 B; wait for tomorrow",
    ):
        allowance.spend(401, NOON)
    assert allowance.spend(400, NOON).left(NOON) == 0


def test_a_new_day_begins_afresh() -> None:
    """At midnight UTC."""
    allowance = Allowance(bytes_per_day=1_000).spend(1_000, NOON)
    last = 20_001 * SECONDS_PER_DAY - 0.001
    assert allowance.left(last) == 0
    assert allowance.left(last + 0.002) == 1_000


def test_attack_a_clock_that_swings_around_midnight() -> None:
    """Going back by seconds, or by a day, gives nothing back."""
    midnight = 20_001.0 * SECONDS_PER_DAY
    allowance = Allowance(bytes_per_day=1_000).spend(900, midnight + 1)
    for swing in (-2, 1, -3600, 1, -SECONDS_PER_DAY, 1):
        assert allowance.left(midnight + swing) == 100
        allowance = allowance.charge(0, midnight + swing)


@pytest.mark.parametrize("back", [1, 3600, SECONDS_PER_DAY, 2 * SECONDS_PER_DAY, 30 * SECONDS_PER_DAY, 1e9])
def test_attack_a_clock_that_is_set_back_gives_nothing_again(back: float) -> None:
    """However far, and however often it is set forward to the same day again."""
    allowance = Allowance(bytes_per_day=1_000).spend(1_000, NOON)
    for _ in range(5):
        for now in (NOON - back, NOON):
            assert allowance.left(now) == 0
            allowance = allowance.charge(0, now)


def test_a_clock_that_was_far_ahead_does_not_shut_a_device_off() -> None:
    """One reading of 2038, and then the right time again: from then on each 24 hours of running give a budget, and no less."""
    allowance = Allowance(bytes_per_day=1_000).charge(5_000, 2.1e9)
    for hours in (1, 22.9):
        allowance = allowance.after(hours * 3600)
        assert allowance.left(NOON) == 0
    allowance = allowance.after(360)
    assert allowance.left(NOON) == 1_000
    allowance = allowance.spend(1_000, NOON)
    assert allowance.left(NOON) == 0
    assert allowance.left(2.1e9) == 0, "that day has had its budget"
    assert allowance.after(SECONDS_PER_DAY).left(NOON) == 1_000


def test_running_long_alone_gives_nothing() -> None:
    """Where the clock is right, its midnight counts: a device that runs for 30 hours of one day by another clock gets nothing twice."""
    allowance = Allowance(bytes_per_day=1_000).spend(1_000, NOON).after(30 * 3600)
    for now in (NOON, NOON - 3600, NOON - SECONDS_PER_DAY):
        assert allowance.left(now) == 0


def test_what_has_happened_is_counted_even_beyond_the_budget() -> None:
    """An answer that was longer than thought costs what it cost."""
    allowance = Allowance(bytes_per_day=100).charge(150, NOON)
    assert allowance.spent == 150
    assert allowance.left(NOON) == 0


def test_without_a_budget_everything_is_allowed_and_counted() -> None:
    """The count is still there to be shown."""
    allowance = Allowance().spend(10**12, NOON)
    assert (allowance.left(NOON), allowance.spent) == (None, 10**12)


@pytest.mark.parametrize("wrong", [{"bytes_per_day": -1}, {"spent": -1}])
def test_a_negative_allowance_is_refused(wrong: dict[str, int]) -> None:
    """When it is made."""
    with pytest.raises(
        SettingError, match="an allowance is out of range; at allowance; expected 0 bytes or more"
    ):
        Allowance(**wrong)


_unhurried = settings(deadline=None)
_allowances = st.builds(
    Allowance,
    bytes_per_day=st.none() | st.integers(0, 10**9),
    day=st.integers(0, 40_000),
    spent=st.integers(0, 10**9),
    given=st.integers(0, 10**6),
    ran=st.floats(0, 2 * SECONDS_PER_DAY),
)


@_unhurried
@given(_allowances)
def test_it_survives_a_restart(allowance: Allowance) -> None:
    """What is written is what is read."""
    assert Allowance.from_bytes(allowance.to_bytes()) == allowance


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"day":1}', b'{"day":-1,"spent":0}', b'{"day":1,"spent":"x"}', b'{"day":1e3,"spent":0}'],
)
def test_a_damaged_file_is_told(data: bytes) -> None:
    """As a message that is none."""
    with pytest.raises(MessageError, match="allowance"):
        Allowance.from_bytes(data)


@_unhurried
@given(
    budget=st.integers(0, 1_000),
    steps=st.lists(st.tuples(st.integers(0, 400), st.floats(0, SECONDS_PER_DAY)), max_size=30),
)
def test_no_day_exceeds_its_budget(budget: int, steps: list[tuple[int, float]]) -> None:
    """Whatever is asked for, and whenever, while the clock goes forward."""
    allowance, now, days = Allowance(bytes_per_day=budget), NOON, dict[int, int]()
    for count, pause in steps:
        now += pause
        day = int(now // SECONDS_PER_DAY)
        fits = days.get(day, 0) + count <= budget
        try:
            allowance = allowance.spend(count, now)
        except SpentError:
            assert not fits
        else:
            assert fits
            days[day] = days.get(day, 0) + count
        assert allowance.left(now) == budget - days.get(day, 0)


def test_threads_share_a_meter() -> None:
    """Each byte is counted once, and the budget is not overrun."""
    meter = Meter(Allowance(bytes_per_day=1_000), FakeClock())

    def spend(_: int) -> bool:
        try:
            meter.spend(10)
        except SpentError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(200))) == 100
    assert meter.left() == 0
    assert meter.allowance.spent == 1_000


def test_a_meter_follows_its_clock() -> None:
    """Tomorrow there is a new budget; what came is charged, what does not fit is refused uncounted."""
    clock = FakeClock(now=NOON)
    meter = Meter(Allowance(bytes_per_day=100), clock)
    meter.charge(70)
    with pytest.raises(SpentError, match="used up"):
        meter.require(31)
    meter.require(30)
    assert meter.left() == 30
    clock.advance(SECONDS_PER_DAY)
    assert meter.left() == 100
    assert meter.allowance == Allowance(bytes_per_day=100, day=20_001, given=2)
    meter.ahead(50)
    meter.settle()
    assert (meter.left(), meter.bytes_per_day) == (100, 100)

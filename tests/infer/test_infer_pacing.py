"""The pace of a day: what is still to come, told from the days before."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields
from edgestill.infer.pacing import HOURS, Pace

DAY = 86_400.0
HOUR = 3_600.0
START = 20_000 * DAY


def lived(pace: Pace, hour: float, count: int, *, of: float = 1.0) -> Pace:
    """The pace after so many inputs, evenly over the first part of an hour that is counted from `START`."""
    for place in range(count):
        pace = pace.after(START + (hour + of * place / count) * HOUR)
    return pace


def test_on_a_first_day_the_rate_goes_on() -> None:
    """After half an hour of 60 inputs, 23.5 hours of 120 an hour are still to come."""
    pace = lived(Pace(), 0, 60, of=0.5)
    assert pace.ahead(START + HOUR / 2) == pytest.approx(23.5 * 120, rel=0.02)


def test_the_night_is_known_from_the_day_before() -> None:
    """At noon of the second day only the afternoon is expected, not the silent night."""
    pace = Pace()
    for hour in range(24):
        pace = lived(pace, hour, 100 if 6 <= hour < 18 else 1)
    for hour in range(24, 36):
        pace = lived(pace, hour, 100 if 6 <= hour - 24 < 18 else 1)
    assert pace.ahead(START + 36 * HOUR) == pytest.approx(606, rel=0.1)


def test_a_busier_day_is_expected_to_stay_so() -> None:
    """With twice as many inputs until noon, twice as many are expected after it."""
    pace = Pace()
    for hour in range(24):
        pace = lived(pace, hour, 100)
    for hour in range(24, 36):
        pace = lived(pace, hour, 200)
    assert pace.ahead(START + 36 * HOUR) == pytest.approx(2 * 1_200, rel=0.1)


def test_hours_without_any_input_were_lived_through() -> None:
    """A device that sees nothing for six hours expects less there on the next day."""
    pace = lived(lived(Pace(), 0, 90), 7, 90)
    assert pace.usual[1:7] == (0.0,) * 6
    assert pace.usual[0] == pytest.approx(90)


def test_a_clock_that_is_set_back_a_little_loses_no_hour() -> None:
    """Inputs of some minutes before count for the hour that is."""
    pace = lived(Pace(), 5, 10)
    back = pace.after(START + 4.9 * HOUR)
    assert (back.hour, back.seen) == (pace.hour, 11)


def test_a_clock_that_was_years_ahead_does_not_stop_the_asking() -> None:
    """Set right, it expects what it expected before, and not a day of it within a minute."""
    pace = Pace()
    for hour in range(24):
        pace = lived(pace, hour, 100)
    ahead = pace.after(START + 9_000 * DAY)
    mended = lived(ahead, 36, 100)
    assert mended.hour == int((START + 36 * HOUR) // HOUR)
    assert mended.ahead(START + 37 * HOUR) < 2_000


def test_an_hour_that_was_hardly_begun_says_nothing() -> None:
    """Ten inputs in the last minute of the first hour are not sixty times as many."""
    pace = Pace().after(START + 0.99 * HOUR)
    assert lived(pace, 1, 5).usual[0] == -1


@given(
    st.lists(st.tuples(st.floats(0, 5 * DAY), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_whatever_the_clock_does_something_is_ahead_and_no_count_is_negative(
    times: list[tuple[float, float]],
) -> None:
    """Jumps to and fro leave a finite number of inputs ahead, at least one, and averages that are counts."""
    pace = Pace()
    for at, _ in times:
        pace = pace.after(START + at)
        ahead = pace.ahead(START + at)
        assert 1 <= ahead < math.inf
        assert all(count == -1 or count >= 0 for count in pace.usual)
        assert len(pace.usual) == HOURS


@given(st.lists(st.floats(0, 5 * DAY), max_size=40))
def test_a_pace_survives_its_json(times: list[float]) -> None:
    """Written and read it is the same."""
    pace = Pace()
    for at in sorted(times):
        pace = pace.after(START + at)
    fields = Fields(json.loads(json.dumps(pace.as_json())), "state")
    assert Pace.from_fields(fields) == pace


@pytest.mark.parametrize(
    "usual", [[], [0] * 23, [0] * 23 + [-2], [0] * 23 + [True], [0] * 23 + ["1"], [0] * 23 + [None]]
)
def test_averages_that_are_none_are_refused(usual: list[object]) -> None:
    """Too few, negative, or no numbers."""
    with pytest.raises(MessageError, match="usual"):
        Pace.from_fields(Fields(json.loads(json.dumps(Pace().as_json() | {"usual": usual})), "state"))

"""When a device may train: each limit by itself, what is not known, days and clocks, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.device.effort import LONGEST_WAIT, Effort, No, Spent, Yes, may_train, rest_after
from edgestill.device.sensors import Readings

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

DAY = 86_400
NOON = 20_000 * DAY + DAY / 2
FREE = Effort(idle_seconds=0, only_on_mains=False)
"""Only the seconds of a day."""
CALM = Readings(
    now=NOON,
    since_answer=math.inf,
    load=0.1,
    cores=4,
    celsius=40.0,
    on_mains=True,
    has_battery=True,
    battery=0.9,
)


def refusal(effort: Effort, readings: Readings, spent: Spent | None = None) -> No:
    """Why it may not."""
    answer = may_train(effort, readings, spent or Spent())
    assert isinstance(answer, No)
    return answer


def test_a_calm_machine_may_train_for_what_is_left_of_the_day() -> None:
    """With all limits set."""
    effort = Effort(
        joules_per_day=100, highest_celsius=70, highest_load=0.5, lowest_battery=0.5, hours=(8, 20)
    )
    assert may_train(effort, CALM, Spent()) == Yes(1_800)
    assert may_train(effort, CALM, Spent(day=20_000, seconds=1_000)) == Yes(800)
    assert may_train(Effort(), CALM, Spent(day=19_999, seconds=1_800)) == Yes(1_800)


@pytest.mark.parametrize(
    ("effort", "change", "reason", "again"),
    [
        ({"highest_celsius": 70.0}, {"celsius": 71.0}, "71 °C", 60),
        ({"highest_load": 0.5}, {"load": 2.1}, "load 0.53 per core", 60),
        ({"idle_seconds": 60.0}, {"since_answer": 20.0}, "answers are asked for", 40),
        ({"only_on_mains": True}, {"on_mains": False}, "on battery", 600),
        ({"lowest_battery": 0.5}, {"battery": 0.49}, "battery at 49%", 600),
        ({"hours": (22.0, 6.0)}, {}, "only from 22 to 6 o'clock", LONGEST_WAIT),
        ({"hours": (12.5, 13.0)}, {}, "only from 12.5 to 13 o'clock", 1_800),
        ({"seconds_per_day": 0.0}, {}, "training is not allowed", LONGEST_WAIT),
    ],
)
def test_each_limit_refuses_with_its_reason(
    effort: dict[str, object], change: dict[str, object], reason: str, again: float
) -> None:
    """And says when to look again; without the limit, or the reason for it, training may run."""
    limited = replace(FREE, **effort)  # type: ignore[arg-type]  # fields by name
    told = refusal(limited, replace(CALM, **change))  # type: ignore[arg-type]  # fields by name
    assert (told.reason, told.again) == (reason, again)
    if change:
        assert isinstance(may_train(limited, CALM, Spent()), Yes)
    assert isinstance(may_train(FREE, replace(CALM, **change), Spent()), Yes)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("effort", "field", "reason"),
    [
        ({"highest_celsius": 70.0}, "celsius", "the temperature is not known"),
        ({"highest_load": 0.5}, "load", "the load is not known"),
        ({"idle_seconds": 60.0}, "since_answer", "when an answer was given last is not known"),
        ({"only_on_mains": True}, "on_mains", "whether there is mains is not known"),
        ({"lowest_battery": 0.5}, "battery", "the battery's charge is not known"),
    ],
)
def test_a_limit_whose_sensor_is_missing_refuses(effort: dict[str, object], field: str, reason: str) -> None:
    """What cannot be measured cannot be kept; whoever does not set the limit need not have the sensor."""
    blind = replace(CALM, **{field: None})  # type: ignore[arg-type]  # fields by name
    assert refusal(replace(FREE, **effort), blind).reason == reason  # type: ignore[arg-type]  # fields by name
    assert isinstance(may_train(FREE, blind, Spent()), Yes)


def test_a_machine_without_a_battery_cannot_run_it_down() -> None:
    """The one absence that is an answer."""
    board = replace(CALM, has_battery=False, battery=None)
    assert isinstance(may_train(replace(FREE, lowest_battery=0.5), board, Spent()), Yes)


def test_hours_may_go_over_midnight_and_are_those_of_the_device() -> None:
    """From 22 to 6, in a zone that is two hours ahead: 20 to 4 UTC."""
    effort = replace(FREE, hours=(22.0, 6.0))
    open_at = [
        hour
        for hour in range(24)
        if isinstance(
            may_train(effort, replace(CALM, now=NOON - DAY / 2 + 3_600 * hour, utc_offset=7_200), Spent()),
            Yes,
        )
    ]
    assert open_at == [0, 1, 2, 3, 20, 21, 22, 23]


@given(trained=st.floats(0, 1e6), share=st.floats(0.01, 1))
def test_training_does_not_stop_itself_by_its_own_load(trained: float, share: float) -> None:
    """On one core with nothing else to do, the average it makes is what it is allowed; that of others still counts."""
    effort = replace(FREE, highest_load=0.3, core_share=share)
    own = share * (1 - math.exp(-trained / 60))
    alone = replace(CALM, cores=1, load=own, trained_for=trained)
    assert isinstance(may_train(effort, alone, Spent()), Yes)
    assert isinstance(may_train(effort, replace(alone, load=own + 0.31), Spent()), No)


def test_a_day_that_is_spent_waits_for_the_next() -> None:
    """At most an hour at a time, for the clock may be set."""
    spent = Spent(day=20_000, seconds=1_800)
    assert refusal(FREE, CALM, spent) == No("trained for 30 min today", LONGEST_WAIT)
    late = replace(CALM, now=20_001 * DAY - 100.0)
    assert refusal(FREE, late, spent).again == 100
    assert may_train(FREE, replace(CALM, now=20_001 * DAY), spent) == Yes(1_800)


def test_energy_is_counted_where_it_is_and_estimated_where_not() -> None:
    """And whoever looks is told which."""
    effort = replace(FREE, joules_per_day=100.0)
    counted = Spent().spend(now=NOON, seconds=10, cpu_seconds=8, joules=60.0, watts=5)
    assert (counted.joules, counted.estimated, counted.cpu_seconds, counted.seconds) == (60, 0, 8, 10)
    both = counted.spend(now=NOON, seconds=10, cpu_seconds=9, joules=None, watts=5)
    assert (both.joules, both.estimated) == (105, 45)
    assert isinstance(may_train(effort, CALM, counted), Yes)
    assert refusal(effort, CALM, both).reason == "105 J spent today, 45 of them by CPU seconds"
    more = counted.spend(now=NOON, seconds=1, cpu_seconds=1, joules=50, watts=5)
    assert refusal(effort, CALM, more).reason == "110 J spent today"


def test_a_new_day_begins_with_nothing_spent() -> None:
    """A spell that goes over midnight counts to the day it ended on."""
    before = Spent().spend(now=NOON, seconds=100, cpu_seconds=90, joules=5, watts=1)
    after = before.spend(now=NOON + DAY, seconds=10, cpu_seconds=9, joules=1, watts=1)
    assert (after.day, after.seconds, after.cpu_seconds, after.joules) == (20_001, 10, 9, 1)


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    """Neither by an hour nor by years, and the same day gives nothing twice."""
    spent = Spent().spend(now=NOON, seconds=1_800, cpu_seconds=1, joules=1, watts=1)
    for now in (NOON - 3_600, NOON - DAY, NOON - 3 * DAY, 0.0, NOON):
        assert isinstance(may_train(FREE, replace(CALM, now=now), spent), No)


def test_one_wrong_reading_does_not_forbid_training_for_years() -> None:
    """The clock once showed a year ahead: after 24 hours of running there is a budget again, and after 24 more."""
    ahead = Spent().spend(now=NOON + 365 * DAY, seconds=1_800, cpu_seconds=1, joules=1, watts=1)
    almost = ahead.after(DAY - 1)
    assert isinstance(may_train(FREE, CALM, almost), No)
    again = almost.after(1)
    assert may_train(FREE, CALM, again) == Yes(1_800)
    used = again.spend(now=NOON, seconds=1_800, cpu_seconds=1, joules=1, watts=1)
    assert isinstance(may_train(FREE, CALM, used), No)
    assert isinstance(may_train(FREE, CALM, used.after(DAY)), Yes)


times = st.floats(0, 1e11)


@given(
    st.lists(
        st.tuples(times, st.floats(-10, 1e4), st.floats(-10, 1e4), st.none() | st.floats(-10, 1e6)),
        max_size=20,
    )
)
def test_what_is_spent_only_grows_until_another_budget_and_survives_a_restart(
    spells: list[tuple[float, float, float, float | None]],
) -> None:
    """Whatever the clock does; the state is read as it was written at every step."""
    spent = Spent()
    for now, seconds, cpu, joules in spells:
        turned = spent.on(now)
        after = spent.spend(now=now, seconds=seconds, cpu_seconds=cpu, joules=joules, watts=2)
        assert after.day >= spent.day
        assert after.seconds >= turned.seconds
        assert after.joules >= after.estimated >= turned.estimated >= 0
        text = canonical(after.as_json())
        assert Spent.from_fields(Fields(parse_object(text, where="spent"), "spent")) == after
        spent = after


@given(
    now=times,
    offset=st.floats(-50_000, 50_000),
    celsius=st.none() | st.floats(-50, 200),
    load=st.none() | st.floats(0, 100),
    since=st.none() | st.floats(-1e6, 1e9),
    hours=st.none() | st.tuples(st.floats(0, 24), st.floats(0, 24)).filter(lambda pair: pair[0] != pair[1]),
    seconds=st.floats(0, 4_000),
)
def test_whatever_is_read_there_is_an_answer_and_a_time_to_look_again(
    *,
    now: float,
    offset: float,
    celsius: float | None,
    load: float | None,
    since: float | None,
    hours: tuple[float, float] | None,
    seconds: float,
) -> None:
    """Between a second and an hour, or some of the day's seconds."""
    effort = Effort(highest_celsius=60, highest_load=1, hours=hours)
    readings = replace(CALM, now=now, utc_offset=offset, celsius=celsius, load=load, since_answer=since)
    answer = may_train(effort, readings, Spent(day=20_000, seconds=seconds))
    if isinstance(answer, No):
        assert 1 <= answer.again <= LONGEST_WAIT
        assert answer.reason
    else:
        assert 0 < answer.seconds <= effort.seconds_per_day


@given(st.floats(0.01, 1), st.floats(0, 1_000))
def test_work_and_rest_together_keep_the_share(share: float, worked: float) -> None:
    """Half of a core: as long a rest as the work; a whole one: none."""
    rest = rest_after(Effort(core_share=share), worked)
    assert worked == pytest.approx(share * (worked + rest), abs=1e-9)
    assert rest_after(Effort(core_share=1), worked) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds_per_day": -1},
        {"seconds_per_day": 90_000},
        {"core_share": 0},
        {"core_share": 1.5},
        {"joules_per_day": -1},
        {"watts": 0},
        {"watts": math.nan},
        {"highest_celsius": 500},
        {"highest_celsius": math.nan},
        {"idle_seconds": -1},
        {"highest_load": 0},
        {"lowest_battery": 1.1},
        {"hours": (5, 5)},
        {"hours": (-1, 5)},
        {"hours": (1, 25)},
        {"hours": (math.nan, 5)},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """With what is allowed."""
    with pytest.raises(
        SettingError, match="a setting of the effort to train is out of range; at effort; expected 0 to"
    ):
        Effort(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "effort",
    [
        Effort(),
        Effort(joules_per_day=5, highest_celsius=60, highest_load=2, lowest_battery=0.3, hours=(22, 5.5)),
    ],
)
def test_settings_are_read_as_they_were_written(effort: Effort) -> None:
    """As JSON, None where there is no limit."""
    text = canonical(effort.as_json())
    assert Effort.from_fields(Fields(parse_object(text, where="effort"), "effort")) == effort


@pytest.mark.parametrize(
    "change",
    [
        {"day": -1},
        {"seconds": -1},
        {"joules": "many"},
        {"estimated": None},
        {"ran": 1e300},
        {"cpu_seconds": True},
    ],
)
def test_attack_a_state_that_nobody_wrote_is_refused(change: JsonObject) -> None:
    """Field by field; whoever keeps it then counts today as spent."""
    value = Spent(day=1).as_json() | change
    with pytest.raises(MessageError):
        Spent.from_fields(Fields(value, "spent"))

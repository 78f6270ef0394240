"""The drift test: its statistic by hand, quiet on still streams, quick on shifts."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.learn.drift import CLIP, DriftState, PageHinkley

values = st.lists(st.floats(-1e3, 1e3), max_size=80)


def feed(test: PageHinkley, stream: object, state: DriftState | None = None) -> DriftState:
    """The state after a stream."""
    state = test.start() if state is None else state
    for value in np.asarray(stream, dtype=float).tolist():
        state = test.update(state, value)
    return state


def delay(test: PageHinkley, stream: np.ndarray, state: DriftState) -> int:
    """How many values until the alarm; -1 if there is none."""
    for index, value in enumerate(stream.tolist()):
        state = test.update(state, value)
        if state.alarm:
            return index + 1
    return -1


def test_the_statistic_by_hand() -> None:
    """Mean 0, deviation 1, slack 0.5: values 1, 2, -1, 3 give 0.5, 2, 0.5, 3."""
    test = PageHinkley(slack=0.5, threshold=2.5)
    state, rises, alarms = test.start(mean=0, deviation=1), [], []
    for value in (1.0, 2.0, -1.0, 3.0):
        state = test.update(state, value)
        rises.append(state.rise)
        alarms.append(state.alarm)
    assert rises == [0.5, 2.0, 0.5, 3.0]
    assert alarms == [False, False, False, True]


@given(values, st.floats(0, 2))
def test_the_statistic_is_the_sum_above_its_minimum(stream: list[float], slack: float) -> None:
    """The recursion equals `m_t - min m`, the form of the Page-Hinkley test."""
    test = PageHinkley(slack=slack, threshold=1e9)
    state = feed(test, stream, test.start(mean=1.0, deviation=2.0))
    steps = np.clip((np.array(stream) - 1.0) / 2.0, -CLIP, CLIP) - slack
    sums = np.concatenate([[0.0], np.cumsum(steps)])
    assert state.rise == pytest.approx(sums[-1] - sums.min(), abs=1e-6)


@given(values)
def test_two_sided_is_the_same_test_on_the_mirrored_stream(stream: list[float]) -> None:
    """The fall of a stream is the rise of its negative."""
    both, one = PageHinkley(two_sided=True), PageHinkley()
    state = feed(both, stream, both.start(mean=0.0, deviation=1.0))
    mirrored = feed(one, [-value for value in stream], one.start(mean=0.0, deviation=1.0))
    assert state.fall == mirrored.rise


def test_a_fall_is_no_alarm_unless_two_sided() -> None:
    """Two-sided is off unless asked for."""
    for two_sided in (False, True):
        test = PageHinkley(two_sided=two_sided)
        state = feed(test, [-3.0] * 50, test.start(mean=0, deviation=1))
        assert state.alarm is two_sided


def test_the_first_values_make_the_reference() -> None:
    """Mean and deviation are those of the first `reference` values, and stay."""
    rng = np.random.default_rng(0)
    first = rng.normal(5, 2, 200)
    test = PageHinkley(reference=200)
    state = feed(test, first)
    assert state.mean == pytest.approx(first.mean())
    assert state.deviation == pytest.approx(first.std(ddof=1))
    later = feed(test, rng.normal(5, 2, 100), state)
    assert (later.mean, later.deviation, later.n) == (state.mean, state.deviation, 300)


def test_nothing_is_tested_while_warming_up() -> None:
    """Whatever the first values are."""
    state = feed(PageHinkley(warm_up=5, reference=50), [0.0, 1e6, -1e6, 5.0, 1e9])
    assert (state.rise, state.alarm) == (0, False)


def test_a_value_is_measured_against_those_before_it() -> None:
    """Student's t of the sixth value, as a normal value of the same probability: t = 2, 4 degrees of freedom, p = 0.0581."""
    before = np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
    scale = before.std(ddof=1) * math.sqrt(6 / 5)
    test = PageHinkley(warm_up=5, reference=50, slack=0)
    state = feed(test, [*before, 2 * scale])
    assert state.rise == pytest.approx(1.571, abs=0.01)  # the normal value with 0.0581 above it


def test_false_alarms_on_still_streams_are_rare() -> None:
    """200 normal streams of 2,000 values with a known reference: at most 3 alarms (0.4 expected)."""
    rng, test = np.random.default_rng(1), PageHinkley()
    alarms = sum(
        feed(test, rng.normal(size=2_000), test.start(mean=0, deviation=1)).alarm for _ in range(200)
    )
    assert alarms <= 3


def test_a_short_beginning_makes_the_test_slow_not_loud() -> None:
    """100 streams of 2,000 values of which the first 25 begin the reference: at most 3 alarms."""
    rng, test = np.random.default_rng(2), PageHinkley(warm_up=25)
    assert sum(feed(test, rng.normal(3, 0.1, 2_000)).alarm for _ in range(100)) <= 3


def test_a_growing_threshold_bounds_the_false_alarms_of_a_whole_life() -> None:
    """60 streams of 4,000 values: a constant threshold of 6 alarms in nearly all, a growing one in hardly any."""
    rng, alarms = np.random.default_rng(8), {0.0: 0, 1.2: 0}
    for _ in range(60):
        stream = rng.normal(size=4_000)
        for growth in alarms:
            test = PageHinkley(threshold=6.0 if growth == 0 else 4.0, growth=growth)
            alarms[growth] += feed(test, stream, test.start(mean=0, deviation=1)).alarm
    assert alarms[0.0] >= 40
    assert alarms[1.2] <= 3


def test_a_growing_threshold_still_finds_a_late_change() -> None:
    """After 4,000 values in nearly all of 20 streams, within 60."""
    rng, test, found = np.random.default_rng(9), PageHinkley(threshold=4.0, growth=1.2), 0
    for _ in range(20):
        state = feed(test, rng.normal(size=4_000))
        found += not state.alarm and 0 < delay(test, rng.normal(1, 1, 100), state) <= 60
    assert found >= 17


@pytest.mark.parametrize(("shift", "mean_delay", "longest"), [(1.0, 25, 90), (2.0, 9, 20)])
def test_shifts_are_found_in_time(shift: float, mean_delay: float, longest: int) -> None:
    """A shift of 1 deviation is found after about 25 values, one of 2 after about 9, every time of 100."""
    rng, test = np.random.default_rng(3), PageHinkley()
    start = test.start(mean=0, deviation=1)
    delays = [delay(test, rng.normal(shift, 1, 200), start) for _ in range(100)]
    assert -1 not in delays
    assert np.mean(delays) == pytest.approx(mean_delay, abs=0.2 * mean_delay)
    assert max(delays) <= longest


def test_one_outlier_is_no_drift() -> None:
    """However far away, one value, or two, cannot alarm."""
    test = PageHinkley()
    state = feed(test, [1e12, 1e12], test.start(mean=0, deviation=1))
    assert not state.alarm
    assert test.verdict(state) == "suspected"


def test_a_stream_that_stood_still_may_move_a_little() -> None:
    """After a constant warm-up a change within a thousandth of the mean is no drift, a real one is."""
    test = PageHinkley(warm_up=20, reference=20)
    state = feed(test, [1.0] * 20)
    assert not feed(test, [1.0, 1.0004] * 50, state).alarm
    assert feed(test, [0.9, 1.1] * 5 + [1.1] * 20, state).alarm


def test_an_alarm_stays() -> None:
    """Until the state is started again."""
    test = PageHinkley()
    state = feed(test, [4.0] * 10, test.start(mean=0, deviation=1))
    assert test.verdict(state) == "confirmed"
    assert test.verdict(feed(test, [-4.0] * 100, state)) == "confirmed"


def test_verdicts_grow_with_the_statistic() -> None:
    """None, suspected from half of the threshold, confirmed above it."""
    test = PageHinkley(slack=0, threshold=10)
    state = test.start(mean=0, deviation=1)
    seen = []
    for _ in range(11):
        state = test.update(state, 1.0)
        seen.append(test.verdict(state))
    assert seen == ["none"] * 5 + ["suspected"] * 5 + ["confirmed"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_ignored_and_counted(value: float) -> None:
    """One NaN does not silence the test for ever."""
    test = PageHinkley()
    state = test.update(test.start(mean=0, deviation=1), value)
    assert (state.rise, state.n, state.ignored) == (0, 0, 1)
    assert test.update(test.start(), value).ignored == 1


@given(values)
def test_a_state_survives_a_restart(stream: list[float]) -> None:
    """Written as JSON and read, it goes on as before."""
    test = PageHinkley(warm_up=5, two_sided=True)
    state = feed(test, stream)
    back = DriftState.from_fields(Fields(parse_object(canonical(state.as_json()), where="t"), "t"))
    assert back == state
    with pytest.raises(MessageError, match="rise"):
        DriftState.from_fields(Fields(state.as_json() | {"rise": -1}, "t"))


def test_settings_out_of_range_are_refused() -> None:
    """Slack, threshold, warm-up and reference are checked."""
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(slack=-1)
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(threshold=0)
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(warm_up=2)
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(warm_up=30, reference=20)
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(growth=-0.1)
    with pytest.raises(SettingError, match="a drift reference is out of range"):
        PageHinkley().start(mean=1.0)
    with pytest.raises(SettingError, match="a drift reference is out of range"):
        PageHinkley().start(mean=1.0, deviation=0.0)


def test_a_block_is_one_value_of_the_test() -> None:
    """Blocks of four give what their means give one by one; an open block counts for nothing yet."""
    rng = np.random.default_rng(6)
    stream = rng.normal(size=402)
    blocks, single = PageHinkley(block=4, reference=50), PageHinkley(reference=50)
    state = feed(blocks, stream)
    means = feed(single, stream[:400].reshape(-1, 4).mean(axis=1))
    assert state.rise == pytest.approx(means.rise)
    assert (state.mean, state.deviation) == pytest.approx((means.mean, means.deviation))
    assert (state.n, state.blocks) == (402, 100)
    assert state.partial == pytest.approx(stream[400:].sum())


def in_bouts(rng: np.random.Generator, levels: np.ndarray, rounds: int, length: int) -> np.ndarray:
    """A stream of bouts: each activity has a level of its own, and they take turns in a random order."""
    order = np.concatenate([rng.permutation(levels) for _ in range(rounds)])
    return np.repeat(order, length) + rng.normal(0, 0.3, len(order) * length)


def test_changes_of_activity_are_no_drift_where_blocks_are_long_enough() -> None:
    """Seven activities in bouts of 16: value by value nearly every stream alarms, by blocks of 16 nearly none does."""
    rng = np.random.default_rng(7)
    alarms = {1: 0, 16: 0}
    for _ in range(40):
        stream = in_bouts(rng, rng.normal(size=7), rounds=10, length=16)
        for block in alarms:
            test = PageHinkley(block=block, warm_up=14 * 16 // block, reference=70 * 16 // block)
            alarms[block] += feed(test, stream).alarm
    assert alarms[1] >= 30
    assert alarms[16] <= 2


def test_a_block_needs_a_value() -> None:
    """Blocks of none are refused."""
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        PageHinkley(block=0)


@pytest.mark.skipif(
    importlib.util.find_spec("river") is None,
    reason="river is not installed: .venv-peers of bench/peers.py holds it",
)
@pytest.mark.parametrize(("slack", "threshold"), [(0.005, 5.0), (0.2, 3.0), (0.0, 20.0)])
def test_it_is_the_test_of_river_where_the_forms_agree(slack: float, threshold: float) -> None:
    """Each value's distance from the mean so far, undivided, none forgotten, and no growth: the same sums and the same alarms.

    What differs otherwise: river's mean runs along for ever, its sums are in the units of the values and fade
    by `alpha`, and a falling mean alarms unless `mode="up"`.
    """
    from river.drift import PageHinkley as Peer

    test, rng, alarms = PageHinkley(slack=slack, threshold=threshold), np.random.default_rng(11), 0
    for _ in range(10):
        stream = np.concatenate([rng.random(500), rng.random(500) + 0.4, rng.random(500)])
        peer = Peer(min_instances=1, delta=slack, threshold=threshold, alpha=1.0, mode="up")
        state, total, n = test.start(mean=0.0, deviation=1.0), 0.0, 0
        for value in stream.tolist():
            if state.alarm:
                state, total, n = test.start(mean=0.0, deviation=1.0), 0.0, 0
            total, n = total + value, n + 1
            state = test.update(state, value - total / n)
            peer.update(value)
            assert state.rise == pytest.approx(peer._sum_increase - peer._min_increase, abs=1e-9)
            assert state.alarm is peer.drift_detected
            alarms += state.alarm
    assert alarms >= 5

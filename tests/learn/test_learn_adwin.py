"""The adaptive window: its histogram adds up, it cuts where a mean has moved, and it cuts where river's does."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.learn.adwin import LARGEST, MAX_ROWS, Adwin, AdwinState, Bucket

RIVER = importlib.util.find_spec("river") is not None
values = st.lists(st.floats(-1e3, 1e3), max_size=120)
settings_of = st.builds(
    Adwin,
    delta=st.floats(0.001, 0.9),
    clock=st.integers(1, 40),
    buckets=st.integers(1, 7),
    least=st.integers(1, 8),
    grace=st.integers(0, 60),
)
NEVER = 10**9
"""A clock that never looks."""


def feed(test: Adwin, stream: object, state: AdwinState | None = None) -> AdwinState:
    """The state after a stream."""
    state = test.start() if state is None else state
    for value in np.asarray(stream, dtype=float).tolist():
        state = test.update(state, value)
    return state


def moved(rng: np.random.Generator, *levels: float, n: int = 600) -> np.ndarray:
    """Doubts that move from level to level."""
    return np.concatenate([np.clip(rng.normal(level, 0.1, n), 0, 1) for level in levels])


# The histogram


@given(settings_of, values)
def test_no_row_overflows_and_a_row_holds_buckets_of_its_size(test: Adwin, stream: list[float]) -> None:
    """At most `buckets` of each size; the last row is never empty; the number of buckets grows with the logarithm."""
    state = feed(test, stream)
    assert all(len(row) <= test.buckets for row in state.rows)
    assert not state.rows or state.rows[-1]
    assert state.width == sum(n for n, _ in state.oldest_first()) <= len(stream)
    most = test.buckets * (math.log2(max(state.width / test.buckets, 1)) + 2)
    assert sum(map(len, state.rows)) <= most


@given(settings_of, values)
def test_the_window_is_the_newest_values_and_buckets_tell_them_in_order(
    test: Adwin, stream: list[float]
) -> None:
    """Whatever was cut: each bucket is the sum and the squares of its part of the stream, from the oldest on."""
    state = feed(test, stream)
    window = np.array(stream[len(stream) - state.width :])
    at = 0
    for n, bucket in state.oldest_first():
        part = window[at : at + n]
        assert bucket.total == pytest.approx(part.sum(), abs=1e-6)
        assert bucket.squares == pytest.approx(((part - part.mean()) ** 2).sum(), rel=1e-6, abs=1e-6)
        at += n
    assert state.mean == pytest.approx(window.mean() if at else 0.0, abs=1e-6)
    assert state.whole.squares == pytest.approx(window.var() * at if at else 0.0, rel=1e-6, abs=1e-6)


def test_the_histogram_by_hand() -> None:
    """Seven values, two buckets a row: 7 alone, 5 and 6 together, 1 to 4 together."""
    state = feed(Adwin(buckets=2, clock=NEVER), [1, 2, 3, 4, 5, 6, 7])
    assert [[(one.total) for one in row] for row in state.rows] == [[7.0], [5.0 + 6.0], [1.0 + 2 + 3 + 4]]
    assert state.rows[2][0] == Bucket(10.0, 5.0)


def test_a_long_stream_takes_few_buckets_and_does_not_gather_errors() -> None:
    """100,000 values: at most 82 buckets, and the sum is that of the values to the last digits."""
    stream = np.random.default_rng(0).random(100_000)
    state = feed(Adwin(clock=NEVER), stream)
    assert state.width == 100_000
    assert sum(map(len, state.rows)) <= 82
    assert state.whole.total == pytest.approx(math.fsum(stream), rel=1e-13)
    assert len(canonical(state.as_json())) < 4_096, "it is kept with every report"


# Cuts


def test_a_cut_by_hand() -> None:
    """16 zeros and 16 times D: by the formula the middle cut needs D > 5.15; below it stands, above it is made."""
    width, part = 32, 16
    evidence = math.log(2 * math.log(width) / 0.002)
    once = 2 / (part - 5 + 1)
    by_variance, by_range = math.sqrt(2 * once * 0.25 * evidence), 2 / 3 * once * evidence
    least = by_range / (1 - by_variance)
    assert least == pytest.approx(5.15, abs=0.01)
    test, steps = Adwin(buckets=32), np.repeat([0.0, 1.0], part)
    below, above = feed(test, 0.99 * least * steps), feed(test, 1.01 * least * steps)
    assert below.strain == pytest.approx(0.99 * least / (0.99 * least * by_variance + by_range))
    assert (below.alarm, above.alarm) == (False, True)


def test_a_shift_is_found_and_the_window_tells_since_when() -> None:
    """40 streams that rise by two deviations: all are found within 96 values, and at most half of 600 older ones are left."""
    rng, test = np.random.default_rng(1), Adwin(clock=8)
    for _ in range(40):
        state = feed(test, moved(rng, 0.2, n=600))
        assert not state.alarm
        state = feed(test, moved(rng, 0.4, n=96), state)
        assert state.alarm
        assert 64 <= state.since == state.width <= 96 + 300
        later = feed(test, moved(rng, 0.4, n=600), state)
        assert later.mean == pytest.approx(0.4, abs=0.03)


def test_a_fall_is_found_as_a_rise_is() -> None:
    """Both directions count."""
    stream = moved(np.random.default_rng(2), 0.3, 0.6)
    assert feed(Adwin(), stream).cuts == feed(Adwin(), -stream).cuts > 0


def test_still_streams_are_rarely_cut() -> None:
    """60 streams of 2,000 independent values: at most one is ever cut."""
    rng, test = np.random.default_rng(3), Adwin()
    assert sum(feed(test, rng.random(2_000)).alarm for _ in range(60)) <= 1


def test_nothing_is_looked_at_between_two_looks_or_in_the_grace() -> None:
    """A change is seen at a multiple of the clock, once the window is longer than the grace."""
    stream = [0.0] * 100 + [1.0] * 100
    test = Adwin(clock=50)
    seen = [n for n in range(200) if feed(test, stream[: n + 1]).alarm]
    assert seen[0] == 149
    assert not feed(Adwin(grace=200), stream).alarm
    assert feed(Adwin(grace=199, clock=1), stream).alarm


def test_verdicts_grow_with_the_evidence() -> None:
    """None, suspected with half of the evidence, confirmed for good."""
    test = Adwin(clock=1)
    state, seen = feed(test, [0.0, 0.1] * 100), []
    for _ in range(60):
        state = test.update(state, 0.4)
        seen.append(test.verdict(state))
    order = ["none", "suspected", "confirmed"]
    assert sorted(seen, key=order.index) == seen
    assert set(seen) == set(order)
    assert test.verdict(feed(test, [0.0, 0.1] * 400, state)) == "confirmed"


# What comes from outside


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * LARGEST, -2 * LARGEST])
def test_what_is_no_number_is_ignored_and_counted(value: float) -> None:
    """One NaN does not silence the test for ever, and one giant does not make its squares infinite."""
    test = Adwin()
    state = feed(test, [0.5] * 10)
    after = test.update(state, value)
    assert (after.ignored, after.n, after.rows) == (1, 10, state.rows)


def test_giants_that_count_stay_finite() -> None:
    """The largest values there may be have a variance, and a state that can be written."""
    state = feed(Adwin(clock=1), [LARGEST, -LARGEST] * 300)
    assert math.isfinite(state.whole.squares)
    assert read(state) == state


def read(state: AdwinState, **change: object) -> AdwinState:
    """Written as JSON and read, perhaps changed between."""
    told = parse_object(canonical(state.as_json()), where="t")
    return AdwinState.from_fields(Fields(told | change, "t"))  # type: ignore[arg-type]  # attacks are no JSON of ours


@given(settings_of, values, values)
def test_a_state_survives_a_restart(test: Adwin, before: list[float], after: list[float]) -> None:
    """Written as JSON and read, it is the same and goes on as before."""
    state = feed(test, before)
    assert read(state) == state
    assert feed(test, after, read(state)) == feed(test, after, state)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3},
        {"rows": [[0.0, 0.0]] * (MAX_ROWS + 1)},
        {"rows": [[0.0, 0.0] * 33]},
        {"rows": [[0.0]]},
        {"rows": [["much", 0.0]]},
        {"rows": [[0.0, -1.0]]},
        {"rows": [[1e101, 0.0]]},
        {"rows": [[0.0, 0.0], []]},
        {"rows": [[], [], [], [], [], [0.0, 0.0]]},
        {"n": -1},
        {"n": 1.5},
        {"cuts": None},
        {"strain": -1},
        {"ignored": True},
    ],
    ids=repr,
)
def test_attack_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    """Rows that are too many, too long, half a bucket, no numbers, impossible or of more values than were seen."""
    state = feed(Adwin(), [0.0] * 20)
    with pytest.raises(MessageError):
        read(state, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"clock": 0},
        {"buckets": 0},
        {"buckets": 33},
        {"least": 0},
        {"grace": -1},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    """Each of them."""
    with pytest.raises(SettingError, match="a drift setting is out of range"):
        Adwin(**change)  # type: ignore[arg-type]  # some are no integers


# Beside river


def riverine(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Streams of several kinds."""
    return {
        "still": rng.random(2_000),
        "steps": np.concatenate([rng.random(700), rng.random(700) * 0.5, rng.random(700) * 0.8 + 0.2]),
        "of a large range": np.concatenate([rng.integers(0, 2, 700), rng.integers(0, 8, 700)]).astype(float),
        "a walk": np.cumsum(rng.normal(size=1_500)) * 0.05,
        "a slope": np.clip(rng.normal(0.2, 0.1, 2_000) + np.linspace(0, 0.5, 2_000), 0, 1),
    }


SETTINGS = (
    Adwin(),
    Adwin(delta=0.05, clock=1),
    Adwin(clock=8, least=1),
    Adwin(delta=0.2, clock=4, buckets=3, grace=50),
    Adwin(clock=1, buckets=2, grace=0),
)
"""river 0.26 panics with one bucket a row, so two are the fewest."""


def theirs(test: Adwin) -> dict[str, float]:
    """The settings by river's names."""
    return {
        "delta": test.delta,
        "clock": test.clock,
        "max_buckets": test.buckets,
        "min_window_length": test.least,
        "grace_period": test.grace,
    }


@pytest.mark.skipif(not RIVER, reason="river is not installed: .venv-peers of bench/peers.py holds it")
@pytest.mark.parametrize("test", SETTINGS, ids=repr)
def test_it_cuts_where_the_window_of_river_is_cut(test: Adwin) -> None:
    """The same values bring a cut, and the same width is left, on every stream."""
    from river._river_rust.drift import AdaptiveWindowing

    cut = 0
    for seed in range(3):
        for name, stream in riverine(np.random.default_rng(seed)).items():
            window, state = AdaptiveWindowing(**theirs(test)), test.start()
            for place, value in enumerate(stream.tolist()):
                before, was_cut = state.cuts, window.update(value)
                state = test.update(state, value)
                assert (state.cuts > before, state.width) == (was_cut, window.get_width()), (name, place)
            assert state.whole.total == pytest.approx(window.get_total(), abs=1e-6)
            assert state.whole.squares == pytest.approx(window.get_variance(), rel=1e-6, abs=1e-6)
            cut += state.cuts
    assert cut > 10, "or nothing was compared"


@pytest.mark.skipif(not RIVER, reason="river is not installed: .venv-peers of bench/peers.py holds it")
def test_it_alarms_where_river_does_if_it_starts_again_after_an_alarm() -> None:
    """What river offers begins with an empty window after each alarm, where the paper goes on with the newer part."""
    from river.drift import ADWIN

    test, alarms = Adwin(), 0
    for name, stream in riverine(np.random.default_rng(5)).items():
        peer, state = ADWIN(), test.start()
        for place, value in enumerate(stream.tolist()):
            state = test.update(test.start() if state.alarm else state, value)
            peer.update(value)
            assert state.alarm is peer.drift_detected, (name, place)
            alarms += state.alarm
    assert alarms >= 3

"""Evidence that may be looked at after every report: false alarms are as rare as promised, and what is bad is found."""

from __future__ import annotations

import math
import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.hub.sequential import ALARM, Count, log_evidence, looks_too_often, too_often


def mean_evidence(most: float, really: float, trials: int) -> float:
    """The exact expectation of the evidence after so many trials of a probability."""
    return sum(
        math.comb(trials, events)
        * really**events
        * (1 - really) ** (trials - events)
        * math.exp(log_evidence(Count(events, trials), most))
        for events in range(trials + 1)
    )


@pytest.mark.parametrize("most", [0.001, 0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("trials", [1, 7, 60])
def test_its_expectation_is_one_at_the_bound_and_less_below(most: float, trials: int) -> None:
    """Exactly: that is what the promise rests on."""
    assert mean_evidence(most, most, trials) == pytest.approx(1, rel=1e-9)
    assert mean_evidence(most, most / 2, trials) < 1
    assert mean_evidence(most, min(1.0, most * 1.1 + 0.01), trials) > 1


@pytest.mark.parametrize("most", [0.02, 0.1, 0.4])
def test_false_alarms_are_rare_though_somebody_looks_after_every_trial(most: float) -> None:
    """Of 1,000 streams of 1,000 trials at the very bound: within the binomial 99 % interval of the promise."""
    draw, alarms, streams = random.Random(1), 0, 1_000
    needed = [_needed(most, trials) for trials in range(1_001)]
    for _ in range(streams):
        events = accumulate(draw.random() < most for _ in range(1_000))
        alarms += any(count >= needed[trials] for trials, count in enumerate(events, 1))
    deviation = math.sqrt(ALARM * (1 - ALARM) * streams)
    assert alarms <= ALARM * streams + 2.58 * deviation
    assert alarms > 0, "a test that never fires finds nothing"


def _needed(most: float, trials: int) -> int:
    """The fewest events among so many trials that are sure; evidence grows with them."""
    low, high = 0, trials + 1
    while low < high:
        middle = (low + high) // 2
        if middle <= trials and log_evidence(Count(middle, trials), most) < -math.log(ALARM):
            low = middle + 1
        else:
            high = middle
    return low


@pytest.mark.parametrize(
    ("most", "really", "within"), [(0.1, 0.3, 120), (0.02, 0.1, 400), (0.001, 0.01, 4_000)]
)
def test_what_is_bad_is_found(most: float, really: float, within: int) -> None:
    """In nine of ten streams, within so many trials."""
    draw, found = random.Random(2), 0
    for _ in range(200):
        events = 0
        for trials in range(1, within + 1):
            events += draw.random() < really
            if trials % 10 == 0 and too_often([Count(events, trials)], most):
                found += 1
                break
    assert found >= 180


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.001, 0.999))
def test_more_events_are_more_evidence(events: int, others: int, most: float) -> None:
    """And more trials without one are less."""
    one = log_evidence(Count(events, events + others), most)
    assert log_evidence(Count(events + 1, events + 1 + others), most) > one
    assert log_evidence(Count(events, events + others + 1), most) < one


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), st.randoms(use_true_random=False)
)
def test_the_order_of_devices_does_not_matter(told: list[tuple[int, int]], luck: random.Random) -> None:
    """Reports come in any order."""
    counts = [Count(events, events + others) for events, others in told]
    shuffled = luck.sample(counts, len(counts))
    assert too_often(counts, 0.3) == too_often(shuffled, 0.3)


def test_one_loud_device_does_not_speak_for_a_fleet() -> None:
    """However much it says; a second one that says the same does, and one that is alone is all there is."""
    loud, quiet = Count(900, 1_000), Count(1, 20)
    assert too_often([loud], 0.1)
    assert not too_often([loud, quiet, quiet], 0.1)
    assert too_often([loud, loud, quiet], 0.1)
    assert too_often([Count(100, 200), Count(0, 1)], 0.1), "one good answer of another vouches for nothing"
    assert too_often([loud, Count(0, 0)], 0.1), "who has told nothing is not there"


def test_no_single_device_decides_though_another_is_louder() -> None:
    """One is broken and quiet, the busy one is hardly above the bound: without the broken one nothing is sure."""
    assert log_evidence(Count(149, 1_025), 0.1) > -math.log(ALARM)
    assert not too_often([Count(25, 25), Count(124, 1_000)], 0.1)
    assert too_often([Count(25, 25), Count(24, 26), Count(124, 1_000)], 0.1)


def test_what_is_hardly_above_the_bound_does_not_look_bad_for_ever() -> None:
    """What looks bad is beyond the nearest rate, so that more trials make it sure if it is so."""
    assert looks_too_often([Count(2, 12)], 0.1)
    assert not looks_too_often([Count(1, 12)], 0.1)
    assert not looks_too_often([Count(203_000, 2_000_000)], 0.1)
    assert not looks_too_often([Count(5_000, 10_000), Count(0, 50)], 0.1), "it is one device that looks so"
    assert looks_too_often([Count(100, 200), Count(0, 1)], 0.1)
    failing, clean = [Count(50, 100)] * 19, Count(0, 1_000_000)
    assert looks_too_often([*failing, clean], 0.01), "one that talks more than all others hides nothing"
    assert not looks_too_often([], 0.1)


@given(st.floats(0.001, 0.95))
def test_what_looks_bad_becomes_sure_if_it_stays_so(most: float) -> None:
    """No stage waits for ever on a fleet that reports: at any share that looks bad, enough trials are sure."""
    trials = 1
    while trials < 2**40:
        share = 1 / (1 + (1 - most) / most * math.exp(-0.0505))
        count = Count(math.ceil(share * trials), trials)
        if too_often([count], most):
            return
        trials *= 2
    pytest.fail("it never is")


def test_where_nothing_is_allowed_one_is_enough() -> None:
    """Whoever it was: it will not be undone by more trials."""
    assert too_often([Count(1, 1_000), Count(0, 1_000)], 0.0)


@pytest.mark.parametrize(
    ("count", "most", "sure"),
    [
        (Count(0, 0), 0.1, False),
        (Count(1, 1), 0.0, True),
        (Count(0, 10**9), 0.0, False),
        (Count(10**9, 10**9), 1.0, False),
        (Count(2**53 - 1, 2**53 - 1), 0.5, True),
        (Count(0, 2**53 - 1), 0.5, False),
        (Count(2**52, 2**53), 0.5, False),
    ],
)
def test_the_ends_are_safe(count: Count, most: float, *, sure: bool) -> None:
    """Nothing overflows: sums of a fleet stop at 2^53."""
    assert too_often([count], most) == sure
    assert too_often([], most) is False

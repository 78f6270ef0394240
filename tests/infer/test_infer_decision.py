"""Whether to ask, input by input: budgets that hold on any stream, honest audits, and a promise that says when it is void."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.infer.decision import (
    HASTE,
    MEMORY,
    PATIENCE,
    REPAID,
    STEP,
    YOUNG,
    Decision,
    PolicyState,
    decide,
    promise_is_void,
    unanswered,
)
from edgestill.infer.pacing import Pace
from edgestill.infer.policy import ALWAYS, Leaves, Policy

if TYPE_CHECKING:
    from collections.abc import Iterable

LABELS = ("still", "walk", "run")
POLICY = Policy(labels=LABELS, threshold=0.8, escalation_share=0.2, audit_share=0.02)
DAY = 86_400.0
BOUND = PATIENCE + 1 + 9.8 / HASTE
"""Inputs by which the share may be off, whatever the stream."""
TODAY = 20_000 * DAY


def run(
    policy: Policy, confidences: Iterable[float], *, seed: int = 0, now: float = TODAY, cost: int = 0
) -> tuple[list[Decision], PolicyState]:
    """The decisions over a stream, and the state after it."""
    rng = np.random.default_rng(seed)
    state, decisions = PolicyState.start(policy), []
    for confidence in confidences:
        decision, state = decide(policy, state, confidence=confidence, coin=rng.random(), now=now, cost=cost)
        decisions.append(decision)
    return decisions, state


def share(decisions: list[Decision]) -> float:
    """Of inputs asked, audits included."""
    return sum(decision != "alone" for decision in decisions) / len(decisions)


# The share


@settings(max_examples=20)
@given(
    first=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
    second=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
    budget=st.floats(0.05, 0.9),
    threshold=st.floats(0, ALWAYS),
)
def test_the_share_asked_is_the_budget_before_and_after_a_shift(
    first: tuple[float, float], second: tuple[float, float], budget: float, threshold: float
) -> None:
    """Over 10,000 inputs the share is the budget, though the confidences change halfway and the threshold is wrong."""
    rng = np.random.default_rng(1)
    stream = np.concatenate([rng.beta(*first, 5_000), rng.beta(*second, 5_000)])
    policy = Policy(labels=LABELS, threshold=threshold, escalation_share=budget, audit_share=0.01)
    decisions, _ = run(policy, stream.tolist())
    assert abs(share(decisions) - budget) <= BOUND / 10_000 + 0.004  # 4 deviations of the audit coin


def test_the_share_asked_is_the_budget_on_a_stationary_stream() -> None:
    """Over 10,000 inputs of one kind, each tenth of the stream after the first keeps the budget within 3 points."""
    stream = np.random.default_rng(2).beta(6, 1, 10_000).tolist()
    decisions, _ = run(POLICY, stream)
    assert abs(share(decisions) - 0.2) < 0.005
    for start in range(1_000, 10_000, 1_000):
        assert abs(share(decisions[start : start + 1_000]) - 0.2) < 0.03


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400), st.floats(0.01, 1), st.floats(0, ALWAYS))
def test_the_bound_on_the_share_holds_for_any_stream(
    stream: list[float], budget: float, threshold: float
) -> None:
    """Whatever the confidences, share and target differ by at most 42 / T."""
    policy = Policy(labels=LABELS, threshold=threshold, escalation_share=budget, audit_share=0)
    decisions, _ = run(policy, stream)
    assert abs(share(decisions) - budget) <= BOUND / len(stream) + 1e-9


def test_in_the_long_run_nothing_is_owed() -> None:
    """Whatever the threshold was to begin with, over 20,000 inputs of one kind the share is made up to a few of them."""
    stream = np.random.default_rng(4).beta(6, 1, 20_000).tolist()
    for threshold in (0.0, 0.5, ALWAYS):
        _, state = run(replace(POLICY, threshold=threshold), stream)
        assert abs(state.excess) < 2 * PATIENCE


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5])
def test_what_is_asked_about_is_what_the_best_threshold_would_ask_about(budget: float) -> None:
    """On a stream of one kind hardly any input is asked about that lies beyond the quantile of the budget."""
    stream = np.random.default_rng(14).beta(4, 1, 20_000)
    policy = replace(
        POLICY, escalation_share=budget, audit_share=0, threshold=float(np.quantile(stream, budget))
    )
    decisions, _ = run(policy, stream.tolist())
    asked = np.array([decision == "escalate" for decision in decisions])
    assert stream[asked].mean() < stream[stream < policy.threshold].mean() + 0.01
    assert (stream[asked] > np.quantile(stream, 1.25 * budget)).mean() < 0.08


def test_equal_confidences_keep_the_budget_too() -> None:
    """A stream of certainties alone is still asked about at the budget, not all or never."""
    decisions, _ = run(POLICY, [1.0] * 10_000)
    assert abs(share(decisions) - 0.2) < 0.014


def test_low_confidences_are_asked_first() -> None:
    """The mean confidence of what is asked is well below that of what is not."""
    stream = np.random.default_rng(3).beta(6, 1, 5_000).tolist()
    decisions, _ = run(POLICY, stream)
    asked = [value for value, decision in zip(stream, decisions, strict=True) if decision == "escalate"]
    alone = [value for value, decision in zip(stream, decisions, strict=True) if decision == "alone"]
    assert np.mean(asked) < np.mean(alone) - 0.2


def test_the_rule_is_the_one_in_the_docstring() -> None:
    """One asked and one unasked input move the level by a step times (target - 1) and times target: a large one at first."""
    target = (0.2 - 0.02) / (1 - 0.02)
    start = PolicyState.start(POLICY)
    assert start.level == pytest.approx(-math.log(1 - 0.8 + 1e-4))
    for state, step in ((start, HASTE), (replace(start, seen=YOUNG), STEP)):
        decision, asked = decide(POLICY, state, confidence=0.5, coin=0.5)
        assert decision == "escalate"
        assert asked.level - state.level == pytest.approx(step * (target - 1))
        assert asked.excess == pytest.approx(1 - target)
        decision, alone = decide(POLICY, state, confidence=0.9, coin=0.5)
        assert decision == "alone"
        assert alone.level - state.level == pytest.approx(step * target)
        assert alone.excess == pytest.approx(-target)


def test_a_share_that_is_far_off_is_followed_in_large_steps_and_made_up() -> None:
    """Beyond `PATIENCE` inputs the step is `HASTE`, and a tenth more is aimed at."""
    target, level = (0.2 - 0.02) / (1 - 0.02), PolicyState.start(POLICY).level
    behind = PolicyState(level=level, excess=-PATIENCE - 1)
    _, after = decide(POLICY, behind, confidence=0.9, coin=0.5)
    assert after.level - level == pytest.approx(HASTE * target * (1 + REPAID))
    before = PolicyState(level=level, excess=PATIENCE + 1)
    _, after = decide(POLICY, before, confidence=0.9, coin=0.5)
    assert after.level - level == pytest.approx(HASTE * target * (1 - REPAID))


def test_the_tracked_threshold_starts_at_the_bundles() -> None:
    """The first threshold is the bundle's; at it the student answers alone, just below it asks."""
    start = PolicyState.start(POLICY)
    assert start.threshold == pytest.approx(0.8)
    assert decide(POLICY, start, confidence=0.8, coin=0.5)[0] == "alone"
    assert decide(POLICY, start, confidence=0.7999, coin=0.5)[0] == "escalate"


def test_a_threshold_above_one_asks_even_about_certainty() -> None:
    """`ALWAYS` escalates an input with confidence 1."""
    policy = replace(POLICY, threshold=ALWAYS)
    assert PolicyState.start(policy).threshold == ALWAYS
    assert decide(policy, PolicyState.start(policy), confidence=1.0, coin=0.5)[0] == "escalate"


def test_a_budget_of_nothing_asks_nothing() -> None:
    """With a share of 0 no input is asked, from the first on."""
    policy = replace(POLICY, escalation_share=0.0, audit_share=0.0)
    decisions, _ = run(policy, [0.1] * 500)
    assert share(decisions) == 0


def test_a_confidence_that_is_no_number_is_no_confidence() -> None:
    """NaN counts as unsure."""
    assert decide(POLICY, PolicyState.start(POLICY), confidence=math.nan, coin=0.5)[0] == "escalate"


# What may leave


@given(
    leaves=st.sampled_from(["nothing", "features"]),
    confidence=st.floats(0, 1),
    coin=st.floats(0, 1, exclude_max=True),
)
def test_nothing_is_asked_where_raw_inputs_may_not_leave(
    leaves: Leaves, confidence: float, coin: float
) -> None:
    """Neither doubt nor the audit coin sends an input that must stay."""
    policy = replace(POLICY, leaves=leaves, threshold=ALWAYS, escalation_share=1.0, audit_share=1.0)
    state = PolicyState.start(policy)
    assert decide(policy, state, confidence=confidence, coin=coin) == ("alone", state)


def test_a_device_may_only_be_stricter() -> None:
    """The stricter of bundle and device counts, whichever it is."""
    for ours in get_args(Leaves):
        for theirs in get_args(Leaves):
            order = get_args(Leaves).index
            limited = replace(POLICY, leaves=ours).limited_to(theirs)
            assert order(limited.leaves) == min(order(ours), order(theirs))


# Audits


@given(confidence=st.floats(0, 1), level=st.floats(0, 9))
def test_the_coin_is_looked_at_before_the_confidence(confidence: float, level: float) -> None:
    """An audit does not depend on confidence or threshold, and does not move the tracker."""
    state = PolicyState(level=level)
    decision, after = decide(POLICY, state, confidence=confidence, coin=0.0199)
    assert (decision, after.level, after.asked, after.needed) == ("audit", level, 0.0, 0.0)
    assert decide(POLICY, state, confidence=confidence, coin=0.02)[0] != "audit"


def test_audits_are_a_fair_sample() -> None:
    """The mean confidence of audits is that of the whole stream."""
    stream = np.random.default_rng(5).beta(2, 1, 20_000)
    policy = replace(POLICY, audit_share=0.1)
    decisions, _ = run(policy, stream.tolist())
    audits = stream[[decision == "audit" for decision in decisions]]
    assert abs(audits.mean() - stream.mean()) < 4 * stream.std() / math.sqrt(len(audits))
    assert abs(len(audits) / len(stream) - 0.1) < 0.01


def test_an_audit_without_an_answer_is_recorded() -> None:
    """A lost audit is counted, a lost escalation is no longer counted as asked."""
    _, state = decide(POLICY, PolicyState.start(POLICY), confidence=0.1, coin=0.9)
    assert unanswered(state, "audit").audits_lost == 1
    assert state.asked == pytest.approx(1 / MEMORY)
    assert unanswered(state, "escalate").asked == 0
    assert unanswered(state, "alone") == state


# Bytes


@given(
    budget=st.integers(0, 50_000),
    cost=st.integers(1, 3_000),
    audit_share=st.floats(0, 0.2),
    stream=st.lists(st.floats(0, 1), max_size=300),
)
def test_a_days_bytes_are_never_exceeded(
    budget: int, cost: int, audit_share: float, stream: list[float]
) -> None:
    """Whatever is asked on one day, its bytes stay within the budget, and the state knows them."""
    policy = replace(POLICY, bytes_per_day=budget, audit_share=audit_share, threshold=ALWAYS)
    decisions, state = run(policy, stream, cost=cost)
    asked = sum(decision != "alone" for decision in decisions)
    assert state.spent == asked * cost <= budget


def test_escalations_leave_audits_their_bytes() -> None:
    """What the audits of the rest of the day will need is kept for them, and less of it as the day goes by."""
    policy = replace(POLICY, bytes_per_day=10_000, escalation_share=0.2, audit_share=0.02)
    pace = Pace(hour=480_000, seen=0, usual=(100.0,) * 24)
    # a tenth of the bytes at most; before midnight what the two thirds of an audit take that are still to come
    for hour, left, decision in (
        (0, 1_050, "alone"),
        (12, 1_050, "alone"),
        (23, 150, "alone"),
        (23, 200, "escalate"),
    ):
        now = TODAY + (hour + 0.5) * 3600
        paced = replace(pace, hour=480_000 + hour)
        state = PolicyState(level=9.0, day=20_000, spent=10_000 - left, pace=paced)
        assert decide(policy, state, confidence=0.0, coin=0.9, now=now, cost=100)[0] == decision
        assert decide(policy, state, confidence=0.0, coin=0.0, now=now, cost=100)[0] == "audit"


def test_an_audit_that_the_bytes_forbid_is_recorded_as_lost() -> None:
    """With no bytes left a tossed audit is not sent, and counted as lost."""
    policy = replace(POLICY, bytes_per_day=50)
    decision, state = decide(policy, PolicyState.start(policy), confidence=0.5, coin=0.0, now=TODAY, cost=100)
    assert (decision, state.audits_lost) == ("alone", 1)


def test_bytes_that_are_used_up_do_not_wind_the_tracker_up() -> None:
    """A day without bytes leaves the threshold where it was."""
    stream = np.random.default_rng(6).beta(6, 1, 5_000).tolist()
    _, free = run(POLICY, stream)
    starved = free
    for value in stream:
        _, starved = decide(
            replace(POLICY, bytes_per_day=0), starved, confidence=value, coin=0.9, now=TODAY, cost=10
        )
    assert starved.level == free.level


def spent_after(state: PolicyState, now: float) -> int:
    """Bytes still counted after an input at this time that is not asked."""
    policy = replace(POLICY, bytes_per_day=1_000)
    return decide(policy, state, confidence=1.0, coin=0.9, now=now)[1].spent


def test_a_new_day_brings_fresh_bytes() -> None:
    """At midnight UTC the count begins again."""
    state = PolicyState(level=0.0, day=20_000, spent=900)
    assert spent_after(state, TODAY + DAY - 1) == 900
    assert spent_after(state, TODAY + DAY) == 0


def test_setting_the_clock_back_brings_no_fresh_bytes() -> None:
    """Neither an hour nor a year back, nor the way forward again after midnight's bounce."""
    state = PolicyState(level=0.0, day=20_000, spent=900)
    assert spent_after(state, TODAY - 3600) == 900
    assert spent_after(state, TODAY - 365 * DAY) == 900
    policy = replace(POLICY, bytes_per_day=1_000)
    _, back = decide(policy, state, confidence=1.0, coin=0.9, now=TODAY - 1)
    assert spent_after(back, TODAY + 1) == 900


def test_waking_without_the_time_brings_no_fresh_bytes() -> None:
    """A device that starts in 1970 and is then set right has spent what it had spent."""
    state = PolicyState(level=0.0, day=20_000, spent=900)
    _, woken = decide(replace(POLICY, bytes_per_day=1_000), state, confidence=1.0, coin=0.9, now=12.0)
    assert spent_after(woken, TODAY + 60) == 900


def test_a_clock_that_was_years_ahead_does_not_stop_the_days() -> None:
    """After a wrong future, the next real midnight brings fresh bytes again."""
    ahead = PolicyState(level=0.0, day=30_000, spent=900)
    _, mended = decide(replace(POLICY, bytes_per_day=1_000), ahead, confidence=1.0, coin=0.9, now=TODAY)
    assert mended.spent == 900
    assert spent_after(mended, TODAY + DAY) == 0


def a_day(hour: int) -> float:
    """Inputs an hour of a device that is busy from six to eighteen, and idle at night."""
    return 600 if 6 <= hour < 18 else 12


def days(policy: Policy, beginning: PolicyState, confidences: list[float], *, cost: int = 100) -> list[int]:
    """Bytes spent on each day: one beta per day says how sure the student is."""
    rng, state, spent = np.random.default_rng(11), beginning, []
    for day, kind in enumerate(confidences):
        for hour in range(24):
            count = int(a_day(hour))
            for place in range(count):
                now = TODAY + (day * 24 + hour + place / count) * 3600
                _, state = decide(
                    policy, state, confidence=rng.beta(kind, 1), coin=rng.random(), now=now, cost=cost
                )
        spent.append(state.spent)
    return spent


def test_a_days_bytes_last_the_day_and_are_used() -> None:
    """After a first day to learn from, a budget of half the share is used up to a tenth, though doubt comes halfway."""
    policy = replace(POLICY, bytes_per_day=73_000)  # 7,344 inputs a day, a tenth of them at 100 bytes
    spent = days(policy, PolicyState.start(policy), [6.0, 6.0, 6.0, 2.0, 2.0])
    assert all(one <= 73_000 for one in spent)
    assert all(one > 0.9 * 73_000 for one in spent[1:]), spent


def test_the_afternoon_is_asked_about_as_much_as_the_morning() -> None:
    """Where bytes are short, both halves of a day get their share of them."""
    policy = replace(POLICY, bytes_per_day=73_000)
    rng, state, asked = np.random.default_rng(12), PolicyState.start(policy), [0, 0]
    for hour in range(48):
        count = int(a_day(hour % 24))
        for place in range(count):
            decision, state = decide(
                policy,
                state,
                confidence=rng.beta(3, 1),
                coin=rng.random(),
                now=TODAY + (hour + place / count) * 3600,
                cost=100,
            )
            if hour >= 24:
                asked[hour % 24 >= 12] += decision != "alone"
    assert 0.8 < asked[0] / asked[1] < 1.25


def test_bytes_that_suffice_change_nothing() -> None:
    """With more bytes than the share needs every decision is as without a bound."""
    stream = np.random.default_rng(13).beta(6, 1, 3_000).tolist()
    free, _ = run(POLICY, stream, cost=10)
    bounded, _ = run(replace(POLICY, bytes_per_day=10**9), stream, cost=10)
    assert free == bounded


# The promise

PROMISED = replace(POLICY, evidence={"promised": True, "epsilon": 0.05, "delta": 0.1, "n": 900})


def test_the_promise_holds_where_the_budget_covers_it() -> None:
    """On the stream the threshold was chosen for, the promise holds to the end."""
    stream = np.random.default_rng(7).beta(6, 1, 10_000)
    policy = replace(PROMISED, threshold=float(np.quantile(stream, 0.15)))
    _, state = run(policy, stream.tolist())
    assert not promise_is_void(policy, state)


def test_the_promise_is_void_where_the_budget_forbids_it() -> None:
    """When half of the inputs need the teacher and a fifth may ask it, the state says so."""
    stream = np.random.default_rng(8).beta(6, 1, 10_000)
    policy = replace(PROMISED, threshold=float(np.quantile(stream, 0.5)))
    _, state = run(policy, stream.tolist())
    assert promise_is_void(policy, state)
    assert state.needed == pytest.approx(0.5, abs=0.1)
    assert state.asked == pytest.approx(0.18, abs=0.08)


def test_the_promise_becomes_void_under_shift() -> None:
    """A stream that turns doubtful voids a promise that held."""
    rng = np.random.default_rng(9)
    calm, hard = rng.beta(6, 1, 3_000), rng.beta(2, 2, 3_000)
    policy = replace(PROMISED, threshold=float(np.quantile(calm, 0.15)))
    _, state = run(policy, calm.tolist())
    assert not promise_is_void(policy, state)
    for value in hard.tolist():
        _, state = decide(policy, state, confidence=value, coin=0.9)
    assert promise_is_void(policy, state)


def test_the_promise_is_void_while_the_teacher_is_silent() -> None:
    """Escalations without an answer do not keep a promise."""
    policy = replace(PROMISED, threshold=0.5)
    state = PolicyState.start(policy)
    for value in np.random.default_rng(10).beta(3, 1, 3_000).tolist():
        decision, state = decide(policy, state, confidence=value, coin=0.9)
        state = unanswered(state, decision)
    assert promise_is_void(policy, state)


def test_there_is_no_promise_without_one_made() -> None:
    """Nothing promised, or nothing that may be asked: the promise does not hold."""
    start = PolicyState.start(POLICY)
    assert promise_is_void(POLICY, start)
    assert not promise_is_void(PROMISED, start)
    assert promise_is_void(PROMISED.limited_to("features"), start)


@given(st.lists(st.floats(0, 1), max_size=50), st.integers(0, 1_000))
def test_a_state_survives_a_restart(stream: list[float], seed: int) -> None:
    """Written and read, the state decides as before."""
    _, state = run(replace(POLICY, bytes_per_day=10_000), stream, seed=seed, cost=7)
    assert PolicyState.from_bytes(state.to_bytes()) == state

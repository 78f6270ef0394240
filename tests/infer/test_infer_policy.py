"""The escalation policy: budgets that hold on any stream, honest audits, and a promise that says when it is void."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.infer.policy import (
    ALWAYS,
    MEMORY,
    STEP,
    Decision,
    Leaves,
    Measure,
    Policy,
    PolicyState,
    decide,
    promise_is_void,
    unanswered,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

LABELS = ("still", "walk", "run")
POLICY = Policy(labels=LABELS, threshold=0.8, escalation_share=0.2, audit_share=0.02)
DAY = 86_400.0
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
    assert abs(share(decisions) - budget) <= 32 / 10_000 + 0.004  # 4 deviations of the audit coin


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
    """Whatever the confidences, share and target differ by at most 9.6 / (STEP * T)."""
    policy = Policy(labels=LABELS, threshold=threshold, escalation_share=budget, audit_share=0)
    decisions, _ = run(policy, stream)
    assert abs(share(decisions) - budget) <= 9.6 / (STEP * len(stream)) + 1e-9


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
    """One asked and one unasked input move the level by STEP * (target - 1) and STEP * target."""
    target = (0.2 - 0.02) / (1 - 0.02)
    start = PolicyState.start(POLICY)
    assert start.level == pytest.approx(-math.log(1 - 0.8 + 1e-4))
    decision, asked = decide(POLICY, start, confidence=0.5, coin=0.5)
    assert decision == "escalate"
    assert asked.level - start.level == pytest.approx(STEP * (target - 1))
    decision, alone = decide(POLICY, start, confidence=0.9, coin=0.5)
    assert decision == "alone"
    assert alone.level - start.level == pytest.approx(STEP * target)


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
    """After a morning of doubt the afternoon still has audits."""
    policy = replace(POLICY, bytes_per_day=10_000, escalation_share=0.2, audit_share=0.02)
    state = PolicyState(level=9.0, day=20_000, spent=8_900)
    decision, state = decide(policy, state, confidence=0.0, coin=0.9, now=TODAY, cost=100)
    assert (decision, state.spent) == ("escalate", 9_000)
    assert decide(policy, state, confidence=0.0, coin=0.9, now=TODAY, cost=100)[0] == "alone"
    assert decide(policy, state, confidence=0.0, coin=0.0, now=TODAY, cost=100)[0] == "audit"


def test_an_audit_that_the_bytes_forbid_is_recorded_as_lost() -> None:
    """With no bytes left a tossed audit is not sent, and counted as lost."""
    policy = replace(POLICY, bytes_per_day=50)
    decision, state = decide(policy, PolicyState.start(policy), confidence=0.5, coin=0.0, now=TODAY, cost=100)
    assert (decision, state.audits_lost) == ("alone", 1)


def test_bytes_that_are_used_up_do_not_wind_the_tracker_up() -> None:
    """A day without bytes leaves the threshold where the stream's quantile is."""
    stream = np.random.default_rng(6).beta(6, 1, 5_000).tolist()
    _, free = run(POLICY, stream)
    _, starved = run(replace(POLICY, bytes_per_day=0), stream, cost=10)
    assert starved.threshold == pytest.approx(free.threshold)


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


# Formats


policies = st.builds(
    lambda shares, values: Policy(audit_share=shares[0], escalation_share=shares[1], **values),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.fixed_dictionaries(
        {
            "labels": st.lists(st.text(max_size=20), min_size=1, max_size=9, unique=True).map(tuple),
            "temperature": st.floats(1e-3, 1e3),
            "teacher_temperature": st.floats(1e-3, 1e3),
            "alpha": st.floats(0, 1),
            "threshold": st.floats(0, ALWAYS),
            "measure": st.sampled_from(get_args(Measure)),
            "bytes_per_day": st.none() | st.integers(0, 2**53 - 1),
            "leaves": st.sampled_from(get_args(Leaves)),
            "evidence": st.just({"n": 3}),
            "unknown": st.just({"later": [1, "two"]}),
        }
    ),
)


@given(policies)
def test_writing_and_reading_give_the_same_policy(policy: Policy) -> None:
    """A policy survives its bytes."""
    assert Policy.from_bytes(policy.to_bytes()) == policy


def test_fields_left_out_have_their_defaults() -> None:
    """Schema and labels are enough."""
    assert Policy.from_bytes(b'{"schema":1,"labels":["a","b"]}') == Policy(labels=("a", "b"))


def test_the_order_of_labels_is_part_of_their_digest() -> None:
    """The same names in another order are other labels."""
    digest = POLICY.label_digest
    assert digest == Policy(labels=LABELS).label_digest
    assert digest != Policy(labels=LABELS[::-1]).label_digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": 1.5}, "policy: alpha"),
        ({"temperature": 0}, "policy: temperature"),
        ({"threshold": -0.1}, "policy: threshold"),
        ({"audit_share": 0.5, "escalation_share": 0.2}, "policy: audit_share"),
        ({"bytes_per_day": -1}, "bytes_per_day"),
        ({"measure": "gut"}, "policy: measure"),
        ({"leaves": "all"}, "policy: leaves"),
        ({"labels": []}, "policy: labels"),
        ({"labels": ["a", "a"]}, "policy: labels"),
        ({"labels": [1]}, "policy.json: labels"),
        ({"schema": 2}, "policy.json"),
        ({"evidence": 3}, "policy.json: evidence"),
        ({"temperature": "warm"}, "temperature"),
    ],
)
def test_a_value_out_of_range_is_named(change: dict[str, object], named: str) -> None:
    """The error names the field that is wrong."""
    data = json.dumps({"schema": 1, "labels": ["a", "b"]} | change).encode()
    with pytest.raises((SettingError, MessageError)) as caught:
        Policy.from_bytes(data)
    assert named in str(caught.value)


@given(st.binary(max_size=200))
def test_garbage_is_no_policy_and_no_state(data: bytes) -> None:
    """Bytes from anywhere are refused with a message, never with anything else."""
    with pytest.raises((MessageError, SettingError)):
        Policy.from_bytes(data)
    with pytest.raises(MessageError):
        PolicyState.from_bytes(data)


@given(st.lists(st.floats(0, 1), max_size=50), st.integers(0, 1_000))
def test_a_state_survives_a_restart(stream: list[float], seed: int) -> None:
    """Written and read, the state decides as before."""
    _, state = run(replace(POLICY, bytes_per_day=10_000), stream, seed=seed, cost=7)
    assert PolicyState.from_bytes(state.to_bytes()) == state


def test_the_policy_is_standard_library_only() -> None:
    """A supervisor may read a policy without loading numpy or an engine."""
    code = (
        'import sys, edgestill.infer.policy as p; p.Policy.from_bytes(b\'{"schema":1,"labels":["a"]}\');'
        "print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

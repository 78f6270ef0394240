"""Raised audits after a change: more of them for a while, and never a question or a byte more than the budgets allow."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import canonical
from edgestill.infer.decision import (
    HASTE,
    PATIENCE,
    Decision,
    PolicyState,
    audit_share,
    decide,
    promise_is_void,
    raised,
    settled,
)
from edgestill.infer.pacing import Pace
from edgestill.infer.policy import Leaves, Policy
from edgestill.infer.reaction import Action, Reaction

if TYPE_CHECKING:
    from collections.abc import Sequence

MORE = Reaction(do=("audit",), audit_factor=5, audit_inputs=2_000)
POLICY = Policy(
    labels=("still", "walk"), threshold=0.8, escalation_share=0.2, audit_share=0.02, on_drift=MORE
)
DAY = 86_400.0
TODAY = 20_000 * DAY
BOUND = PATIENCE + 1 + 9.8 / HASTE


def run(
    policy: Policy,
    state: PolicyState,
    confidences: Sequence[float],
    *,
    seed: int = 0,
    seconds: float = 0.0,
    cost: int = 0,
    most: int | None = None,
) -> tuple[list[Decision], list[PolicyState]]:
    """The decisions over a stream that begins at midnight, an input every so many seconds, and the states after them."""
    coins = np.random.default_rng(seed).random(len(confidences)).tolist()
    decisions: list[Decision] = []
    states: list[PolicyState] = []
    for place, (confidence, coin) in enumerate(zip(confidences, coins, strict=True)):
        now = TODAY + seconds * place
        decision, state = decide(
            policy, state, confidence=confidence, coin=coin, now=now, cost=cost, most=most
        )
        if decision != "alone" and most is not None:
            state = settled(state, charged=most, sent=cost)
        decisions.append(decision)
        states.append(state)
    return decisions, states


def stream(n: int, seed: int = 1) -> list[float]:
    """Confidences of one kind."""
    found: list[float] = np.random.default_rng(seed).beta(6, 1, n).tolist()
    return found


def counted(decisions: Sequence[Decision], *kinds: Decision) -> int:
    """Decisions of these kinds."""
    return sum(decision in kinds for decision in decisions)


def test_audits_are_raised_by_the_factor_for_as_many_inputs_and_no_longer() -> None:
    """0.02 becomes 0.1 for 2,000 inputs; then it is 0.02 again. All together 0.2 are asked about, as ever."""
    state = raised(POLICY, run(POLICY, PolicyState.start(POLICY), stream(2_000))[1][-1])
    assert audit_share(POLICY, state) == pytest.approx(0.1)
    decisions, states = run(POLICY, state, stream(6_000, 2), seed=3)
    assert [states[place].raised for place in (0, 1_998, 1_999, 2_000)] == [1_999, 1, 0, 0]
    during, after = decisions[:2_000], decisions[2_000:]
    assert counted(during, "audit") / 2_000 == pytest.approx(0.1, abs=0.025)
    assert counted(after, "audit") / 4_000 == pytest.approx(0.02, abs=0.01)
    for part in (during, after):
        assert counted(part, "audit", "escalate") / len(part) == pytest.approx(0.2, abs=0.03)
    assert audit_share(POLICY, states[-1]) == 0.02


@settings(max_examples=40)
@given(
    first=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
    second=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
    budget=st.floats(0.0, 0.9),
    part=st.floats(0, 1),
    factor=st.floats(1, 1000),
    inputs=st.integers(1, 3_000),
)
def test_the_share_asked_is_the_budget_however_much_audits_are_raised(
    *,
    first: tuple[float, float],
    second: tuple[float, float],
    budget: float,
    part: float,
    factor: float,
    inputs: int,
) -> None:
    """Over 4,000 inputs, while the confidences change and audits are raised at once."""
    rng = np.random.default_rng(1)
    confidences = np.concatenate([rng.beta(*first, 2_000), rng.beta(*second, 2_000)]).tolist()
    policy = replace(
        POLICY,
        escalation_share=budget,
        audit_share=part * budget,
        on_drift=replace(MORE, audit_factor=factor, audit_inputs=inputs),
    )
    before, states = run(policy, PolicyState.start(policy), confidences[:2_000])
    after, _ = run(policy, raised(policy, states[-1]), confidences[2_000:], seed=2)
    asked = counted(before + after, "audit", "escalate") / 4_000
    assert asked <= budget + BOUND / 4_000 + 0.03  # 4 deviations of the audit coins


@settings(max_examples=40, deadline=None)
@given(
    bound=st.integers(0, 400_000),
    cost=st.integers(1, 2_000),
    over=st.integers(0, 500),
    factor=st.floats(1, 1000),
    clock=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bytes_are_never_more_than_the_day_allows_however_much_audits_are_raised(
    *, bound: int, cost: int, over: int, factor: float, clock: bool, seed: int
) -> None:
    """With or without a clock that knows the time of day, whatever a question takes."""
    policy = replace(
        POLICY,
        bytes_per_day=bound,
        on_drift=replace(MORE, audit_factor=factor, audit_inputs=1_000),
    )
    state = raised(policy, PolicyState.start(policy))
    decisions, states = run(
        policy,
        state,
        stream(1_500, seed),
        seed=seed,
        seconds=50.0 if clock else 0.0,
        cost=cost,
        most=cost + over,
    )
    assert max(one.spent for one in states) <= bound
    assert counted(decisions, "audit", "escalate") * cost <= bound


def a_day_known(policy: Policy, inputs: int) -> PolicyState:
    """A device that has seen so many inputs a day for a week, at midnight."""
    state, pace = PolicyState.start(policy), Pace()
    for place in range(7 * inputs):
        pace = pace.after(TODAY - 7 * DAY + place * DAY / inputs)
    return replace(state, pace=pace, day=20_000)


def test_where_bytes_are_short_audits_are_raised_as_far_as_the_day_has_room_and_the_evening_has_some_left() -> (
    None
):
    """1,000 inputs a day, bytes for 50 questions: raised audits are 0.05 and not 0.1, and the last hours are asked about too."""
    policy = replace(POLICY, bytes_per_day=50_000, on_drift=replace(MORE, audit_inputs=500))
    state = raised(policy, a_day_known(policy, 1_000))
    assert audit_share(policy, state, now=TODAY + 1, cost=1_000) == pytest.approx(0.05, rel=0.1)
    late = 0
    for seed in range(5):
        decisions, states = run(policy, state, stream(1_000, seed), seed=seed, seconds=86.4, cost=1_000)
        assert states[-1].spent <= 50_000
        assert states[-1].audits_lost == 0
        late += counted(decisions[800:], "audit", "escalate")
    assert late >= 25, "of 50 that an even pace would have left"


def test_raised_audits_void_a_promise_that_needs_the_questions_they_take() -> None:
    """What was promised is not kept quietly with fewer escalations."""
    policy = replace(POLICY, evidence={"promised": True}, on_drift=replace(MORE, audit_factor=10))
    confidences = stream(6_000)
    policy = replace(policy, threshold=float(np.quantile(confidences, 0.18)))
    _, states = run(policy, PolicyState.start(policy), confidences)
    assert not promise_is_void(policy, states[-1])
    _, states = run(policy, raised(policy, states[-1]), confidences[:2_000])
    assert promise_is_void(policy, states[-1])


@pytest.mark.parametrize("do", [(), ("learn",), ("learn", "report")])
def test_nothing_is_raised_where_the_policy_does_not_say_so(do: tuple[Action, ...]) -> None:
    """The default is what it always was."""
    state = PolicyState.start(POLICY)
    assert raised(replace(POLICY, on_drift=Reaction(do=do)), state) == state


@pytest.mark.parametrize("leaves", [one for one in get_args(Leaves) if one != "raw"])
def test_nothing_is_raised_where_no_audit_may_leave(leaves: Leaves) -> None:
    """Below `raw` the teacher itself is never asked."""
    policy = replace(POLICY, leaves=leaves)
    state = PolicyState.start(policy)
    assert raised(policy, state) == state
    assert audit_share(policy, state) == 0


@given(st.floats(0, 1), st.integers(0, 3_000), st.floats(0, 1))
def test_the_share_that_is_told_is_the_one_that_decides(coin: float, left: int, confidence: float) -> None:
    """`audit_share` beforehand says whether `decide` audits."""
    state = replace(PolicyState.start(POLICY), raised=left)
    told = audit_share(POLICY, state, now=TODAY)
    decision, _ = decide(POLICY, state, confidence=confidence, coin=coin, now=TODAY)
    assert (decision == "audit") is (coin < told)


def test_what_is_left_of_a_raise_outlives_a_restart_and_older_states_have_none() -> None:
    """Written and read it goes on; a state of an older version is read; a hostile one is refused."""
    state = raised(POLICY, PolicyState.start(POLICY))
    assert PolicyState.from_bytes(state.to_bytes()) == state
    told = asdict(state) | {"pace": state.pace.as_json()}
    del told["raised"]
    assert PolicyState.from_bytes(canonical(told)).raised == 0
    with pytest.raises(MessageError, match="raised"):
        PolicyState.from_bytes(canonical(told | {"raised": 10**9}))

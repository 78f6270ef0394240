"""Asking with features: where inputs may not leave, an adapter answers from what the student makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from infer_models import Told, rows

from edgestill.core.answer import Answer
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, NotFoundError, SettingError, UnreachableError
from edgestill.infer.adapter import as_sent, model_name
from edgestill.infer.cascade import Cascade
from edgestill.infer.decision import PolicyState, decide, promise_is_void
from edgestill.infer.policy import ALWAYS, Leaves, Policy
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.protocols import Predict
    from edgestill.infer.cascade import Escalation

ADAPTER = Digest.of(b"an adapter")
POLICY = Policy(
    labels=("a", "b"),
    leaves="features",
    adapter=ADAPTER,
    alpha=0.75,
    threshold=0.7,
    escalation_share=0.5,
    audit_share=0.1,
)
STUDENT = [[0.95, 0.05], [0.6, 0.4], [0.45, 0.55], [0.9, 0.1]]


class Adapter:
    """Answers from features `[N, 2]`: here the student's probabilities, turned round; what it says of itself is given."""

    def __init__(self, teacher: float | None = np.nan) -> None:
        self.asked: list[NDArray[np.generic]] = []
        self.teacher = teacher

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """A row for each."""
        self.asked.append(batch)
        given = batch.astype(np.float32)[:, ::-1]
        given = given / given.sum(1, keepdims=True)
        return Answer(
            probabilities=given,
            confidence=given.max(axis=1),
            decided_by=("student",) * len(given),
            teacher=None if self.teacher is None else np.full_like(given, self.teacher),
        )


class Blind:
    """A student without features."""

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """As `Told`."""
        return replace(Told(STUDENT).predict(batch, deadline=deadline), features=None)


def cascade(
    adapter: Predict, policy: Policy = POLICY, *, coin: float = 0.5, student: Blind | None = None
) -> tuple[Cascade, list[Escalation]]:
    """Of a student and an adapter, and what its observer was told."""
    told: list[Escalation] = []
    made = Cascade(
        student or Told(STUDENT),
        adapter,
        policy,
        clock=FakeClock(),
        random=lambda: coin,
        names=("adapter",),
        observe=told.append,
    )
    return made, told


def test_the_students_features_are_sent_in_the_place_of_the_inputs() -> None:
    """Of the unsure ones alone, as halves; the answer is fused with the adapter's weight, and no word of a teacher."""
    adapter = Adapter()
    model, told = cascade(adapter)
    answer = model.predict(rows(0, 1, 2, 3))
    (asked,) = adapter.asked
    assert asked.dtype == np.float16
    np.testing.assert_array_equal(asked, np.array(STUDENT, np.float16)[1:3])
    np.testing.assert_allclose(answer.probabilities[1], [0.45, 0.55], atol=1e-3)
    assert answer.tiers == ("adapter",)
    assert answer.decided_by == ("student", "fused", "fused", "student")
    assert answer.alpha is not None
    assert answer.alpha.tolist() == [0, 0.75, 0.75, 0]
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all()
    assert not told[0].heard.any(), "nothing is learned from it"
    assert model.take_health().bytes_up == 2 * 2 * 2, "two inputs, two features, two bytes"


@pytest.mark.parametrize("claims", [None, 0.5, np.nan])
@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_attack_whatever_a_server_says_of_itself_an_adapter_is_no_teacher(
    claims: float | None, alpha: float
) -> None:
    """Not where it is silent, which makes a teacher of others, and not where it claims to be one."""
    model, told = cascade(Adapter(claims), replace(POLICY, alpha=alpha))
    answer = model.predict(rows(1, 2))
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all()
    assert answer.decided_by == (("fused",) * 2 if alpha else ("student",) * 2)
    assert not told[0].heard.any()
    assert model.take_health().agreed == 0


def test_nothing_is_audited_with_features() -> None:
    """An adapter is not whom an audit asks about: the coin is passed over, and its share goes to the doubts."""
    adapter = Adapter()
    model, _ = cascade(adapter, coin=0.0)
    assert model.predict(rows(0, 3)).decided_by == ("student", "student")
    assert adapter.asked == []
    health = model.take_health()
    assert (health.audits, health.audits_lost) == (0, 0)


@pytest.mark.parametrize("why", ["no adapter", "no features", "nothing leaves"])
def test_attack_without_all_that_it_takes_nothing_is_sent(why: str) -> None:
    """No adapter that the policy was fitted for, a student without features, or a device that is stricter."""
    adapter, policy, student = Adapter(), POLICY, None
    if why == "no adapter":
        policy = replace(POLICY, adapter=None)
    elif why == "no features":
        student = Blind()
    else:
        policy = POLICY.limited_to("nothing")
    model, _ = cascade(adapter, replace(policy, threshold=ALWAYS), student=student)
    for _ in range(20):
        assert model.predict(rows(1, 2)).decided_by == ("student", "student")
    assert adapter.asked == []
    assert model.take_health().escalated == 0


def test_where_the_server_has_no_such_adapter_the_student_answers() -> None:
    """And the question counts as unanswered."""
    missing = NotFoundError("no such model", where="hub", expected="a model", got="none", fix="name another")
    model, told = cascade(Told(STUDENT, missing))
    answer = model.predict(rows(1, 2))
    assert answer.decided_by == ("student", "student")
    assert answer.tiers == ("adapter",)
    assert told[0].failures == ("not-found",)


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=True)))
def test_features_travel_as_the_nearest_halves(features: NDArray[np.float32]) -> None:
    """Whatever is too large for one is the largest there is: a server refuses infinities."""
    sent = as_sent(features)
    assert sent.dtype == np.float16
    assert np.isfinite(sent).all()
    within = np.abs(features) <= 65504
    np.testing.assert_array_equal(sent[within], features[within].astype(np.float16))
    assert (np.abs(sent[~within]) == 65504).all()


def test_features_that_are_no_numbers_stay_none() -> None:
    """The client refuses to send them; they must not become some number on the way."""
    assert np.isnan(as_sent(np.array([[np.nan, 1.0]], np.float32))[0, 0])


def test_a_server_has_an_adapter_under_its_digest() -> None:
    """So a device asks the very file that its policy was fitted for, or nobody."""
    assert model_name(ADAPTER) == f"adapter-{ADAPTER.hex[:12]}"


# The policy


def test_a_policy_keeps_its_adapter() -> None:
    """Written and read; without one the field is not there, as in older bundles."""
    assert Policy.from_bytes(POLICY.to_bytes()) == POLICY
    bare = replace(POLICY, adapter=None)
    assert b"adapter" not in bare.to_bytes()
    assert Policy.from_bytes(bare.to_bytes()) == bare


@pytest.mark.parametrize("written", ['"sha256:12"', "7", '"none"'])
def test_attack_an_adapter_that_is_no_digest_is_refused(written: str) -> None:
    """It would become part of a path."""
    text = POLICY.to_bytes().decode().replace(f'"{ADAPTER}"', written)
    with pytest.raises(MessageError, match="adapter"):
        Policy.from_bytes(text.encode())


def test_an_adapter_makes_no_sense_where_inputs_may_leave() -> None:
    """Alpha and threshold cannot have been fitted for both."""
    with pytest.raises(
        SettingError, match=r"policy: adapter; expected none, where inputs themselves may leave"
    ):
        replace(POLICY, leaves="raw")


@pytest.mark.parametrize("device", get_args(Leaves))
@pytest.mark.parametrize("leaves", get_args(Leaves))
@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_what_a_question_holds(device: Leaves, leaves: Leaves, adapter: Digest | None) -> None:
    """Inputs where both allow it; features where the policy was fitted for that and the device allows it; else nothing."""
    if leaves == "raw" and adapter is not None:
        return
    limited = replace(POLICY, leaves=leaves, adapter=adapter).limited_to(device)
    if "nothing" in {device, leaves}:
        assert limited.asks == "nothing"
    elif leaves == "features":
        assert limited.asks == ("nothing" if adapter is None else "features")
    else:
        assert limited.asks == ("raw" if device == "raw" else "nothing"), (
            "fitted for the teacher, not for features"
        )
    assert limited.audits == (POLICY.audit_share if limited.asks == "raw" else 0)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_a_decision_with_features_is_escalate_or_alone(confidence: float, coin: float) -> None:
    """Whatever the coin says."""
    decision, _ = decide(POLICY, PolicyState.start(POLICY), confidence=confidence, coin=coin)
    assert decision == ("escalate" if confidence < POLICY.threshold - 1e-6 else "alone") or (
        abs(confidence - POLICY.threshold) <= 1e-6
    )


def test_the_whole_share_goes_to_escalations() -> None:
    """Over 4,000 unsure inputs a half is asked about, audits taking none of it."""
    state, asked = PolicyState.start(POLICY), 0
    for _ in range(4_000):
        decision, state = decide(POLICY, state, confidence=0.6, coin=0.0)
        asked += decision == "escalate"
    assert asked / 4_000 == pytest.approx(0.5, abs=0.02)


def test_a_promise_made_with_an_adapter_holds_while_it_answers() -> None:
    """Hundreds of its answers count, and failures do not; nor does it hold where the device keeps its features."""
    promised = replace(POLICY, evidence={"promised": True}, escalation_share=1.0)
    model, _ = cascade(Adapter(), promised)
    for _ in range(600):
        model.predict(rows(1))
    assert model.state.asked > 0.6
    assert not model.promise_is_void
    gone, _ = cascade(
        Told(STUDENT, UnreachableError("gone", where="hub", expected="an answer", got="none")), promised
    )
    for _ in range(600):
        gone.predict(rows(1))
    assert gone.promise_is_void
    assert promise_is_void(promised.limited_to("nothing"), PolicyState.start(promised))

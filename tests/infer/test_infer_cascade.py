"""The cascade: who is asked, what comes of it, and that a device keeps answering whatever the teacher does."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infer_models import Told, rows, tiny_model

from edgestill.core.answer import Answer
from edgestill.core.errors import (
    DeadlineError,
    EdgestillError,
    EngineError,
    RefusedError,
    ShapeError,
    SpentError,
    UnreachableError,
)
from edgestill.infer.cascade import Cascade, Escalation
from edgestill.infer.decision import PolicyState
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import ALWAYS, Band, Policy
from edgestill.infer.reaction import Reaction
from edgestill.infer.remembering import Remembering
from edgestill.infer.student import Student
from edgestill.infer.tiers import Tier, Tiers
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgestill.core.protocols import Predict

LABELS = ("a", "b")
STUDENT = [[0.95, 0.05], [0.6, 0.4], [0.45, 0.55], [0.9, 0.1]]
TEACHER = [[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]]
POLICY = Policy(labels=LABELS, alpha=0.75, threshold=0.7, escalation_share=0.5, audit_share=0.1)
COIN_AUDIT, COIN_NO = 0.05, 0.5


class Coins:
    """A `random` that gives these, then heads for ever."""

    def __init__(self, *coins: float) -> None:
        self.coins: Iterator[float] = iter(coins)
        self.tossed = 0

    def __call__(self) -> float:
        """The next one."""
        self.tossed += 1
        return next(self.coins, COIN_NO)


def cascade(
    *coins: float,
    teacher: Predict | None = None,
    policy: Policy = POLICY,
    clock: FakeClock | None = None,
    auditor: Predict | None = None,
) -> tuple[Cascade, list[Escalation]]:
    """Of the tables above, and what its observer was told."""
    told: list[Escalation] = []
    made = Cascade(
        Told(STUDENT),
        Told(TEACHER) if teacher is None else teacher,
        policy,
        clock=clock or FakeClock(),
        random=Coins(*coins),
        auditor=auditor,
        observe=told.append,
    )
    return made, told


def test_unsure_inputs_are_asked_in_one_batch_and_fused() -> None:
    """Inputs 1 and 2 are below the threshold: one question for both, and 3/4 of the teacher in the answer."""
    teacher = Told(TEACHER)
    model, _ = cascade(teacher=teacher)
    answer = model.predict(rows(0, 1, 2, 3), deadline=2_000.0)
    assert teacher.asked == [[1, 2]]
    assert teacher.deadlines == [2_000.0]
    assert answer.decided_by == ("student", "fused", "fused", "student")
    wanted = [[0.95, 0.05], [0.3, 0.7], [0.1875, 0.8125], [0.9, 0.1]]
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-6)
    np.testing.assert_allclose(answer.confidence, [0.95, 0.7, 0.8125, 0.9], atol=1e-6)
    assert answer.alpha is not None
    assert answer.alpha.tolist() == [0, 0.75, 0.75, 0]
    assert answer.student is not None
    np.testing.assert_allclose(answer.student, STUDENT, atol=1e-6)
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all(axis=1).tolist() == [True, False, False, True]
    assert answer.features is not None


def test_a_sure_batch_asks_nobody() -> None:
    """The student's own answer is given, and nobody hears of it."""
    teacher = Told(TEACHER)
    model, told = cascade(teacher=teacher)
    answer = model.predict(rows(0, 3))
    assert teacher.asked == []
    assert (answer.decided_by, answer.teacher, answer.student) == (("student", "student"), None, None)
    assert told[0].decisions == ("alone", "alone")
    assert not told[0].heard.any()


def test_what_a_gateways_student_said_is_fused_and_is_no_word_of_the_teacher() -> None:
    """The answer's author is a student, the teacher was not heard, and the question counts as unanswered."""
    model, told = cascade(teacher=Remembering(Told(TEACHER, deputised=True), clock=FakeClock()))
    answer = model.predict(rows(0, 1, 2, 3))
    np.testing.assert_allclose(answer.probabilities[2], [0.1875, 0.8125], atol=1e-6)
    assert answer.decided_by == ("student",) * 4
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all()
    assert not told[0].heard.any()
    assert model.state.asked < model.state.needed


def test_a_deputy_of_a_deputy_is_none_of_the_teacher_either() -> None:
    """Device, gateway and a student beyond it: whatever is between, nobody takes a student's word for the teacher's."""
    gateway, _ = cascade(teacher=Told(TEACHER, deputised=True))
    model, told = cascade(teacher=gateway)
    answer = model.predict(rows(1, 2))
    assert answer.decided_by == ("student", "student")
    assert not told[0].heard.any()
    assert cascade(teacher=cascade()[0])[0].predict(rows(1)).decided_by == ("fused",)


def test_a_nested_cascades_teacher_is_heard_for_itself() -> None:
    """What was fused on the way is fused again; a label is what the teacher said alone."""
    gateway, _ = cascade()
    model, told = cascade(teacher=gateway)
    answer = model.predict(rows(2))
    assert told[0].heard.all()
    assert answer.teacher is not None
    np.testing.assert_allclose(answer.teacher, [TEACHER[2]], atol=1e-6)


@pytest.mark.parametrize(("rows_of_it", "voices"), [(1, 2), (2, 1), (3, 2)])
def test_attack_an_answer_that_tells_of_other_inputs_is_none(rows_of_it: int, voices: int) -> None:
    """Its authors and its teacher's words must be as many as its inputs; otherwise the student's answer stands."""

    class Strange:
        def predict(
            self, batch: NDArray[np.generic], *, deadline: float | None = None
        ) -> Answer:  # a `Predict`
            said = np.array([TEACHER[2]] * len(batch), np.float32)
            return Answer(
                probabilities=said,
                confidence=said.max(axis=1),
                decided_by=("teacher",) * voices,
                teacher=np.array([TEACHER[2]] * rows_of_it, np.float32),
            )

    for teacher in (Strange(), Remembering(Strange(), clock=FakeClock())):
        model, told = cascade(teacher=teacher)
        assert model.predict(rows(1, 2)).decided_by == ("student", "student")
        assert told[0].failures == ("message-invalid",)


@pytest.mark.parametrize(("alpha", "name"), [(0.0, "student"), (0.5, "fused"), (1.0, "teacher")])
def test_the_answers_author_follows_alpha(alpha: float, name: str) -> None:
    """With alpha 0 or 1 one voice decides, and the answer says whose it is."""
    policy = Policy(labels=LABELS, alpha=alpha, threshold=0.7, escalation_share=0.5, audit_share=0)
    answer = cascade(policy=policy)[0].predict(rows(1))
    assert answer.decided_by == (name,)


def test_without_a_teacher_the_student_answers_alone() -> None:
    """No coin is tossed, nothing is lost, the promise is void."""
    coins = Coins()
    model = Cascade(Told(STUDENT), None, POLICY, clock=FakeClock(), random=coins)
    answer = model.predict(rows(0, 1, 2))
    assert answer.decided_by == ("student",) * 3
    assert coins.tossed == 0
    assert model.state == PolicyState.start(POLICY)
    assert model.promise_is_void
    assert (model.take_health().answers, model.take_health().answers) == (3, 0)


# A teacher that fails

FAILURES = [
    UnreachableError("no route"),
    DeadlineError("too late"),
    RefusedError("busy"),
    SpentError("no bytes left"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.code)
def test_a_failing_teacher_leaves_the_students_answer(error: EdgestillError) -> None:
    """Every way to fail gives the student's answer, marked as its own, and the observer hears the code."""
    model, told = cascade(COIN_AUDIT, teacher=Told(TEACHER, error))
    answer = model.predict(rows(0, 1, 2))
    assert answer.decided_by == ("student",) * 3
    np.testing.assert_allclose(answer.probabilities, STUDENT[:3], atol=1e-6)
    assert told[0].failures == (error.code,)
    assert told[0].decisions == ("audit", "escalate", "escalate")
    health = model.take_health()
    assert (health.escalated, health.audits, health.audits_lost, health.errors) == (3, 0, 1, 0)
    assert model.state.audits_lost == 1
    assert model.state.asked == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "table",
    [
        [[0.5, 0.3, 0.2]] * 4,
        [[np.nan, np.nan]] * 4,
        [[0.9, 0.9]] * 4,
        [[1.5, -0.5]] * 4,
    ],
    ids=["classes", "nan", "sum", "negative"],
)
def test_attack_a_teacher_that_answers_nonsense(table: list[list[float]]) -> None:
    """Other classes, NaN, or what is no distribution does not reach the answer."""
    model, told = cascade(teacher=Told(table))
    answer = model.predict(rows(1))
    assert answer.decided_by == ("student",)
    np.testing.assert_allclose(answer.probabilities, STUDENT[1:2], atol=1e-6)
    assert told[0].failures == ("message-invalid",)


def test_attack_a_teacher_that_answers_too_few() -> None:
    """An answer to another number of inputs is none."""

    class Short:
        def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> Answer:
            return Told(TEACHER).predict(batch[:1])

    model, told = cascade(teacher=Short())
    assert model.predict(rows(1, 2)).decided_by == ("student", "student")
    assert told[0].failures == ("message-invalid",)


def test_a_deadline_that_has_passed_asks_nobody() -> None:
    """There is no time to ask: the student answers, at once."""
    clock, teacher = FakeClock(), Told(TEACHER)
    model, told = cascade(teacher=teacher, clock=clock)
    answer = model.predict(rows(1), deadline=clock.monotonic())
    assert answer.decided_by == ("student",)
    assert teacher.asked == []
    assert told[0].failures == ("deadline-passed",)


def test_a_bug_is_not_hidden() -> None:
    """What is none of our errors is a bug, and comes through."""

    class Buggy:
        def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> Answer:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cascade(teacher=Buggy())[0].predict(rows(1))


def test_a_failing_student_is_counted_and_told() -> None:
    """There is nobody else to answer; a bad batch is the caller's mistake and not counted."""
    broken = Cascade(Told(STUDENT, EngineError("gone")), None, POLICY, clock=FakeClock(), random=Coins())
    with pytest.raises(EngineError, match="gone"):
        broken.predict(rows(0, 1))
    assert broken.take_health().errors == 2
    engine = Student(OnnxEngine(tiny_model()), Policy(labels=("a", "b", "c")), clock=FakeClock())
    real = Cascade(engine, Told(TEACHER), POLICY, clock=FakeClock(), random=Coins())
    for bad in (np.zeros((0, 4), np.float32), np.zeros((1, 3), np.float32), np.array(1, np.float32)):
        with pytest.raises(ShapeError):
            real.predict(bad)
    assert real.take_health().errors == 0


# Audits


def test_agreement_is_measured_on_audits_alone() -> None:
    """Of four inputs two are audits, on one of which both agree; escalations do not count."""
    model, told = cascade(COIN_AUDIT, COIN_NO, COIN_NO, COIN_AUDIT)
    answer = model.predict(rows(0, 1, 2, 3))
    assert told[0].decisions == ("audit", "escalate", "escalate", "audit")
    assert told[0].audited.tolist() == [True, False, False, True]
    assert told[0].heard.all()
    assert answer.decided_by == ("fused",) * 4
    health = model.take_health()
    assert (health.escalated, health.audits, health.agreed, health.audits_lost) == (4, 2, 1, 0)


def test_coins_are_tossed_for_every_input() -> None:
    """One per input, sure or not."""
    coins = Coins()
    Cascade(Told(STUDENT), Told(TEACHER), POLICY, clock=FakeClock(), random=coins).predict(rows(0, 1, 2))
    assert coins.tossed == 3


def test_audited_agreement_is_unbiased() -> None:
    """Over 4,000 inputs the audits' agreement is that of all inputs, while that of escalations is far from it."""
    rng = np.random.default_rng(3)
    sure = rng.uniform(0.5, 1.0, 4_000)
    right = rng.random(4_000) < sure
    student = np.stack([sure, 1 - sure], axis=1)
    teacher = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    policy = Policy(labels=LABELS, threshold=0.6, escalation_share=0.3, audit_share=0.15)
    told: list[Escalation] = []
    model = Cascade(
        Told(student.tolist()),
        Told(teacher.tolist()),
        policy,
        clock=FakeClock(),
        random=rng.random,
        observe=told.append,
    )
    for start in range(0, 4_000, 50):
        model.predict(rows(*range(start, start + 50)))
    health = model.take_health()
    deviation = np.sqrt(0.75 * 0.25 / health.audits)
    assert abs(health.agreed / health.audits - right.mean()) < 4 * deviation
    decisions = np.concatenate([one.decisions for one in told])
    assert right[decisions == "escalate"].mean() < right.mean() - 0.1


def test_audits_can_go_to_an_address_of_their_own() -> None:
    """With an auditor, audits and escalations are two questions, and one may fail without the other."""
    teacher, auditor = Told(TEACHER, UnreachableError("gone")), Told(TEACHER)
    model, told = cascade(COIN_AUDIT, teacher=teacher, auditor=auditor)
    answer = model.predict(rows(0, 1, 2))
    assert (teacher.asked, auditor.asked) == ([[1, 2]], [[0]])
    assert answer.decided_by == ("fused", "student", "student")
    assert told[0].failures == ("peer-unreachable",)
    health = model.take_health()
    assert (health.audits, health.agreed, health.audits_lost) == (1, 1, 0)


def test_an_audit_the_bytes_forbid_is_lost_and_not_sent() -> None:
    """With a byte budget of one input the second audit is recorded as lost."""
    policy = Policy(labels=LABELS, threshold=0.0, escalation_share=0.5, audit_share=0.1, bytes_per_day=7)
    teacher = Told(TEACHER)
    model, _ = cascade(COIN_AUDIT, COIN_AUDIT, policy=policy, teacher=teacher)
    model.predict(rows(0, 1))
    assert teacher.asked == [[0]]
    health = model.take_health()
    assert (health.escalated, health.audits, health.audits_lost, health.bytes_up) == (1, 1, 1, 4)


# Budgets, state, nesting


def test_nothing_leaves_where_nothing_may() -> None:
    """With `leaves` below `raw` the teacher is never asked, audits included."""
    teacher = Told(TEACHER)
    policy = Policy(labels=LABELS, threshold=ALWAYS, escalation_share=1, audit_share=1).limited_to("features")
    model, _ = cascade(*[0.0] * 9, policy=policy, teacher=teacher)
    for _ in range(20):
        assert model.predict(rows(1, 2)).decided_by == ("student", "student")
    assert teacher.asked == []
    assert model.take_health().audits_lost == 0


def test_the_state_is_handed_on() -> None:
    """A cascade that starts with another's state decides as that one would have."""
    first, _ = cascade()
    for _ in range(50):
        first.predict(rows(1))
    second = Cascade(
        Told(STUDENT), Told(TEACHER), POLICY, state=first.state, clock=FakeClock(), random=Coins()
    )
    assert second.state == first.state != PolicyState.start(POLICY)
    assert second.predict(rows(1)).decided_by == first.predict(rows(1)).decided_by


def test_the_escalated_share_is_held() -> None:
    """Over 3,000 unsure inputs half are asked, for half is the budget."""
    model, _ = cascade()
    asked = sum(model.predict(rows(1)).decided_by == ("fused",) for _ in range(3_000))
    assert asked / 3_000 == pytest.approx(0.4 / 0.9, abs=0.035)


def test_cascades_nest() -> None:
    """Device, gateway, cloud: the gateway is a cascade, and a teacher to the device."""
    cloud = Told([[0.0, 1.0]] * 4)
    gateway, _ = cascade(teacher=cloud)
    device = Cascade(Told(STUDENT), gateway, POLICY, clock=FakeClock(), random=Coins())
    answer = device.predict(rows(1))
    # gateway: 0.75 * [0, 1] + 0.25 * [0.6, 0.4]; device: 0.75 of that and 0.25 of its own
    np.testing.assert_allclose(answer.probabilities, [[0.2625, 0.7375]], atol=1e-6)
    assert cloud.asked == [[1]]


def test_a_students_promise_is_watched() -> None:
    """The cascade says whether the bundle's promise holds now."""
    promised = Policy(labels=LABELS, threshold=0.7, evidence={"promised": True})
    assert not cascade(policy=promised)[0].promise_is_void
    assert cascade(policy=POLICY)[0].promise_is_void


def test_latencies_of_answers_given_alone_are_reported() -> None:
    """A slow teacher does not make the student look slow, but the answer knows its own latency."""
    clock = FakeClock()

    class Slow:
        def __init__(self, model: Predict, seconds: float) -> None:
            self.model, self.seconds = model, seconds

        def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> Answer:
            clock.advance(self.seconds)
            return replace(self.model.predict(batch, deadline=deadline), latency=self.seconds)

    model = Cascade(Slow(Told(STUDENT), 0.002), Slow(Told(TEACHER), 3.0), POLICY, clock=clock, random=Coins())
    assert model.predict(rows(0)).latency == pytest.approx(0.002)
    assert model.predict(rows(1)).latency == pytest.approx(3.002)
    assert model.take_health().latency_p95 == pytest.approx(0.002)


def test_threads_lose_no_count() -> None:
    """Four callers at once: every answer and every question is counted once."""
    model, told = cascade()

    def work() -> None:
        for _ in range(200):
            model.predict(rows(0, 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    health = model.take_health()
    assert health.answers == 1_600
    assert health.escalated == sum(one.decisions.count("escalate") for one in told)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.lists(st.sampled_from([COIN_AUDIT, COIN_NO]), max_size=20),
    st.none() | st.sampled_from(FAILURES),
)
def test_figures_and_answers_agree(
    batch: list[int], coins: list[float], error: EdgestillError | None
) -> None:
    """For any batch and any luck: who decided, what was heard and what was counted fit together."""
    model, told = cascade(*coins, teacher=Told(TEACHER, error))
    answer = model.predict(rows(*batch))
    one, health = told[0], model.take_health()
    counted = Counter(one.decisions)
    assert health.answers == len(answer) == len(batch)
    assert health.escalated == counted["escalate"] + counted["audit"]
    assert health.audits + health.audits_lost == counted["audit"]
    assert [name == "fused" for name in answer.decided_by] == one.heard.tolist()
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (one.failures == ()) == (error is None or health.escalated == 0)


def test_the_answer_names_who_was_asked() -> None:
    """The teacher by its name, whether it answered or not, and those whom it asked; nobody where nobody was."""
    alone, _ = cascade(COIN_NO, teacher=Told(TEACHER))
    assert alone.predict(rows(0)).tiers == ()
    for error in (None, UnreachableError("gone", where="far", expected="an answer", got="none")):
        asked, _ = cascade(COIN_AUDIT, teacher=Told(TEACHER, error))
        assert asked.predict(rows(0)).tiers == ("teacher",)
    near = Tiers([Tier("gateway", Told(TEACHER))], clock=FakeClock())
    assert cascade(COIN_AUDIT, teacher=near)[0].predict(rows(0)).tiers == ("teacher", "gateway")
    made = Cascade(
        Told(STUDENT), near, POLICY, clock=FakeClock(), random=Coins(COIN_AUDIT), names=("gateway",)
    )
    assert made.predict(rows(0)).tiers == ("gateway",)


def test_each_answer_is_weighed_by_the_band_of_its_confidence() -> None:
    """Where the policy has bands, alpha is that of the student's confidence, and the fused answer is made with it."""
    policy = replace(
        POLICY, alpha=0.25, bands=(Band(below=0.75, alpha=1.0),), escalation_share=1.0, audit_share=1.0
    )
    model = Cascade(Told(STUDENT), Told(TEACHER), policy, clock=FakeClock(), random=Coins())
    answer = model.predict(rows(0, 1, 2, 3))
    assert answer.alpha is not None
    assert answer.student is not None
    assert answer.teacher is not None
    sure = answer.student.max(axis=1)
    assert answer.alpha.tolist() == np.where(sure < 0.75, 1.0, 0.25).tolist()
    assert set(answer.alpha.tolist()) == {1.0, 0.25}
    weighed = answer.alpha[:, None] * answer.teacher + (1 - answer.alpha[:, None]) * answer.student
    np.testing.assert_allclose(answer.probabilities, weighed, rtol=1e-6)
    assert [name == "teacher" for name in answer.decided_by] == (sure < 0.75).tolist()


class Metering:
    """A teacher that says what it sent; each question takes the next of `sizes`."""

    def __init__(self, *sizes: int, expected: int = 40) -> None:
        self.inner, self.sizes, self.expected, self.sent = Told(TEACHER), list(sizes), expected, 0

    def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> Answer:
        """Sends, and answers."""
        self.sent += self.sizes.pop(0)
        return self.inner.predict(batch, deadline=deadline)

    def bytes_each(self, batch: np.ndarray) -> int:
        """As expected."""
        return self.expected

    def take_sent(self) -> int:
        """And begins anew."""
        sent, self.sent = self.sent, 0
        return sent


def test_a_days_bytes_are_those_that_were_sent() -> None:
    """Charged with what a question may take, settled with what it took: less, more, or nothing at all."""
    teacher = Metering(10, 500, 0)
    policy = replace(POLICY, escalation_share=1.0, audit_share=1.0, bytes_per_day=600)
    model = Cascade(Told(STUDENT), teacher, policy, clock=FakeClock(), random=Coins(), meters=[teacher])
    spent = []
    for _ in range(3):
        model.predict(rows(1))
        spent.append(model.state.spent)
    assert spent == [10, 510, 510]
    assert model.take_health().bytes_up == 510


def test_a_question_that_may_not_fit_is_not_asked() -> None:
    """An input is charged with its numbers where they are more than what is expected, before it is known what it takes."""
    teacher = Metering(1, 1, expected=1)
    policy = replace(POLICY, escalation_share=1.0, audit_share=1.0, bytes_per_day=rows(1)[0].nbytes)
    model = Cascade(Told(STUDENT), teacher, policy, clock=FakeClock(), random=Coins(), meters=[teacher])
    model.predict(rows(1))
    model.predict(rows(1))
    assert model.state.spent == 1
    assert len(teacher.sizes) == 1


def test_audits_that_are_raised_are_tossed_for_with_the_higher_share_and_told_so() -> None:
    """A coin that loses at 0.1 wins at 0.5; observers hear of the share, and of none where it is the policy's."""
    policy = replace(POLICY, on_drift=Reaction(do=("audit",), audit_factor=5, audit_inputs=3))
    model, told = cascade(0.3, 0.3, 0.3, 0.3, 0.3, policy=policy)
    model.predict(rows(0))
    assert (told[0].decisions, told[0].audit_shares) == (("alone",), ())
    assert model.raise_audits()
    model.predict(rows(0, 3, 0, 3))
    assert told[1].decisions == ("audit", "audit", "audit", "alone")
    assert told[1].audit_shares == (0.5, 0.5, 0.5, 0.1)
    model.predict(rows(1))
    assert told[2].audit_shares == ()


def test_nothing_is_raised_without_a_teacher_or_a_word_of_the_policy() -> None:
    """And that is said."""
    assert not cascade()[0].raise_audits()
    policy = replace(POLICY, on_drift=Reaction(do=("audit",)))
    alone = Cascade(Told(STUDENT), None, policy, clock=FakeClock(), random=Coins())
    assert not alone.raise_audits()
    assert not cascade(policy=replace(policy, leaves="nothing"))[0].raise_audits()

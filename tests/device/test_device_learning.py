"""What a device learns: from whom, with which weights, when it dares, and what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.answer import Answer
from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError
from edgestill.device.learning import Learner, Lessons, sign_test
from edgestill.device.memory import Memory
from edgestill.infer.cascade import Escalation
from edgestill.infer.policy import Policy, PolicyState
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head, Statistics
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.infer.policy import Decision

BUNDLE, BACKBONE = Digest.of(b"bundle"), Digest.of(b"backbone")
POLICY = Policy(labels=("a", "b", "c"), audit_share=0.1, threshold=0.6)
D, C = 4, 3
DAY = 86_400.0


def samples(n: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Features `[n, D]`."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, D)) + shift).astype(np.float32)


def teacher_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """A teacher that names the largest of the first three features."""
    named: NDArray[np.float32] = np.eye(C, dtype=np.float32)[features[:, :C].argmax(axis=1)]
    return named


def reference(n: int = 400) -> Statistics:
    """Statistics of calibration data whose labels say nothing about the features."""
    features = samples(n, 1)
    targets = np.eye(C)[np.random.default_rng(2).integers(C, size=n)]
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D)
    return empty.add(features, targets)


def escalation(
    features: NDArray[np.float32],
    *,
    right: bool = False,
    decision: Decision = "escalate",
    confidence: float = 0.4,
) -> Escalation:
    """A batch about which the teacher was asked, on which the student was right, or wrong."""
    teacher = teacher_of(features)
    student = teacher if right else np.roll(teacher, 1, axis=1)
    fused = ((teacher + student) / 2).astype(np.float32)
    n = len(features)
    answer = Answer(
        probabilities=fused,
        confidence=np.full(n, 0.5, np.float32),
        decided_by=("fused",) * n,
        features=features,
        alpha=np.full(n, 0.5, np.float32),
        student=student,
        teacher=teacher,
    )
    return Escalation(
        batch=features,
        answer=answer,
        decisions=(decision,) * n,
        confidence=np.full(n, confidence, np.float32),
    )


def learner(clock: FakeClock | None = None, lessons: Lessons | None = None) -> Learner:
    """A learner beside a bundle whose reference does not help."""
    return Learner(
        bundle=BUNDLE, reference=reference(), policy=POLICY, clock=clock or FakeClock(), lessons=lessons
    )


def test_the_teachers_answers_are_the_targets_never_the_fused_ones() -> None:
    """Fused answers would train on themselves: the sums hold the teacher's probabilities exactly."""
    one = learner(lessons=Lessons(hold_back=10_000))
    features = samples(40, 2)
    one.observe(escalation(features), threshold=0.6)
    got = one.statistics()
    assert got is not None
    empty = Statistics.empty(backbone=BACKBONE, window=got.window, classes=C, features=D)
    expected = empty.add(features, teacher_of(features))
    np.testing.assert_allclose(got.b, expected.b)
    np.testing.assert_allclose(got.a, expected.a)
    assert got.n == 40


def test_an_answer_without_the_teacher_teaches_nothing() -> None:
    """A lone student learns nothing from itself; rows without an answer of the teacher are left out."""
    one = learner(lessons=Lessons(hold_back=10_000, least=1))
    told = escalation(samples(4, 3))
    lone = Answer(
        probabilities=told.answer.probabilities,
        confidence=told.answer.confidence,
        decided_by=("student",) * 4,
        features=told.answer.features,
    )
    one.observe(
        Escalation(batch=told.batch, answer=lone, decisions=("alone",) * 4, confidence=told.confidence),
        threshold=0.6,
    )
    assert one.statistics() is None
    assert told.answer.teacher is not None
    told.answer.teacher[1:] = np.nan
    one.observe(told, threshold=0.6)
    got = one.statistics()
    assert got is not None
    assert got.n == 1


@pytest.mark.parametrize(
    ("decision", "confidence", "weight"),
    [("escalate", 0.4, 1.0), ("audit", 0.4, 1.0), ("audit", 0.9, 10.0)],
)
def test_an_audit_stands_for_the_inputs_it_was_drawn_from(
    decision: Decision, confidence: float, weight: float
) -> None:
    """Escalated samples are the hard ones; audits of easy ones weigh 1 / audit_share."""
    one = learner(lessons=Lessons(hold_back=10_000, least=1))
    one.observe(escalation(samples(8, 4), decision=decision, confidence=confidence), threshold=0.6)
    got = one.statistics()
    assert got is not None
    assert got.weight == pytest.approx(8 * weight)


def test_every_fourth_sample_is_held_back_and_never_learned_from() -> None:
    """What judges a head must not have made it."""
    one = learner(lessons=Lessons(least=1))
    one.observe(escalation(samples(40, 5)), threshold=0.6)
    got = one.statistics()
    assert got is not None
    assert (got.n, len(one._held)) == (30, 10)


def test_a_better_head_is_adopted_once_the_held_back_samples_show_it() -> None:
    """It agrees with the teacher where what served did not; the overlay says how often, and is calibrated."""
    one = learner()
    one.observe(escalation(samples(60, 6)), threshold=0.6)
    assert one.consider() is None, "15 held-back samples are not yet enough to look at"
    one.observe(escalation(samples(60, 7)), threshold=0.6)
    overlay = one.consider()
    assert overlay is not None
    assert (overlay.bundle, overlay.n, overlay.agreement_before) == (BUNDLE, 90, 0.0)
    assert overlay.agreement_after > 0.6
    fresh = samples(500, 8)
    scores = fresh @ overlay.head.weight + overlay.head.bias
    assert (scores.argmax(axis=1) == teacher_of(fresh).argmax(axis=1)).mean() > 0.7
    assert 0.01 <= overlay.temperature < 1, "least-squares scores need sharpening to be probabilities"
    assert one.consider() is None, "the samples that spoke for it do not speak twice"


def test_a_head_that_is_no_better_is_not_adopted() -> None:
    """Where the student is right already, nothing is gained and nothing is changed."""
    one = learner()
    for seed in range(10):
        one.observe(escalation(samples(60, 20 + seed), right=True), threshold=0.6)
        assert one.consider() is None


def test_looks_grow_rarer_and_stricter() -> None:
    """Looking often must not make chance look like progress."""
    one = learner()
    looks = []
    for seed in range(16):
        one.observe(escalation(samples(16, 40 + seed), right=True), threshold=0.6)
        before = one._looks
        one.consider()
        if one._looks > before:
            looks.append(len(one._held))
    assert looks == [16, 32, 64]


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_a_probability_that_falls_with_wins(wins: int, losses: int) -> None:
    """And is symmetric around a draw."""
    p = sign_test(wins, losses)
    assert 0 < p <= 1
    assert p >= sign_test(wins + 1, losses)
    both = sign_test(wins, losses) + sign_test(losses, wins)
    assert both >= 1 - 1e-9


def test_the_sign_test_by_hand() -> None:
    """Five wins of five are as likely as 1/32."""
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(0, 0) == 1


def test_labels_of_the_application_teach_too() -> None:
    """They count as certain; labels that are no classes are refused."""
    one = learner(lessons=Lessons(hold_back=10_000, least=1))
    features = samples(3, 9)
    one.teach(features, np.array([0, 1, 2]), np.zeros(3, np.int64))
    got = one.statistics()
    assert got is not None
    assert got.b[-1].tolist() == [1, 1, 1]
    for labels in ([0, 1], [0, 1, 3], [-1, 0, 0]):
        with pytest.raises(ClassCountError, match="labels that are no classes"):
            one.teach(features, np.array(labels), np.zeros(3, np.int64))


def test_statistics_are_handed_out_only_when_there_is_news() -> None:
    """Not before a minimum that hides a single sample, and then after each growth by a quarter."""
    one = learner(lessons=Lessons(hold_back=10_000, least=16))
    sizes = []
    for seed in range(10):
        one.observe(escalation(samples(6, 60 + seed)), threshold=0.6)
        got = one.statistics()
        sizes.append(None if got is None else got.n)
    assert sizes == [None, None, 18, 24, 30, None, 42, None, 54, None]


def test_forgetting_drops_whole_windows() -> None:
    """Only the current window is handed out; the old ones count for the own head until they are too old."""
    clock = FakeClock()
    one = learner(clock, Lessons(hold_back=10_000, least=1, windows=2))
    one.observe(escalation(samples(20, 70)), threshold=0.6)
    first = one.statistics()
    clock.advance(DAY)
    one.observe(escalation(samples(5, 71)), threshold=0.6)
    second = one.statistics()
    assert first is not None
    assert second is not None
    assert (first.n, second.n, second.window) == (20, 5, first.window + 1)
    assert one._own().n == 25
    clock.advance(DAY)
    assert one._own().n == 5


def test_what_was_learned_is_kept_over_a_restart(tmp_path: Path) -> None:
    """Windows are written when they changed; damage and other backbones are passed over."""
    clock = FakeClock()
    memory = Memory(tmp_path / "learned", BUNDLE)
    one = learner(clock, Lessons(hold_back=10_000))
    one.observe(escalation(samples(20, 80)), threshold=0.6)
    memory.keep_statistics(one.keep())
    assert one.keep() == []
    stranger = Statistics.empty(backbone=Digest.of(b"other"), window=1, classes=C, features=D)
    (tmp_path / "learned" / "x.stats").write_bytes(stranger.to_bytes())
    (tmp_path / "learned" / "y.stats").write_bytes(b"torn")
    again = learner(clock)
    again.recall(memory.statistics())
    assert again._own().n == 20
    again.observe(escalation(samples(8, 81)), threshold=0.6)
    memory.keep_statistics(again.keep())
    assert len(list((tmp_path / "learned").glob("*.stats"))) == 1


def test_features_of_another_domain_raise_the_alarm() -> None:
    """Leverage notices without any label; its mean is reported and then begins anew."""
    one = learner()
    one.observe(escalation(samples(400, 90)), threshold=0.6)
    assert one.drift == "none"
    usual = one.mean_leverage()
    assert one.mean_leverage() == 0
    one.observe(escalation(samples(60, 91, shift=6.0)), threshold=0.6)
    assert one.drift == "confirmed"
    assert one.mean_leverage() > 5 * usual


def test_falling_confidence_raises_the_alarm() -> None:
    """Even where the features look as always."""
    one = learner()
    rng = np.random.default_rng(5)
    for mean in (0.9, 0.5):
        for _ in range(40):
            told = escalation(samples(10, int(rng.integers(1 << 30))))
            told.confidence[:] = np.clip(rng.normal(mean, 0.03, 10), 0, 1)
            one.observe(told, threshold=0.6)
        assert one.drift == ("none" if mean == 0.9 else "confirmed")


def test_a_bundle_without_features_is_left_alone() -> None:
    """There is nothing to learn on."""
    one = learner()
    told = escalation(samples(4, 92))
    bare = Answer(
        probabilities=told.answer.probabilities,
        confidence=told.answer.confidence,
        decided_by=("student",) * 4,
    )
    one.observe(
        Escalation(batch=told.batch, answer=bare, decisions=("alone",) * 4, confidence=told.confidence),
        threshold=0.6,
    )
    assert one.mean_leverage() == 0


def an_overlay(bundle: Digest = BUNDLE) -> Overlay:
    """A learned head."""
    head = Head(np.ones((D, C), np.float32), np.zeros(C, np.float32))
    return Overlay(
        bundle=bundle,
        head=head,
        n=5,
        created=1.0,
        agreement_before=0.5,
        agreement_after=0.75,
        temperature=0.2,
    )


def test_an_overlay_is_kept_for_its_bundle_alone(tmp_path: Path) -> None:
    """Another bundle has none; a damaged one is none; dropping it undoes what was learned."""
    memory = Memory(tmp_path, BUNDLE)
    assert memory.overlay() is None
    memory.keep_overlay(an_overlay())
    kept = memory.overlay()
    assert kept is not None
    assert kept.agreement_after == 0.75
    assert Memory(tmp_path, Digest.of(b"another")).overlay() is None
    (path,) = tmp_path.glob("*.overlay")
    path.write_bytes(path.read_bytes()[:-1])
    assert memory.overlay() is None
    memory.drop_overlay()
    assert list(tmp_path.iterdir()) == []


def test_overlays_of_bundles_long_gone_are_forgotten(tmp_path: Path) -> None:
    """Their number is bounded."""
    for number in range(7):
        digest = Digest.of(str(number).encode())
        Memory(tmp_path, digest).keep_overlay(an_overlay(digest))
    assert len(list(tmp_path.glob("*.overlay"))) == 4


def test_the_policys_state_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Under the same bundle whole; under another one only what was sent today is remembered."""
    state = PolicyState(level=1.0, asked=0.1, needed=0.2, day=20_000, spent=777, audits_lost=3)
    memory = Memory(tmp_path, BUNDLE)
    assert memory.policy_state(POLICY) == PolicyState.start(POLICY)
    memory.keep_policy_state(state)
    assert memory.policy_state(POLICY) == state
    other = Memory(tmp_path, Digest.of(b"another")).policy_state(POLICY)
    assert (other.day, other.spent, other.level) == (20_000, 777, PolicyState.start(POLICY).level)
    (tmp_path / "policy.json").write_bytes(b"{")
    assert memory.policy_state(POLICY) == PolicyState.start(POLICY)
    (tmp_path / "policy.json").write_bytes(b" " * 10_000)
    assert memory.policy_state(POLICY) == PolicyState.start(POLICY)

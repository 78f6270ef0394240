"""What a device learns: from whom, with which weights, when it dares, and what it keeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.answer import Answer
from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError
from edgestill.core.jsonio import canonical
from edgestill.device.learning import Learner, Lessons
from edgestill.device.memory import Memory
from edgestill.infer.cascade import Escalation
from edgestill.infer.decision import PolicyState
from edgestill.infer.policy import Policy
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head, Statistics
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.decision import Decision

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
    deputised: bool = False,
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
        teacher=np.full_like(teacher, np.nan) if deputised else teacher,
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


def test_what_a_gateways_student_said_teaches_nothing() -> None:
    """Without its teacher a gateway is only another student."""
    one = learner(lessons=Lessons())
    one.observe(escalation(samples(40, 2), deputised=True), threshold=0.6)
    assert one.statistics() is None
    one.observe(escalation(samples(40, 3), deputised=False), threshold=0.6)
    assert one.statistics() is not None


def test_the_teachers_answers_are_the_targets_never_the_fused_ones() -> None:
    """Fused answers would train on themselves: the sums hold the teacher's probabilities exactly."""
    one = learner(lessons=Lessons())
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
    one = learner(lessons=Lessons(least=1))
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


def test_targets_are_1_together_whatever_the_teachers_precision() -> None:
    """Probabilities of half precision miss 1 by up to a thousandth; what is learned of them does not."""
    one = learner(lessons=Lessons(least=1))
    told = escalation(samples(40, 2))
    assert told.answer.teacher is not None
    told.answer.teacher[:] *= 1 - 8e-4
    one.observe(told, threshold=0.6)
    got = one.statistics()
    assert got is not None
    np.testing.assert_allclose(got.b.sum(axis=1), got.matrix[:, -1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("decision", "confidence", "weight"),
    [("escalate", 0.4, 1.0), ("audit", 0.4, 1.0), ("audit", 0.9, 10.0)],
)
def test_an_audit_stands_for_the_inputs_it_was_drawn_from(
    decision: Decision, confidence: float, weight: float
) -> None:
    """Escalated samples are the hard ones; audits of easy ones weigh 1 / audit_share."""
    one = learner(lessons=Lessons(least=1))
    one.observe(escalation(samples(8, 4), decision=decision, confidence=confidence), threshold=0.6)
    got = one.statistics()
    assert got is not None
    assert got.weight == pytest.approx(8 * weight)


def singly(one: Learner, features: NDArray[np.float32], **options: Any) -> None:
    """The samples one after the other, as a device meets them."""
    for row in features:
        one.observe(escalation(row[None], **options), threshold=0.6)


def test_a_better_head_is_adopted_once_a_contest_has_shown_it() -> None:
    """It agrees with the teacher where what served did not; the overlay says how often, and is calibrated."""
    one = learner()
    singly(one, samples(20, 6))
    assert one.consider() is None, "20 samples are not yet enough"
    singly(one, samples(60, 7))
    overlay = one.consider()
    assert overlay is not None
    assert (overlay.bundle, overlay.n, overlay.agreement_before) == (BUNDLE, 80, 0.0)
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
        singly(one, samples(60, 20 + seed), right=True)
        assert one.consider() is None


def test_heads_that_learn_noise_are_hardly_ever_adopted() -> None:
    """The teacher tosses dice, looked at after every ten samples: of 60 devices at most 5 % adopt, with slack."""
    adopted = 0
    for device in range(60):
        one, rng = learner(), np.random.default_rng(device)
        for _ in range(20):
            told = escalation(samples(10, int(rng.integers(1 << 30))))
            assert told.answer.teacher is not None
            told.answer.teacher[:] = np.eye(C)[rng.integers(C, size=10)]
            one.observe(told, threshold=0.6)
            if one.consider() is not None:
                adopted += 1
                break
    assert adopted <= 6


def test_a_head_that_is_behind_on_audits_is_not_adopted() -> None:
    """Better on the hard inputs, worse on the fair sample of all: the student stays."""
    one = learner()
    for seed in range(40):
        singly(one, samples(3, 200 + seed))
        noise = escalation(samples(1, 300 + seed), right=True, decision="audit")
        assert noise.answer.teacher is not None
        assert noise.answer.student is not None
        one_hot = np.eye(C, dtype=np.float32)[[seed % C]]
        noise.answer.teacher[:], noise.answer.student[:] = one_hot, one_hot  # chance, and the student knows
        one.observe(noise, threshold=0.6)
        assert one.consider() is None
    assert one._trial.contest.winner(0.05) is not None, "all samples together speak for it"


def test_answers_are_noted_and_looked_at_in_bounded_numbers() -> None:
    """Answering does not wait for learning; but 256 inputs are the most that wait."""
    one = learner()
    singly(one, samples(100, 30))
    assert one._sums.older_than(0) == 0
    singly(one, samples(100, 31))
    assert one._sums.older_than(0) == 128
    assert one.drift == "none"
    assert one._sums.older_than(0) == 200


@given(st.lists(st.sampled_from(["drift", "consider", "statistics", "keep", "progress"]), max_size=40))
def test_when_somebody_looks_changes_nothing(looks: list[str]) -> None:
    """What is learned depends on the order of the inputs alone."""
    unseen, watched = learner(), learner()
    rows = samples(40, 32)
    singly(unseen, rows)
    for index, row in enumerate(rows):
        singly(watched, row[None])
        if index < len(looks):
            look = getattr(watched, looks[index])
            _ = look if isinstance(look, str) else look()
    assert watched.progress() == unseen.progress()
    assert watched._sums.to_files() == unseen._sums.to_files()


def test_after_a_change_only_what_came_since_counts() -> None:
    """The features move: the sums begin anew with the samples since then; the statistics sent are small again."""
    one = learner(lessons=Lessons(least=1))
    rng = np.random.default_rng(33)
    for seed in range(300):
        told = escalation(samples(1, int(rng.integers(1 << 30))), right=True, confidence=0.67)
        assert told.answer.teacher is not None
        if seed % 4:
            told.answer.teacher[:] = np.nan
        one.observe(told, threshold=0.6)
    before = one.statistics()
    assert before is not None
    assert before.n == 75
    singly(one, samples(40, 34, shift=4.0))
    assert one.drift == "confirmed"
    after = one.statistics()
    assert after is not None
    assert 30 <= after.n <= 48, "those since the change, up to a block more"


def test_labels_of_the_application_teach_too() -> None:
    """They count as certain; labels that are no classes are refused."""
    one = learner(lessons=Lessons(least=1))
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
    one = learner(lessons=Lessons(least=16))
    sizes = []
    for seed in range(10):
        one.observe(escalation(samples(6, 60 + seed)), threshold=0.6)
        got = one.statistics()
        sizes.append(None if got is None else got.n)
    assert sizes == [None, None, 18, 24, 30, None, 42, None, 54, None]


def test_forgetting_drops_whole_windows() -> None:
    """Only the current window is handed out; the old ones count for the own head until they are too old."""
    clock = FakeClock()
    one = learner(clock, Lessons(least=1, windows=2))
    one.observe(escalation(samples(20, 70)), threshold=0.6)
    first = one.statistics()
    clock.advance(DAY)
    one.observe(escalation(samples(5, 71)), threshold=0.6)
    second = one.statistics()
    assert first is not None
    assert second is not None
    assert (first.n, second.n, second.window) == (20, 5, first.window + 1)
    assert one._sums.total().n == 25
    clock.advance(DAY)
    one._renew()
    assert one._sums.total().n == 5


def test_what_was_learned_is_kept_over_a_restart(tmp_path: Path) -> None:
    """Windows are written when they changed; damage and other backbones are passed over."""
    clock = FakeClock()
    memory = Memory(tmp_path / "learned", BUNDLE)
    one = learner(clock)
    one.observe(escalation(samples(20, 80)), threshold=0.6)
    memory.keep_statistics(one.keep())
    assert one.keep() is None
    stranger = Statistics.empty(backbone=Digest.of(b"other"), window=1, classes=C, features=D)
    (tmp_path / "learned" / "x.stats").write_bytes(stranger.to_bytes())
    (tmp_path / "learned" / "y.stats").write_bytes(b"torn")
    again = learner(clock)
    again.recall(memory.statistics())
    assert again._sums.total().n == 20
    again.observe(escalation(samples(8, 81)), threshold=0.6)
    memory.keep_statistics(again.keep())
    assert len(list((tmp_path / "learned").glob("*.stats"))) == 1


def test_features_of_another_domain_raise_the_alarm() -> None:
    """Leverage notices without any label; its mean is reported and then begins anew."""
    one = learner()
    one.observe(escalation(samples(400, 90), right=True), threshold=0.6)
    assert one.drift == "none"
    usual = one.mean_leverage()
    assert one.mean_leverage() == 0
    one.observe(escalation(samples(60, 91, shift=6.0), right=True), threshold=0.6)
    assert one.drift == "confirmed"
    assert one.mean_leverage() > 5 * usual


def test_how_learning_stands_is_kept_over_a_restart(tmp_path: Path) -> None:
    """The contest and what was noticed go on; what belongs to another bundle, or is damaged, is passed over."""
    memory = Memory(tmp_path / "learned", BUNDLE)
    one = learner()
    singly(one, samples(20, 82))
    memory.keep_statistics(one.keep())
    memory.keep_progress(one.progress())
    again = learner()
    again.recall(memory.statistics(), memory.progress())
    assert again.progress() == one.progress()
    assert again._trial.contest.samples > 0
    singly(again, samples(60, 83))
    assert again.consider() is not None
    assert Memory(tmp_path / "learned", Digest.of(b"another")).progress() is None
    damages: list[JsonObject] = [{}, {"noticing": 3}, {"noticing": {}, "trial": {}}]
    for damage in damages:
        fresh = learner()
        fresh.recall([], damage)
        assert fresh.progress() == learner().progress()


def test_after_a_restart_no_head_is_asked_about_neighbours_of_what_it_learned(tmp_path: Path) -> None:
    """Files are sums, and heads made of them know the newest samples: as many pass by as the gap has."""
    memory = Memory(tmp_path / "learned", BUNDLE)
    one = learner()
    singly(one, samples(40, 82))
    memory.keep_statistics(one.keep())
    memory.keep_progress(one.progress())
    again = learner()
    again.recall(memory.statistics(), memory.progress())
    asked = asked_of(again)
    singly(again, samples(Lessons().gap, 83))
    assert asked_of(again) == asked
    singly(again, samples(1, 84))
    assert asked_of(again) == asked + 1


def asked_of(one: Learner) -> int:
    """Samples that the heads were asked about, those of a run that goes on among them."""
    one.progress()  # looks at what waits
    return one._trial.contest.samples + len(one._trial._run)


def test_a_contest_of_an_earlier_release_begins_anew_and_what_was_noticed_stays() -> None:
    """It bet in five parts and not in six: that is no contest now, and no reason to forget the beginning that changes are measured against."""
    one = learner()
    one.observe(escalation(samples(200, 85), right=True), threshold=0.6)
    singly(one, samples(20, 86))
    progress = one.progress()
    kept: Any = json.loads(canonical(progress))
    for contest in (kept["trial"]["contest"], kept["trial"]["audits"]):
        for score in contest["scores"]:
            score["wealth"] = score["wealth"][1:]
    again = learner()
    again.recall([], kept)
    assert again.progress() == {"noticing": progress["noticing"], "trial": learner().progress()["trial"]}


def test_what_was_forgotten_stays_forgotten_after_a_restart(tmp_path: Path) -> None:
    """The files of windows from before a change go with them."""
    memory = Memory(tmp_path / "learned", BUNDLE)
    one = learner()
    singly(one, samples(20, 84))
    memory.keep_statistics(one.keep())
    one._begin_anew(lambda _: [])
    memory.keep_statistics(one.keep())
    assert memory.statistics() == []


def test_a_device_that_rests_writes_nothing(tmp_path: Path) -> None:
    """Flash memory wears out: what has not changed is not written again."""
    memory = Memory(tmp_path, BUNDLE)
    memory.keep_progress({"a": 1})
    (tmp_path / "progress.json").unlink()
    memory.keep_progress({"a": 1})
    assert not (tmp_path / "progress.json").exists()
    memory.keep_progress({"a": 2})
    assert memory.progress() == {"a": 2}


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

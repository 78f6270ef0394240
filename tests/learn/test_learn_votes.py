"""Votes: small ballots with one spelling, an outcome without order, liars within bounds, and heads distilled from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn import votes
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from edgestill.learn.votes import ABSTAIN, Ballot, Cast, Question, cast, domain, tally

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

PROXY = Digest.of(b"shared samples")
STUDENT = Digest.of(b"a student")
N, C = 12, 4
QUESTION = Question(proxy=PROXY, samples=N, classes=C)
HEAD_BYTES = 20

labels_of = st.lists(st.integers(ABSTAIN, C - 1), min_size=N, max_size=N)
places = st.tuples(st.sampled_from("abcde"), st.integers(0, 3), labels_of)


def ballot(labels: Sequence[int], question: Question = QUESTION, student: Digest = STUDENT) -> Ballot:
    """A ballot with these votes."""
    return Ballot.of(question, student=student, labels=np.array(labels))


def casts(cases: Sequence[tuple[str, int, Sequence[int]]]) -> list[Cast]:
    """Ballots as they came in: (voter, sequence, votes)."""
    return [Cast(voter=voter, sequence=place, ballot=ballot(labels)) for voter, place, labels in cases]


def question_of(labels: Sequence[int], classes: int) -> Question:
    """The question that these votes answer."""
    return Question(proxy=PROXY, samples=len(labels), classes=classes)


# The message


@given(st.data(), st.integers(2, 300), st.integers(1, 200))
def test_a_ballot_comes_back_as_it_was(data: st.DataObject, classes: int, samples: int) -> None:
    """Any votes on any question, and the student's name."""
    labels = data.draw(st.lists(st.integers(ABSTAIN, classes - 1), min_size=samples, max_size=samples))
    question = question_of(labels, classes)
    sent = ballot(labels, question)
    read = Ballot.from_bytes(sent.to_bytes(), question)
    assert read.labels.tolist() == labels
    assert (read.question, read.student) == (question, STUDENT.hex[:16])
    assert read.votes == sum(label != ABSTAIN for label in labels)


@given(labels_of, labels_of)
def test_different_votes_have_different_messages(one: list[int], other: list[int]) -> None:
    """And equal ones the same."""
    assert (ballot(one).to_bytes() == ballot(other).to_bytes()) == (one == other)


def test_the_message_by_hand() -> None:
    """Votes 0 and 1 of two classes: place 1 of 3 for the first, then place 4 of 5, of which abstaining has 0, class 0 has 1 to 3."""
    question = question_of([0, 1], 2)
    body = ballot([0, 1], question).to_bytes()[HEAD_BYTES:]
    assert int.from_bytes(body, "little") == 4 * 3 + 1
    assert ballot([0, 1], question).to_bytes()[:4] == b"ESV1"


@pytest.mark.parametrize(
    ("known", "bytes_at_most"), [(10, 150), (5, 110), (2, 60)], ids=["even", "half", "skewed"]
)
def test_three_hundred_votes_are_small(known: int, bytes_at_most: int) -> None:
    """Of ten classes: bits for the classes that a device knows, and few for what it abstains from; four bits each would be 150 bytes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 300)
    labels = np.where(truth < known, truth, ABSTAIN)
    assert len(ballot(labels.tolist(), question_of(labels.tolist(), 10)).to_bytes()) <= bytes_at_most


@given(st.integers(0, 1000), st.floats(0.05, 1))
def test_votes_cost_their_entropy_and_some_bytes_to_learn_it(seed: int, rate: float) -> None:
    """The bound of Krichevsky and Trofimov: half a logarithm of N for each free frequency, and a bit each."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(400) < rate, rng.integers(0, 6, 400), ABSTAIN)
    shares = np.bincount(labels + 1, minlength=7) / 400
    entropy = 400 * -sum(share * math.log2(share) for share in shares if share)
    question = question_of(labels.tolist(), 6)
    bits = 8 * (len(ballot(labels.tolist(), question).to_bytes()) - HEAD_BYTES)
    assert bits <= entropy + 6 * (math.log2(400) / 2 + 1) + 8


def test_nothing_but_abstaining_is_next_to_nothing() -> None:
    """A device that knows none of 10,000 samples sends its head."""
    question = question_of([ABSTAIN] * 10_000, 10)
    assert len(ballot([ABSTAIN] * 10_000, question).to_bytes()) == HEAD_BYTES


def test_attack_a_ballot_on_another_question_is_refused() -> None:
    """Another set, another number of samples or of classes."""
    sent = ballot([0] * N).to_bytes()
    for other in (
        Question(proxy=Digest.of(b"others"), samples=N, classes=C),
        Question(proxy=PROXY, samples=N + 1, classes=C),
        Question(proxy=PROXY, samples=N, classes=C + 1),
    ):
        with pytest.raises(EvidenceError, match=f"votes on another question.*expected {other.name.hex()}"):
            Ballot.from_bytes(sent, other)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda sent: sent[:10], "not a ballot"),
        (lambda sent: b"ESV2" + sent[4:], "not a ballot.*got b'ESV2'"),
        (lambda sent: sent + b"\0", "votes are spelled in another way"),
        (lambda sent: sent + b"\1", "more bytes than votes"),
        (lambda sent: sent + b"\1" * 100, "votes are spelled in another way.*expected at most 8 bytes"),
        (lambda _: b"", "not a ballot"),
    ],
)
def test_attack_damaged_ballots_are_refused(damage: Callable[[bytes], bytes], says: str) -> None:
    """Cut off, of another version, spelled in another way, or longer than votes can be."""
    with pytest.raises(MessageError, match=says):
        Ballot.from_bytes(damage(ballot([1, 2, 3] * 4).to_bytes()), QUESTION)


@given(st.binary(max_size=40), st.booleans())
def test_attack_any_bytes_are_refused_or_read_as_the_one_message_that_spells_them(
    data: bytes, framed: bool
) -> None:
    """Whatever comes: an error of ours, or votes within bounds that are written in the very same bytes."""
    sent = b"ESV1" + QUESTION.name + data if framed else data
    try:
        read = Ballot.from_bytes(sent, QUESTION)
    except (MessageError, EvidenceError):
        return
    assert read.labels.shape == (N,)
    assert set(read.labels.tolist()) <= {ABSTAIN, *range(C)}
    assert read.to_bytes() == sent


@given(st.integers(0, 2**40))
def test_numbers_are_read_as_votes_or_refused(number: int) -> None:
    """Bodies are few enough to hit many that can be read."""
    body = number.to_bytes((number.bit_length() + 7) // 8, "little")
    sent = b"ESV1" + QUESTION.name + bytes(8) + body
    try:
        read = Ballot.from_bytes(sent, QUESTION)
    except MessageError:
        return
    assert read.to_bytes() == sent


def test_there_are_as_many_messages_as_votes() -> None:
    """Of four samples and two classes: of all numbers up to 3 x 5 x 7 x 9, exactly 3^4 can be read, each as other votes."""
    question, found = question_of([0] * 4, 2), set()
    for number in range(3 * 5 * 7 * 9):
        body = number.to_bytes((number.bit_length() + 7) // 8, "little")
        try:
            read = Ballot.from_bytes(b"ESV1" + question.name + bytes(8) + body, question)
        except MessageError:
            continue
        found.add(tuple(read.labels.tolist()))
        assert read.to_bytes()[HEAD_BYTES:] == body
    assert len(found) == 3**4


def test_what_is_no_vote_is_refused() -> None:
    """Before it is sent: other shapes, fractions, and classes that there are not."""
    for labels in (np.zeros(N - 1, int), np.zeros((N, 1), int), np.zeros(N)):
        with pytest.raises(EvidenceError, match="votes on another set"):
            Ballot.of(QUESTION, student=STUDENT, labels=labels)  # type: ignore[arg-type]  # fractions, on purpose
    for wrong in (-2, C):
        with pytest.raises(EvidenceError, match=f"a vote for no class.*expected 0 to {C - 1}, or -1"):
            ballot([wrong] + [0] * (N - 1))


@pytest.mark.parametrize(
    ("samples", "classes"),
    [(0, C), (votes.MAX_SAMPLES + 1, C), (N, 1), (N, votes.MAX_CLASSES + 1), (10_000, 4_000)],
)
def test_questions_are_bounded(samples: int, classes: int) -> None:
    """The outcome of a question is held in memory."""
    with pytest.raises(EvidenceError, match="out of range"):
        Question(proxy=PROXY, samples=samples, classes=classes)


def test_a_question_about_inputs_tells_their_type_shape_and_values() -> None:
    """The same bytes in another shape or type are another set; the order in memory is none of it."""
    inputs = np.arange(8, dtype=np.float32).reshape(4, 2)
    others = (inputs.reshape(8, 1), inputs.view(np.int32), inputs + 1, inputs[::-1])
    assert len({Question.about(one, 3).proxy for one in (inputs, *others)}) == 5
    assert Question.about(np.asfortranarray(inputs), 3) == Question.about(inputs, 3)
    assert (Question.about(inputs, 3).samples, Question.about(inputs, 3).classes) == (4, 3)
    for nothing in (inputs[:0], np.array(1.0)):
        with pytest.raises(EvidenceError, match="samples out of range"):
            Question.about(nothing, 3)


def test_votes_cannot_be_changed_after_they_are_cast() -> None:
    """Neither the sender's array nor the ballot's own."""
    labels = np.zeros(N, int)
    made = Ballot.of(QUESTION, student=STUDENT, labels=labels)
    labels[:] = 3
    assert made.labels.tolist() == [0] * N
    for one in (made, Ballot.from_bytes(made.to_bytes(), QUESTION)):
        with pytest.raises(ValueError, match="read-only"):
            one.labels[0] = 1


# Abstaining


def two_domains() -> tuple[Leverage, NDArray[np.float64], NDArray[np.float64]]:
    """A device's domain, samples of it, and samples from elsewhere."""
    rng = np.random.default_rng(0)
    home = rng.normal(size=(300, 6)) @ np.diag([1, 1, 1, 0.05, 0.05, 0.05])
    sums = Statistics.empty(backbone=STUDENT, window=0, classes=C, features=6)
    sums = sums.add(home, np.full((300, C), 1 / C))
    away = rng.normal(size=(100, 6)) @ np.diag([0.05, 0.05, 0.05, 1, 1, 1])
    return Leverage.fit(sums, 1e-2), home, away


def test_a_device_votes_at_home_and_abstains_away() -> None:
    """By leverage alone: the scores are as sure in both places."""
    known, home, away = two_domains()
    scores = np.tile([0.0, 9.0, 0.0, 0.0], (len(home), 1))
    at_home, abroad = cast(scores, home, known, limit=3.0), cast(scores[:100], away, known, limit=3.0)
    assert (at_home == 1).mean() > 0.95
    assert (abroad == ABSTAIN).mean() > 0.95


def test_new_samples_of_a_small_device_are_at_home() -> None:
    """With fewer samples than features each new one would be a stranger, were it not for the ridge of `domain`."""
    rng = np.random.default_rng(0)
    sums = Statistics.empty(backbone=STUDENT, window=0, classes=C, features=64)
    mix = rng.normal(size=(8, 64))
    seen, new = (rng.normal(size=(n, 8)) @ mix + 0.1 * rng.normal(size=(n, 64)) for n in (40, 200))
    sums, scores = sums.add(seen, np.full((40, C), 1 / C)), np.ones((200, C))
    votes_of = [cast(scores, new, known) for known in (domain(sums), Leverage.fit(sums, 1e-3))]
    assert [(one != ABSTAIN).mean() > 0.8 for one in votes_of] == [True, False]
    with pytest.raises(EvidenceError, match="too few samples"):
        domain(Statistics.empty(backbone=STUDENT, window=0, classes=C, features=64))


def test_abstaining_by_hand() -> None:
    """Features 1 and -1 with ridge 1: leverage (x^2 + 1) / 3, typically 2/3; a limit of 2 is passed above the root of 3."""
    sums = Statistics.empty(backbone=STUDENT, window=0, classes=2, features=1)
    known = Leverage.fit(sums.add(np.array([[1.0], [-1.0]]), np.eye(2)), 1.0)
    features = np.array([[0.0], [1.7], [1.8]])
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert cast(scores, features, known, limit=2.0).tolist() == [0, 1, ABSTAIN]
    assert cast(scores, features, known, limit=np.inf).tolist() == [0, 1, 1]
    assert cast(scores, features, known).tolist() == cast(scores, features, known, limit=votes.LIMIT).tolist()


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_higher_limit_never_abstains_more(one: float, other: float) -> None:
    """And whoever votes under both votes the same."""
    known, home, away = two_domains()
    features = np.concatenate([home[:20], away[:20]])
    scores = np.random.default_rng(1).normal(size=(40, C))
    lower, higher = (cast(scores, features, known, limit=each) for each in sorted((one, other)))
    assert ((lower == ABSTAIN) | (lower == higher)).all()


def test_scores_that_are_not_finite_abstain() -> None:
    """A student that broke down says nothing."""
    known, home, _ = two_domains()
    scores = np.array([[np.nan, 1, 0, 0], [np.inf, 1, 0, 0], [0, 1, 0, 0]])
    assert cast(scores, home[:3] * 0, known).tolist() == [ABSTAIN, ABSTAIN, 1]


def test_what_cannot_be_cast_is_refused() -> None:
    """No limit, or scores of other samples than the features."""
    known, home, _ = two_domains()
    with pytest.raises(EvidenceError, match="a limit is out of range"):
        cast(np.zeros((300, C)), home, known, limit=0)
    for scores in (np.zeros((299, C)), np.zeros(300)):
        with pytest.raises(EvidenceError, match="scores and features of different samples"):
            cast(scores, home, known)


# The outcome


def test_the_outcome_by_hand() -> None:
    """Two voters and a teacher of weight 2 on three samples: agreement, abstention, and what only the teacher knows."""
    question = Question(proxy=PROXY, samples=3, classes=2)
    cast_ = [
        Cast(voter=voter, sequence=1, ballot=ballot(labels, question, student))
        for voter, labels, student in (("a", [0, 1, -1], STUDENT), ("b", [0, -1, -1], PROXY))
    ]
    teacher = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    outcome = tally(question, cast_, teacher=teacher, teacher_weight=2.0)
    np.testing.assert_allclose(outcome.soft, [[3 / 4, 1 / 4], [2 / 3, 1 / 3], [1 / 4, 3 / 4]])
    assert outcome.voted.tolist() == [2, 1, 0]
    assert outcome.weight.tolist() == [4, 3, 2]
    assert (outcome.voters, outcome.students) == (2, 2)


def test_nobody_knows() -> None:
    """Without teacher and voters each class is as likely, and nothing is put in."""
    outcome = tally(QUESTION, [])
    assert (outcome.soft == 1 / C).all()
    assert not outcome.weight.any()
    assert (outcome.voters, outcome.students) == (0, 0)


@given(st.lists(places, max_size=12), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(
    cases: list[tuple[str, int, list[int]]], rng: random.Random
) -> None:
    """To the last bit, whatever the weights; also where a voter claims one place twice."""
    came = casts(cases)
    again = came + [one for one in came if rng.random() < 0.5]
    rng.shuffle(again)
    weights = {"a": 0.1, "b": 0.7, "c": 1 / 3}
    one, other = tally(QUESTION, came, weights=weights), tally(QUESTION, again, weights=weights)
    assert np.array_equal(one.soft, other.soft)
    assert np.array_equal(one.voted, other.voted)
    assert one.voters == other.voters == len({voter for voter, _, _ in cases})


def test_the_newest_ballot_of_a_voter_counts() -> None:
    """However late the older one comes."""
    outcome = tally(QUESTION, casts([("a", 2, [1] * N), ("a", 1, [0] * N)]))
    assert (outcome.soft.argmax(axis=1) == 1).all()
    assert (outcome.voted == 1).all()


@given(
    st.lists(labels_of, max_size=6),
    labels_of,
    st.just(0.0) | st.floats(1e-6, 1),
    st.just(0.0) | st.floats(1e-6, 5),
)
def test_attack_a_liar_moves_a_label_by_no_more_than_its_weight(
    honest: list[list[int]], lie: list[int], weight: float, teacher_weight: float
) -> None:
    """At most w / (W + w) in total variation, whatever it says; and what leads by more than w stays first."""
    came = casts([(f"honest {index}", 0, one) for index, one in enumerate(honest)])
    teacher = np.random.default_rng(0).dirichlet(np.ones(C), N)
    said = {"teacher": teacher, "teacher_weight": teacher_weight, "weights": {"liar": weight}}
    before = tally(QUESTION, came, **said)  # type: ignore[arg-type]  # as named
    after = tally(QUESTION, [*came, *casts([("liar", 99, lie)])], **said)  # type: ignore[arg-type]  # as named
    moved = np.abs(after.soft - before.soft).sum(axis=1) / 2
    spoken_for = before.weight > 0
    bound = weight / (before.weight + weight + 1e-300)
    assert (moved[spoken_for] <= bound[spoken_for] + 1e-12).all()
    mass = np.sort(before.soft * before.weight[:, None], axis=1)
    clear = mass[:, -1] - mass[:, -2] > weight + 1e-9
    assert (after.soft.argmax(axis=1) == before.soft.argmax(axis=1))[clear].all()


def test_attack_who_is_not_heard_makes_no_quorum() -> None:
    """A voter of weight 0 neither moves a label nor counts as one who named a class."""
    came = casts([("a", 0, [1] * N), ("liar", 0, [3] * N)])
    outcome = tally(QUESTION, came, weights={"liar": 0.0})
    assert (outcome.soft[:, 1] == 1).all()
    assert (outcome.voted == 1).all()
    assert (outcome.voters, outcome.students) == (1, 1)


def test_attack_a_flood_of_ballots_is_one_voice() -> None:
    """A thousand ballots of one voter weigh what one does."""
    flood = casts([("liar", place, [3] * N) for place in range(1000)])
    honest = casts([("a", 0, [0] * N), ("b", 0, [0] * N)])
    outcome = tally(QUESTION, flood + honest)
    np.testing.assert_allclose(outcome.soft[:, 3], 1 / 3)


def test_ballots_on_different_questions_do_not_add() -> None:
    """What was voted on is one set."""
    other = Question(proxy=STUDENT, samples=N, classes=C)
    with pytest.raises(EvidenceError, match="votes on another question"):
        tally(QUESTION, [Cast(voter="a", sequence=0, ballot=ballot([0] * N, other))])


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_no_voter_weighs_more_than_one(weight: float) -> None:
    """Nor less than nothing."""
    with pytest.raises(EvidenceError, match="a voter's weight is out of range"):
        tally(QUESTION, casts([("a", 0, [0] * N)]), weights={"a": weight})


@pytest.mark.parametrize(
    ("teacher", "weight"),
    [
        (np.full((N, C), 0.5), 1.0),
        (np.full((N - 1, C), 1 / C), 1.0),
        (np.full((N, C), math.nan), 1.0),
        (np.tile([1.5, -0.5, 0.0, 0.0], (N, 1)), 1.0),
        (np.full((N, C), 1 / C), -1.0),
        (np.full((N, C), 1 / C), math.inf),
    ],
)
def test_a_teacher_that_says_no_probabilities_is_refused(teacher: NDArray[np.float64], weight: float) -> None:
    """Logits, other samples, NaN, less than nothing, or a weight that drowns everybody."""
    with pytest.raises(EvidenceError, match=r"no probabilities of the proxy set|the teacher's weight"):
        tally(QUESTION, [], teacher=teacher, teacher_weight=weight)


# Distilling from it


def fleet_of_experts(
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Centres of six classes `[6, 8]`, a proxy set and its truth."""
    centres = 3 * rng.normal(size=(6, 8))
    truth = rng.integers(0, 6, 240)
    return centres, centres[truth] + rng.normal(size=(240, 8)), truth


def voted_on(
    proxy: NDArray[np.float64], centres: NDArray[np.float64], limit: float, rng: np.random.Generator
) -> votes.Outcome:
    """Six devices of two classes each, whose features are of four different kinds, vote on it."""
    question = Question(proxy=PROXY, samples=len(proxy), classes=6)
    came = []
    for device in range(6):
        turn = np.linalg.qr(np.random.default_rng(device % 4).normal(size=(8, 8)))[0]
        mine = rng.choice([device, (device + 1) % 6], 200)
        seen = (centres[mine] + rng.normal(size=(200, 8))) @ turn
        student = Digest.of(b"%d" % (device % 4))
        sums = Statistics.empty(backbone=student, window=0, classes=6, features=8).add(seen, np.eye(6)[mine])
        head, known = solve(sums, ridge=usual_ridge(sums)), domain(sums)
        labels = cast(proxy @ turn @ head.weight + head.bias, proxy @ turn, known, limit=limit)
        sent = Ballot.of(question, student=student, labels=labels).to_bytes()
        came.append(Cast(voter=f"{device}", sequence=0, ballot=Ballot.from_bytes(sent, question)))
    return tally(question, came)


def test_a_hub_distils_from_votes_of_students_of_different_kinds() -> None:
    """Each knows two of six classes; the head that learned from the outcome knows all, and abstaining is what makes it so."""
    rng = np.random.default_rng(0)
    centres, proxy, truth = fleet_of_experts(rng)
    right = {}
    for limit in (votes.LIMIT, math.inf):
        outcome = voted_on(proxy, centres, limit, rng)
        assert outcome.students == 4
        empty = Statistics.empty(backbone=Digest.of(b"hub"), window=0, classes=6, features=8)
        learned = outcome.learned_by(empty, proxy)
        head = solve(learned, ridge=usual_ridge(learned))
        right[limit] = float(((proxy @ head.weight + head.bias).argmax(axis=1) == truth).mean())
    assert right[votes.LIMIT] > 0.9
    assert right[votes.LIMIT] > right[math.inf] + 0.1


def test_only_what_enough_voters_know_is_learned_from() -> None:
    """A sample with one vote is left out where two are asked for; the teacher's word alone counts at 0."""
    outcome = tally(
        QUESTION,
        casts([("a", 0, [1] * N), ("b", 0, [1] * 5 + [ABSTAIN] * (N - 5))]),
        teacher=np.full((N, C), 1 / C),
    )
    features = np.random.default_rng(0).normal(size=(N, 3))
    empty = Statistics.empty(backbone=STUDENT, window=0, classes=C, features=3)
    counts = [outcome.learned_by(empty, features, at_least=least).n for least in (0, 1, 2, 3)]
    assert counts == [N, N, 5, 0]
    assert tally(QUESTION, []).learned_by(empty, features, at_least=0).n == 0
    assert outcome.learned_by(empty, features, weight=0.5).weight == N / 2


def test_features_of_another_set_are_refused() -> None:
    """The outcome belongs to the proxy set, sample by sample."""
    empty = Statistics.empty(backbone=STUDENT, window=0, classes=C, features=3)
    with pytest.raises(EvidenceError, match="features of another set"):
        tally(QUESTION, []).learned_by(empty, np.zeros((N + 1, 3)))


@given(cases=st.lists(places, max_size=6), seed=st.integers(0, 99), weight=st.floats(0, 5))
def test_a_teacher_who_is_heard_later_says_the_same(
    cases: list[tuple[str, int, list[int]]], seed: int, weight: float
) -> None:
    """As if it had been there when the votes were put together: the sum has no order."""
    said = np.random.default_rng(seed).dirichlet(np.ones(C), N)
    later = tally(QUESTION, casts(cases)).with_teacher(said, weight)
    at_once = tally(QUESTION, casts(cases), teacher=said, teacher_weight=weight)
    assert np.allclose(later.soft, at_once.soft)
    assert np.allclose(later.weight, at_once.weight)
    assert (later.voters, later.voted.tolist()) == (at_once.voters, at_once.voted.tolist())


def test_a_teacher_who_says_nothing_of_sense_is_not_heard_later() -> None:
    """Probabilities that are none, or a weight below nothing."""
    found = tally(QUESTION, [])
    with pytest.raises(EvidenceError, match="no probabilities"):
        found.with_teacher(np.ones((N, C)))
    with pytest.raises(EvidenceError, match="weight is out of range"):
        found.with_teacher(np.full((N, C), 1 / C), -1.0)


@given(cases=st.lists(places, max_size=8), cut=st.integers(0, 8))
def test_votes_may_be_put_together_in_parts(cases: list[tuple[str, int, list[int]]], cut: int) -> None:
    """Each voter in one of them: as if they had been put together at once."""
    newest = {voter: (voter, 0, labels) for voter, _, labels in cases}
    some = list(newest.values())
    parts = tally(QUESTION, casts(some[:cut])), tally(QUESTION, casts(some[cut:]))
    found = parts[0].with_others(parts[1], students=min(len(some), 1))
    at_once = tally(QUESTION, casts(some))
    assert np.allclose(found.soft, at_once.soft)
    assert np.allclose(found.weight, at_once.weight)
    assert found.voted.tolist() == at_once.voted.tolist()
    assert (found.voters, found.students) == (at_once.voters, at_once.students)


def test_outcomes_of_two_questions_are_not_put_together() -> None:
    """Their samples are others."""
    other = tally(question_of([0, 1], C), [])
    with pytest.raises(EvidenceError, match="another question"):
        tally(QUESTION, []).with_others(other, students=0)


def test_no_ballot_is_longer_than_a_hub_takes() -> None:
    """Of the largest questions, with votes that surprise as much as they can."""
    for samples, classes in ((10_000, 838), (2_048, 4_096)):
        asked = question_of([0] * samples, classes)
        assert len(ballot([at % classes for at in range(samples)], asked).to_bytes()) < votes.MAX_BYTES

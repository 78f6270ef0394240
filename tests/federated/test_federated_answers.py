"""What clients say about shared inputs: the message, its bounds, and what all say together."""

from __future__ import annotations

import struct
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, EvidenceError, MessageError, SettingError
from edgestill.core.jsonio import canonical
from edgestill.federated.answers import Answers, agreed
from edgestill.learn.votes import ABSTAIN, MAX_CELLS, MAX_CLASSES, Ballot, Cast, Question, tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

INPUTS = np.arange(8, dtype=np.float32).reshape(4, 2)
ABOUT = Question.about(INPUTS, 3)
SAID = np.array([[0.5, 0.25, 0.25], [0, 0, 0], [0, 1, 0], [0.125, 0.125, 0.75]])


def said(*rows: list[float]) -> Answers:
    """Answers about the four inputs."""
    return Answers(ABOUT, np.array(rows))


@some.composite
def answers(draw: some.DrawFn, inputs: int = 4, classes: int = 3) -> Answers:
    """Distributions, and silences."""
    counts = draw(
        some.lists(
            some.lists(some.integers(0, 50), min_size=classes, max_size=classes),
            min_size=inputs,
            max_size=inputs,
        )
    )
    raw = np.array(counts, dtype=np.float64)
    return Answers(ABOUT, raw / np.maximum(raw.sum(axis=1, keepdims=True), 1))


def message(**changes: Any) -> bytes:
    """A message with other fields in its head, or other values behind it."""
    values: NDArray[np.number] = changes.pop("values", SAID.astype("<f2"))
    head: JsonObject = {"proxy": str(ABOUT.proxy), "inputs": 4, "classes": 3, **changes}
    text = canonical(head)
    return b"ESTANSW1" + struct.pack("<I", len(text)) + text + values.tobytes()


@given(answers())
def test_a_soft_message_comes_back_as_halves(one: Answers) -> None:
    """What is read is what was said, rounded to halves, and silence stays silence."""
    back = Answers.from_bytes(one.to_bytes(), about=ABOUT)
    assert np.array_equal(back.targets, one.targets.astype(np.float16).astype(np.float64))
    assert np.array_equal(back.known, one.known)


def test_a_message_has_two_bytes_a_class() -> None:
    """Besides its head of some hundred bytes, a message is halves."""
    size = len(said(*SAID.tolist()).to_bytes())
    assert size == len(message())
    assert size - SAID.size * 2 < 200


def cast(*labels: list[int]) -> list[Cast]:
    """Ballots of as many voters about the four inputs."""
    student = Digest.of(b"student")
    return [
        Cast(voter=str(number), sequence=1, ballot=Ballot.of(ABOUT, student=student, labels=np.array(one)))
        for number, one in enumerate(labels)
    ]


def test_what_ballots_come_to_are_shares_or_nothing() -> None:
    """Votes become shares; where fewer vote than the quorum, nobody included, nothing is said: not even shares."""
    came = tally(ABOUT, cast([0, 1, ABSTAIN, 2], [1, 1, ABSTAIN, ABSTAIN]))
    assert Answers.elected(came).targets.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert Answers.elected(came, quorum=2).known.tolist() == [True, True, False, False]
    with pytest.raises(SettingError, match="quorum"):
        Answers.elected(came, quorum=0)


def test_the_mean_is_over_those_who_say_something() -> None:
    """Two voices about the first input, one about the second, none about the third."""
    one = said([1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1])
    other = said([0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1])
    together = agreed([one, other])
    assert together.targets.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert together.known.tolist() == [True, True, False, True]


def test_a_quorum_silences_what_too_few_say() -> None:
    """With a quorum of two, an input about which one client speaks teaches nothing."""
    one = said([1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1])
    other = said([1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1])
    assert agreed([one, other], quorum=2).known.tolist() == [True, False, False, True]


@given(some.lists(answers(), min_size=1, max_size=4))
def test_what_is_agreed_does_not_depend_on_the_order(found: list[Answers]) -> None:
    """The same messages give the same bits in every order."""
    read = [Answers.from_bytes(one.to_bytes(), about=ABOUT) for one in found]
    agreements = {agreed(order).targets.tobytes() for order in permutations(read)}
    assert len(agreements) == 1


@given(some.lists(answers(), min_size=1, max_size=6), answers())
def test_attack_one_client_moves_the_mean_by_its_share_at_most(honest: list[Answers], liar: Answers) -> None:
    """Whatever one of K says, no probability moves by more than 1 / K where K - 1 others speak."""
    everywhere = [one for one in honest if one.known.all()]
    if not everywhere:
        return
    before, after = agreed(everywhere).targets, agreed([*everywhere, liar]).targets
    assert np.abs(after - before).max() <= 1 / (len(everywhere) + 1) + 1e-12


def test_the_largest_set_that_is_asked_about_can_be_answered() -> None:
    """Answers about as many numbers as may be asked for are within the bound of their own reader."""
    about = Question(proxy=ABOUT.proxy, samples=MAX_CELLS // MAX_CLASSES, classes=MAX_CLASSES)
    targets = np.zeros((about.samples, about.classes))
    targets[:, -1] = 1.0
    back = Answers.from_bytes(Answers(about, targets).to_bytes(), about=about)
    assert np.array_equal(back.targets, targets)


def test_answers_about_another_set_are_refused() -> None:
    """Another set of inputs, another number of them or of classes: refused with both named."""
    other = Question.about(INPUTS + 1, 3)
    with pytest.raises(EvidenceError, match="answers about another set") as caught:
        Answers.from_bytes(message(), about=other)
    assert str(other.proxy) in str(caught.value)
    for change in ({"inputs": 5}, {"classes": 4}):
        with pytest.raises(EvidenceError, match="about another set"):
            Answers.from_bytes(message(**change), about=ABOUT)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 3), np.nan),
        np.full((4, 3), np.inf),
        np.full((4, 3), 1.0),
        np.array([[2.0, -1.0, 0.0]] * 4),
        np.full((4, 3), 1e-3),
    ],
)
def test_attack_answers_that_are_no_distributions_are_refused(values: NDArray[np.float64]) -> None:
    """NaN, infinity, sums other than 1 and negative shares do not come in."""
    with pytest.raises(EvidenceError, match="no distributions"):
        Answers.from_bytes(message(values=values.astype("<f2")), about=ABOUT)


@pytest.mark.parametrize("data", [b"", b"ESTANSW1", message()[:-1], message() + b"\0", b"x" * 100])
def test_attack_a_broken_message_is_one_coded_error(data: bytes) -> None:
    """Cut off, too long, or of another kind: a MessageError each."""
    with pytest.raises(MessageError):
        Answers.from_bytes(data, about=ABOUT)


@given(some.binary(max_size=300), some.integers(0, 200))
def test_attack_any_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    """Noise over a good message, anywhere, gives answers that pass every check, or an error of ours."""
    data = bytearray(message())
    data[at : at + len(noise)] = noise
    try:
        back = Answers.from_bytes(bytes(data), about=ABOUT)
    except EdgestillError:
        return
    assert back.targets.shape == (4, 3)
    assert np.isfinite(back.targets).all()


def test_nothing_to_agree_on_and_settings_out_of_range_are_refused() -> None:
    """No answers, a mixture of sets, and a quorum of none."""
    with pytest.raises(EvidenceError, match="do not belong together"):
        agreed([])
    other = Answers(Question.about(INPUTS + 1, 3), SAID)
    with pytest.raises(EvidenceError, match="answers about 2"):
        agreed([Answers(ABOUT, SAID), other])
    with pytest.raises(SettingError, match="quorum"):
        agreed([other], quorum=0)

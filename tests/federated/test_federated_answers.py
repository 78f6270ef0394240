"""What clients say about shared inputs: the message, its bounds, and what all say together."""

from __future__ import annotations

import struct
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgestill.core.errors import EdgestillError, EvidenceError, MessageError, SettingError
from edgestill.core.jsonio import canonical
from edgestill.federated.answers import MAX_NUMBERS, Answers, Asked, agreed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

INPUTS = np.arange(8, dtype=np.float32).reshape(4, 2)
ABOUT = Asked.about(INPUTS, 3)
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
    head: JsonObject = {"proxy": str(ABOUT.proxy), "inputs": 4, "classes": 3, "form": "soft", **changes}
    text = canonical(head)
    return b"ESTANSW1" + struct.pack("<I", len(text)) + text + values.tobytes()


@given(answers())
def test_a_soft_message_comes_back_as_halves(one: Answers) -> None:
    """What is read is what was said, rounded to halves, and silence stays silence."""
    back = Answers.from_bytes(one.to_bytes(), about=ABOUT)
    assert np.array_equal(back.targets, one.targets.astype(np.float16).astype(np.float64))
    assert np.array_equal(back.known, one.known)


@given(answers())
def test_votes_name_the_likeliest_class_or_none(one: Answers) -> None:
    """A vote is a one at the largest probability; who abstains votes for nothing."""
    back = Answers.from_bytes(one.to_bytes("votes"), about=ABOUT)
    assert np.array_equal(back.known, one.known)
    assert np.array_equal(back.targets[one.known].argmax(axis=1), one.targets[one.known].argmax(axis=1))
    assert np.array_equal(back.targets.sum(axis=1), one.known.astype(float))


def test_a_message_has_two_bytes_a_class_or_four_an_input() -> None:
    """Besides its head of some hundred bytes, a soft message is halves and votes are whole numbers."""
    assert len(message()) == len(said(*SAID.tolist()).to_bytes())
    head = len(message()) - SAID.size * 2
    assert len(said(*SAID.tolist()).to_bytes("votes")) == head + len("votes") - len("soft") + 4 * 4


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


@given(some.lists(answers(), min_size=1, max_size=4), some.sampled_from(["soft", "votes"]))
def test_what_is_agreed_does_not_depend_on_the_order(found: list[Answers], form: Any) -> None:
    """The same messages give the same bits in every order."""
    read = [Answers.from_bytes(one.to_bytes(form), about=ABOUT) for one in found]
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
    inputs = np.zeros(8, dtype=np.uint8)
    about = Asked.about(inputs, MAX_NUMBERS // len(inputs))
    targets = np.zeros((len(inputs), about.classes))
    targets[:, -1] = 1.0
    back = Answers.from_bytes(Answers(about, targets).to_bytes(), about=about)
    assert np.array_equal(back.targets, targets)


def test_answers_about_another_set_are_refused() -> None:
    """Another set of inputs, another number of them or of classes: refused with both named."""
    other = Asked.about(INPUTS + 1, 3)
    with pytest.raises(EvidenceError, match="answers about another set") as caught:
        Answers.from_bytes(message(), about=other)
    assert str(other.proxy) in str(caught.value)
    for change in ({"inputs": 5}, {"classes": 4}):
        with pytest.raises(EvidenceError, match="about another set"):
            Answers.from_bytes(message(**change), about=ABOUT)


def test_the_name_of_a_set_tells_its_type_and_shape() -> None:
    """The same bytes in another shape or type are another set."""
    names = {
        Asked.about(one, 3).proxy
        for one in (INPUTS, INPUTS.reshape(8, 1), INPUTS.view(np.int32), np.asfortranarray(INPUTS) + 1)
    }
    assert len(names) == 4
    assert Asked.about(np.asfortranarray(INPUTS), 3) == ABOUT


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


@pytest.mark.parametrize("vote", [-2, 3, 2**31 - 1, -(2**31)])
def test_attack_a_vote_for_no_class_is_refused(vote: int) -> None:
    """A vote outside of the classes and of ABSTAIN indexes nothing."""
    values = np.array([0, -1, vote, 1], dtype="<i4")
    with pytest.raises(EvidenceError, match="a vote for no class"):
        Answers.from_bytes(message(form="votes", values=values), about=ABOUT)


def test_attack_a_head_that_promises_much_makes_nothing_large() -> None:
    """Few votes for very many classes would become a large array; what was asked bounds it first."""
    votes = np.zeros(4, dtype="<i4")
    with pytest.raises(EvidenceError, match="about another set"):
        Answers.from_bytes(message(form="votes", classes=MAX_NUMBERS, values=votes), about=ABOUT)


@pytest.mark.parametrize(
    "data", [b"", b"ESTANSW1", message()[:-1], message() + b"\0", message(form="loud"), b"x" * 100]
)
def test_attack_a_broken_message_is_one_coded_error(data: bytes) -> None:
    """Cut off, too long, of another form or another kind: a MessageError each."""
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
    """No answers, a mixture of sets, a quorum of none, and a set of no or too many inputs."""
    with pytest.raises(EvidenceError, match="do not belong together"):
        agreed([])
    other = Answers(Asked.about(INPUTS + 1, 3), SAID)
    with pytest.raises(EvidenceError, match="answers about 2"):
        agreed([Answers(ABOUT, SAID), other])
    with pytest.raises(SettingError, match="quorum"):
        agreed([other], quorum=0)
    for inputs, classes in ((INPUTS[:0], 3), (INPUTS, MAX_NUMBERS)):
        with pytest.raises(SettingError, match="of that size"):
            Asked.about(inputs, classes)

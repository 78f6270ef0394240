"""Noticing a change: quiet on a device's ordinary days, sure soon after a real change, kept over restarts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.device.noticing import STREAMS, Noticing


def ordinary(
    noticing: Noticing, n: int, seed: int, *, leverage: float = 0.02, doubt: float = 0.2
) -> int | None:
    """N independent inputs; what `see` said of them."""
    rng = np.random.default_rng(seed)
    levers = leverage * np.exp(rng.normal(0, 0.5, n))
    sure = np.clip(1 - rng.normal(doubt, 0.05, n), 0, 1)
    return noticing.see(levers.tolist(), sure.tolist())


def heard(noticing: Noticing, n: int, seed: int, *, agreement: float, sure: float = 0.8) -> int | None:
    """N inputs the teacher was heard about."""
    wrong = np.random.default_rng(seed).random(n) >= agreement
    return noticing.hear(contradicted=wrong.tolist(), probability=[sure] * n)


def test_ordinary_days_are_quiet() -> None:
    """30 devices, 4,000 inputs each, a fifth of them heard: at most one is ever sure of a change."""
    alarms = 0
    for seed in range(30):
        noticing = Noticing()
        ordinary(noticing, 4_000, seed)
        heard(noticing, 800, seed, agreement=0.8)
        alarms += noticing.verdict == "confirmed"
    assert alarms <= 1


def test_another_person_is_no_change() -> None:
    """The reference is the device's own beginning, however far from the lab's people it lies."""
    noticing = Noticing()
    assert ordinary(noticing, 2_000, 1, leverage=5.0, doubt=0.6) is None
    assert noticing.verdict == "none"


@pytest.mark.parametrize(
    ("leverage", "doubt"), [(0.08, 0.2), (0.02, 0.5)], ids=["other features", "less confidence"]
)
def test_a_change_is_noticed_without_labels(leverage: float, doubt: float) -> None:
    """And its beginning is told to within some blocks."""
    noticing = Noticing()
    assert ordinary(noticing, 400, 2) is None
    ago = ordinary(noticing, 160, 3, leverage=leverage, doubt=doubt)
    assert ago is not None
    assert 128 <= ago <= 192
    assert noticing.verdict == "confirmed"


def test_a_teacher_that_contradicts_more_than_the_student_doubts_is_a_change() -> None:
    """Even where features and confidence look as always."""
    noticing = Noticing()
    ordinary(noticing, 400, 4)
    assert heard(noticing, 100, 5, agreement=0.8) is None
    ago = heard(noticing, 80, 6, agreement=0.1)
    assert ago is not None
    assert 72 <= ago <= 104


def test_asking_about_harder_inputs_is_no_change() -> None:
    """The policy moves its threshold and the asked inputs grow harder: the student doubts them as much."""
    noticing = Noticing()
    assert heard(noticing, 200, 7, agreement=0.9, sure=0.9) is None
    assert heard(noticing, 200, 8, agreement=0.5, sure=0.5) is None


def test_the_news_is_told_once_and_the_verdict_stays() -> None:
    """Until another bundle serves."""
    noticing = Noticing()
    ordinary(noticing, 400, 9)
    assert ordinary(noticing, 200, 10, leverage=1.0) is not None
    assert ordinary(noticing, 200, 11, leverage=1.0) is None
    ordinary(noticing, 1_000, 12)
    noticing.begin_anew_with_another_head()
    assert noticing.verdict == "confirmed"


def test_another_head_is_another_beginning() -> None:
    """Its confidence has another level; that alone is no change."""
    noticing = Noticing()
    ordinary(noticing, 400, 13)
    noticing.begin_anew_with_another_head()
    ordinary(noticing, 400, 14, doubt=0.6)
    assert noticing.verdict == "none"


@given(st.lists(st.integers(1, 40), max_size=12))
def test_a_restart_changes_nothing(sizes: list[int]) -> None:
    """Kept as JSON and recalled, it says of what follows the same."""
    one = Noticing()
    for seed, n in enumerate(sizes):
        ordinary(one, n, seed)
        heard(one, n // 2, seed, agreement=0.7)
    other = Noticing()
    other.recall(Fields(parse_object(canonical(one.as_json()), where="t"), "t"))
    assert ordinary(one, 100, 99, leverage=0.5) == ordinary(other, 100, 99, leverage=0.5)
    assert one.as_json() == other.as_json()


@pytest.mark.parametrize(
    "change",
    [{"leverage": 1}, {"doubt": {}}, {"sure": "yes"}],
    ids=["no state", "an empty state", "no verdict"],
)
def test_attack_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    """And nothing of it is taken up."""
    noticing = Noticing()
    before = noticing.as_json()
    with pytest.raises(MessageError):
        noticing.recall(Fields(before | change, "noticing"))  # type: ignore[arg-type]  # the attack
    assert noticing.as_json() == before


def test_attack_counts_that_do_not_add_up_are_refused() -> None:
    """A state of so many values has so many blocks."""
    noticing = Noticing()
    state = noticing.as_json()
    for name in STREAMS:
        wrong = state | {name: Fields(state, "t").inner(name).unknown(()) | {"blocks": 7}}
        with pytest.raises(MessageError, match="do not add up"):
            noticing.recall(Fields(wrong, "noticing"))

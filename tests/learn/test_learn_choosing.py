"""Trained weights serve only where samples that were kept back say so, by stretches of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import EvidenceError
from edgestill.infer.calibration import fit_temperature
from edgestill.learn.choosing import BETAS, LEVEL, Held, Verdict, judged, level_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = 3


def held(stretches: int, each: int = 6, *, seed: int = 0) -> Held:
    """Labels of so many stretches."""
    labels = np.random.default_rng(seed).integers(0, CLASSES, stretches * each)
    return Held(
        np.eye(CLASSES)[labels], np.repeat(np.arange(stretches) + 3_000_000, each), np.ones(stretches * each)
    )


def fitted(logits: NDArray[np.floating], targets: NDArray[np.floating], units: int) -> float:
    """As a device fits a temperature."""
    return fit_temperature(logits, targets, units=units)


def judging(one: Held) -> int:
    """Stretches that judge."""
    return len(np.unique(one.stretches[~one.for_choice]))


def moved(one: Held, by: int) -> Held:
    """The same, later."""
    return Held(one.targets, one.stretches + by, one.weights)


def answers(one: Held, right: float, *, seed: int = 1) -> NDArray[np.float64]:
    """Logits that name the class of a share of the samples, and another class of the rest."""
    random = np.random.default_rng(seed)
    labels = one.targets.argmax(1)
    named = np.where(random.random(len(labels)) < right, labels, (labels + 1) % CLASSES)
    logits: NDArray[np.float64] = 2.0 * np.eye(CLASSES)[named]
    return logits


def shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities."""
    grown = np.exp(logits)
    found: NDArray[np.float64] = grown / grown.sum(1, keepdims=True)
    return found


def test_what_is_better_on_every_stretch_may_serve() -> None:
    """With the share that made the likeliest answers, and a temperature for them."""
    one = held(20)
    found = judged(
        one,
        shares(answers(one, 0.3)),
        {1.0: answers(one, 0.9), 0.3: answers(one, 0.6, seed=2)},
        temperature=fitted,
    )
    assert found.beta == 1.0
    assert found.may_serve
    assert found.won == judging(one) > 5
    assert found.lost == 0
    assert found.right_after > found.right_before + 0.3
    assert found.loss_after < found.loss_before
    assert found.n == 6 * judging(one)
    assert 0.1 <= found.temperature <= 10


def test_what_is_no_better_may_not_serve() -> None:
    """Nothing is chosen where what serves now is likelier than all candidates."""
    one = held(20)
    found = judged(one, shares(answers(one, 0.9)), {1.0: answers(one, 0.3)}, temperature=fitted)
    assert found == Verdict(beta=0.0, temperature=1.0)
    assert not found.may_serve


def test_few_stretches_prove_nothing_however_many_samples_they_have() -> None:
    """Four won stretches of four come by chance once in sixteen times."""
    one = next(made for n in range(5, 20) if judging(made := held(n, each=500)) == 4)
    found = judged(one, shares(answers(one, 0.1)), {1.0: answers(one, 0.95)}, temperature=fitted)
    assert (found.won, found.lost) == (4, 0)
    assert found.chance == pytest.approx(1 / 16)
    assert not found.may_serve


def test_what_chose_does_not_judge() -> None:
    """A candidate that knows one half of the stretches by heart, and nothing else, is not let through."""
    one = held(40)
    by_heart = np.where(one.for_choice[:, None], answers(one, 1.0), answers(one, 0.3))
    found = judged(one, shares(answers(one, 0.5)), {1.0: by_heart}, temperature=fitted)
    assert found.beta == 1.0
    assert not found.may_serve


def test_a_candidate_without_effect_is_let_through_no_more_often_than_the_level() -> None:
    """Over many devices whose training changed answers at random."""
    passed = 0
    for seed in range(300):
        one = held(30, seed=seed)
        before, after = (answers(one, 0.6, seed=1000 * part + seed) for part in (1, 2))
        found = judged(one, shares(before), {1.0: after}, temperature=fitted)
        passed += found.may_serve
    assert passed / 300 <= LEVEL


def test_levels_of_all_questions_together_are_the_level() -> None:
    """So that a device may ask again and again."""
    assert sum(level_of(k) for k in range(1, 10_000)) == pytest.approx(LEVEL, rel=1e-3)
    assert level_of(1) == LEVEL / 2


@given(won=st.integers(0, 60), lost=st.integers(0, 60))
def test_the_chance_is_the_binomial_tail(won: int, lost: int) -> None:
    """1 where nothing was won, falling with each that is."""
    one = Verdict(beta=1.0, temperature=1.0, won=won, lost=lost)
    total = won + lost
    expected = sum(math.comb(total, k) for k in range(won, total + 1)) * 0.5**total
    assert one.chance == pytest.approx(expected)
    assert 0 < one.chance <= 1
    assert Verdict(beta=1.0, temperature=1.0, won=won + 1, lost=lost).chance <= one.chance


def test_a_stretch_keeps_its_part_whatever_else_is_there() -> None:
    """By its number alone: what is forgotten elsewhere does not let those judge that chose; and the parts are of a size."""
    one = held(400)
    later = one.stretches >= 3_000_100
    fewer = Held(one.targets[later], one.stretches[later], one.weights[later])
    assert np.array_equal(fewer.for_choice, one.for_choice[later])
    assert 0.4 < one.for_choice.mean() < 0.6
    assert all(len(set(one.for_choice[one.stretches == number])) == 1 for number in np.unique(one.stretches))


def test_many_small_wins_do_not_make_up_for_a_large_loss() -> None:
    """A sign test counts no sizes: a candidate that is behind over all samples is not let through, however many stretches it won."""
    one = held(60, each=30)
    numbers = np.unique(one.stretches[~one.for_choice])
    serving = answers(one, 1.0)
    first = np.array([np.flatnonzero(one.stretches == number)[0] for number in np.unique(one.stretches)])
    serving[first] = np.roll(
        serving[first], 1, axis=1
    )  # one error a stretch, which the candidate does not make
    candidate = answers(one, 1.0)
    worst = one.stretches == numbers[0]
    candidate[worst] = np.roll(candidate[worst], 1, axis=1)
    many = Held(one.targets, one.stretches, np.where(worst, 50.0, 1.0))
    found = judged(many, shares(serving), {1.0: candidate}, temperature=fitted)
    assert (found.won, found.lost) == (len(numbers) - 1, 1)
    assert found.chance < found.level
    assert not found.may_serve


def test_a_temperature_of_few_stretches_does_not_make_a_device_sure() -> None:
    """A candidate that had everything right on some stretches keeps a temperature near 1."""
    one = held(12, each=50)
    found = judged(one, shares(answers(one, 0.4)), {1.0: answers(one, 1.0)}, temperature=fitted)
    assert found.temperature > 0.3


def test_a_candidate_that_answers_nan_is_passed_over() -> None:
    """The others are still looked at."""
    one = held(20)
    broken = np.full(one.targets.shape, np.nan)
    found = judged(one, shares(answers(one, 0.3)), {1.0: broken, 0.6: answers(one, 0.9)}, temperature=fitted)
    assert found.beta == 0.6


def test_one_stretch_chooses_and_judges_nothing() -> None:
    """There is nothing left to judge by."""
    one = next(made for seed in range(9) if (made := moved(held(1), seed)).for_choice.all())
    found = judged(one, shares(answers(one, 0.1)), {1.0: answers(one, 1.0)}, temperature=fitted)
    assert found.beta == 1.0
    assert found.n == 0
    assert not found.may_serve


def test_answers_for_other_samples_are_refused() -> None:
    """Before anything is compared."""
    one = held(4)
    with pytest.raises(EvidenceError, match="answers for other samples"):
        judged(one, np.ones((3, CLASSES)), {}, temperature=fitted)
    for targets, stretches, weights in (
        (np.ones(4), np.arange(4), np.ones(4)),
        (np.ones((4, 2)), np.arange(5), np.ones(4)),
        (np.ones((4, 2)), np.arange(4), np.ones(3)),
    ):
        with pytest.raises(EvidenceError, match="no samples"):
            Held(targets, stretches, weights)


def test_the_shares_that_are_tried_include_the_whole() -> None:
    """And smaller ones, each above 0: the shipped weights serve already."""
    assert BETAS[0] == 1.0
    assert all(0 < beta <= 1 for beta in BETAS)

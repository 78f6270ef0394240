"""Learn-then-Test: exact tails, a promise kept as often as it says, and no promise from too little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError, SettingError
from edgestill.infer.policy import ALWAYS, Policy
from edgestill.infer.risk import (
    Promise,
    binomial_tails,
    choose_threshold,
    least_samples,
    threshold_for_share,
    thresholds,
)


def test_binomial_tails_by_hand() -> None:
    """Three fair coins: 1/8, 4/8, 7/8, 1."""
    np.testing.assert_allclose(binomial_tails(3, 0.5), [0.125, 0.5, 0.875, 1.0], rtol=1e-12)


@given(st.integers(0, 300), st.floats(0.001, 0.999))
def test_binomial_tails_are_the_exact_sums(n: int, p: float) -> None:
    """Against exact binomial coefficients."""
    exact = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    np.testing.assert_allclose(binomial_tails(n, p), np.minimum(exact, 1), rtol=1e-9, atol=1e-12)


def test_binomial_tails_of_many_samples_stay_exact() -> None:
    """Half of a symmetric distribution of 100,001 trials lies at or below 50,000."""
    assert binomial_tails(100_001, 0.5)[50_000] == pytest.approx(0.5, abs=1e-9)


def test_the_grid_goes_from_everything_to_nothing() -> None:
    """From `ALWAYS` down to 0, strictly falling, whatever the data."""
    grid = thresholds()
    assert (grid[0], grid[1], grid[-1]) == (ALWAYS, 1.0, 0.0)
    assert (np.diff(grid) < 0).all()


def test_the_fewest_samples_by_hand() -> None:
    """0.9^22 <= 0.1 < 0.9^21; with one sample less nothing can be promised."""
    assert least_samples(0.1, 0.1) == 22
    for n, promised in ((21, False), (22, True)):
        promise = choose_threshold(np.full(n, 0.5), np.zeros(n), epsilon=0.1, delta=0.1)
        assert promise.promised is promised


def test_too_few_samples_promise_nothing_and_say_so() -> None:
    """The sentence names n and what would be needed; everything is escalated."""
    promise = choose_threshold(np.full(10, 0.9), np.zeros(10), epsilon=0.05, delta=0.1)
    assert promise == Promise(
        threshold=ALWAYS,
        promised=False,
        epsilon=0.05,
        delta=0.1,
        n=10,
        losses=0,
        escalated=1.0,
        why="10 samples are too few: epsilon=0.05 and delta=0.1 need at least 45",
    )
    assert not choose_threshold(np.zeros(0), np.zeros(0), epsilon=0.05, delta=0.1).promised


def test_a_teacher_that_does_not_help_promises_nothing() -> None:
    """Where even escalating everything loses too often, the sentence says that."""
    fused = np.arange(200) % 5 == 0
    promise = choose_threshold(np.full(200, 0.9), fused, epsilon=0.1, delta=0.1, escalated_loss=fused)
    assert not promise.promised
    assert promise.why.startswith("even with every input escalated, 40 losses in 200 samples")


def test_the_threshold_by_hand() -> None:
    """100 sure inputs without losses, 20 unsure ones that all lose: the unsure ones must be escalated.

    With epsilon 0.1 and delta 0.1, P(Bin(120, 0.1) <= 7) is at most 0.1 and P(Bin(120, 0.1) <= 8) is not. So at most
    7 of the unsure ones may be answered alone.
    """
    tails = binomial_tails(120, 0.1)
    assert tails[7] <= 0.1 < tails[8]
    sure = np.concatenate([np.full(100, 0.95), np.linspace(0.3, 0.49, 20)])
    loss = np.concatenate([np.zeros(100), np.ones(20)])
    promise = choose_threshold(sure, loss, epsilon=0.1, delta=0.1)
    assert promise.promised
    assert 0.42 < promise.threshold <= 0.43
    assert promise.losses == 7
    assert promise.escalated == pytest.approx(13 / 120)


def test_without_losses_nothing_need_be_escalated() -> None:
    """A student that never loses answers alone."""
    promise = choose_threshold(np.linspace(0, 1, 500), np.zeros(500), epsilon=0.05, delta=0.05)
    assert (promise.promised, promise.threshold, promise.escalated) == (True, 0.0, 0.0)


def violations(escalated_loses: bool, draws: int = 1_500) -> tuple[int, int]:
    """Promises made, and promises broken, over many calibration sets of a population with a known risk.

    Confidence is uniform. Alone, an input loses with probability 0.4 (1 - c); escalated, with 0.05 if `escalated_loses`,
    else never. So the risk at threshold t is `0.2 (1 - t)^2 + 0.05 t`, or without the second term.
    """
    rng = np.random.default_rng(11)
    made = broken = 0
    for _ in range(draws):
        sure = rng.random(300)
        alone = rng.random(300) < 0.4 * (1 - sure)
        fused = rng.random(300) < (0.05 if escalated_loses else 0.0)
        promise = choose_threshold(sure, alone, epsilon=0.1, delta=0.2, escalated_loss=fused)
        t = min(promise.threshold, 1.0)
        risk = 0.2 * (1 - t) ** 2 + (0.05 * t if escalated_loses else 0.0)
        made += promise.promised
        broken += promise.promised and risk > 0.1
    return made, broken


@pytest.mark.parametrize("escalated_loses", [False, True])
def test_promises_are_broken_no_more_often_than_delta(escalated_loses: bool) -> None:
    """Over 1,500 draws the share of broken promises is at most delta = 0.2, plus 3 binomial deviations."""
    made, broken = violations(escalated_loses)
    assert made > 1_400
    assert broken / 1_500 <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 1_500)
    assert broken > 0  # a test that could never fail would tell nothing


@given(st.integers(0, 10_000), st.floats(0.02, 0.3), st.floats(0.02, 0.3))
def test_a_promise_passes_its_own_test(seed: int, epsilon: float, delta: float) -> None:
    """At the chosen threshold, and at every safer one, the tail is at most delta."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(3, 1, 200)
    loss = rng.random(200) < 0.5 * (1 - sure)
    promise = choose_threshold(sure, loss, epsilon=epsilon, delta=delta)
    tails = binomial_tails(200, epsilon)
    for threshold in thresholds():
        if promise.promised and threshold >= promise.threshold:
            assert tails[int(loss[sure >= threshold].sum())] <= delta


def test_a_promise_becomes_evidence() -> None:
    """The policy that carries it knows whether something was promised."""
    promise = choose_threshold(np.linspace(0, 1, 500), np.zeros(500), epsilon=0.05, delta=0.05)
    policy = Policy(labels=("a",), threshold=promise.threshold, evidence=promise.as_json())
    assert Policy.from_bytes(policy.to_bytes()).promised
    assert policy.evidence["n"] == 500


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60, unique=True), st.floats(0, 1))
def test_a_threshold_for_a_share_gives_that_share(confidences: list[float], share: float) -> None:
    """Below it lies the share, to within half a sample."""
    sure = np.array(confidences)
    below = (sure < threshold_for_share(sure, share)).mean()
    assert abs(below - share) <= 0.5 / len(sure) + 1e-9


def test_what_cannot_be_tested_is_refused() -> None:
    """Bounds, lengths, losses and confidences are checked."""
    sure, loss = np.array([0.5, 0.6]), np.array([0, 1])
    with pytest.raises(SettingError, match="epsilon is out of range"):
        choose_threshold(sure, loss, epsilon=0, delta=0.1)
    with pytest.raises(SettingError, match="delta is out of range"):
        choose_threshold(sure, loss, epsilon=0.1, delta=1)
    with pytest.raises(DataError, match="loss must be 0 or 1"):
        choose_threshold(sure, np.array([0.5, 1]), epsilon=0.1, delta=0.1)
    with pytest.raises(DataError, match="escalated_loss must be 0 or 1"):
        choose_threshold(sure, loss, epsilon=0.1, delta=0.1, escalated_loss=np.array([2, 1]))
    with pytest.raises(DataError, match="confidences and losses do not fit"):
        choose_threshold(sure, loss[:1], epsilon=0.1, delta=0.1)
    with pytest.raises(DataError, match="a confidence is out of range"):
        choose_threshold(np.array([0.5, np.nan]), loss, epsilon=0.1, delta=0.1)
    with pytest.raises(SettingError, match="a share is out of range"):
        threshold_for_share(sure, 1.1)
    with pytest.raises(DataError, match="no confidences"):
        threshold_for_share(sure[:0], 0.5)

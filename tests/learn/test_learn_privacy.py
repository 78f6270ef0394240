"""Tests of `edgestill.learn.privacy`: how large the noise is, and what it is worth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError, SettingError
from edgestill.core.jsonio import Fields
from edgestill.learn.privacy import (
    Mechanism,
    Spent,
    SystemNormals,
    delta_of,
    multiplier_for,
    noise_ridge,
    possible,
)
from edgestill.learn.statistics import Statistics, clipped, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
D, C = 6, 3

EMPTY = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)
MECHANISM = Mechanism(unit="sample", norm=2.0, multiplier=1.5, weight=3.0)


def samples(seed: int, n: int, norm: float = 2.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clipped features and probabilities."""
    rng = np.random.default_rng(seed)
    return clipped(3 * rng.normal(size=(n, D)), norm), rng.dirichlet(np.ones(C), n)


def frobenius(one: Statistics) -> tuple[float, float]:
    """Norms of A and B."""
    return float(np.linalg.norm(one.matrix)), float(np.linalg.norm(one.b))


# How far a unit moves the sums


@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(0.1, 20))
def test_no_sample_moves_the_sums_further_than_the_sensitivity(seed: int, norm: float, weight: float) -> None:
    """Whatever it is, once clipped, at the largest weight."""
    mechanism = Mechanism(unit="sample", norm=norm, multiplier=1.0, weight=weight)
    features, targets = samples(seed, 1, norm)
    moved = frobenius(EMPTY.add(features, targets, np.array([weight])))
    assert all(found <= most * (1 + 1e-9) for found, most in zip(moved, mechanism.sensitivity, strict=True))


def test_the_sensitivity_is_reached() -> None:
    """A sample at the clipping norm with a sure target moves A and B exactly so far: no smaller bound is true."""
    features = np.zeros((1, D))
    features[0, 0] = 2.0
    moved = frobenius(EMPTY.add(features, np.eye(C)[:1], np.array([3.0])))
    assert moved == pytest.approx(MECHANISM.sensitivity)
    assert MECHANISM.sensitivity == pytest.approx((3 * 5, 3 * math.sqrt(5)))


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(1, 20))
def test_no_message_moves_the_sums_further_than_the_sensitivity(seed: int, n: int, most: float) -> None:
    """Messages over more samples' worth are scaled down, others left alone."""
    mechanism = replace(MECHANISM, unit="message", most=most, weight=1.0)
    one = EMPTY.add(*samples(seed, n))
    found = mechanism.bounded(one)
    assert all(
        moved <= bound * (1 + 1e-9)
        for moved, bound in zip(frobenius(found), mechanism.sensitivity, strict=True)
    )
    if n < most:
        assert found is one


# The noise


def noise_of(mechanism: Mechanism, draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is added to A `[draws, D+1, D+1]` and to B `[draws, D+1, C]`."""
    rng = np.random.default_rng(20_261_130)
    base = EMPTY.add(*samples(0, 50))
    found = [mechanism.noisy(base, rng) for _ in range(draws)]
    return (
        np.stack([one.matrix - base.matrix for one in found]),
        np.stack([one.b - base.b for one in found]),
    )


def test_the_noise_is_as_large_as_it_says() -> None:
    """Of 2,000 draws every element's deviation is within 8 % of what it must be: five of its standard errors."""
    to_a, to_b = noise_of(MECHANISM, 2_000)
    norms = MECHANISM.sensitivity
    wanted_a, wanted_b = (1.5 * math.sqrt(2) * norm for norm in norms)
    diagonal = np.eye(D + 1, dtype=bool)
    deviations = to_a.std(axis=0)
    np.testing.assert_allclose(deviations[diagonal], wanted_a, rtol=0.08)
    np.testing.assert_allclose(deviations[~diagonal], wanted_a / math.sqrt(2), rtol=0.08)
    np.testing.assert_allclose(to_b.std(axis=0), wanted_b, rtol=0.08)


def test_the_noise_has_no_direction() -> None:
    """Means are 0, A stays symmetric, and its elements and those of B do not hang together."""
    to_a, to_b = noise_of(MECHANISM, 2_000)
    np.testing.assert_array_equal(to_a, to_a.transpose(0, 2, 1))
    rows, columns = np.triu_indices(D + 1)
    flat = np.concatenate([to_a[:, rows, columns], to_b.reshape(2_000, -1)], axis=1)
    flat /= flat.std(axis=0)
    assert np.abs(flat.mean(axis=0)).max() < 5 / math.sqrt(2_000)
    related = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(related).max() < 5.5 / math.sqrt(2_000)


def test_the_noise_is_normal() -> None:
    """Shares beyond one, two and three deviations are those of the normal distribution, each within five standard errors."""
    to_a, to_b = noise_of(MECHANISM, 1_000)
    rows, columns = np.triu_indices(D + 1, k=1)
    for values in (to_a[:, rows, columns].ravel(), to_b.ravel()):
        scaled = values / values.std()
        for border in (1.0, 2.0, 3.0):
            wanted = math.erfc(border / math.sqrt(2))
            error = math.sqrt(wanted * (1 - wanted) / len(scaled))
            assert abs((np.abs(scaled) > border).mean() - wanted) < 5 * error


def test_the_noise_comes_from_what_is_given() -> None:
    """The same generator, the same message; another, another."""
    base = EMPTY.add(*samples(0, 50))
    one, same, other = (MECHANISM.noisy(base, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.a, same.a)
    assert not np.isclose(one.a, other.a).any()


def test_a_noisy_message_tells_its_noise_and_hides_its_count() -> None:
    """The count is made of the noisy weight; the deviations come along, and add up in squares."""
    base = EMPTY.add(*samples(0, 50))
    one = MECHANISM.noisy(base, np.random.default_rng(0))
    assert one.n == max(1, round(one.weight)) != base.n
    back = Statistics.from_bytes(one.to_bytes("float64"))
    assert back.noise == one.noise == pytest.approx([1.5 * math.sqrt(2) * x for x in MECHANISM.sensitivity])
    assert (back + back).noise == pytest.approx([math.sqrt(2) * x for x in one.noise])
    assert back.scaled(0.5).noise == pytest.approx([x / 2 for x in one.noise])
    with pytest.raises(EvidenceError, match="noise already"):
        MECHANISM.noisy(back, np.random.default_rng(0))


def test_a_message_of_mere_noise_can_be_read() -> None:
    """Squares below 0 and products above their squares are what noise does; without the claim they are refused."""
    one = MECHANISM.noisy(EMPTY, np.random.default_rng(3))
    assert one.matrix.diagonal().min() < 0
    assert Statistics.from_bytes(one.to_bytes()).n == 1
    with pytest.raises(EvidenceError, match="not the sums of any samples"):
        Statistics.from_bytes(replace(one, noise=(0.0, 0.0)).to_bytes())


# The account


def test_known_values_of_the_normal_mechanism() -> None:
    """At mu 1, delta of epsilon 0 is 2 Phi(1/2) - 1; epsilon 1 and delta 1e-5 need 3.7306, where the classical bound asks for 4.845."""
    assert delta_of(1.0, 0.0) == pytest.approx(0.3829249225480262, rel=1e-12)
    assert multiplier_for(1.0, 1e-5) == pytest.approx(3.730631634816, rel=1e-9)
    assert math.sqrt(2 * math.log(1.25 / 1e-5)) == pytest.approx(4.845, abs=1e-3)


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 1.0), (0.3, 0.5), (2.0, 4.0), (5.0, 10.0)])
def test_delta_is_the_integral_it_stands_for(mu: float, epsilon: float) -> None:
    """By its definition: the mass by which one density is more than e^epsilon times the other."""
    x = np.linspace(-15 - mu, 15 + mu, 2_000_001)
    with_it, without = (np.exp(-0.5 * (x - shift) ** 2) / math.sqrt(2 * math.pi) for shift in (mu, 0.0))
    more = np.maximum(with_it - math.exp(epsilon) * without, 0)
    assert delta_of(mu, epsilon) == pytest.approx(float(more.sum() * (x[1] - x[0])), rel=1e-4)


@given(st.floats(1e-3, 1e3), st.floats(1e-9, 0.5), st.integers(1, 1_000))
def test_a_multiplier_that_is_asked_for_gives_what_was_asked(
    epsilon: float, delta: float, messages: int
) -> None:
    """Spent on as many messages, it costs that epsilon."""
    multiplier = multiplier_for(epsilon, delta, messages=messages)
    spent = Spent(rho=messages * 0.5 / multiplier**2, messages=messages)
    assert spent.epsilon(delta) == pytest.approx(epsilon, rel=1e-6)


@given(st.floats(0.05, 50), st.integers(1, 400), st.floats(1e-9, 0.1))
def test_an_account_is_never_above_the_plain_bounds(multiplier: float, messages: int, delta: float) -> None:
    """It is at most what zero-concentrated privacy says, and grows with every message."""
    mechanism, spent = replace(MECHANISM, multiplier=multiplier), Spent()
    before = 0.0
    for _ in range(min(messages, 5)):
        spent = spent.after(mechanism)
        now = spent.epsilon(delta)
        assert now >= before
        assert now <= spent.rho + 2 * math.sqrt(spent.rho * math.log(1 / delta)) + 1e-9
        before = now
    assert spent.messages == min(messages, 5)


def test_windows_compose_like_one_message_with_less_noise() -> None:
    """Four messages at multiplier 2 cost what one costs at 1, and less than four times one of them."""
    one, four = Spent().after(replace(MECHANISM, multiplier=1.0)), Spent()
    for _ in range(4):
        four = four.after(replace(MECHANISM, multiplier=2.0))
    assert four.epsilon(1e-6) == pytest.approx(one.epsilon(1e-6))
    single = Spent().after(replace(MECHANISM, multiplier=2.0))
    assert four.epsilon(1e-6) < 4 * single.epsilon(1e-6)
    assert Spent().epsilon(1e-6) == 0.0


def test_extreme_budgets_stay_numbers() -> None:
    """Very much noise and hardly any: no overflow, no logarithm of 0."""
    assert Spent(rho=1e6, messages=1).epsilon(1e-12) == pytest.approx(1e6, rel=0.02)
    assert Spent(rho=1e-12, messages=1).epsilon(1e-6) == 0.0
    assert multiplier_for(1e6, 0.5) > 0
    assert multiplier_for(1e-6, 1e-12) > 1e5


def test_an_account_is_kept_as_json() -> None:
    """There and back; what is none is refused."""
    spent = Spent().after(MECHANISM).after(MECHANISM)
    assert Spent.from_fields(Fields.of(spent.as_json(), "account")) == spent
    bad: Any
    for bad in ({"rho": -1, "messages": 1}, {"rho": 1}, {"rho": 1, "messages": -1}):
        with pytest.raises(MessageError):
            Spent.from_fields(Fields.of(bad, "account"))


# What becomes of noisy sums


def test_noisy_sums_are_made_possible() -> None:
    """No eigenvalue below 0 is left, the others stay, and what was possible is left alone."""
    noisy = MECHANISM.noisy(EMPTY.add(*samples(0, 5)), np.random.default_rng(0))
    before, after = (np.linalg.eigvalsh(one.matrix) for one in (noisy, possible(noisy)))
    assert before.min() < 0
    np.testing.assert_allclose(after, np.maximum(before, 0), atol=1e-9)
    plain = EMPTY.add(*samples(0, 50))
    assert possible(plain) is plain


def test_a_ridge_as_large_as_the_noise_always_gives_a_head() -> None:
    """Even where a message is nothing but noise, its sum has a solution, and weights that are not huge."""
    for seed in range(30):
        noisy = MECHANISM.noisy(EMPTY, np.random.default_rng(seed))
        head = solve(possible(noisy), ridge=noise_ridge(noisy))
        assert np.abs(head.weight).max() < 3
    assert noise_ridge(EMPTY) == 0


def test_many_noisy_messages_come_near_the_truth() -> None:
    """The noise of a fleet grows with its root, its sums with its size: 300 devices' head is near that without noise."""
    rng, total, exact = np.random.default_rng(0), EMPTY, EMPTY
    mechanism = Mechanism(unit="sample", norm=2.0, multiplier=multiplier_for(4.0, 1e-6))
    for seed in range(300):
        features, _ = samples(seed, 400)
        targets = np.eye(C)[features[:, :C].argmax(axis=1)]
        one = EMPTY.add(features, targets)
        exact, total = exact + one, total + mechanism.noisy(one, rng)
    head, true = (solve(possible(one), ridge=1.0) for one in (total, exact))
    assert np.abs(head.weight - true.weight).max() < 0.02


@pytest.mark.parametrize(
    "change",
    [{"unit": "fleet"}, {"norm": 0.0}, {"multiplier": -1.0}, {"weight": math.nan}, {"most": math.inf}],
)
def test_a_mechanism_out_of_range_is_refused(change: dict[str, Any]) -> None:
    """Each value by its name."""
    with pytest.raises(SettingError, match=f"privacy: {next(iter(change))}"):
        replace(MECHANISM, **change)


def test_budgets_out_of_range_are_refused() -> None:
    """Epsilon, delta and the number of messages."""
    for arguments in ((0.0, 1e-6, 1), (1.0, 0.0, 1), (1.0, 1.0, 1), (1.0, 1e-6, 0)):
        with pytest.raises(SettingError, match="out of range"):
            multiplier_for(arguments[0], arguments[1], messages=arguments[2])
    with pytest.raises(SettingError, match="delta"):
        Spent(rho=1.0, messages=1).epsilon(0.0)


def test_the_systems_normal_numbers_are_normal_and_never_the_same() -> None:
    """Mean, deviation, tails and independence of neighbours, of 200,001 numbers; each bound is wrong once in 10^9 times or less."""
    source, n = SystemNormals(), 200_001
    found = source.normal(1.0, 3.0, n)
    assert found.shape == (n,)
    assert np.isfinite(found).all()
    plain = (found - 1.0) / 3.0
    assert abs(plain.mean()) < 6.5 / np.sqrt(n)
    assert abs((plain**2).mean() - 1) < 6.5 * np.sqrt(2 / n)
    for far, share in ((1.0, 0.3173105), (2.0, 0.0455003), (3.0, 0.0026998)):
        assert abs((np.abs(plain) > far).mean() - share) < 6.5 * np.sqrt(share / n)
    half = n // 2
    for shift in (1, half, half + 1):
        assert abs((plain[:-shift] * plain[shift:]).mean()) < 7 / np.sqrt(n - shift)
    assert source.normal(0.0, 1.0, (3, 4)).shape == (3, 4)
    assert not np.array_equal(source.normal(0.0, 1.0, 5), source.normal(0.0, 1.0, 5))

"""Tests of `edgestill.learn.screens`: which sums no classifier's samples have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.encodings import Dtype, triangle
from edgestill.learn.privacy import Mechanism
from edgestill.learn.screens import check, read
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
D = 8

dtypes = st.sampled_from(get_args(Dtype))


def sums(
    seed: int = 0, n: int = 60, *, classes: int = 4, scale: float = 1.0, sure: bool = False
) -> Statistics:
    """Statistics of random samples of very different features; targets are probabilities, or one-hot."""
    rng = np.random.default_rng(seed)
    features = scale * np.maximum(rng.normal(size=(n, D)) * np.logspace(-1, 1, D) + rng.normal(size=D), 0)
    targets = np.eye(classes)[rng.integers(0, classes, n)] if sure else rng.dirichlet(np.ones(classes), n)
    weights = rng.choice([1.0, 20.0], n)
    empty = Statistics.empty(backbone=BACKBONE, window=3, classes=classes, features=D)
    return empty.add(features, targets, weights)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 80), st.sampled_from([1, 2, 10, 300])),
    st.floats(1e-3, 1e4),
    st.booleans(),
    dtypes,
)
def test_honest_messages_pass(
    seed: int, shape: tuple[int, int], scale: float, sure: bool, dtype: Dtype
) -> None:
    """Whatever the features' size, the classes and the rounding."""
    one = sums(seed, shape[0], classes=shape[1], scale=scale, sure=sure)
    assert read(one.to_bytes(dtype), backbone=BACKBONE).n == shape[0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, D]), dtypes)
def test_honest_messages_pass_in_coordinates_and_as_sums_of_many(seed: int, kept: int, dtype: Dtype) -> None:
    """The constant stays the constant, so the tests are the same; sums of sums pass, too."""
    coordinates = Coordinates.of(sums(1, 100), kept)
    one = coordinates.project(sums(seed) + sums(seed + 1))
    read(one.to_bytes(dtype), backbone=coordinates.backbone)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_honest_messages_with_noise_pass(seed: int, multiplier: float) -> None:
    """What noise of the size they tell can do is no lie."""
    mechanism = Mechanism(unit="sample", norm=1.0, multiplier=multiplier)
    read(mechanism.noisy(sums(seed), np.random.default_rng(seed)).to_bytes())


def test_nothing_passes() -> None:
    """A sum over no samples is one."""
    check(Statistics.empty(backbone=BACKBONE, window=0, classes=2, features=D))


# Attacks


def with_matrix(one: Statistics, matrix: NDArray[np.float64]) -> Statistics:
    """The same with another A."""
    return replace(one, a=triangle(matrix))


def refused(one: Statistics, named: str, dtype: Dtype) -> None:
    """The message is refused for this reason."""
    with pytest.raises(EvidenceError, match=named):
        read(one.to_bytes(dtype))


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("factor", [0.01, 0.5, 2.0, 1e6])
def test_attack_a_matrix_blown_up_or_shrunken(factor: float, dtype: Dtype) -> None:
    """A without its B: the targets are no longer 1 together."""
    one = sums()
    refused(replace(one, a=one.a * factor), "targets that are 1 together", dtype)


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_attack_targets_that_are_too_large(dtype: Dtype) -> None:
    """B a hundred times as large would move every score a hundred times as far."""
    one = sums()
    refused(replace(one, b=one.b * 100), "targets that are 1 together", dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int8"])
def test_attack_targets_that_cancel_out(dtype: Dtype) -> None:
    """A thousand for one class and minus a thousand for another are 1 together, and no probabilities."""
    one = sums()
    b = one.b.copy()
    b[:, 0] += 1_000 * one.matrix[:, -1]
    b[:, 1] -= 1_000 * one.matrix[:, -1]
    refused(replace(one, b=b), "not negative", dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int8"])
def test_attack_slopes_that_no_probability_has(dtype: Dtype) -> None:
    """The constant's row is honest, a feature's is not: it would have to be larger than its own length."""
    one = sums()
    b = one.b.copy()
    pull = 5 * np.sqrt(one.matrix.diagonal()[-2] * one.weight)
    b[-2, 0] += pull
    b[-2, 1] -= pull
    # rounded to codes of so wide a scale, the classes are no longer 1 together either
    refused(replace(one, b=b), r"sqrt\(A_ii s_c\)|1 together", dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attack_features_shrunken_behind_their_sums(dtype: Dtype) -> None:
    """A small A with an honest B makes a huge head: its squares no longer allow its sums."""
    one = sums()
    matrix = one.matrix
    matrix[:-1, :-1] *= 0.01
    with pytest.raises(EvidenceError, match=r"Cauchy-Schwarz"):
        read(with_matrix(one, matrix).to_bytes(dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attack_correlations_that_are_only_pairwise_possible(dtype: Dtype) -> None:
    """Each of three features against both others: pairwise fine, and the solution is where nobody was."""
    one = sums()
    matrix = one.matrix
    roots = np.sqrt(matrix.diagonal())
    for i, j in ((4, 5), (5, 6), (4, 6)):
        matrix[i, j] = matrix[j, i] = -0.9 * roots[i] * roots[j]
    refused(with_matrix(one, matrix), "without negative eigenvalues", dtype)


def test_attack_claimed_noise_widens_no_more_than_it_says() -> None:
    """Noise of 1 does not excuse an A that is blown up a thousand times."""
    one = sums()
    refused(replace(one, a=one.a * 1_000, noise=(1.0, 1.0)), "targets that are 1 together", "float32")


def impossible(one: Statistics) -> Statistics:
    """The same with every two features fully against each other, which three already cannot be."""
    matrix = one.matrix
    away = matrix - np.outer(matrix[:, -1], matrix[-1]) / one.weight
    roots = np.sqrt(np.maximum(away.diagonal(), 0.0))
    turned = np.where(np.eye(D + 1) > 0, 1.0, -0.9) * np.outer(roots, roots)
    return with_matrix(one, np.outer(matrix[:, -1], matrix[-1]) / one.weight + turned)


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_attack_correlations_that_no_matrix_has_in_any_rounding(dtype: Dtype) -> None:
    """Coarse rounding, and noise too small to matter, excuse a little, not this."""
    refused(impossible(sums()), "without negative eigenvalues", dtype)
    if dtype != "int8":
        refused(replace(impossible(sums()), noise=(1e-6, 1e-6)), "without negative eigenvalues", dtype)


@pytest.mark.parametrize("noise", [(1e10, 0.0), (0.0, 1e10), (9.9e299, 9.9e299)])
def test_attack_noise_that_nobody_can_see(noise: tuple[float, float]) -> None:
    """Whoever adds such noise has sums as large."""
    refused(replace(sums(), noise=noise), "noise that can be seen", "float32")


@pytest.mark.parametrize("dtype", ["float64", "float32", "int8"])
def test_attack_behind_one_long_feature(dtype: Dtype) -> None:
    """A feature a million times as long as the others excuses nothing in their rows."""
    one = sums()
    stretch = np.ones(D + 1)
    stretch[0] = 1e6
    b = one.b * stretch[:, None]
    b[1:-1] *= 1e4
    long = replace(with_matrix(one, one.matrix * np.outer(stretch, stretch)), b=b)
    refused(long, "1 together", dtype)


@given(st.integers(0, 2**32 - 1), st.booleans(), dtypes)
def test_honest_messages_pass_beside_one_long_feature(seed: int, sure: bool, dtype: Dtype) -> None:
    """However different the features' sizes are."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, D)) * np.logspace(0, 4, D) + rng.normal(size=D)
    targets = np.eye(4)[rng.integers(0, 4, 60)] if sure else rng.dirichlet(np.ones(4), 60)
    empty = Statistics.empty(backbone=BACKBONE, window=3, classes=4, features=D)
    read(empty.add(features, targets).to_bytes(dtype))


@given(st.integers(0, 2**32 - 1), dtypes)
def test_honest_messages_of_few_samples_in_many_coordinates_pass(seed: int, dtype: Dtype) -> None:
    """Sums of fewer samples than features have eigenvalues of 0, which rounding makes negative."""
    rng = np.random.default_rng(seed)
    n, wide = int(rng.integers(2, 40)), 64
    features = np.maximum(rng.normal(size=(n, 3)) @ rng.normal(size=(3, wide)), 0) + 0.01 * rng.normal(
        size=(n, wide)
    )
    empty = Statistics.empty(backbone=BACKBONE, window=3, classes=4, features=wide)
    read(empty.add(features, rng.dirichlet(np.ones(4), n)).to_bytes(dtype))


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_honest_messages_of_half_precision_probabilities_pass(dtype: Dtype) -> None:
    """A teacher on a small accelerator answers in float16: its probabilities are 1 together up to a thousandth."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(400, D)))
    targets = rng.dirichlet(np.ones(10), 400).astype(np.float16).astype(np.float64)
    targets *= 1 - 3e-4
    empty = Statistics.empty(backbone=BACKBONE, window=3, classes=10, features=D)
    read(empty.add(features, targets).to_bytes(dtype))


@given(st.integers(0, 10_000), st.integers(0, 255), dtypes)
def test_damaged_messages_give_our_errors_only(position: int, value: int, dtype: Dtype) -> None:
    """One byte changed anywhere: read as something finite, or refused."""
    data = bytearray(sums().to_bytes(dtype))
    data[position % len(data)] = value
    try:
        one = read(bytes(data))
    except (MessageError, EvidenceError):
        return
    assert np.isfinite(one.a).all()

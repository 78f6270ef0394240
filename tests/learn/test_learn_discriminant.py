"""The linear discriminant of sums is that of the samples, wherever these lie."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.learn.discriminant import SHRINKS, discriminant
from edgestill.learn.encodings import triangle
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from edgestill.learn.together import LEAST_SQUARES, heads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

D, C = 5, 3
BACKBONE = Digest.of(b"backbone")


def samples(seed: int, n: int = 300) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features `[n, D]` around a centre a class, in one lopsided shape, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    centres = 3 * np.random.default_rng(99).normal(size=(C, D))
    shape = np.random.default_rng(98).normal(size=(D, D))
    return centres[labels] + rng.normal(size=(n, D)) @ shape, labels


def sums(features: NDArray[np.float64], targets: NDArray[np.floating]) -> Statistics:
    """Of these samples."""
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D)
    return empty.add(features, targets)


def named(
    head: tuple[NDArray[np.float32], NDArray[np.float32]], features: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The classes that a head names."""
    found: NDArray[np.int64] = (features @ head[0] + head[1]).argmax(axis=1)
    return found


def test_it_is_the_discriminant_of_the_samples() -> None:
    """Worked out from the samples themselves: means, scatter within classes, logarithms of shares."""
    features, labels = samples(0)
    head = discriminant(sums(features, np.eye(C)[labels]), shrink=1e-6)
    means = np.stack([features[labels == one].mean(axis=0) for one in range(C)])
    apart = features - means[labels]
    inverse = np.linalg.inv(apart.T @ apart / len(features))
    np.testing.assert_allclose(head.weight, inverse @ means.T, rtol=1e-3, atol=1e-4)
    shares = np.bincount(labels) / len(labels)
    wanted = np.log(shares) - np.einsum("cd,de,ce->c", means, inverse, means) / 2
    np.testing.assert_allclose(head.bias, wanted, rtol=1e-3, atol=1e-3)


def test_it_names_what_scikit_learns_does() -> None:
    """The same answers, and with its default solver's shares the same probabilities."""
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    (features, labels), (others, _) = samples(1), samples(2)
    theirs = analysis.LinearDiscriminantAnalysis(solver="lsqr").fit(features, labels)
    head = discriminant(sums(features, np.eye(C)[labels]), shrink=1e-9)
    scores = others @ head.weight + head.bias
    scores -= scores.max(axis=1, keepdims=True)
    ours = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs.predict_proba(others), atol=1e-3)


@settings(deadline=None)
@given(cut=st.integers(1, 299), shrink=st.sampled_from(SHRINKS))
def test_sums_of_parts_give_the_head_of_the_whole(cut: int, shrink: float) -> None:
    """Whoever holds which samples, in whatever order they are added."""
    features, labels = samples(3)
    targets = np.eye(C)[labels]
    parts = sums(features[cut:], targets[cut:]) + sums(features[:cut], targets[:cut])
    one, other = discriminant(sums(features, targets), shrink=shrink), discriminant(parts, shrink=shrink)
    np.testing.assert_allclose(one.weight, other.weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.bias, other.bias, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 1_000))
def test_a_linear_change_of_the_features_changes_no_answer(seed: int) -> None:
    """Where next to nothing is shrunk: the discriminant knows no coordinates. Least squares with a ridge does."""
    rng = np.random.default_rng(seed)
    (features, labels), (others, _) = samples(4), samples(5)
    turn, moved = rng.normal(size=(D, D)) + 3 * np.eye(D), rng.normal(size=D)
    targets = np.eye(C)[labels]
    one = named(discriminant(sums(features, targets), shrink=1e-9), others)
    other = named(discriminant(sums(features @ turn + moved, targets), shrink=1e-9), others @ turn + moved)
    assert (one == other).mean() > 0.99


def test_soft_targets_are_parts_of_samples() -> None:
    """A sample that is half of each class counts as half a sample of each."""
    features, labels = samples(6)
    soft = 0.7 * np.eye(C)[labels] + 0.1
    head = discriminant(sums(features, soft), shrink=1e-6)
    repeated = np.repeat(features, C, axis=0)
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D)
    hard = empty.add(repeated, np.tile(np.eye(C), (len(features), 1)), weights=soft.ravel())
    other = discriminant(hard, shrink=1e-6)
    np.testing.assert_allclose(head.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_much_shrinking_compares_distances_to_means() -> None:
    """With the whole of it, and classes as frequent as each other, the nearest mean is named."""
    features, _ = samples(7)
    labels = np.arange(len(features)) % C
    features = features + 4 * np.eye(C, D)[labels]
    head = discriminant(sums(features, np.eye(C)[labels]), shrink=1.0)
    means = np.stack([features[labels == one].mean(axis=0) for one in range(C)])
    nearest = np.square(features[:, None] - means).sum(axis=2).argmin(axis=1)
    assert np.array_equal(named(head, features), nearest)


def test_a_class_that_nobody_has_seen_is_not_named() -> None:
    """Nor is one that noise has fewer than none of."""
    features, labels = samples(8)
    labels = labels % 2
    one = sums(features, np.eye(C)[labels])
    assert 2 not in named(discriminant(one, shrink=0.1), features)
    bright = np.abs(features) + 1
    dim = discriminant(sums(bright, np.eye(C)[labels]), shrink=0.1)
    for light in (1.0, 0.4, 0.1, 0.0):  # wherever the middle of the features lies
        assert 2 not in named(dim, light * bright)
    less = replace(one, b=one.b - np.array([0, 0, 1.0]))
    assert 2 not in named(discriminant(less, shrink=0.1), features)


def test_where_classes_are_as_it_assumes_it_is_surer_than_least_squares() -> None:
    """Its scores are logits: nearly calibrated without a temperature."""
    (features, labels), (others, known) = samples(9, 3_000), samples(10, 3_000)
    head = discriminant(sums(features, np.eye(C)[labels]), shrink=1e-6)
    scores = others @ head.weight + head.bias
    scores -= scores.max(axis=1, keepdims=True)
    sure = np.exp(scores).max(axis=1) / np.exp(scores).sum(axis=1)
    assert abs(sure.mean() - (scores.argmax(axis=1) == known).mean()) < 0.01


def test_all_heads_of_the_same_sums_have_names() -> None:
    """Least squares, and a discriminant for each shrink that has a solution."""
    features, labels = samples(11)
    total = sums(features, np.eye(C)[labels])
    found = heads_of(total)
    assert list(found) == [LEAST_SQUARES, *(f"discriminant, shrunk by {one:g}" for one in SHRINKS)]
    np.testing.assert_array_equal(found[LEAST_SQUARES].weight, solve(total, ridge=usual_ridge(total)).weight)


def test_what_no_samples_have_is_refused() -> None:
    """A scatter within classes that is not positive: shrinking a little does not mend it."""
    features, labels = samples(12)
    total = sums(features, np.eye(C)[labels])
    matrix = total.matrix.copy()
    matrix[:-1, :-1] -= 0.98 * np.diag(np.diag(matrix[:-1, :-1]))
    broken = replace(total, a=triangle(matrix))
    with pytest.raises(EvidenceError, match=r"not the sums of any samples.*shrink more"):
        discriminant(broken, shrink=1e-3)


@pytest.mark.parametrize("shrink", [0.0, -0.1, 1.1, float("nan")])
def test_a_shrink_out_of_range_is_refused(shrink: float) -> None:
    """It is a share."""
    features, labels = samples(13)
    with pytest.raises(EvidenceError, match="shrink is out of range"):
        discriminant(sums(features, np.eye(C)[labels]), shrink=shrink)


def test_no_samples_are_refused() -> None:
    """Nothing to be told apart."""
    with pytest.raises(EvidenceError, match="no samples"):
        discriminant(Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D), shrink=0.1)

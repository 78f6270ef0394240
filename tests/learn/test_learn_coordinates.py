"""Tests of `edgestill.learn.coordinates`: sums in coordinates that a bundle's reference defines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, SettingError
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.statistics import Statistics, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
D, C = 6, 3

seeds = st.integers(0, 2**32 - 1)


def samples(seed: int, n: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features `[n, D]` that hang together, and targets `[n, C]`."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(7).normal(size=(D, D)) * np.logspace(0, -1, D)
    features = rng.normal(size=(n, D)) @ mixed.T + np.arange(D)
    return features, np.eye(C)[(features[:, :C]).argmax(axis=1)]


def sums(seed: int, n: int = 200) -> Statistics:
    """Statistics of these."""
    return Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D).add(*samples(seed, n))


REFERENCE = sums(0)


def test_the_reference_has_a_deviation_of_one_everywhere() -> None:
    """In its own coordinates its mean is 0 and its covariance the identity."""
    for kept in (D, 3):
        matrix = Coordinates.of(REFERENCE, kept).project(REFERENCE).matrix
        np.testing.assert_allclose(matrix, 200 * np.eye(kept + 1), atol=1e-8)


@given(seeds, st.integers(1, 60))
def test_all_coordinates_lose_nothing(seed: int, n: int) -> None:
    """There and back are the sums, up to rounding."""
    coordinates = Coordinates.of(REFERENCE, D)
    one = sums(seed, n)
    back = coordinates.lift(coordinates.project(one))
    np.testing.assert_allclose(back.a, one.a, atol=1e-7 * np.abs(one.a).max())
    np.testing.assert_allclose(back.b, one.b, atol=1e-7 * np.abs(one.b).max())
    assert (back.backbone, back.n, back.window, back.weight) == (BACKBONE, n, 1, one.weight)


@given(seeds, seeds, st.integers(1, D))
def test_projecting_and_adding_can_be_exchanged(first: int, second: int, kept: int) -> None:
    """So the sum of a fleet's messages is that of all its samples, in these coordinates, too."""
    coordinates = Coordinates.of(REFERENCE, kept)
    one, other = sums(first), sums(second, 50)
    together = coordinates.project(one + other)
    apart = coordinates.project(one) + coordinates.project(other)
    np.testing.assert_allclose(together.a, apart.a, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(together.b, apart.b, rtol=1e-9, atol=1e-7)


def test_sums_of_projected_samples_are_projected_sums() -> None:
    """By hand: the coordinates of every sample, then the sums."""
    coordinates = Coordinates.of(REFERENCE, 3)
    features, targets = samples(5)
    z = (features - coordinates.mean) @ coordinates.to
    empty = Statistics.empty(backbone=coordinates.backbone, window=1, classes=C, features=3)
    by_hand, found = empty.add(z, targets), coordinates.project(sums(5))
    np.testing.assert_allclose(found.a, by_hand.a, atol=1e-8)
    np.testing.assert_allclose(found.b, by_hand.b, atol=1e-8)


def test_a_head_of_fewer_coordinates_is_that_of_the_projected_features() -> None:
    """The way back to all features: the same scores as solving with the projections themselves."""
    coordinates = Coordinates.of(REFERENCE, 3)
    features, targets = samples(5)
    near = coordinates.mean + (features - coordinates.mean) @ coordinates.to @ coordinates.back
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)
    head = solve(coordinates.lift(coordinates.project(sums(5))), ridge=1.0)
    central = solve(empty.add(near, targets), ridge=1.0)
    np.testing.assert_allclose(head.weight, central.weight, atol=1e-5)
    np.testing.assert_allclose(head.bias, central.bias, atol=1e-5)


def test_coordinates_are_the_same_on_machines_that_round_differently() -> None:
    """A reference off by 1e-13 gives coordinates off by as little, all of them or the leading ones."""
    rng = np.random.default_rng(0)
    other = replace(REFERENCE, a=REFERENCE.a * (1 + 1e-13 * rng.normal(size=REFERENCE.a.shape)))
    for kept in (D, 3):
        one, near = Coordinates.of(REFERENCE, kept), Coordinates.of(other, kept)
        np.testing.assert_allclose(one.to, near.to, atol=1e-8)
        np.testing.assert_allclose(one.back, near.back, atol=1e-8)


def test_coordinates_are_named_after_all_that_makes_them() -> None:
    """Backbone, reference and how many are kept: another of them is another backbone, whose sums do not add."""
    base = Coordinates.of(REFERENCE, 3)
    others = [
        Coordinates.of(REFERENCE, 4),
        Coordinates.of(sums(1), 3),
        Coordinates.of(replace(REFERENCE, backbone=Digest.of(b"other")), 3),
    ]
    assert len({base.backbone, BACKBONE, *(one.backbone for one in others)}) == 5
    assert Coordinates.of(REFERENCE, 3).backbone == base.backbone
    assert Coordinates.of(REFERENCE, D).backbone == Coordinates.of(REFERENCE, 1_000).backbone
    with pytest.raises(EvidenceError, match="different kinds do not add"):
        _ = base.project(REFERENCE) + others[1].project(REFERENCE)


def test_attack_sums_of_other_coordinates_are_not_lifted() -> None:
    """Nor are those of another backbone projected, nor noisy ones, whose noise would be another in every direction."""
    one, other = Coordinates.of(REFERENCE, 3), Coordinates.of(sums(1), 3)
    foreign = Statistics.empty(backbone=Digest.of(b"other"), window=0, classes=C, features=D)
    noisy = replace(REFERENCE, noise=(1.0, 1.0))
    for change, wrong in (
        (one.lift, other.project(REFERENCE)),
        (one.lift, REFERENCE),
        (one.project, foreign),
        (one.project, noisy),
    ):
        with pytest.raises(EvidenceError, match="statistics that these coordinates are not for"):
            change(wrong)


def test_what_the_reference_hardly_has_is_not_blown_up() -> None:
    """A feature that was always 0 there gets a bounded scale, and comes back exactly where all are kept."""
    features, targets = samples(0)
    features[:, 2] = 0.0
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)
    reference = empty.add(features, targets)
    coordinates = Coordinates.of(reference, D)
    assert np.linalg.norm(coordinates.to, 2) <= 100 * np.linalg.norm(coordinates.to, -2) * (1 + 1e-6)
    alive = sums(3)
    back = coordinates.lift(coordinates.project(alive))
    np.testing.assert_allclose(back.a, alive.a, atol=1e-7 * np.abs(alive.a).max())


def test_directions_that_are_not_determined_are_refused() -> None:
    """Two equal variances: another machine could turn their vectors. All of them together are determined."""
    whole = np.concatenate([np.eye(4), -np.eye(4)])
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=1, features=4)
    reference = empty.add(whole, np.ones((8, 1)))
    with pytest.raises(EvidenceError, match="directions that two machines could choose differently"):
        Coordinates.of(reference, 2)
    assert Coordinates.of(reference, 4).kept == 4


def test_features_that_never_change_have_no_coordinates() -> None:
    """A covariance of nothing scales to nothing."""
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=1, features=2)
    for kept in (1, 2):
        with pytest.raises(EvidenceError, match="never change"):
            Coordinates.of(empty.add(np.ones((5, 2)), np.ones((5, 1))), kept)
        with pytest.raises(EvidenceError, match="too few samples"):
            Coordinates.of(empty, kept)
    with pytest.raises(SettingError, match="keeps no coordinate"):
        Coordinates.of(REFERENCE, 0)


@given(seeds, st.floats(0.01, 5), st.integers(1, D))
def test_clipping_bounds_the_coordinates(seed: int, norm: float, kept: int) -> None:
    """None is longer than the norm; what is shorter stays where it is."""
    coordinates = Coordinates.of(REFERENCE, kept)
    features, _ = samples(seed, 30)
    near = coordinates.clipped(features, norm)
    before, after = (
        np.linalg.norm((one - coordinates.mean) @ coordinates.to, axis=1) for one in (features, near)
    )
    assert (after <= norm * (1 + 1e-9)).all()
    np.testing.assert_allclose(near[before <= norm], features[before <= norm], atol=1e-12)
    with pytest.raises(EvidenceError, match="clipping norm"):
        coordinates.clipped(features, 0.0)

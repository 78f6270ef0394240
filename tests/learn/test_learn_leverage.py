"""Leverage: the hat matrix's diagonal, small at home and large far away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import Statistics


def reference(features: np.ndarray) -> Statistics:
    """The statistics of these features."""
    width = features.shape[1]
    start = Statistics.empty(backbone=Digest.of(b"b"), window=0, classes=1, features=width)
    return start.add(features, np.zeros((len(features), 1)))


@given(st.integers(0, 10_000), st.floats(1e-3, 10))
def test_leverage_is_the_diagonal_of_the_hat_matrix(seed: int, ridge: float) -> None:
    """Against `phi (phi^T phi + ridge I)^-1 phi^T` in full, and `typical` is its mean."""
    features = np.random.default_rng(seed).normal(size=(30, 4))
    phi = np.hstack([features, np.ones((30, 1))])
    hat = phi @ np.linalg.inv(phi.T @ phi + ridge * np.eye(5)) @ phi.T
    leverage = Leverage.fit(reference(features), ridge)
    np.testing.assert_allclose(leverage.of(features), hat.diagonal(), rtol=1e-8)
    assert leverage.typical == pytest.approx(hat.diagonal().mean(), rel=1e-8)


def test_leverage_by_hand() -> None:
    """Features 1 and -1 with ridge 1: A + I = 3 I, so leverage is (x^2 + 1) / 3."""
    leverage = Leverage.fit(reference(np.array([[1.0], [-1.0]])), 1.0)
    np.testing.assert_allclose(leverage.of(np.array([[0.0], [1.0], [5.0]])), [1 / 3, 2 / 3, 26 / 3])
    assert leverage.typical == pytest.approx(2 / 3)


def test_what_lies_far_away_has_much_leverage() -> None:
    """Samples from elsewhere stand out by their leverage alone."""
    rng = np.random.default_rng(0)
    leverage = Leverage.fit(reference(rng.normal(size=(500, 8))), 1.0)
    home, away = leverage.of(rng.normal(size=(200, 8))), leverage.of(rng.normal(size=(200, 8)) + 3)
    assert np.median(away) > 5 * np.median(home)
    assert home.mean() == pytest.approx(leverage.typical, rel=0.15)


def test_float32_features_are_taken() -> None:
    """What a student gives can be measured as it is."""
    features = np.random.default_rng(0).normal(size=(20, 4))
    leverage = Leverage.fit(reference(features), 1.0)
    np.testing.assert_allclose(leverage.of(features.astype(np.float32)), leverage.of(features), rtol=1e-5)


def test_what_cannot_be_measured_is_refused() -> None:
    """No reference samples, no ridge, or features of another width."""
    leverage = Leverage.fit(reference(np.eye(3)), 1.0)
    with pytest.raises(EvidenceError, match=r"features of another width; at leverage; expected \[N, 3\]"):
        leverage.of(np.zeros((1, 4)))
    with pytest.raises(EvidenceError, match="features of another width"):
        leverage.of(np.zeros(3))
    with pytest.raises(EvidenceError, match="too few samples"):
        Leverage.fit(reference(np.zeros((0, 3))), 1.0)
    with pytest.raises(EvidenceError, match="ridge is out of range"):
        Leverage.fit(reference(np.eye(3)), 0.0)

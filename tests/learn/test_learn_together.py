"""Tests of `edgestill.learn.together`: one head from a fleet's sums, however its devices send them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, NotFoundError
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.privacy import Mechanism
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from edgestill.learn.together import gathered, head_file, head_of, in_coordinates, lifted

BACKBONE = Digest.of(b"backbone")
D, C = 5, 3


def sums(seed: int, n: int = 100) -> Statistics:
    """A device's."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, D)) + np.arange(D)
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)
    return empty.add(features, np.eye(C)[features[:, :C].argmax(axis=1)])


REFERENCE = sums(0, 300)


def hub(**kinds: Statistics) -> dict[Digest, bytes]:
    """What a hub would give for each backbone."""
    return {one.backbone: one.to_bytes("float64") for one in kinds.values()}


def asked(there: dict[Digest, bytes], backbone: Digest) -> bytes:
    """The hub's answer."""
    if backbone not in there:
        raise NotFoundError("none", where="hub", expected="some", got=backbone, fix="wait")
    return there[backbone]


def test_sums_of_both_kinds_are_one_sum() -> None:
    """Old devices send the features' own sums, new ones coordinates: together they are all samples."""
    coordinates = Coordinates.of(REFERENCE, D)
    there = hub(plain=sums(1), coded=coordinates.project(sums(2)))
    total, exact = gathered(REFERENCE, D, lambda one: asked(there, one)), sums(1) + sums(2)
    np.testing.assert_allclose(total.a, exact.a, rtol=1e-8, atol=1e-8)
    assert total.n == 200
    alone = gathered(REFERENCE, D, lambda one: asked(hub(coded=coordinates.project(sums(2))), one))
    assert alone.n == 100
    assert gathered(REFERENCE, 0, lambda one: asked(there, one)).n == 100


def test_nothing_is_told_as_nothing() -> None:
    """And what belongs to another backbone is refused, though the hub gave it."""
    with pytest.raises(NotFoundError, match="no statistics of this bundle"):
        gathered(REFERENCE, D, lambda one: asked({}, one))
    foreign = Statistics.empty(backbone=Digest.of(b"other"), window=0, classes=C, features=D)
    with pytest.raises(EvidenceError, match="another backbone"):
        gathered(REFERENCE, 0, lambda _: foreign.to_bytes())


def test_the_reference_goes_where_the_sums_are() -> None:
    """There and back."""
    assert in_coordinates(REFERENCE, 0) is REFERENCE
    there = in_coordinates(REFERENCE, D)
    np.testing.assert_allclose(lifted(there, REFERENCE, D).a, REFERENCE.a, rtol=1e-8, atol=1e-8)
    assert lifted(REFERENCE, REFERENCE, 0) is REFERENCE


def test_noisy_sums_have_a_head_and_clean_ones_theirs() -> None:
    """The ridge is the usual one, or as large as the noise."""
    clean = sums(1)
    plain = solve(clean, ridge=usual_ridge(clean))
    assert np.array_equal(head_of(clean).weight, plain.weight)
    mechanism = Mechanism(unit="sample", norm=3.0, multiplier=50.0)
    for seed in range(10):
        head = head_of(mechanism.noisy(clean, np.random.default_rng(seed)))
        assert np.isfinite(head.weight).all()
        assert np.abs(head.weight).max() < 3


def test_a_head_is_a_file_that_anybody_reads() -> None:
    """Two arrays, float32."""
    head = head_of(sums(1))
    with np.load(BytesIO(head_file(head))) as found:
        assert np.array_equal(found["weight"], head.weight)
        assert np.array_equal(found["bias"], head.bias)
        assert found["weight"].dtype == np.float32

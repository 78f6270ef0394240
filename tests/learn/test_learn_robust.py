"""Tests of `edgestill.learn.robust`: sums in which no single device decides."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, SettingError
from edgestill.learn import together
from edgestill.learn.encodings import triangle
from edgestill.learn.robust import Agreed, Rule, agree, distance, with_prior, within
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
D, C, K = 8, 3, 10

EMPTY = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D)


def samples(seed: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features `[n, D]` around a centre a class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    return 2 * np.random.default_rng(99).normal(size=(C, D))[labels] + rng.normal(size=(n, D)), labels


def sums(seed: int, n: int = 60, *, turned: int = 0, longer: float = 1.0) -> Statistics:
    """A device's statistics; every label moved on by `turned`."""
    features, labels = samples(seed, n)
    return EMPTY.add(longer * features, np.eye(C)[(labels + turned) % C])


@cache
def reference() -> Statistics:
    """The bundle's."""
    return sums(1_000, 300)


def fleet(hostile: Statistics | None = None) -> dict[str, Statistics]:
    """Ten devices, the last of them honest or not."""
    found = {f"d{place}": sums(place) for place in range(K)}
    if hostile is not None:
        found[f"d{K - 1}"] = hostile
    return found


def head_of(agreed: Agreed) -> Head:
    """The head of the weighed sum, the reference included."""
    both = with_prior(agreed.total, reference())
    return solve(both, ridge=usual_ridge(both))


def right(head: Head) -> float:
    """Accuracy on samples that nobody has."""
    features, labels = samples(5_000, 1_000)
    return float(((features @ head.weight + head.bias).argmax(axis=1) == labels).mean())


def one_point(longer: float = 1.0) -> Statistics:
    """The same input again and again, under a wrong name."""
    features, labels = samples(1_000, 300)
    point = longer * features[labels == 0].mean(axis=0)
    return EMPTY.add(np.tile(point, (60, 1)), np.eye(C)[np.ones(60, int)])


ATTACKS: dict[str, Callable[[], Statistics]] = {
    "wrong labels": lambda: sums(9, turned=1),
    "wrong labels, ten times the weight": lambda: sums(9, turned=1).scaled(10),
    "wrong labels, a million times the weight": lambda: sums(9, turned=1).scaled(1e6),
    "wrong labels of long features": lambda: sums(9, turned=1, longer=30),
    "one input under a wrong name": one_point,
    "one input under a wrong name, a hundred times": lambda: one_point().scaled(100),
    "one long input under a wrong name": lambda: one_point(30),
    "a negative sum, claimed to be noise": lambda: replace(sums(9), a=-1e3 * sums(9).a, noise=(1e6, 1e6)),
    "a thousand times as many samples": lambda: replace(sums(9, turned=2).scaled(1e3), n=60_000),
}


def test_honest_devices_that_are_alike_are_summed_as_they_are() -> None:
    """No weight is lowered: the sum is the plain one, to the last bit."""
    messages = {f"d{place}": sums(place, 200) for place in range(K)}
    agreed = agree(messages, reference())
    assert set(agreed.weights.values()) == {1.0}
    assert agreed.settled
    total = EMPTY
    for one in messages.values():
        total = total + one
    np.testing.assert_allclose(agreed.total.a, total.a, rtol=1e-12)
    np.testing.assert_allclose(agreed.total.b, total.b, rtol=1e-12)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_one_of_ten_devices(name: str) -> None:
    """The shared head loses two points of accuracy at most, and its scores move by at most 0.2 (root mean square)."""
    honest, attacked = (head_of(agree(fleet(one), reference())) for one in (None, ATTACKS[name]()))
    assert right(honest) > 0.9
    assert right(attacked) > right(honest) - 0.02
    away = np.vstack([attacked.weight - honest.weight, attacked.bias - honest.bias])
    moved = np.trace(away.T @ (reference().matrix / reference().weight) @ away)
    assert np.sqrt(moved) < 0.2


@pytest.mark.parametrize(
    "name", ["wrong labels, a million times the weight", "wrong labels of long features"]
)
def test_the_plain_sum_is_lost_to_the_same_attacks(name: str) -> None:
    """So the tests above can fail: without weights one device decides."""
    total = EMPTY
    for one in fleet(ATTACKS[name]()).values():
        total = total + one
    assert right(solve(total, ridge=usual_ridge(total))) < 0.6


@pytest.mark.parametrize("name", ATTACKS)
def test_the_influence_that_is_told_is_what_taking_the_device_out_does(name: str) -> None:
    """Solved anew without each device, the others weighed as they are: no head is further away than `largest`."""
    messages, rule = fleet(ATTACKS[name]()), Rule()
    agreed = agree(messages, reference(), rule)
    whole = with_prior(agreed.total, reference())
    ridge = usual_ridge(whole) * np.eye(D + 1)
    head = np.linalg.solve(whole.matrix + ridge, whole.b)
    metric = reference().matrix / reference().weight
    for device, one in messages.items():
        mine = one.scaled(agreed.weights[device])
        other = np.linalg.solve(whole.matrix - mine.matrix + ridge, whole.b - mine.b)
        moved = np.sqrt(np.trace((head - other).T @ metric @ (head - other)))
        assert moved == pytest.approx(agreed.influences[device], rel=1e-6, abs=1e-9)
        assert moved <= agreed.largest * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_attack_correlations_that_no_matrix_has(seed: int) -> None:
    """As codes let them be told; told `largest` stays small and true, and the head where it was."""
    rng = np.random.default_rng(seed)
    liar = sums(9)
    roots = np.sqrt(liar.matrix.diagonal())
    signs = np.where(rng.random((D + 1, D + 1)) < 0.5, -1.0, 1.0)
    signs = np.triu(signs, 1) + np.triu(signs, 1).T + np.eye(D + 1)
    signs[:, -1] = signs[-1] = liar.matrix[-1] / (roots * roots[-1])
    messages = fleet(replace(liar, a=triangle(signs * np.outer(roots, roots))).scaled(10))
    agreed, honest = agree(messages, reference()), agree(fleet(), reference())
    assert agreed.largest < 3 * honest.largest
    head, usual = together.head_of(with_prior(agreed.total, reference())), head_of(honest)
    away = np.vstack([head.weight - usual.weight, head.bias - usual.bias])
    assert np.sqrt(np.trace(away.T @ (reference().matrix / reference().weight) @ away)) < 0.2


def test_attack_a_negative_weight_claimed_to_be_noise_leaves_the_reference_as_it_is() -> None:
    """Noise can make a total weight negative: the reference then counts for nothing, and nothing fails."""
    total = replace(sums(0), a=-sums(0).a, noise=(1e3, 1e3))
    assert with_prior(total, reference()).weight == total.weight


@given(st.permutations(range(K)))
def test_the_order_of_devices_does_not_matter(order: list[int]) -> None:
    """Weights are each device's own, whoever comes first."""
    messages = fleet(ATTACKS["one input under a wrong name"]())
    first = agree(messages, reference())
    shuffled = agree({f"d{place}": messages[f"d{place}"] for place in order}, reference())
    for device, weight in first.weights.items():
        assert shuffled.weights[device] == pytest.approx(weight, rel=1e-6)
    np.testing.assert_allclose(first.total.a, shuffled.total.a, rtol=1e-6, atol=1e-6)


def test_size_is_not_bought_by_weight_or_length() -> None:
    """Whatever factor a message carries, it ends with the same share."""
    ends = []
    for factor in (10.0, 1e3, 1e6):
        agreed = agree(fleet(sums(9, turned=1).scaled(factor)), reference())
        ends.append(factor * agreed.weights["d9"])
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-6)


def test_a_large_fleet_is_weighed_to_first_order() -> None:
    """Among 600 devices ten liars with a thousand times the weight end within their share."""
    messages = {f"d{place}": sums(place, 20) for place in range(590)}
    messages |= {f"h{place}": sums(place, 20, turned=1).scaled(1e3) for place in range(10)}
    agreed = agree(messages, reference())
    assert max(agreed.weights[f"h{place}"] for place in range(10)) < 0.01
    assert right(head_of(agreed)) > 0.9


def test_a_lone_device_counts() -> None:
    """It is its own median."""
    agreed = agree({"d0": sums(0)}, reference())
    assert agreed.weights == {"d0": 1.0}


def test_nothing_has_no_sum() -> None:
    """No messages, or a reference of nothing."""
    with pytest.raises(EvidenceError, match="nothing to sum"):
        agree({}, reference())
    with pytest.raises(EvidenceError, match="too few samples"):
        agree(fleet(), EMPTY)


def test_messages_of_another_kind_are_refused() -> None:
    """They are no part of any sum."""
    foreign = Statistics.empty(backbone=Digest.of(b"other"), window=0, classes=C, features=D)
    with pytest.raises(EvidenceError, match="different kinds do not add"):
        agree({"d0": sums(0), "d1": foreign}, reference())


# A head that stays near


@given(st.sampled_from(sorted(ATTACKS)), st.floats(0.01, 0.5))
def test_a_head_stays_within_its_radius_whoever_lies(name: str, radius: float) -> None:
    """Nine liars of ten, and no weights at all: the head is where the publisher's reference allows it to be."""
    total = sums(0)
    for _ in range(9):
        total = total + ATTACKS[name]()
    head = within(total, reference(), radius)
    assert distance(head, reference()) <= radius * (1 + 1e-4)


def test_a_head_that_is_near_is_left_alone() -> None:
    """Within a wide radius it is the plain solution."""
    total = sums(0, 500)
    head, plain = within(total, reference(), 5.0), solve(total, ridge=usual_ridge(total))
    assert np.array_equal(head.weight, plain.weight)
    assert distance(plain, reference()) == pytest.approx(distance(head, reference()))


def test_a_radius_that_is_none_is_refused() -> None:
    """It must be positive."""
    with pytest.raises(SettingError, match="a radius is out of range"):
        within(sums(0), reference(), 0.0)


@pytest.mark.parametrize(
    "change", [{"size": 0.5}, {"influence": 0.0}, {"prior": 0.0}, {"ridge": -1.0}, {"rounds": 0}]
)
def test_a_rule_out_of_range_is_refused(change: dict[str, Any]) -> None:
    """Each value by its name."""
    with pytest.raises(SettingError, match=f"robust: {next(iter(change))}"):
        Rule(**change)


def test_the_influence_of_many_devices_is_never_told_too_small() -> None:
    """Of 520 devices each is told at least what taking it out does, and the largest is not far above that."""
    messages = {f"d{place}": sums(place, 20) for place in range(515)}
    messages |= {f"h{place}": sums(place, 20, turned=1).scaled(50) for place in range(5)}
    agreed = agree(messages, reference())
    whole = with_prior(agreed.total, reference())
    ridge = usual_ridge(whole) * np.eye(D + 1)
    head = np.linalg.solve(whole.matrix + ridge, whole.b)
    metric = reference().matrix / reference().weight
    exact = {}
    for device, one in messages.items():
        mine = one.scaled(agreed.weights[device])
        other = np.linalg.solve(whole.matrix - mine.matrix + ridge, whole.b - mine.b)
        exact[device] = np.sqrt(np.trace((head - other).T @ metric @ (head - other)))
        assert exact[device] <= agreed.influences[device] * (1 + 1e-6)
    assert agreed.largest <= 1.2 * max(exact.values())

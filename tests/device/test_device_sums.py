"""Samples that become sums: nothing is lost or counted twice, order does not matter, forgetting is whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.device.sums import Sample, Sums
from edgestill.learn.statistics import Statistics

D, C = 3, 2
BACKBONE = Digest.of(b"backbone")
LIKE = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D)


def sample(number: int, window: int = 0) -> Sample:
    """A sample that is unlike any other."""
    rng = np.random.default_rng(number)
    return Sample(
        features=rng.normal(size=D).astype(np.float32),
        target=np.eye(C, dtype=np.float32)[number % C],
        weight=1.0 + number % 3,
        named=0,
        audit=False,
        seen=number,
        window=window,
    )


def central(chosen: list[Sample]) -> Statistics:
    """The sum of these samples, in one go."""
    return LIKE.add(
        np.stack([one.features for one in chosen]),
        np.stack([one.target for one in chosen]),
        np.array([one.weight for one in chosen]),
    )


@given(st.integers(1, 60), st.integers(2, 20), st.integers(0, 3))
def test_young_or_summed_the_total_is_that_of_all_samples(n: int, young: int, windows: int) -> None:
    """Whatever has aged, and however many windows there are."""
    chosen = [sample(number, number % (windows + 1)) for number in range(n)]
    sums = Sums(LIKE, young=young, windows=10)
    for one in chosen:
        sums.add(one)
    total, expected = sums.total(), central(chosen)
    np.testing.assert_allclose(total.a, expected.a, atol=1e-9)
    np.testing.assert_allclose(total.b, expected.b, atol=1e-9)
    assert (total.n, sums.older_than(0)) == (n, n)


@given(st.integers(0, 60), st.integers(0, 8))
def test_the_newest_are_left_out_of_the_total(n: int, gap: int) -> None:
    """A gap of so many samples, as long as that many are young."""
    sums = Sums(LIKE, young=16, windows=10)
    for number in range(n):
        sums.add(sample(number))
    assert sums.total(gap=gap).n == sums.older_than(gap) == max(0, n - gap)


def test_no_more_samples_are_kept_one_by_one_than_agreed() -> None:
    """A device holds few inputs' features, however long it runs."""
    sums = Sums(LIKE, young=16, windows=10)
    for number in range(200):
        sums.add(sample(number))
        assert len(sums._young) <= 16


def test_forgetting_drops_whole_windows() -> None:
    """Young samples and sums alike."""
    sums = Sums(LIKE, young=4, windows=2)
    for window in range(4):
        for number in range(5):
            sums.add(sample(10 * window + number, window))
    sums.forget(4)
    assert sums.total().n == 5
    assert (sums.of(2).n, sums.of(3).n) == (0, 5)


def test_beginning_anew_keeps_only_what_is_chosen() -> None:
    """Sums cannot be told apart, so all of them go."""
    sums = Sums(LIKE, young=8, windows=7)
    for number in range(30):
        sums.add(sample(number))
    sums.begin_anew(lambda young: [one for one in young if one.seen >= 27])
    np.testing.assert_allclose(sums.total().b, central([sample(number) for number in (27, 28, 29)]).b)
    assert sums.older_than(1) == 2


def test_files_hold_everything_and_are_recalled() -> None:
    """Young samples too; a second recall of the same files changes nothing."""
    sums, again = Sums(LIKE, young=8, windows=7), Sums(LIKE, young=8, windows=7)
    for number in range(21):
        sums.add(sample(number, number // 11))
    for _ in range(2):
        again.recall(sums.to_files())
    np.testing.assert_allclose(again.total().a, sums.total().a, rtol=1e-6)
    assert (again.older_than(0), again.of(1).n) == (21, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"torn",
        Statistics.empty(backbone=Digest.of(b"other"), window=0, classes=C, features=D).to_bytes(),
        Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D + 1).to_bytes(),
    ],
    ids=["nothing", "torn", "another backbone", "another width"],
)
def test_attack_files_of_something_else_are_passed_over(data: bytes) -> None:
    """And what belongs here is taken up beside them."""
    sums, again = Sums(LIKE, young=8, windows=7), Sums(LIKE, young=8, windows=7)
    sums.add(sample(1))
    again.recall([data, *sums.to_files()])
    assert again.total().n == 1

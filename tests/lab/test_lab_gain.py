"""When a difference may be called one: intervals worked out by hand, and noise that stays noise."""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.errors import DataError, SettingError
from edgestill.lab.gain import Gain, gain_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = float("nan")


def shifted(*shifts: float, samples: int = 4) -> NDArray[np.float64]:
    """Scores `[seeds, samples]`, all alike within a seed."""
    return np.repeat(np.array(shifts)[:, None], samples, axis=1)


def test_the_interval_over_seeds_is_students_t() -> None:
    """Of 2, 4 and 6 points: mean 4, deviation 2, and 4.303 * 2 / sqrt(3) either side."""
    gain = gain_of(shifted(0.02, 0.04, 0.06), shifted(0.0, 0.0, 0.0))
    assert (gain.value, gain.spread) == pytest.approx((0.04, 0.02))
    half = 4.303 * 0.02 / sqrt(3)
    assert gain.seeds == pytest.approx((0.04 - half, 0.04 + half), rel=1e-3)
    assert gain.samples == pytest.approx((0.04, 0.04))
    assert gain.verdict == "no difference shown"


def test_two_seeds_have_the_widest_interval() -> None:
    """One degree of freedom: 12.706 * sqrt(0.0002) / sqrt(2)."""
    gain = gain_of(shifted(0.51, 0.53), shifted(0.5, 0.5))
    assert gain.seeds == pytest.approx((0.02 - 0.12706, 0.02 + 0.12706), rel=1e-3)


def test_the_interval_over_samples_is_students_t_too() -> None:
    """Of two samples, one won and one not: 12.706 * sqrt(1/2) / sqrt(2) either side of 1/2."""
    gain = gain_of(np.array([[1.0, 0.0]] * 3), np.zeros((3, 2)))
    assert gain.value == 0.5
    assert gain.samples == pytest.approx((0.5 - 6.353, 0.5 + 6.353), rel=1e-3)


def test_samples_of_one_group_stand_or_fall_together() -> None:
    """A hundred windows of two people are two, not a hundred."""
    won = np.repeat([1.0, 0.0], 50)[None].repeat(3, 0)
    groups = np.repeat([7, 9], 50)
    two = gain_of(won, np.zeros((3, 100)), groups=groups).samples
    assert two == pytest.approx((0.5 - 6.353, 0.5 + 6.353), rel=1e-3)
    alone = gain_of(won, np.zeros((3, 100))).samples
    assert alone[0] > 0.35
    assert alone[1] < 0.65


def test_a_single_group_has_no_interval_and_allows_no_verdict() -> None:
    """Whatever the seeds say."""
    gain = gain_of(shifted(0.5, 0.5, 0.5), shifted(0.0, 0.0, 0.0), groups=np.zeros(4, np.int64))
    assert (gain.samples, gain.verdict) == ((-inf, inf), "no difference shown")


def test_a_difference_that_both_intervals_see_is_told_with_its_sign() -> None:
    """Up helps, down hurts."""
    assert gain_of(shifted(0.5, 0.51, 0.52), shifted(0.0, 0.0, 0.0)).verdict == "helps"
    assert gain_of(shifted(0.0, 0.0, 0.0), shifted(0.5, 0.51, 0.52)).verdict == "hurts"


@pytest.mark.parametrize(
    ("seeds", "samples"), [((-0.1, 0.2), (0.1, 0.2)), ((0.1, 0.2), (-0.1, 0.2)), ((-0.2, -0.1), (0.1, 0.2))]
)
def test_one_interval_alone_is_not_enough(seeds: tuple[float, float], samples: tuple[float, float]) -> None:
    """Nor two that disagree."""
    assert Gain(value=0.1, spread=0.0, seeds=seeds, samples=samples).verdict == "no difference shown"


def test_equal_students_are_no_difference() -> None:
    """Not a hair of it: zero is not above zero."""
    same = np.random.default_rng(0).random((3, 9))
    gain = gain_of(same, same)
    assert (gain.value, gain.verdict) == (0.0, "no difference shown")


def test_samples_without_a_score_do_not_count() -> None:
    """NaN in any seed leaves the sample out of both intervals; nothing left is refused."""
    ours, theirs = np.array([[1.0, NONE, 0.0], [1.0, 1.0, 1.0]]), np.zeros((2, 3))
    gain = gain_of(ours, theirs, groups=np.array([1, 2, 3]))
    assert gain.value == pytest.approx(0.75)
    with pytest.raises(DataError, match="nothing to measure"):
        gain_of(np.full((2, 3), NONE), theirs)


def test_one_seed_is_refused() -> None:
    """It has no spread, so nothing could be said."""
    with pytest.raises(SettingError, match="one seed has no spread"):
        gain_of(np.ones((1, 9)), np.zeros((1, 9)))


def test_many_seeds_are_judged_by_their_own_quantile() -> None:
    """Thirty seeds have 29 degrees of freedom: 2.045."""
    shifts = np.linspace(0.01, 0.03, 30)
    gain = gain_of(shifted(*shifts), shifted(*([0.0] * 30)))
    assert gain.seeds[1] - gain.value == pytest.approx(2.045 * shifts.std(ddof=1) / sqrt(30), rel=1e-3)


WORLDS = ("everything varies", "only seeds vary", "only samples vary")


@pytest.mark.parametrize("world", WORLDS)
def test_noise_is_not_called_a_gain(world: str) -> None:
    """Where neither way is better, a difference is called in 5 % of cases at most, within a binomial error of 2.33 sigma."""
    random, runs, seeds, samples = np.random.default_rng(5), 400, 3, 80
    called = 0
    for _ in range(runs):
        ours, theirs = pair_of(world, random, seeds, samples)
        called += gain_of(ours, theirs).verdict != "no difference shown"
    assert called / runs <= 0.05 + 2.33 * sqrt(0.05 * 0.95 / runs)


def pair_of(
    world: str, random: np.random.Generator, seeds: int, samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right or wrong answers of two kinds of students that are equally good."""
    hard = random.uniform(0.5, 0.95, samples)
    shape = (2, seeds, samples)
    if world == "everything varies":
        quality = random.normal(0, 0.05, (2, seeds, 1))
        return tuple((random.random(shape) < hard + quality).astype(float))
    if world == "only seeds vary":
        return tuple(random.normal(0.8, 0.05, (2, seeds, 1)).repeat(samples, 2))
    once = random.random((2, 1, samples)) < hard
    return tuple(once.repeat(seeds, 1).astype(float))


def test_a_gain_well_above_the_noise_is_found() -> None:
    """Caution is not blindness: five seeds, ten points, four hundred samples."""
    random = np.random.default_rng(6)
    found = [
        gain_of(
            (random.random((5, 400)) < 0.85).astype(float), (random.random((5, 400)) < 0.75).astype(float)
        )
        for _ in range(40)
    ]
    assert sum(gain.verdict == "helps" for gain in found) >= 36

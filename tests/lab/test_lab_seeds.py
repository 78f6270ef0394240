"""Seeds belong to samples: the numbers are those of SplitMix64, and depend on nothing but the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestill.lab.seeds import integers, normal, uniform, view_seeds

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
KNOWN_SEEDS = [595752380, 1109241648, 2468920926]
KNOWN_INTEGERS = [[654, 231, 438], [859, 144, 913]]
KNOWN_NORMAL = [[-0.495749, 1.686232, 0.349925, 0.527884, 1.814535]]
SEEDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20)


def splitmix(state: int, count: int) -> list[int]:
    """The generator in Python's own whole numbers, as published."""
    found = []
    for _ in range(count):
        state = (state + GOLDEN) & MASK
        word = state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(word ^ (word >> 31))
    return found


def words(seed: int, count: int, stream: int) -> list[int]:
    """What a seed's stream must be: SplitMix64 from a start that is itself one of its outputs."""
    start = splitmix(seed << 32 | stream, 1)[0]
    return splitmix((start + GOLDEN) & MASK, count)


def array(seeds: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    """As an array of seeds."""
    return np.array(seeds, np.uint32)


def test_the_reference_is_splitmix64() -> None:
    """The test's own generator gives the published first outputs of the states 0 and 1234567."""
    assert splitmix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]


@given(SEEDS, st.integers(0, 5))
def test_uniform_numbers_are_the_top_24_bits_of_the_words(seeds: list[int], stream: int) -> None:
    """Each number is exactly a multiple of 2^-24 in [0, 1), worked out anew in whole numbers."""
    wanted = [[(word >> 40) / 2**24 for word in words(seed, 3, stream)] for seed in seeds]
    assert uniform(array(seeds), 3, stream=stream).tolist() == wanted


@given(SEEDS, st.integers(1, 2**32), st.integers(0, 3))
def test_whole_numbers_are_remainders_of_the_words(seeds: list[int], below: int, stream: int) -> None:
    """Exactly, for every bound up to 2^32."""
    wanted = [[word % below for word in words(seed, 2, stream)] for seed in seeds]
    assert integers(array(seeds), below, 2, stream=stream).tolist() == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1))
def test_a_view_seed_is_a_hash_of_run_view_and_place(run: int, view: int, places: list[int]) -> None:
    """The upper half of three rounds of SplitMix64, whatever batch the sample stands in."""
    start = splitmix((splitmix(run, 1)[0] + view) & MASK, 1)[0]
    wanted = [splitmix((start + place) & MASK, 1)[0] >> 32 for place in places]
    found = view_seeds(run, view, np.array(places, np.int64))
    assert found.dtype == np.uint32
    assert found.tolist() == wanted


def test_known_seeds_stay_as_they_are() -> None:
    """A change of the formula would silently part every cache from its views; these values must never change."""
    assert view_seeds(0, 0, np.arange(3)).tolist() == KNOWN_SEEDS
    assert integers(array([0, 1]), 1000, 3).tolist() == KNOWN_INTEGERS
    assert normal(array([0]), 5) == pytest.approx(np.array(KNOWN_NORMAL), abs=1e-6)


@given(SEEDS, st.integers(1, 9), st.integers(0, 3))
def test_a_sample_does_not_know_its_neighbours(seeds: list[int], count: int, stream: int) -> None:
    """Alone, in another order, or with fewer numbers wanted: bit for bit the same."""
    order = np.random.default_rng(len(seeds)).permutation(len(seeds))
    for draw in (uniform, normal, lambda s, c, stream: integers(s, 10, c, stream=stream)):
        whole = draw(array(seeds), count, stream=stream)
        assert np.array_equal(draw(array(seeds)[order], count, stream=stream), whole[order])
        assert np.array_equal(draw(array(seeds[:1]), count, stream=stream), whole[:1])
        assert np.array_equal(draw(array(seeds), 1, stream=stream), whole[:, :1])


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    """Mean, variance and ten equal bins of 200,000 numbers are what they should be."""
    found = uniform(view_seeds(1, 0, np.arange(200)), 1000).ravel()
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.003)
    assert found.var() == pytest.approx(1 / 12, abs=0.001)
    assert np.bincount((found * 10).astype(int), minlength=10) == pytest.approx(20_000, abs=600)


def test_normal_numbers_have_the_normal_moments_and_tails() -> None:
    """Mean 0, variance 1, no skew, kurtosis 3, and the right share beyond one, two and three deviations."""
    found = normal(view_seeds(2, 0, np.arange(400)), 1000).ravel().astype(np.float64)
    assert found.mean() == pytest.approx(0, abs=0.006)
    assert found.var() == pytest.approx(1, abs=0.01)
    assert (found**3).mean() == pytest.approx(0, abs=0.03)
    assert (found**4).mean() == pytest.approx(3, abs=0.06)
    for deviations, share in ((1, 0.31731), (2, 0.04550), (3, 0.00270)):
        assert (np.abs(found) > deviations).mean() == pytest.approx(share, rel=0.12)


def test_normal_numbers_are_quantiles() -> None:
    """The numbers are those that torch's inverse of the normal distribution gives at the middles of 2^16 shares."""
    found = np.unique(normal(view_seeds(3, 0, np.arange(2000)), 200))
    shares = torch.from_numpy((np.arange(2**16) + 0.5) / 2**16)
    wanted = torch.special.ndtri(shares).numpy()
    nearest = np.abs(wanted[np.searchsorted(wanted, found).clip(0, 2**16 - 1)] - found)
    before = np.abs(wanted[(np.searchsorted(wanted, found) - 1).clip(0)] - found)
    assert len(found) > 60_000
    assert np.minimum(nearest, before).max() < 1e-6


def test_streams_views_runs_and_places_have_nothing_to_do_with_each_other() -> None:
    """Numbers of two streams, and seeds of two views or runs, are uncorrelated, and few seeds meet."""
    seeds = view_seeds(4, 0, np.arange(50_000))
    one, other = (uniform(seeds, 1, stream=stream).ravel() for stream in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    for neighbour in (
        view_seeds(4, 1, np.arange(50_000)),
        view_seeds(5, 0, np.arange(50_000)),
        np.roll(seeds, 1),
    ):
        assert abs(np.corrcoef(seeds, neighbour)[0, 1]) < 0.02
    assert len(np.unique(seeds)) > 49_990


def test_mirrored_bits_of_one_word_are_uncorrelated() -> None:
    """The four normal numbers that share a word do not know of each other."""
    found = normal(view_seeds(6, 0, np.arange(50_000)), 4)
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.02


def test_a_run_that_is_no_seed_is_refused() -> None:
    """A negative run is an error, not another run's seeds."""
    with pytest.raises(OverflowError):
        view_seeds(-1, 0, np.arange(3))

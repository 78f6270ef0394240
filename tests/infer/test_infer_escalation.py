"""What asking about the least sure inputs gains, beside the oracle and chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError, SettingError
from edgestill.infer.escalation import FIRST, best_measure, compare_measures, gained, gains, oracle

samples = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.sampled_from([-1, 0, 1])), min_size=1, max_size=60
)


def test_a_gain_is_what_asking_changes() -> None:
    """1 where it mends, -1 where it spoils, otherwise 0."""
    student, fused = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert gains(student, fused).tolist() == [0, -1, 1, 0]


def test_the_least_sure_are_asked_about_first() -> None:
    """A share of a half asks about the two of four that are least sure."""
    sure, gain = np.array([0.9, 0.2, 0.8, 0.1]), np.array([1, 1, 0, -1])
    assert gained(sure, gain, 0.25) == -0.25
    assert gained(sure, gain, 0.5) == 0
    assert gained(sure, gain, 1.0) == 0.25


def test_of_equally_sure_inputs_each_is_asked_as_often() -> None:
    """Where all confidences are the same, a share gains its part of everything: no order of the samples helps."""
    gain = np.array([1, 1, 0, 0, 0])
    assert gained(np.full(5, 0.4), gain, 0.5) == pytest.approx(0.2)


@given(samples, st.floats(0, 1))
def test_no_order_beats_the_oracle(pairs: list[tuple[float, int]], share: float) -> None:
    """Whatever the confidences, asking about a share gains at most what the oracle gains with it."""
    sure, gain = (np.array(part) for part in zip(*pairs, strict=True))
    assert gained(sure, gain, share) <= oracle(gain, share) + 1e-9


@given(samples)
def test_asking_about_everything_gains_everything_and_about_nothing_nothing(
    pairs: list[tuple[float, int]],
) -> None:
    """The ends of the curve do not depend on the confidences."""
    sure, gain = (np.array(part) for part in zip(*pairs, strict=True))
    assert gained(sure, gain, 0.0) == 0
    assert gained(sure, gain, 1.0) == pytest.approx(gain.mean())


def world(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """2,000 samples of which a fifth is worth asking about; one measure knows half of that, one knows nothing."""
    random = np.random.default_rng(seed)
    gain = (random.random(2_000) < 0.2).astype(np.int64)
    noise = random.random(2_000)
    knows = np.where((gain == 1) & (random.random(2_000) < 0.5), 0.1 * noise, noise)
    return {"max_probability": noise, "margin": knows, "entropy": random.random(2_000)}, gain


def test_the_measure_that_knows_more_is_best() -> None:
    """It gains more than twice as much, by many standard errors."""
    confidences, gain = world()
    compared = compare_measures(confidences, gain, 0.2)  # type: ignore[arg-type]  # the names are measures
    assert best_measure(compared) == "margin"
    assert compared["margin"].gained > 2 * compared[FIRST].gained
    assert compared["margin"].ahead > 4 * compared["margin"].error
    assert compared[FIRST].ahead == 0


def test_few_units_show_nothing() -> None:
    """The same samples, said to be of three people, make no measure better."""
    confidences, gain = world()
    groups = np.arange(2_000) % 3
    confidences["margin"] = np.where(groups == 0, confidences["margin"], 1 - confidences["margin"])
    compared = compare_measures(confidences, gain, 0.2, groups=groups)  # type: ignore[arg-type]  # as above
    assert best_measure(compared) == FIRST


@pytest.mark.parametrize(("groups", "chosen"), [(4, FIRST), (9, FIRST), (40, "margin")])
def test_a_handful_of_people_chooses_nothing(groups: int, chosen: str) -> None:
    """A measure that is better on every one of a few people is not yet taken; on many it is."""
    confidences, gain = world()
    compared = compare_measures(confidences, gain, 0.2, groups=np.arange(2_000) % groups)  # type: ignore[arg-type]  # as above
    assert compared["margin"].ahead > compared["margin"].error
    assert best_measure(compared) == chosen


def test_the_error_is_the_spread_over_fresh_samples() -> None:
    """Over 200 worlds the standard error that is told is about that which is found."""
    found = [compare_measures(*world(seed), 0.2)["margin"] for seed in range(200)]  # type: ignore[arg-type]  # as above
    spread = np.std([one.ahead for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.2)


def test_a_share_that_is_none_is_refused() -> None:
    """Below 0 or above 1."""
    with pytest.raises(SettingError, match="share"):
        gained(np.array([0.5]), np.array([1]), 1.2)


@pytest.mark.parametrize("sizes", [(0, 0), (2, 3)])
def test_arrays_that_do_not_fit_are_refused(sizes: tuple[int, int]) -> None:
    """None at all, or not one of each a sample."""
    with pytest.raises(DataError, match="confidences and gains"):
        gained(np.zeros(sizes[0]), np.zeros(sizes[1], dtype=np.int64), 0.2)


def test_equally_sure_inputs_are_compared_as_they_are_asked_about() -> None:
    """Where most inputs tie, a measure gains what asking about a part of them gains, and not what their middle would."""
    random = np.random.default_rng(3)
    gain = (random.random(1_000) < 0.3).astype(np.int64)
    tied = np.where(random.random(1_000) < 0.7, 0.2, 0.9)
    confidences = {"max_probability": random.random(1_000), "margin": tied}
    compared = compare_measures(confidences, gain, 0.2)  # type: ignore[arg-type]  # as above
    assert compared["margin"].gained == pytest.approx(gained(tied, gain, 0.2), abs=0.005)

"""Figures with what they rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError
from edgestill.lab.measure import Figure, accuracy, mean_figure, recovered_share, run_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def array(*values: float) -> NDArray[np.float64]:
    """Floats."""
    return np.array(values, dtype=np.float64)


def test_accuracy_is_the_share_at_the_label() -> None:
    """Three of four largest scores are at their labels."""
    scores = np.array([[2, 1, 0], [0, 2, 1], [0, 1, 2], [2, 1, 0]], dtype=np.float32)
    found = accuracy(scores, np.array([0, 1, 2, 2]), np.array([1, 1, 2, 2]))
    assert (found.value, found.n, found.groups) == (0.75, 4, 2)


def test_the_interval_comes_from_groups_not_samples() -> None:
    """Two groups, one all right and one all wrong: the bootstrap's ends are 0 and 1, however many samples."""
    found = mean_figure(array(*[1] * 500, *[0] * 500), np.repeat([0, 1], 500))
    assert found == Figure(value=0.5, n=1000, groups=2, low=0.0, high=1.0)


def test_groups_of_the_same_mean_have_a_narrow_interval() -> None:
    """Where every group says the same, resampling them changes nothing."""
    found = mean_figure(array(1, 0, 1, 0, 1, 0), np.array([4, 4, 9, 9, 7, 7]))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_groups_count_by_their_size() -> None:
    """The value is the mean over samples: 3 right of 3 and 0 of 1 are 75 %; draws mix whole groups."""
    found = mean_figure(array(1, 1, 1, 0), np.array([0, 0, 0, 1]))
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)


def test_one_group_says_nothing_about_others() -> None:
    """With a single group the interval is all of [0, 1]."""
    found = mean_figure(array(1, 1, 1), np.array([5, 5, 5]))
    assert (found.value, found.groups, found.low, found.high) == (1.0, 1, 0.0, 1.0)
    assert str(found) == "1.000 [0.000, 1.000]"


def test_nothing_cannot_be_measured() -> None:
    """No values, no figure."""
    with pytest.raises(
        DataError, match=r"\[data-unusable\] nothing to measure; at values; expected at least one value"
    ):
        mean_figure(array(), np.array([], dtype=np.int64))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40), st.integers(0, 99))
def test_an_interval_of_shares_lies_in_0_to_1_and_is_repeatable(
    rows: list[tuple[bool, int]], seed: int
) -> None:
    """Its ends are in order, and the same seed draws the same ones."""
    values, groups = array(*[right for right, _ in rows]), np.array([group for _, group in rows])
    found = mean_figure(values, groups, seed=seed)
    assert 0 <= found.low <= found.high <= 1
    assert found == mean_figure(values, groups, seed=seed)


def test_the_recovered_share_is_won_over_lost() -> None:
    """From 100 % to 50 % and back to 75 % is half of the loss; both groups alike, so the interval is that too."""
    found = recovered_share(
        array(1, 1, 1, 1),
        array(1, 0, 1, 0, 1, 0, 1, 0),
        array(1, 1, 1, 0, 1, 1, 1, 0),
        groups_before=np.array([0, 0, 1, 1]),
        groups_after=np.repeat([0, 1], 4),
    )
    assert found == Figure(value=0.5, n=8, groups=2, low=0.5, high=0.5)


def test_more_than_was_lost_and_less_than_nothing_can_come_back() -> None:
    """A better model recovers more than all, a worse one a negative share."""
    groups = np.array([0, 1])

    def share(shifted: float, after: float, before: float = 1.0) -> float:
        means = array(before, before), array(shifted, shifted), array(after, after)
        found = recovered_share(*means, groups_before=groups, groups_after=groups)
        assert found is not None
        return found.value

    assert share(0.4, 1.0, before=0.8) == pytest.approx(1.5)
    assert share(0.5, 0.0) == pytest.approx(-1)


def test_one_group_gives_a_share_without_an_interval() -> None:
    """The ends are infinite: one person says nothing about others, and a share is not bounded."""
    one = np.array([0, 0])
    found = recovered_share(array(1, 1), array(0, 0), array(1, 0), groups_before=one, groups_after=one)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, float("-inf"), float("inf"))


def test_where_nothing_was_lost_there_is_no_share() -> None:
    """A change that did no harm leaves nothing to recover."""
    groups = np.array([0, 1])
    same = recovered_share(array(1, 0), array(1, 1), array(1, 1), groups_before=groups, groups_after=groups)
    assert same is None


def test_other_groups_after_the_change_are_refused() -> None:
    """A loss is measured on the same people."""
    with pytest.raises(
        DataError, match=r"the same groups before and after; at groups; expected \[0 1\]; got \[0 2\]"
    ):
        recovered_share(
            array(1, 1),
            array(0, 0),
            array(1, 1),
            groups_before=np.array([0, 1]),
            groups_after=np.array([0, 2]),
        )


class Doubling:
    """An engine that gives back what it is given; it counts its calls."""

    inputs: Mapping[str, Any] = {}
    outputs: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Logits and features from the input."""
        x = inputs["input"]
        self.sizes.append(len(x))
        return {"logits": x.astype(np.float64) * 2, "features": x[:, :1]}


def test_a_model_is_run_in_batches_and_in_order() -> None:
    """Six hundred inputs go in three batches; the answers come back in order, as float32."""
    engine, x = Doubling(), np.arange(1200, dtype=np.float32).reshape(600, 2)
    logits, features = run_model(engine, x)
    assert engine.sizes == [256, 256, 88]
    assert np.array_equal(logits, x * 2)
    assert np.array_equal(features, x[:, :1])
    assert logits.dtype == features.dtype == np.float32

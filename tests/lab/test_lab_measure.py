"""Figures with what they rest on."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError
from edgestill.lab.measure import (
    Figure,
    accuracy,
    in_batches,
    mean_figure,
    recovered_share,
    run_model,
    share_figure,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


def array(*values: float) -> NDArray[np.float64]:
    """Floats."""
    return np.array(values, dtype=np.float64)


def test_accuracy_is_the_share_at_the_label() -> None:
    """Three of four largest scores are at their labels."""
    scores = np.array([[2, 1, 0], [0, 2, 1], [0, 1, 2], [2, 1, 0]], dtype=np.float32)
    found = accuracy(scores, np.array([0, 1, 2, 2]), np.array([1, 1, 2, 2]))
    assert (found.value, found.n, found.groups) == (0.75, 4, 2)


@given(
    rows=st.integers(0, 700),
    width=st.sampled_from([0, 1, 4_000, 150_528, 2_000_000]),
    most=st.integers(1, 256),
)
def test_batches_hold_all_rows_in_order_and_about_a_megabyte(rows: int, width: int, most: int) -> None:
    """None is lost or doubled; a batch holds no more bytes than that unless it is one row, and no more rows than asked for."""
    inputs = np.broadcast_to(np.arange(rows, dtype=np.uint32)[:, None], (rows, width)).astype(
        np.uint32, copy=False
    )
    batches = list(in_batches(inputs, most=most))
    assert sum(map(len, batches)) == rows
    assert all(1 <= len(one) <= most and (len(one) == 1 or one.nbytes <= 1 << 20) for one in batches)
    if width:
        assert [int(row) for one in batches for row in one[:, 0]] == list(range(rows))
    larger = len(batches) - 1
    assert all(len(one) == len(batches[0]) for one in batches[:larger])


def test_independent_hits_have_clopper_and_pearsons_interval() -> None:
    """None of ten, and 9 of 30: the ends that tables give."""
    none = share_figure(array(*[0] * 10), np.arange(10))
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 10))
    some = share_figure(array(*[1] * 9, *[0] * 21), np.arange(30))
    assert (some.low, some.high) == pytest.approx((0.147, 0.494), abs=0.004)


def test_the_interval_comes_from_groups_not_samples() -> None:
    """Two groups, one all right and one all wrong, say next to nothing, however many samples."""
    found = share_figure(array(*[1] * 500, *[0] * 500), np.repeat([0, 1], 500))
    assert (found.value, found.n, found.groups) == (0.5, 1000, 2)
    assert found.low < 0.01
    assert found.high > 0.99


def test_two_groups_that_agree_by_chance_are_still_two() -> None:
    """That both are at 80 % does not make the figure exact: one degree of freedom."""
    found = share_figure(array(*([1] * 80 + [0] * 20) * 2), np.repeat([0, 1], 100))
    assert found.high - found.low > 0.5


def test_all_right_is_not_certain() -> None:
    """A hundred right of five people each count as five: the lower end is 0.025 ** (1 / 5)."""
    found = share_figure(np.ones(500), np.repeat(range(5), 100))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025**0.2)


def test_groups_count_by_their_size() -> None:
    """The value is the mean over samples: 3 right of 3 and 0 of 1 are 75 %."""
    found = share_figure(array(1, 1, 1, 0), np.array([0, 0, 0, 1]))
    assert found.value == 0.75
    assert found.bounded


def test_one_group_says_nothing_about_others() -> None:
    """With a single group the interval of a share is all of [0, 1], that of a mean the whole line; neither is printed."""
    share = share_figure(array(1, 1, 1), np.array([5, 5, 5]))
    assert (share.value, share.groups, share.low, share.high) == (1.0, 1, 0.0, 1.0)
    mean = mean_figure(array(1, 2, 3), np.array([5, 5, 5]))
    assert (mean.value, mean.low, mean.high) == (2.0, -inf, inf)
    assert (share.bounded, mean.bounded) == (False, False)
    assert (str(share), str(mean)) == ("1.000", "2.000")


@pytest.mark.parametrize("figure", [share_figure, mean_figure])
def test_nothing_cannot_be_measured(figure: Callable[..., Figure]) -> None:
    """No values, no figure."""
    with pytest.raises(
        DataError, match=r"\[data-unusable\] nothing to measure; at values; expected at least one value"
    ):
        figure(array(), np.array([], dtype=np.int64))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_an_interval_of_a_share_holds_it_and_lies_in_0_to_1(rows: list[tuple[bool, int]]) -> None:
    """For any hits in any groups; and with as many misses it is the mirror image."""
    values, groups = array(*[right for right, _ in rows]), np.array([group for _, group in rows])
    found, other = share_figure(values, groups), share_figure(1 - values, groups)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high), abs=1e-9)


@pytest.mark.parametrize(("people", "unlike"), [(3, 0.5), (10, 0.5), (10, 2.0), (40, 1.0)])
def test_19_of_20_intervals_of_a_share_hold_the_truth(people: int, unlike: float) -> None:
    """People differ (a normal deviate on the logit); the truth is the mean over all people there could be."""
    random, runs = np.random.default_rng(people), 400
    truth = float((1 / (1 + np.exp(-1 - unlike * random.normal(size=400_000)))).mean())
    held = 0
    for _ in range(runs):
        each = 1 / (1 + np.exp(-1 - unlike * random.normal(size=people)))
        groups = np.repeat(np.arange(people), random.integers(20, 60, people))
        found = share_figure(random.random(len(groups)) < each[groups], groups)
        held += found.low <= truth <= found.high
    assert held / runs >= 0.95 - 2.33 * (0.95 * 0.05 / runs) ** 0.5


def test_a_mean_has_students_interval() -> None:
    """Of 2, 4 and 6: mean 4, deviation 2, and 4.303 * 2 / sqrt(3) either side."""
    found = mean_figure(array(2, 4, 6), np.arange(3))
    half = 4.303 * 2 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half), rel=1e-3)


def test_samples_of_a_group_are_one_sample_of_a_mean() -> None:
    """The same three numbers, each ten times within its group, are no better known."""
    once = mean_figure(array(2, 4, 6), np.arange(3))
    often = mean_figure(np.repeat(array(2, 4, 6), 10), np.repeat(np.arange(3), 10))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert (often.n, often.groups) == (30, 3)


def test_a_figure_says_what_it_rests_on() -> None:
    """Samples that are their own groups, of several groups, of a single one."""
    assert share_figure(array(1, 0, 1), np.arange(3)).rests_on() == "3 samples"
    assert share_figure(array(1, 0, 1), np.array([1, 1, 2])).rests_on() == "3 samples of 2 groups"
    assert share_figure(array(1, 0), np.array([1, 1])).rests_on() == "2 samples of 1 group"


def test_the_recovered_share_is_won_over_lost() -> None:
    """From 100 % to 50 % and back to 75 % is half of the loss; all groups alike, so the interval is that too."""
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


def test_the_ends_of_a_recovered_share_are_where_the_difference_is_just_significant() -> None:
    """At both, `won - end * lost` over its standard error is Student's quantile (2.262 for ten groups)."""
    random = np.random.default_rng(4)
    before, shifted, after = (level + random.normal(0, 0.05, 10) for level in (0.9, 0.5, 0.8))
    groups = np.arange(10)
    found = recovered_share(before, shifted, after, groups_before=groups, groups_after=groups)
    assert found is not None
    assert found.low < found.value < found.high
    for end in (found.low, found.high):
        each = (after - shifted) - end * (before - shifted)
        assert abs(each.mean()) / (each.std(ddof=1) / 10**0.5) == pytest.approx(2.262, rel=1e-3)


def test_a_loss_within_the_noise_bounds_no_share_of_it() -> None:
    """Five people lose two points on average, some of them win some: what was won back of that is anybody's guess."""
    before, shifted = array(0.9, 0.8, 0.7, 0.9, 0.8), array(0.8, 0.9, 0.65, 0.95, 0.7)
    groups = np.arange(5)
    found = recovered_share(before, shifted, before, groups_before=groups, groups_after=groups)
    assert found is not None
    assert (found.low, found.high, found.bounded) == (-inf, inf, False)


def test_one_group_gives_a_share_without_an_interval() -> None:
    """The ends are infinite: one person says nothing about others, and a share is not bounded."""
    one = np.array([0, 0])
    found = recovered_share(array(1, 1), array(0, 0), array(1, 0), groups_before=one, groups_after=one)
    assert found is not None
    assert (found.value, found.low, found.high, found.bounded) == (0.5, -inf, inf, False)


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


def test_a_figure_is_plain_json() -> None:
    """With its interval, or null where nothing bounds it."""
    whole = share_figure(np.array([True, False, True, True]), np.arange(4))
    told = whole.as_json()
    assert told == {"value": 0.75, "n": 4, "groups": 4, "ci95": [whole.low, whole.high]}
    assert share_figure(np.array([True, False]), np.zeros(2, np.int64)).as_json()["ci95"] is None

"""Which samples stay: uniform within a class, balanced between classes, and no favour for what comes after forgetting."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.device.reservoir import Reservoir


def feed(reservoir: Reservoir, stream: list[int], coin: Random, start: int = 0) -> None:
    """Offers sample number i of class `stream[i]`, in a slot of the same number."""
    for number, label in enumerate(stream, start):
        admitted = reservoir.choose(label, coin)
        if admitted is None:
            continue
        if admitted.instead_of is not None:
            reservoir.take(admitted.instead_of)
        reservoir.put(number, label)


def forget_before(reservoir: Reservoir, slot: int) -> list[int]:
    """Lets go of all samples that came before this one."""
    return reservoir.forget(lambda one: one < slot)


def spread(counts: list[int], expected: float, share: float) -> float:
    """Pearson's statistic of how often each of n samples was kept, in deviations of a chi-squared of n - 1 degrees.

    Samples of a fixed size are drawn without replacement, so each count has variance `runs share (1 - share)` and the
    sum of squares is n / (n - 1) times as large as that of independent ones.
    """
    n = len(counts)
    statistic = sum((one - expected) ** 2 for one in counts) / (expected * (1 - share)) * (n - 1) / n
    return float((statistic - (n - 1)) / (2 * (n - 1)) ** 0.5)


def how_often(stream: list[int], room: int, classes: int, runs: int) -> list[int]:
    """How often each sample of a stream is kept at its end."""
    counts, coin = [0] * len(stream), Random(7)
    for _ in range(runs):
        reservoir = Reservoir(room, classes)
        feed(reservoir, stream, coin)
        for slot in reservoir.slots():
            counts[slot] += 1
    return counts


def test_of_one_class_all_that_came_are_kept_with_the_same_probability() -> None:
    """Algorithm R: 10 of 100, 6000 times; the first and the last are kept as often as any other."""
    counts = how_often([0] * 100, 10, 2, 6_000)
    assert sum(counts) == 60_000
    assert abs(spread(counts, 600, 0.1)) < 3.5


def test_the_measure_of_spread_sees_a_reservoir_that_favours_the_newest() -> None:
    """The test above can fail: replacing always, as a ring does in the mean, is a hundred deviations off."""
    counts, coin = [0] * 100, Random(7)
    for _ in range(6_000):
        ring = list(range(10))
        for number in range(10, 100):
            ring[coin.randrange(10)] = number
        for one in ring:
            counts[one] += 1
    assert spread(counts, 600, 0.1) > 100


def test_within_each_class_of_a_skewed_stream_all_are_kept_with_the_same_probability() -> None:
    """Nine of ten are of class 0, in bursts; class 1 takes its places from the others, and nobody is favoured within a class."""
    stream = ([0] * 45 + [1] * 5) * 4
    counts = how_often(stream, 20, 2, 4_000)
    for label in (0, 1):
        mine = [count for count, one in zip(counts, stream, strict=True) if one == label]
        mean = sum(mine) / len(mine)
        assert mean == pytest.approx(4_000 * 10 / len(mine), rel=0.01)
        assert abs(spread(mine, mean, mean / 4_000)) < 3.5


def test_a_class_that_comes_late_and_seldom_gets_its_share() -> None:
    """One in 200 is of class 3: all of it is kept until it has a quarter of the room."""
    reservoir, coin = Reservoir(40, 4), Random(1)
    feed(reservoir, [number % 3 for number in range(3_000)], coin)
    assert sorted(reservoir.kept()) == [0, 13, 13, 14]
    feed(reservoir, [3 if number % 200 == 0 else number % 3 for number in range(3_000)], coin, 3_000)
    assert reservoir.kept() == (10, 10, 10, 10)
    assert reservoir.seen[3] == 15


@given(stream=st.lists(st.integers(0, 3), max_size=200), room=st.integers(4, 40), seed=st.integers(0, 9))
def test_a_buffer_is_full_or_holds_all_and_each_class_has_its_share(
    stream: list[int], room: int, seed: int
) -> None:
    """Whatever comes: never more than there is room for, and `room // classes` of each class, or all of it."""
    reservoir = Reservoir(room, 4)
    feed(reservoir, stream, Random(seed))
    kept = reservoir.kept()
    assert sum(kept) == len(reservoir) == min(room, len(stream))
    for label in range(4):
        came = stream.count(label)
        assert reservoir.seen[label] == came
        assert min(came, room // 4) <= kept[label] <= came
        assert len(set(reservoir.members(label))) == kept[label]
        assert all(stream[slot] == label for slot in reservoir.members(label))


def test_with_more_classes_than_room_the_newest_have_a_place() -> None:
    """No class is shut out for ever because another was there first."""
    reservoir, coin = Reservoir(2, 5), Random(3)
    feed(reservoir, [0, 1, 2, 3, 4] * 20, coin)
    assert len(reservoir) == 2
    assert max(reservoir.kept()) == 1


def test_the_coin_decides_and_nothing_else() -> None:
    """The same coin and stream: the same samples."""
    stream = [number % 7 % 3 for number in range(500)]
    kept = []
    for seed in (1, 1, 2):
        reservoir = Reservoir(20, 3)
        feed(reservoir, stream, Random(seed))
        kept.append(list(reservoir.slots()))
    assert kept[0] == kept[1] != kept[2]


def test_forgetting_keeps_the_share_of_the_stream() -> None:
    """Half of the samples go, and half of the count with them: newcomers are taken as before, no oftener."""
    reservoir, coin = Reservoir(40, 2), Random(1)
    feed(reservoir, [0] * 4_000 + [1] * 10, coin)
    assert reservoir.kept() == (30, 10)
    before = reservoir.seen[0]
    gone = reservoir.forget(lambda slot: slot < 2_000)
    left = reservoir.kept()[0]
    assert (len(gone), len(reservoir)) == (30 - left, 10 + left)
    assert 10 <= left <= 20
    assert reservoir.seen == [-(-before * left // 30), 10]


def test_a_nightly_forgetting_does_not_fill_the_buffer_with_what_comes_after_midnight() -> None:
    """60 days of 500 samples, of which 20 are remembered: every hour of the day is kept alike."""
    hours = [0] * 4
    for seed in range(12):
        reservoir, coin = Reservoir(60, 2), Random(seed)
        for day in range(60):
            feed(reservoir, [0] * 500, coin, 500 * day)
            forget_before(reservoir, 500 * (day - 19))
        for slot in reservoir.slots():
            hours[slot % 500 // 125] += 1
    assert sum(hours) > 240
    assert all(abs(one - sum(hours) / 4) < 3.5 * (sum(hours) * 3 / 16) ** 0.5 for one in hours), hours


def test_a_stream_that_dries_up_does_not_empty_the_buffer() -> None:
    """After a busy summer 5 samples a day: below half of its share the class begins anew and takes all that comes."""
    reservoir, coin, slot = Reservoir(40, 2), Random(2), 0
    first = {}
    for day in range(80):
        today = 2_000 if day < 20 else 5
        feed(reservoir, [0] * today, coin, slot)
        first[day] = slot
        slot += today
        forget_before(reservoir, first[max(0, day - 9)])
    assert reservoir.kept()[0] >= 10


def test_what_was_emptied_begins_anew() -> None:
    """Nothing is counted that is not there, and all that comes is taken."""
    reservoir, coin = Reservoir(10, 2), Random(2)
    feed(reservoir, [0] * 1_000, coin)
    assert len(reservoir.forget(lambda slot: True)) == 10
    assert (reservoir.seen, len(reservoir)) == ([0, 0], 0)
    feed(reservoir, [0] * 10, coin)
    assert reservoir.kept() == (10, 0)


def test_a_sample_can_be_let_go_by_its_slot() -> None:
    """The others stay."""
    reservoir = Reservoir(10, 2)
    feed(reservoir, [0, 0, 1, 0], Random(1))
    reservoir.drop(1, 0)
    assert sorted(reservoir.slots()) == [0, 2, 3]
    assert not reservoir.is_over

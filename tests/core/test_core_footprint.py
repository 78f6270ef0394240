"""What a model takes, held against a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.budget import Budget
from edgestill.core.footprint import Footprint, Slack, Spread, slacks

HERE = "x86_64-avx2-onnxruntime"


def test_the_tightest_bound_comes_first() -> None:
    """Only bounds that are set, and figures that were taken, are compared."""
    found = slacks(
        Budget(size="100 kB", latency="2 ms", memory="8 MB", update="10 kB"),
        Footprint(size=90_000, latency=0.0025, hardware_class=HERE),
    )
    assert [one.name for one in found] == ["latency", "size"]
    assert [one.kept for one in found] == [False, True]
    assert [one.share for one in found] == pytest.approx([-0.25, 0.1])
    assert slacks(Budget(), Footprint(size=1, hardware_class=HERE)) == ()


def test_a_slack_is_told_in_units() -> None:
    """Seconds and bytes as people read them."""
    assert str(Slack(name="latency", bound=0.0015, value=0.00075)) == "latency 750 us of 1.5 ms"
    assert str(Slack(name="size", bound=120_000, value=61_000)) == "size 61 kB of 120 kB"
    told = Slack(name="memory", bound=8e6, value=2e6).as_json()
    assert told == {"bound": 8e6, "value": 2e6, "slack": 0.75, "kept": True}


def test_a_bound_of_nothing_is_kept_by_nothing_only() -> None:
    """No division by it."""
    assert Slack(name="size", bound=0, value=0).share == 0
    assert Slack(name="size", bound=0, value=1).share == float("-inf")


@given(st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_a_bound_is_kept_where_something_is_left_of_it(bound: float, value: float) -> None:
    """The share and the verdict never disagree."""
    slack = Slack(name="size", bound=bound, value=value)
    assert slack.kept == (value <= bound)
    assert slack.share >= 0 if slack.kept else slack.share <= 0


def test_a_spread_is_in_order() -> None:
    """A median outside its quartiles is a mistake of the program."""
    with pytest.raises(ValueError, match="are in no order"):
        Spread(value=1, low=2, high=3)


def test_a_footprint_is_plain_json() -> None:
    """For reports, with where its latency is from."""
    made = Footprint(size=5, latency=0.1, memory=7, update=3, hardware_class=HERE, source="predicted")
    assert made.as_json() == {
        "size": 5,
        "latency": 0.1,
        "memory": 7,
        "update": 3,
        "hardware_class": HERE,
        "source": "predicted",
    }


def test_an_update_is_held_like_any_other_bound() -> None:
    """Where it is known; a first version has none, and nothing to exceed."""
    budget = Budget(update="2 kB", size="1 MB")
    (tightest, other) = slacks(budget, Footprint(size=10, update=2_500, hardware_class=HERE))
    assert (tightest.name, tightest.kept, str(tightest)) == ("update", False, "update 2.5 kB of 2 kB")
    assert other.name == "size"
    assert [one.name for one in slacks(budget, Footprint(size=10, hardware_class=HERE))] == ["size"]

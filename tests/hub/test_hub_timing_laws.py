"""What a profile of several devices is, whatever they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import ConflictError
from edgestill.hub import timings


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_model_is_there_where_more_than_half_have_timed_it(told: list[set[int]]) -> None:
    """No other is, and whoever is left out is named."""
    counts = {at: sum(at in one for one in told) for at in set.union(*told)}
    expected = sorted(at for at, count in counts.items() if count > len(told) / 2)
    given = {f"d{which}": dict.fromkeys(one, (0.1, 0.2)) for which, one in enumerate(told)}
    if not expected:
        with pytest.raises(ConflictError):
            timings.merged(given)
        return
    found, about = timings.merged(given)
    assert list(found) == expected
    assert about["left_out"] == sorted(counts.keys() - set(expected))
    assert about.get("timed_by", [1] * len(expected)) == [counts[at] for at in expected]


@given(
    scales=st.lists(st.floats(0.1, 10), min_size=1, max_size=7),
    lies=st.lists(st.floats(1e-6, 1e6), max_size=3),
)
@settings(max_examples=60)
def test_a_median_lies_among_the_honest_where_they_are_more(scales: list[float], lies: list[float]) -> None:
    """Whatever the others say."""
    if len(lies) >= len(scales):
        return
    told = {f"d{at}": {0: (scale, 2 * scale)} for at, scale in enumerate([*scales, *lies])}
    found, about = timings.merged(told)
    assert min(scales) <= found[0][0] <= max(scales)
    assert about["left_out"] == []

"""The circuit breaker as a state machine, alone and shared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import SettingError, UnreachableError
from edgestill.link.breaker import Breaker, Guard
from edgestill.testing.clock import FakeClock

MOST = 0.999_999


def _failed(breaker: Breaker, times: int, now: float = 0.0) -> Breaker:
    for _ in range(times):
        breaker = breaker.fail(now, jitter=MOST)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """Not before, and a success in between starts the count again."""
    breaker = Breaker(threshold=3)
    assert _failed(breaker, 2).state(0) == "closed"
    assert _failed(_failed(breaker, 2).succeed(), 2).state(0) == "closed"
    opened = _failed(breaker, 3)
    assert opened.state(0) == "open"
    assert opened.ask(0.9, jitter=0) is None


def test_one_trial_goes_through_when_the_pause_is_over() -> None:
    """And nobody else until it has ended, or its own pause is over."""
    opened = _failed(Breaker(threshold=3, pause=1), 3)
    assert opened.state(1) == "half-open"
    trying = opened.ask(1, jitter=MOST)
    assert trying is not None
    assert trying.ask(1, jitter=0) is None
    assert trying.succeed().state(1) == "closed"
    assert trying.fail(1.5, jitter=0) == trying
    assert trying.state(2.9) == "open"
    assert trying.state(3) == "half-open"


def test_pauses_double_up_to_the_longest() -> None:
    """1, 2, 4, ... seconds; jitter takes at most half of each away."""
    breaker, now, pauses = _failed(Breaker(threshold=1, pause=1, longest=10), 1), 0.0, []
    for _ in range(6):
        pauses.append(breaker.retry_at - now)
        now = breaker.retry_at
        trying = breaker.ask(now, jitter=MOST)
        assert trying is not None
        breaker = trying
    assert pauses == pytest.approx([1, 2, 4, 8, 10, 10], rel=1e-5)
    assert Breaker(threshold=1, pause=1).fail(0, jitter=0).retry_at == 0.5


def test_failures_of_calls_under_way_do_not_prolong_a_pause() -> None:
    """Twenty threads that fail together are one failure of the peer."""
    opened = _failed(Breaker(threshold=3, pause=1), 3)
    assert _failed(opened, 20) == opened


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"pause": 0.0}, {"pause": 2.0, "longest": 1.0}])
def test_a_breaker_that_bounds_nothing_is_refused(wrong: dict[str, float]) -> None:
    """When it is made."""
    with pytest.raises(SettingError, match="a breaker is out of range"):
        Breaker(**wrong)  # type: ignore[arg-type]  # integers and floats by name


_events = st.lists(
    st.tuples(st.sampled_from(["ask", "succeed", "fail", "wait"]), st.floats(0, MOST), st.floats(0, 1_000)),
    max_size=60,
)


@settings(deadline=None)
@given(_events)
def test_it_never_stays_shut_and_never_lets_a_crowd_through(events: list[tuple[str, float, float]]) -> None:
    """From any history: a pause is at most `longest`, a success closes, and two trials are half a pause apart."""
    breaker, now, last_trial = Breaker(threshold=2, pause=1, longest=60), 0.0, -1e9
    for event, jitter, seconds in events:
        if event == "wait":
            now += seconds
        elif event == "succeed":
            breaker, last_trial = breaker.succeed(), -1e9
            assert breaker.state(now) == "closed"
        elif event == "fail":
            breaker = breaker.fail(now, jitter=jitter)
        else:
            half_open = breaker.state(now) == "half-open"
            allowed = breaker.ask(now, jitter=jitter)
            assert (allowed is None) == (breaker.state(now) == "open")
            if half_open:
                assert now - last_trial >= 0.5
                last_trial = now
            breaker = allowed or breaker
        assert breaker.state(now + 60) != "open"


def test_a_guard_keeps_callers_away() -> None:
    """It says for how long, and lets one try again."""
    clock = FakeClock()
    guard = Guard(Breaker(threshold=2, pause=10), clock=clock, random=lambda: MOST)
    for _ in range(2):
        guard.enter("https://hub")
        guard.leave(answered=False)
    seen = [guard.state]
    with pytest.raises(
        UnreachableError,
        match=r"left alone; at https://hub; expected a peer that answers; got 2 failures in a row; ask again in 10\.0 s",
    ):
        guard.enter("https://hub")
    clock.advance(10)
    guard.enter("https://hub")
    with pytest.raises(UnreachableError, match="left alone"):
        guard.enter("https://hub")
    guard.leave(answered=True)
    assert [*seen, guard.state] == ["open", "closed"]

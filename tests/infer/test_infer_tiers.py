"""Several larger models as one: who fails is passed over, in time; and who is slow may be overtaken."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.answer import Answer
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    AccessError,
    DeadlineError,
    EdgestillError,
    RefusedError,
    SettingError,
    UnreachableError,
)
from edgestill.infer.tiers import UNDER_WAY, Bounded, Tier, Tiers
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH = np.zeros((2, 3), np.float32)
GONE = UnreachableError("nobody there", where="far", expected="an answer", got="none")


def signals(event: threading.Event, *, then: threading.Event) -> Callable[[], None]:
    """Sets one event, and waits for another."""

    def both() -> None:
        event.set()
        then.wait(30)

    return both


def waits_for(event: threading.Event) -> Callable[[], None]:
    """Until it is set."""

    def wait() -> None:
        event.wait(30)

    return wait


class Far:
    """Answers class `best`, after doing what it is told; notes the deadlines that it was given."""

    def __init__(
        self, best: int, *, first: Callable[[], None] = lambda: None, tiers: tuple[str, ...] = ()
    ) -> None:
        self.best, self.first, self.tiers = best, first, tiers
        self.deadlines: list[float | None] = []

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """As told."""
        self.deadlines.append(deadline)
        self.first()
        p = np.tile(np.eye(3, dtype=np.float32)[self.best], (len(batch), 1))
        return Answer(
            probabilities=p, confidence=p.max(1), decided_by=("teacher",) * len(batch), tiers=self.tiers
        )


def failing(error: Exception = GONE, *, first: Callable[[], None] = lambda: None) -> Far:
    """Raises, after doing what it is told."""

    def fail() -> None:
        first()
        raise error

    return Far(0, first=fail)


def tiers(*models: Far, clock: FakeClock | None = None, hedge_after: float | None = None) -> Tiers:
    """Named after letters."""
    named = [Tier(name, model) for name, model in zip("abcd", models, strict=False)]
    return Tiers(named, clock=clock or FakeClock(), hedge_after=hedge_after)


def test_the_first_that_answers_is_taken_and_nobody_behind_it_is_asked() -> None:
    """The neighbour's answer costs the cloud nothing."""
    near, far = Far(1), Far(2)
    answer = tiers(near, far).predict(BATCH)
    assert answer.probabilities.argmax(1).tolist() == [1, 1]
    assert answer.tiers == ("a",)
    assert far.deadlines == []


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_who_fails_is_passed_over_and_named(failures: int) -> None:
    """The next one answers, and the answer names all that were asked."""
    answer = tiers(*(failing() for _ in range(failures)), Far(2)).predict(BATCH)
    assert answer.probabilities.argmax(1).tolist() == [2, 2]
    assert answer.tiers == tuple("abcd"[: failures + 1])


def test_why_a_tier_fails_is_logged_when_that_changes(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong token would go unnoticed, and a line for every question would fill the log."""
    errors: list[EdgestillError | None] = [GONE, GONE, AccessError("who are you"), None, GONE]
    near = Far(1)
    model = tiers(near, Far(2))
    for error in errors:
        near.first = failing(error).first if error else lambda: None
        model.predict(BATCH)
    fails, again = "a does not answer", "a answers again"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [fails, fails, again, fails]
    assert [one in caplog.text for one in ("nobody there", "who are you")] == [True, True]


def test_why_the_last_of_them_fails_is_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """It may be the only one: a teacher whose output has another name would never be missed."""
    model = tiers(failing())
    for _ in range(3):
        with pytest.raises(UnreachableError):
            model.predict(BATCH)
    (line,) = caplog.records
    assert line.getMessage().startswith("a does not answer: ")


def test_tiers_behind_a_tier_are_named_too() -> None:
    """A gateway that asked the cloud says so."""
    assert tiers(failing(), Far(2, tiers=("cloud",))).predict(BATCH).tiers == ("a", "b", "cloud")


def test_where_nobody_answers_the_last_failure_is_raised() -> None:
    """A coded error, of the last tier."""
    last = RefusedError("no", where="far", expected="yes", got="no")
    with pytest.raises(RefusedError) as caught:
        tiers(failing(), failing(last)).predict(BATCH)
    assert caught.value is last


def test_a_frozen_neighbour_leaves_the_cloud_half_of_the_time() -> None:
    """Of four seconds the first tier may use two and the second one of the rest; the last has all that is left."""
    clock = FakeClock()
    start = clock.monotonic()

    def freeze(model: list[Far]) -> Callable[[], None]:
        def until_its_deadline() -> None:
            deadline = model[0].deadlines[-1]
            assert deadline is not None
            clock.advance(deadline - clock.monotonic())
            raise DeadlineError("late", where="far", expected="an answer", got="none")

        return until_its_deadline

    first, second, last = [Far(0)], [Far(0)], Far(2)
    for one in (first, second):
        one[0].first = freeze(one)
    tiers(first[0], second[0], last, clock=clock).predict(BATCH, deadline=start + 4)
    assert [one.deadlines for one in (first[0], second[0], last)] == [[start + 2], [start + 3], [start + 4]]


def test_without_a_deadline_each_has_its_own_time() -> None:
    """None is handed on as None."""
    near, far = failing(), Far(1)
    tiers(near, far).predict(BATCH)
    assert near.deadlines == far.deadlines == [None]


# Hedging


def test_a_slow_tier_is_overtaken() -> None:
    """Where the first does not answer within the wait, the second is asked as well and its answer is taken."""
    never = threading.Event()
    slow = Far(0, first=waits_for(never))
    try:
        answer = tiers(slow, Far(2), hedge_after=0.0).predict(BATCH)
    finally:
        never.set()
    assert answer.probabilities.argmax(1).tolist() == [2, 2]
    assert answer.tiers == ("a", "b")


def test_a_quick_tier_is_not_hedged() -> None:
    """Where the first answers in time nobody else is asked."""
    far = Far(2)
    answer = tiers(Far(1), far, hedge_after=30.0).predict(BATCH)
    assert answer.tiers == ("a",)
    assert far.deadlines == []


def test_a_slow_tier_that_answers_first_after_all_is_taken() -> None:
    """The second was asked, but the first comes before it."""
    asked, never = threading.Event(), threading.Event()
    slow = Far(1, first=waits_for(asked))
    later = Far(2, first=signals(asked, then=never))
    try:
        answer = tiers(slow, later, hedge_after=0.0).predict(BATCH)
    finally:
        never.set()
    assert answer.probabilities.argmax(1).tolist() == [1, 1]


def test_who_fails_at_once_is_not_waited_for() -> None:
    """A failure begins the next tier before the wait is over."""
    answer = tiers(failing(), failing(), Far(2), hedge_after=30.0).predict(BATCH)
    assert answer.tiers == ("a", "b", "c")


def test_a_hedged_question_of_which_nothing_comes_ends_with_the_failure() -> None:
    """All fail: the error is one of theirs."""
    with pytest.raises(UnreachableError):
        tiers(failing(), failing(), hedge_after=0.0).predict(BATCH)


def test_a_hedged_question_ends_with_its_deadline() -> None:
    """Nobody answers before it: a coded error, and no wait beyond it."""
    never, clock = threading.Event(), FakeClock()
    frozen = [Far(0, first=waits_for(never)) for _ in range(2)]
    try:
        with pytest.raises(DeadlineError):
            tiers(*frozen, clock=clock, hedge_after=0.0).predict(BATCH, deadline=clock.monotonic())
    finally:
        never.set()


def test_a_bug_in_a_hedged_tier_is_seen() -> None:
    """What is no error of ours is raised to the asker where nobody answers, not lost in a thread."""
    with pytest.raises(ZeroDivisionError):
        tiers(failing(), failing(ZeroDivisionError()), hedge_after=30.0).predict(BATCH)


@pytest.mark.parametrize(("names", "hedge"), [([], None), (["a", "a"], None), (["a"], -1.0)])
def test_tiers_that_are_none_are_refused(names: list[str], hedge: float | None) -> None:
    """Nobody, a name twice, or a wait into the past."""
    with pytest.raises(SettingError):
        Tiers([Tier(name, Far(0)) for name in names], clock=FakeClock(), hedge_after=hedge)


# Bounds


def test_one_question_too_many_is_refused_at_once() -> None:
    """While one is under way a second is refused, and after it the next goes through."""
    begun, done = threading.Event(), threading.Event()
    bounded = Bounded(Far(1, first=signals(begun, then=done)), at_once=1)
    asker = threading.Thread(target=bounded.predict, args=(BATCH,))
    asker.start()
    assert begun.wait(30)
    try:
        with pytest.raises(RefusedError, match="too many"):
            bounded.predict(BATCH)
    finally:
        done.set()
        asker.join()
    assert bounded.predict(BATCH).decided_by == ("teacher", "teacher")


def test_a_question_that_fails_gives_its_place_back() -> None:
    """After a failure there is room for the next."""
    bounded = Bounded(failing(), at_once=1)
    for _ in range(3):
        with pytest.raises(EdgestillError) as caught:
            bounded.predict(BATCH)
        assert caught.value is GONE


def test_a_bound_of_nothing_is_refused() -> None:
    """Nobody could ever ask."""
    with pytest.raises(SettingError):
        Bounded(Far(0), at_once=0)


def test_a_frozen_tier_is_hedged_before_half_of_the_time_is_over() -> None:
    """A wait that is longer than the deadline allows does not cost the next tier its chance."""
    never, clock = threading.Event(), SystemClock()
    frozen = Far(0, first=waits_for(never))
    named = [Tier("gateway", frozen), Tier("cloud", Far(2))]
    try:
        answer = Tiers(named, clock=clock, hedge_after=60.0).predict(BATCH, deadline=clock.monotonic() + 0.3)
    finally:
        never.set()
    assert answer.probabilities.argmax(1).tolist() == [2, 2]


def test_no_tier_is_begun_when_the_time_is_over() -> None:
    """A question that comes too late costs nobody anything."""
    near, far, clock = Far(1), Far(2), FakeClock()
    with pytest.raises(DeadlineError):
        tiers(near, far, clock=clock, hedge_after=0.0).predict(BATCH, deadline=clock.monotonic())
    assert near.deadlines == far.deadlines == []


def test_slow_tiers_do_not_pile_up_threads() -> None:
    """A hundred hedged questions to a frozen tier leave no more threads under way than are allowed."""
    never, before = threading.Event(), threading.active_count()
    both = tiers(Far(0, first=waits_for(never)), Far(2), hedge_after=0.0)
    try:
        for _ in range(100):
            with suppress(DeadlineError):
                both.predict(BATCH)
            assert threading.active_count() - before <= UNDER_WAY
    finally:
        never.set()

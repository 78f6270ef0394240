"""Dynamic batching: every question gets its own rows, whatever else is asked at the same time, and nothing grows."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_served import Gated, doubling, twice

from edgestill.core.errors import DeadlineError, EngineError, MessageError, SettingError
from edgestill.infer.serving.batching import Batcher
from edgestill.infer.serving.waiting import Capacity, Job, Waiting
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.infer.serving.served import Rows


def batch(first: int, count: int, width: int = 3) -> NDArray[np.float32]:
    """`count` inputs that no other batch has."""
    return np.arange(first, first + count * width, dtype=np.float32).reshape(count, width)


def job(count: int, *, came: float = 0.0, kind: object = "a") -> Job:
    """A question of so many inputs."""
    return Job(batch=np.zeros((count, 1)), deadline=None, kind=kind, came=came, future=Future())


def sizes(jobs: list[Job]) -> list[int]:
    """Inputs in each."""
    return [len(one.batch) for one in jobs]


@settings(deadline=None, max_examples=40)
@given(
    questions=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3])), min_size=1, max_size=30),
    most_rows=st.integers(1, 12),
    threads=st.integers(1, 3),
)
def test_every_question_gets_its_own_rows(
    questions: list[tuple[int, int]], most_rows: int, threads: int
) -> None:
    """Of any sizes and shapes, asked from many threads at once, joined or not."""
    capacity = Capacity(most_rows=most_rows, threads=threads)
    batcher = Batcher(doubling(), capacity=capacity, clock=FakeClock())
    inputs = [batch(1000 * index, count, width) for index, (count, width) in enumerate(questions)]
    with ThreadPoolExecutor(4) as askers:
        found = list(askers.map(lambda one: batcher.submit(one).result(30), inputs))
    for given_in, rows in zip(inputs, found, strict=True):
        np.testing.assert_array_equal(rows.outputs["twice"], given_in * 2)
        assert rows.told["first"] == tuple(given_in[:, 0].tolist())
    assert batcher.pending == 0
    batcher.close()


def test_what_waits_is_joined_and_what_is_alone_is_not_held_up() -> None:
    """The first question runs at once; those that come meanwhile run together, up to the bound."""
    gated = Gated()
    batcher = Batcher(doubling(gated), capacity=Capacity(most_rows=4), clock=FakeClock())
    futures = [batcher.submit(batch(0, 1))]
    assert gated.begun.acquire(timeout=30)
    futures += [batcher.submit(batch(10 * index, count)) for index, count in enumerate([1, 2, 1, 2, 6, 1], 1)]
    gated.go.set()
    assert [len(one.result(30).outputs["twice"]) for one in futures] == [1, 1, 2, 1, 2, 6, 1]
    assert gated.sizes == [1, 4, 2, 6, 1]
    batcher.close()


def test_other_shapes_are_not_joined_and_keep_their_turn() -> None:
    """Who came first is never passed over."""
    gated = Gated()
    batcher = Batcher(doubling(gated), capacity=Capacity(most_rows=8), clock=FakeClock())
    futures = [batcher.submit(batch(0, 1))]
    assert gated.begun.acquire(timeout=30)
    futures += [batcher.submit(batch(10 * index, 1, width)) for index, width in enumerate([2, 3, 2, 3], 1)]
    gated.go.set()
    for one in futures:
        one.result(30)
    assert gated.sizes == [1, 2, 2]
    batcher.close()


def test_a_question_with_a_deadline_does_not_hurry_its_neighbours() -> None:
    """Where the answer may depend on the deadline, only questions with the same one are joined."""
    gated, heard = Gated(), []

    def run(given_in: NDArray[np.generic], deadline: float | None) -> Rows:
        heard.append(deadline)
        return gated(given_in, deadline)

    batcher = Batcher(doubling(run, heeds_deadlines=True), capacity=Capacity(), clock=FakeClock())
    futures = [batcher.submit(batch(0, 1))]
    assert gated.begun.acquire(timeout=30)
    futures += [batcher.submit(batch(0, 1), deadline=one) for one in (None, 5e9, None, 5e9, 6e9)]
    gated.go.set()
    for one in futures:
        one.result(30)
    assert (gated.sizes, heard) == ([1, 2, 2, 1], [None, None, 5e9, 6e9])
    batcher.close()


def test_a_question_whose_deadline_has_passed_is_not_run() -> None:
    """Nobody waits for its answer any more."""
    clock, gated = FakeClock(), Gated()
    batcher = Batcher(doubling(gated), capacity=Capacity(), clock=clock)
    first = batcher.submit(batch(0, 1))
    assert gated.begun.acquire(timeout=30)
    late = batcher.submit(batch(0, 2), deadline=clock.monotonic() + 1)
    in_time = batcher.submit(batch(0, 3), deadline=clock.monotonic() + 3)
    clock.advance(2)
    gated.go.set()
    with pytest.raises(DeadlineError, match="waited too long"):
        late.result(30)
    assert len(in_time.result(30).outputs["twice"]) == 3
    assert (first.done(), gated.sizes, batcher.pending) == (True, [1, 3], 0)
    batcher.close()


def test_a_question_that_nobody_waits_for_is_not_run() -> None:
    """Its asker has hung up."""
    gated = Gated()
    batcher = Batcher(doubling(gated), capacity=Capacity(), clock=FakeClock())
    batcher.submit(batch(0, 1))
    assert gated.begun.acquire(timeout=30)
    assert batcher.submit(batch(0, 2)).cancel()
    last = batcher.submit(batch(0, 3))
    gated.go.set()
    last.result(30)
    assert (gated.sizes, batcher.pending) == ([1, 3], 0)
    batcher.close()


def test_attack_one_question_that_breaks_the_engine_costs_its_neighbours_nothing() -> None:
    """They are run one by one, and the one that the engine fails on fails alone."""
    gated = Gated()

    def run(given_in: NDArray[np.generic], deadline: float | None) -> Rows:
        rows = gated(given_in, deadline)
        if (given_in == 666).any():
            raise EngineError("the engine could not run the model")
        return rows

    batcher = Batcher(doubling(run), capacity=Capacity(), clock=FakeClock())
    first = batcher.submit(batch(0, 1))
    assert gated.begun.acquire(timeout=30)
    good = [batcher.submit(batch(index, 1)) for index in (10, 20)]
    bad = batcher.submit(np.full((1, 3), 666, np.float32))
    gated.go.set()
    with pytest.raises(EngineError):
        bad.result(30)
    for one in (first, *good):
        one.result(30)
    assert (gated.sizes, batcher.pending) == ([1, 3, 1, 1, 1], 0)
    batcher.close()


@pytest.mark.parametrize("error", [MessageError("another answer"), ZeroDivisionError("a bug")])
def test_any_other_failure_is_told_to_all_and_the_next_question_is_answered(error: Exception) -> None:
    """No thread dies of it."""
    fails = [True]

    def run(given_in: NDArray[np.generic], deadline: float | None) -> Rows:
        if fails.pop():
            raise error
        return twice(given_in, deadline)

    batcher = Batcher(doubling(run), capacity=Capacity(), clock=FakeClock())
    with pytest.raises(type(error)):
        batcher.submit(batch(0, 2)).result(30)
    fails.append(False)
    assert len(batcher.submit(batch(0, 2)).result(30).outputs["twice"]) == 2
    batcher.close()


def test_attack_a_flood_is_refused_at_its_bounds() -> None:
    """So many requests, and so many rows; one alone is taken whatever its size; room comes back."""
    gated = Gated()
    capacity = Capacity(most_waiting=3, most_waiting_rows=10)
    batcher = Batcher(doubling(gated), capacity=capacity, clock=FakeClock())
    first = batcher.submit(batch(0, 100))
    with pytest.raises(DeadlineError, match="the double is busy"):
        batcher.submit(batch(0, 1))
    gated.go.set()
    first.result(30)
    gated.go.clear()
    held = [batcher.submit(batch(0, 1)) for _ in range(3)]
    with pytest.raises(DeadlineError, match="the double is busy"):
        batcher.submit(batch(0, 1))
    assert batcher.pending == 3
    gated.go.set()
    for one in held:
        one.result(30)
    assert len(batcher.submit(batch(0, 10)).result(30).outputs["twice"]) == 10
    batcher.close()


def test_closing_answers_what_was_taken_in_and_takes_nothing_more() -> None:
    """However long the queue; closing twice is closing once."""
    gated = Gated()
    batcher = Batcher(doubling(gated), capacity=Capacity(most_rows=1), clock=FakeClock())
    futures = [batcher.submit(batch(0, 1)) for _ in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gated.go.set()
    closing.join(30)
    assert [len(one.result(0).outputs["twice"]) for one in futures] == [1] * 5
    with pytest.raises(DeadlineError, match="about to end"):
        batcher.submit(batch(0, 1))
    batcher.close()


def test_closing_does_not_wait_for_others_to_join() -> None:
    """A question that lingers is answered at once; on this clock its time would never come."""
    batcher = Batcher(doubling(), capacity=Capacity(linger=1.0), clock=FakeClock())
    future = batcher.submit(batch(0, 1))
    batcher.close()
    assert future.result(0).outputs["twice"].shape == (1, 3)


def test_a_full_batch_does_not_linger() -> None:
    """Once there are rows enough, nobody else is waited for."""
    batcher = Batcher(doubling(), capacity=Capacity(linger=1.0, most_rows=4), clock=FakeClock())
    futures = [batcher.submit(batch(index, 2)) for index in range(2)]
    assert [len(one.result(30).outputs["twice"]) for one in futures] == [2, 2]
    batcher.close()


def test_a_question_waits_for_others_as_long_as_it_was_told_to() -> None:
    """From when the oldest came; none where nothing waits."""
    waiting = Waiting(name="m", capacity=Capacity(linger=0.5, most_rows=3))
    assert waiting.seconds_to_go(0) is None
    waiting.add(job(1, came=10))
    waiting.add(job(1, came=10.4))
    assert waiting.seconds_to_go(10.3) == pytest.approx(0.2)
    assert waiting.seconds_to_go(11) == 0
    waiting.add(job(1, came=10.4))
    assert waiting.seconds_to_go(10.4) == 0


@given(
    jobs=st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc")), max_size=30),
    most_rows=st.integers(1, 10),
)
def test_batches_hold_one_kind_in_order_within_the_bound_and_nothing_is_lost(
    jobs: list[tuple[int, str]], most_rows: int
) -> None:
    """The oldest is always part of the next; only a question that is larger by itself goes over the bound."""
    waiting = Waiting(name="m", capacity=Capacity(most_rows=most_rows, most_waiting_rows=1000))
    left = [job(count, kind=kind) for count, kind in jobs]
    for one in left:
        waiting.add(one)
    while taken := waiting.take():
        assert taken[0] is left[0]
        assert len({one.kind for one in taken}) == 1
        assert len(taken) == 1 or sum(sizes(taken)) <= most_rows
        same = [one for one in left if one.kind == taken[0].kind]
        assert taken == same[: len(taken)]
        left = [one for one in left if one not in taken]
        waiting.release(taken)
    assert (left, waiting.requests, waiting.rows) == ([], 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"most_rows": 0},
        {"threads": 0},
        {"most_waiting": 0},
        {"most_waiting_rows": 0},
        {"most_asked": 0},
        {"linger": -1},
        {"linger": 2},
        {"longest": 0},
    ],
)
def test_a_capacity_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    """The text names which."""
    with pytest.raises(SettingError, match=f"at {next(iter(wrong))}"):
        Capacity(**wrong)  # type: ignore[arg-type]  # wrong on purpose

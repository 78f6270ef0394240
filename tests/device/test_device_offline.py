"""When an update from a folder is over, and how it ended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from device_worlds import target

from edgestill.core.errors import ConflictError, EdgestillError, ProbeError, UnreachableError
from edgestill.core.release import MAX_COUNTER
from edgestill.device.events import Assigned
from edgestill.device.offline import LOOK, Stick, is_settled
from edgestill.device.state import Failure, State

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.state import Target

ONE, TWO = target(1), target(2)
ASSIGNED = Assigned(5, TWO)
SERVING = State(active="a", a=TWO, seen=5, counter=5)


class Courier:
    """Answers as it is told to."""

    def __init__(self, answer: Assigned | EdgestillError | None) -> None:
        self.answer = answer
        self.asked = self.forgotten = 0

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """The answer."""
        del seen
        self.asked += 1
        if isinstance(self.answer, EdgestillError):
            raise self.answer
        return self.answer, 30.0

    def forget(self) -> None:
        """Counts."""
        self.forgotten += 1

    def fetch(self, target: Target, *, to: Path, base: object) -> None:
        """Fails as the poll does."""
        del target, to, base
        if isinstance(self.answer, EdgestillError):
            raise self.answer


class Device:
    """A stick in a device whose state the test sets."""

    def __init__(self, answer: Assigned | EdgestillError | None, state: State = SERVING) -> None:
        self.courier = Courier(answer)
        self.state = state
        self.stopped = 0
        self.stick = Stick(self.courier, state=lambda: self.state)  # type: ignore[arg-type]  # what of a courier it asks
        self.stick.ends(self.stop)

    def stop(self) -> None:
        """Counts."""
        self.stopped += 1


@pytest.mark.parametrize(
    ("state", "settled"),
    [
        (SERVING, True),
        (replace(SERVING, seen=4, counter=4), False),
        (replace(SERVING, a=ONE), False),
        (replace(SERVING, phase="watching"), False),
        (State(phase="downloading", wanted=TWO, seen=5, counter=5), False),
        (
            State(
                active="a", a=ONE, seen=5, counter=5, failure=Failure(counter=5, target=TWO, reason="slow")
            ),
            True,
        ),
        (
            State(
                active="a", a=ONE, seen=5, counter=5, failure=Failure(counter=4, target=TWO, reason="slow")
            ),
            False,
        ),
        (
            State(
                active="a", a=ONE, seen=5, counter=5, failure=Failure(counter=5, target=ONE, reason="slow")
            ),
            False,
        ),
        (State(seen=5), False),
    ],
)
def test_a_device_has_come_to_rest_when_it_serves_or_has_failed(
    state: State, settled: bool
) -> None:  # a table's column
    """Not before it has seen the assignment, nor in a trial, nor for a failure of another time."""
    assert is_settled(state, ASSIGNED) == settled


def test_what_failed_in_an_earlier_epoch_has_failed() -> None:
    """The same counter and target under the next key of the hub: the machine does not try it again, so nobody waits."""
    failure = Failure(counter=5, target=TWO, reason="slow")
    again = Assigned(5 + MAX_COUNTER + 1, TWO)
    assert is_settled(State(active="a", a=ONE, seen=again.counter, failure=failure), again)


def test_the_stick_is_asked_once_and_looked_at_often() -> None:
    """Then the device's own state decides when it ends."""
    device = Device(ASSIGNED, State(seen=4))
    assert device.stick.poll(seen=4) == (ASSIGNED, LOOK)
    for _ in range(3):
        assert device.stick.poll(seen=4) == (None, LOOK)
    assert (device.courier.asked, device.stopped) == (1, 0)
    device.state = SERVING
    device.stick.poll(seen=5)
    assert device.stopped == 1
    assert device.stick.outcome() == TWO


def test_a_stick_that_assigns_nothing_ends_at_once() -> None:
    """There is nothing to wait for."""
    device = Device(None)
    device.stick.poll(seen=0)
    device.stick.poll(seen=0)
    assert device.stopped == 1
    assert device.stick.outcome() is None


def test_what_is_not_taken_up_in_a_trial_is_offered_again() -> None:
    """The supervisor asks for it."""
    device = Device(ASSIGNED, replace(SERVING, a=ONE, phase="watching"))
    device.stick.poll(seen=4)
    device.stick.forget()
    assert device.stick.poll(seen=4) == (ASSIGNED, LOOK)
    assert (device.courier.asked, device.courier.forgotten) == (2, 1)


def test_an_error_of_the_stick_ends_it_and_is_told() -> None:
    """Whether it assigns badly or lacks what it assigns; the first error is the one."""
    error = UnreachableError("gone", where="stick", expected="a stick", got="none")
    device = Device(error)
    assert device.stick.poll(seen=0) == (None, LOOK)
    assert device.stopped == 1
    with pytest.raises(UnreachableError, match="gone"):
        device.stick.outcome()
    device = Device(ASSIGNED, State(seen=4))
    device.stick.poll(seen=4)
    for told in ("first", "second"):
        device.courier.answer = UnreachableError(told, where="stick", expected="a stick", got="none")
        with pytest.raises(UnreachableError, match=told):
            device.stick.fetch(TWO, to=None, base=None)  # type: ignore[arg-type]  # nothing is written
    with pytest.raises(UnreachableError, match="first"):
        device.stick.outcome()


def test_what_an_earlier_stick_had_begun_need_not_be_on_this_one() -> None:
    """The machine asks for it again at its start; that it is not there is no fault of a stick with something else."""
    device = Device(ASSIGNED, State(phase="downloading", wanted=ONE, seen=4, counter=4))
    lacks = UnreachableError("gone", where="stick", expected="a stick", got="none")
    for is_asked in (False, True):
        if is_asked:
            device.courier.answer = ASSIGNED
            device.stick.poll(seen=4)
        device.courier.answer = lacks
        with pytest.raises(UnreachableError):
            device.stick.fetch(ONE, to=None, base=None)  # type: ignore[arg-type]  # nothing is written
    assert (device.stick.error, device.stopped) == (None, 0)


def test_a_device_that_fell_back_says_why() -> None:
    """The reason is the machine's."""
    failure = Failure(counter=5, target=TWO, reason="too slow: 9 ms")
    device = Device(ASSIGNED, State(active="a", a=ONE, seen=5, counter=5, failure=failure))
    device.stick.poll(seen=4)
    with pytest.raises(ProbeError, match="too slow: 9 ms"):
        device.stick.outcome()


def test_an_update_that_was_ended_early_is_no_success() -> None:
    """A signal came in the middle; it goes on with the next run."""
    device = Device(ASSIGNED, State(phase="downloading", wanted=TWO, seen=5, counter=5))
    device.stick.poll(seen=4)
    with pytest.raises(ConflictError, match="ended before it was done"):
        device.stick.outcome()


def test_nothing_is_delivered_to_a_stick() -> None:
    """And nobody waits for it: the outbox keeps what there is."""
    assert Device(None).stick.deliver(None)  # type: ignore[arg-type]  # it is not looked at

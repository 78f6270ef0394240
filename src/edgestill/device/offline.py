"""An update from a folder: a stick or a share, made by `edgestill release export`, in place of the hub.

- Everything else is as with a hub: the same trusted list with its versions and its times, the same signed assignment with its counter, the same
  slots, probe and trial. A stick can do nothing that a hub could not.
- The agent must not run meanwhile: there is one supervisor for a home, and this is one.
- It ends when the device has come to rest: the release is confirmed, or the device fell back, or there was nothing to do. Reports wait in
  the outbox for the next hub.
- A stick that is pulled out, or does not hold what it should, ends it with an error. What was begun stays begun: another stick or the hub goes on
  with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import ConflictError, EdgestillError, ProbeError
from edgestill.core.release import MAX_COUNTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.device.courier import Courier
    from edgestill.device.events import Assigned
    from edgestill.device.outbox import Outbox
    from edgestill.device.state import Failure, State, Target

LOOK: Final = 0.1
"""Seconds between two looks at whether the device has come to rest."""


@final
class Stick:
    """A `device.supervisor.Hub` that is a folder.

    Args:
        courier: whose transport is the folder.
        state: where the device stands.

    Attributes:
        error: what was wrong with the stick, if something was.
    """

    def __init__(self, courier: Courier, *, state: Callable[[], State]) -> None:
        self._courier = courier
        self._state = state
        self._stop: Callable[[], None] = lambda: None
        self._assigned: Assigned | None = None
        self._asked = False
        self.error: EdgestillError | None = None

    def ends(self, stop: Callable[[], None]) -> None:
        """Says how the supervisor is ended, which is made after its hub."""
        self._stop = stop

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """What the stick assigns, once; afterwards looks whether all is done."""
        if self.error is None and not self._asked:
            self._asked = True
            try:
                self._assigned, _ = self._courier.poll(seen=seen)
            except EdgestillError as error:
                self._fail(error)
            return self._assigned, LOOK
        if self.error is not None or self._assigned is None or is_settled(self._state(), self._assigned):
            self._stop()
        return None, LOOK

    def forget(self) -> None:
        """Offers the assignment again: a trial was still going on."""
        self._courier.forget()
        self._asked = False

    def deliver(self, _: Outbox) -> bool:
        """Nothing can be told to a stick."""
        return True

    def fetch(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        """Brings an archive; a stick that lacks what it assigns has had its chance.

        What an earlier stick or the hub had begun may be asked for first, and need not be there.
        """
        try:
            self._courier.fetch(target, to=to, base=base)
        except EdgestillError as error:
            if self._assigned is not None and target == self._assigned.target:
                self._fail(error)
            raise

    def outcome(self) -> Target | None:
        """What serves now by the stick's word; None where it assigns nothing.

        Raises:
            EdgestillError: what went wrong with the stick.
            ProbeError: the device fell back.
            ConflictError: it was ended before it was done.
        """
        if self.error is not None:
            raise self.error
        if self._assigned is None:
            return None
        state, target = self._state(), self._assigned.target
        if _has_failed(state.failure, self._assigned):
            assert state.failure is not None
            raise ProbeError(
                "the device fell back",
                where=target.release,
                expected="a bundle that serves",
                got=state.failure.reason,
                fix="the one before serves on; ask the publisher for another release",
            )
        if not is_settled(state, self._assigned):
            raise ConflictError(
                "the update was ended before it was done",
                where=target.release,
                expected="confirmed, or fallen back",
                got=state.phase,
                fix="run it again, or let the agent run: it goes on where it was",
            )
        return target

    def _fail(self, error: EdgestillError) -> None:
        self.error = self.error or error
        self._stop()


def is_settled(state: State, assigned: Assigned) -> bool:
    """Whether the device has come to rest after this assignment."""
    if state.phase != "idle" or state.seen < assigned.counter:
        return False
    return state.serving == assigned.target or _has_failed(state.failure, assigned)


def _has_failed(failure: Failure | None, assigned: Assigned) -> bool:
    """As `device.machine` sees it: also where it comes again in another epoch."""
    if failure is None or failure.target != assigned.target:
        return False
    return (failure.counter - assigned.counter) % (MAX_COUNTER + 1) == 0

"""The agent's memory and its word: applies `machine.step`, writes the new state, keeps the reports.

The order is the promise. For each event:

1. the reports it causes are kept in the outbox (their ids come from what they tell, so that keeping them twice is
   keeping them once),
2. the new state replaces the old one on disk,
3. only then the effects are handed out to be carried out.

A kill between two of these repeats work and loses none. Where the disk refuses, a step *forward* (an installation, a
switch) does not happen; a step *back to safety* (falling back, serving) happens in memory and is written later.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, final

from edgestill.core.errors import PathError
from edgestill.core.jsonio import canonical
from edgestill.core.wire import Report
from edgestill.device.events import Probed, Tell
from edgestill.device.machine import Rules, step

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock
    from edgestill.core.wire import Health
    from edgestill.device.events import Effect, Event
    from edgestill.device.outbox import Outbox
    from edgestill.device.slots import Slots
    from edgestill.device.state import State, Target

log = logging.getLogger(__name__)


@final
class Agent:
    """What a device knows about itself, and how that changes.

    Args:
        device: its id.
        slots: opened; the state is loaded from them.
        outbox: opened.
        clock: for the times in reports.
        rules: what a trial must stand.
    """

    def __init__(
        self, *, device: str, slots: Slots, outbox: Outbox, clock: Clock, rules: Rules | None = None
    ) -> None:
        self._device = device
        self._slots = slots
        self._outbox = outbox
        self._clock = clock
        self._rules = rules or Rules()
        self._state = slots.load()
        self._written = self._state.to_bytes()
        self._untold: list[Report] = []

    @property
    def state(self) -> State:
        """Where the device stands."""
        return self._state

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Lets an event happen.

        Returns:
            The effects to carry out, in their order; none where the disk refused a step forward, which may then be
            tried again.
        """
        state, effects = step(self._state, event, self._rules)
        told = [self._report(one) for one in effects if isinstance(one, Tell)]
        safe = state.wanted is None and not isinstance(event, Probed)
        try:
            self._keep(told)
            self._write(state)
        except PathError as error:
            log.warning("%s", error)
            if not safe:
                self._untold = [one for one in self._untold if one not in told]
                return ()
        self._state = state
        return tuple(one for one in effects if not isinstance(one, Tell))

    def flush(self) -> None:
        """Tries again to write what the disk refused earlier."""
        try:
            self._keep([])
            self._write(self._state)
        except PathError as error:
            log.warning("%s", error)

    def tell_health(self, target: Target, health: Health, *, id_: str, at: float) -> None:
        """Keeps figures for the hub; they are lost where the disk refuses them, and only then."""
        report = Report(id=id_, at=at, bundle=str(target.digest), release=target.release, health=health)
        try:
            self._keep([report])
        except PathError as error:
            self._untold.remove(report)
            log.warning("%s", error)

    def _keep(self, reports: list[Report]) -> None:
        self._untold += reports
        if self._untold:
            self._outbox.add(self._untold)
            self._untold = []

    def _write(self, state: State) -> None:
        data = state.to_bytes()
        if data != self._written:
            self._slots.save(state)
            self._written = data

    def _report(self, tell: Tell) -> Report:
        said = canonical([self._device, tell.counter, tell.state, str(tell.target.digest)])
        return Report(
            id=hashlib.sha256(said).hexdigest()[:40],
            at=self._clock.now(),
            bundle=str(tell.target.digest),
            release=tell.target.release,
            state=tell.state,
            reason=tell.reason,
        )

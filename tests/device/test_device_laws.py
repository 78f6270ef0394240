"""A device on a real folder lives through anything: assignments, bad bundles, kills and faults at any moment.

The state machine plays the hub, the power supply and the disk against the real agent, slots and outbox. Whatever has
happened, the laws below hold after each event, and at the end a good assignment still gets through.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from device_worlds import FaultyDisk, Killed, World, target
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgestill.device.events import Assigned, Booted, EngineDied, Retried
from edgestill.device.slots import holds
from edgestill.device.state import SLOTS, contradiction

if TYPE_CHECKING:
    from edgestill.device.events import Event
    from edgestill.device.state import Target

VERSIONS = st.integers(1, 3)
GOOD = 9


class Life(RuleBasedStateMachine):
    """One device and all that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        self.disk = FaultyDisk()
        self.bad: set[int] = set()
        self.counter = 0
        self.assigned: list[tuple[int, Target]] = []
        self.has_confirmed = False
        self.seen = 0
        self.world = self.opened()
        self.let(Booted())

    def teardown(self) -> None:
        """In the end a good bundle arrives, the disk is well, and nothing of the past can hold it up."""
        self.restart()
        self.assign_now(GOOD)
        for _ in range(4):
            self.let(Assigned(*self.assigned[-1]))
            self.let(Retried())
            if self.world.agent.state.phase == "watching":
                self.world.watch()
        assert self.world.agent.state.serving == target(GOOD)
        assert self.world.serving == target(GOOD)
        assert self.world.agent.state.phase == "idle"
        assert f"watch/1.0.{GOOD} confirmed" in self.world.told()
        self.world.close()
        shutil.rmtree(self.folder)

    # What happens

    @rule(number=VERSIONS)
    def assign(self, number: int) -> None:
        """The hub wants another version, newer or older."""
        self.assign_now(number)

    @precondition(lambda self: self.assigned)
    @rule()
    def repeat(self) -> None:
        """The hub says it again, as at every poll."""
        self.let(Assigned(*self.assigned[-1]))

    @precondition(lambda self: len(self.assigned) > 1)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Attack: an old assignment, well signed, comes again. It changes nothing."""
        counter, old = data.draw(st.sampled_from(self.assigned[:-1]))
        if counter < self.world.agent.state.seen:
            before = self.world.agent.state
            self.let(Assigned(counter, old))
            assert self.world.agent.state == before

    @precondition(lambda self: self.world.agent.state.active is not None)
    @rule()
    def serve_well(self) -> None:
        """Long enough for a trial to end."""
        self.watched()

    @precondition(lambda self: self.world.agent.state.active is not None)
    @rule()
    def die(self) -> None:
        """The engine that serves dies."""
        active = self.world.agent.state.active
        assert active is not None
        self.let(EngineDied(active, "killed"))

    @rule(number=VERSIONS)
    def turn_bad(self, number: int) -> None:
        """From now on this version dies whenever it is started."""
        if self.world.agent.state.phase != "idle" or target(number) != self.world.agent.state.serving:
            self.bad.add(number)
            self.world.bad = {target(one).digest for one in self.bad}

    @rule()
    def turn_good(self) -> None:
        """Whatever made them die has passed."""
        self.bad.clear()
        self.world.bad = set()

    @rule()
    def retry(self) -> None:
        """The installer tries again."""
        self.let(Retried())

    @rule()
    def restart(self) -> None:
        """The process is killed while nothing is under way, and the disk is well again."""
        self.world.close()
        self.disk = FaultyDisk()
        self.world = self.opened()
        assert [one.name for one in self.folder.rglob(".*")] == []
        self.let(Booted())

    @rule(after=st.integers(0, 6), fault=st.sampled_from(["before", "after", "ENOSPC", "EIO"]))
    def disk_will_fail(self, after: int, fault: str) -> None:
        """At some operation to come the power fails, or there is no room for once."""
        self.disk.at, self.disk.fault, self.disk.lasting = len(self.disk.operations) + after, fault, False

    @rule(after=st.integers(0, 4))
    def disk_will_be_full(self, after: int) -> None:
        """And stays full until the next start."""
        self.disk.at = len(self.disk.operations) + after
        self.disk.fault, self.disk.lasting = "ENOSPC", True

    @rule(after=st.integers(0, 4), when=st.sampled_from(["before", "after"]))
    def power_will_fail(self, after: int, when: str) -> None:
        """Before or after some effect to come."""
        self.world.kill_at = (len(self.world.done) + after, when)

    # What must hold

    @invariant()
    def the_state_makes_sense(self) -> None:
        """In memory, and as far as it was written, on disk."""
        assert contradiction(self.world.agent.state) == ""
        assert contradiction(self.world.slots.load()) == ""

    @invariant()
    def what_serves_is_whole(self) -> None:
        """The slot that serves is never written to."""
        state = self.world.agent.state
        if state.active is not None:
            held = state.held(state.active)
            assert held is not None
            assert holds(self.world.slots.archive(state.active, held), held)

    @invariant()
    def a_device_that_has_served_serves(self) -> None:
        """Once a bundle was confirmed there is always one to serve."""
        state = self.world.agent.state
        records = [self.world.slots.record(slot) for slot in SLOTS]
        self.has_confirmed |= any(one is not None and one.confirmed for one in records)
        assert state.active is not None or not self.has_confirmed

    @invariant()
    def nothing_serves_that_was_never_assigned(self) -> None:
        """And while nothing has failed, it is what the hub wanted last, or what served before that could be had."""
        serving = self.world.agent.state.serving
        assert serving is None or serving in {one for _, one in self.assigned}

    @invariant()
    def counters_do_not_go_back(self) -> None:
        """Not by a kill, and not by a disk that refuses: what was once seen stays seen, if it was ever written."""
        written = self.world.slots.load().seen
        assert written >= self.seen
        self.seen = written
        assert self.world.agent.state.seen <= self.counter

    @invariant()
    def what_is_done_has_been_told(self) -> None:
        """A confirmed slot and a failure each have their report, and no report is there twice."""
        told = self.world.told()
        assert len(told) == len({report.id for report in self.world.outbox.waiting()})
        for slot in SLOTS:
            record = self.world.slots.record(slot)
            if record is not None and record.confirmed:
                assert f"{record.target.release} confirmed" in told
        failure = self.world.agent.state.failure
        if failure is not None:
            assert f"{failure.target.release} fell-back" in told

    # How

    def opened(self) -> World:
        """The device as a start finds it."""
        world = World(self.folder / "home", self.disk)
        world.bad = {target(one).digest for one in self.bad}
        return world

    def assign_now(self, number: int) -> None:
        """The next counter, and this version under it."""
        self.counter += 1
        self.assigned.append((self.counter, target(number)))
        self.let(Assigned(*self.assigned[-1]))

    def watched(self) -> None:
        """The active slot serves well."""
        try:
            self.world.watch()
        except Killed:
            self.restart()

    def let(self, event: Event) -> None:
        """An event and what follows; after a kill, a start."""
        try:
            self.world.let(event)
        except Killed:
            self.restart()


Life.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
test_a_device_lives_through_anything = Life.TestCase

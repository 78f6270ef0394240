"""The laws of a rollout, whatever devices, clock and operator do: a state machine plays all of them against `decide`.

The machine here knows nothing of how `decide` counts. It keeps its own books, and looks at every action.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgestill.core.release import Gates, Rollout, Stage
from edgestill.hub.engine import (
    Action,
    Advance,
    Assign,
    DeviceView,
    Finish,
    Member,
    Pause,
    RollBack,
    View,
    decide,
    excusable,
    explain,
    failure,
    merge,
)
from edgestill.hub.sequential import Count, looks_too_often, too_often

STEPS = ("downloaded", "verified", "staged", "serving", "confirmed", "fell-back")
MOST_ROUNDS = 40
TARGET, BEFORE = "watch/1.1.0/any.esb", "watch/1.0.0/any.esb"

shares = st.lists(st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.7]), max_size=3, unique=True).map(
    lambda some: (*sorted(some), 1.0)
)
gates = st.builds(
    Gates,
    max_failed=st.sampled_from([0.5, 0.2, 0.0]),
    min_agreement=st.sampled_from([None, 0.5, 0.9]),
    min_audits=st.integers(1, 6),
    silent_after=st.sampled_from([10.0, 100.0]),
)


class Fleet(RuleBasedStateMachine):
    """A rollout, its devices, and everything that can happen to them."""

    @initialize(
        count=st.sampled_from([9, 6, 3, 1, 0]),
        bundles=st.lists(st.sampled_from([True, True, True, False]), min_size=9, max_size=9),
        stages=shares,
        gates=gates,
        id_=st.integers(1, 50),
    )
    def begin(
        self, count: int, bundles: list[bool], stages: tuple[float, ...], gates: Gates, id_: int
    ) -> None:
        """A rollout over some devices, some of which it has no bundle for."""
        self.now = 1000.0
        self.furthest = 0
        self.ever: set[str] = set()
        devices = [
            DeviceView(id=f"d{index}", target=TARGET if bundles[index] else None, last_seen=self.now)
            for index in range(count)
        ]
        rollout = Rollout(
            release="watch/1.1.0", stages=tuple(Stage(share=share) for share in stages), gates=gates
        )
        self.view = View(id=id_, rollout=rollout, state="running", stage=0, devices=devices)
        self.settle()

    # What happens

    @rule(data=st.data(), state=st.sampled_from(STEPS))
    def a_member_reports(self, data: st.DataObject, state: str) -> None:
        """A step, in any order and any number of times; the hub does not look before it has to."""
        device = self.pick(data, lambda one: one.member is not None)
        if device is not None and device.member is not None:
            reached = merge(device.member.state, state)  # type: ignore[arg-type]  # one of STEPS
            assert merge(reached, state) == reached  # type: ignore[arg-type]  # one of STEPS
            member = replace(device.member, state=reached, heard_at=self.now)
            self.put(replace(device, member=member, last_seen=self.now))

    @rule(most=st.sampled_from([1, 1, 2, 9]))
    def some_members_confirm(self, most: int) -> None:
        """One, some, or all that can, so that rollouts get anywhere; the hub looks at once."""
        self.members_confirm(most)

    def members_confirm(self, most: int) -> None:
        """The first so many that have not."""
        some = [
            one
            for one in self.view.devices
            if one.member is not None and one.member.state not in {"confirmed", "fell-back"}
        ]
        for device in some[:most]:
            assert device.member is not None
            member = replace(device.member, state="confirmed", heard_at=self.now)
            self.put(replace(device, member=member, last_seen=self.now))
        self.settle()

    @precondition(lambda self: self.view.state == "running")
    @rule()
    def one_confirms(self) -> None:
        """The usual thing, in small steps."""
        self.members_confirm(1)

    @precondition(lambda self: self.view.state == "running")
    @rule(most=st.integers(1, 3))
    def some_confirm_with_good_audits(self, most: int) -> None:
        """The usual thing, where agreement is asked for."""
        for one in self.view.devices:
            if one.member is not None:
                member = one.member
                self.put(
                    replace(one, member=replace(member, audits=member.audits + 9, agreed=member.agreed + 9))
                )
        self.members_confirm(most)

    @rule(data=st.data(), audits=st.integers(1, 6), wrong=st.integers(0, 6))
    def a_member_is_audited(self, data: st.DataObject, audits: int, wrong: int) -> None:
        """Health figures about the release."""
        device = self.pick(data, lambda one: one.member is not None)
        if device is not None and device.member is not None:
            member = replace(
                device.member,
                audits=device.member.audits + audits,
                agreed=device.member.agreed + max(0, audits - wrong),
                heard_at=self.now,
            )
            self.put(replace(device, member=member))

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0, 101.0, -50.0]), looks=st.booleans())
    def time_passes(self, seconds: float, looks: bool) -> None:
        """Or is set back."""
        self.now += seconds
        if looks:
            self.settle()

    @rule(data=st.data())
    def a_device_calls(self, data: st.DataObject) -> None:
        """It was away, and polls again."""
        device = self.pick(data, lambda _: True)
        if device is not None:
            self.put(replace(device, last_seen=self.now))

    @rule(has_bundle=st.sampled_from([True, True, False]))
    def a_device_joins(self, has_bundle: bool) -> None:
        """The fleet grows at any time."""
        target = TARGET if has_bundle else None
        name = f"d{len(self.view.devices)}"
        self.view = replace(
            self.view, devices=[*self.view.devices, DeviceView(id=name, target=target, last_seen=self.now)]
        )

    @precondition(lambda self: self.view.state == "running")
    @rule()
    def the_operator_pauses(self) -> None:
        """For whatever reason."""
        self.view = replace(self.view, state="paused")

    @precondition(lambda self: self.view.state == "paused")
    @rule()
    def the_operator_resumes(self) -> None:
        """The failures there are, and the audits, are excused; the hub looks at once."""
        excused = excusable(self.view, self.now)
        devices = [
            one
            if one.member is None
            else replace(one, member=replace(one.member, excused=excused.get(one.id), audits=0, agreed=0))
            for one in self.view.devices
        ]
        self.view = replace(self.view, state="running", devices=devices)
        self.settle()

    @precondition(lambda self: self.view.stage + 1 == len(self.view.rollout.stages))
    @rule(data=st.data())
    def the_operator_rolls_back(self, data: st.DataObject) -> None:
        """Late. Some devices had something before, some are held by a later rollout."""
        devices = [
            replace(
                one,
                back_to=BEFORE if data.draw(st.booleans()) else None,
                held=data.draw(st.booleans()),
            )
            for one in self.view.devices
        ]
        self.view = replace(self.view, state="rolled-back", devices=devices)

    @rule()
    def the_hub_looks(self) -> None:
        """As it does after reports, and every few seconds."""
        self.settle()

    # What must hold

    @invariant()
    def deciding_is_a_function_of_what_is_known(self) -> None:
        """The same view, in another order, gives the same actions."""
        if not hasattr(self, "view"):
            return
        turned = replace(self.view, devices=list(reversed(self.view.devices)))
        assert decide(self.view, self.now) == decide(turned, self.now) == decide(self.view, self.now)

    @invariant()
    def explaining_is_for_those_that_run(self) -> None:
        """And never fails."""
        if hasattr(self, "view"):
            assert isinstance(explain(self.view, self.now), str)
            assert self.view.state == "running" or explain(self.view, self.now) == ""

    def settle(self) -> None:
        """Decides and does until there is nothing left to do, which comes soon."""
        for _ in range(MOST_ROUNDS):
            actions = decide(self.view, self.now)
            if not actions:
                return
            self.look_at(actions)
            for action in actions:
                self.do(action)
        raise AssertionError(f"still something to do: {actions}")

    def look_at(self, actions: list[Action]) -> None:
        """Whether these are allowed, by the machine's own books."""
        kinds = {type(action) for action in actions}
        assert len(kinds) == 1, "one thing at a time"
        allowed: dict[str, set[type[Action]]] = {
            "running": {Assign, Advance, Pause, Finish},
            "done": {Assign},
            "rolled-back": {RollBack},
            "paused": set(),
        }
        assert kinds <= allowed[self.view.state]
        if self.view.state == "running":
            assert (kinds == {Pause}) == self.is_broken(), "a broken gate pauses, and nothing else does"
        if kinds == {Assign}:
            self.look_at_assignments([one for one in actions if isinstance(one, Assign)])
        if kinds & {Advance, Finish}:
            self.look_at_completion(actions[0])

    def look_at_assignments(self, actions: list[Assign]) -> None:
        """Only who is there, can run it and has not got it; and while it runs, no more than the stage's share."""
        known = {one.id: one for one in self.view.devices}
        assert len({one.device for one in actions}) == len(actions)
        for action in actions:
            device = known[action.device]
            assert device.member is None
            assert not device.held
            assert device.target == action.target
            assert self.now - device.last_seen <= self.view.rollout.gates.silent_after
            assert action.device not in self.ever, "nobody is assigned the same rollout twice"
            self.ever.add(action.device)
        if self.view.state == "running":
            good = len(self.members("good")) + len(self.members("waiting"))
            assert good + len(actions) <= self.quota()

    def look_at_completion(self, action: Action) -> None:
        """Nobody is waited for, somebody has confirmed, there are audits enough, and the share is reached or nobody is left."""
        gates = self.view.rollout.gates
        assert not self.members("waiting")
        assert self.members("good")
        if gates.min_agreement is not None:
            audits = sum(one.audits for one in self.counted())
            assert audits >= gates.min_audits
            counts = [Count(one.audits - one.agreed, one.audits) for one in self.counted()]
            assert not looks_too_often(counts, 1 - gates.min_agreement)
        left = [
            one
            for one in self.view.devices
            if one.member is None
            and one.target is not None
            and not one.held
            and self.now - one.last_seen <= gates.silent_after
        ]
        assert len(self.members("good")) >= self.quota() or not left
        is_last = self.view.stage + 1 == len(self.view.rollout.stages)
        assert isinstance(action, Finish) == is_last
        if isinstance(action, Advance):
            assert action.stage == self.view.stage + 1

    def do(self, action: Action) -> None:
        """What the hub would write down."""
        match action:
            case Assign(device, _):
                (one,) = [one for one in self.view.devices if one.id == device]
                self.put(replace(one, member=Member(state="assigned", assigned_at=self.now)))
            case Advance(stage):
                assert stage > self.furthest
                self.furthest = stage
                self.view = replace(self.view, stage=stage)
            case Pause(reason):
                assert reason
                self.view = replace(self.view, state="paused")
                assert decide(self.view, self.now) == []
            case Finish():
                self.view = replace(self.view, state="done")
            case RollBack(device, target):
                (one,) = [one for one in self.view.devices if one.id == device]
                assert one.member is not None
                assert not one.member.returned
                assert not one.held
                assert target == one.back_to
                self.put(replace(one, member=replace(one.member, returned=True)))

    # The machine's own books

    def is_broken(self) -> bool:
        """Whether a gate is broken: too many have failed, or the audits there are say that it disagrees."""
        gates = self.view.rollout.gates
        failed, all_ = self.members("failed"), self.counted()
        if len(failed) > gates.max_failed * len(all_) + 1e-9:
            return True
        counts = [Count(one.audits - one.agreed, one.audits) for one in all_]
        return gates.min_agreement is not None and too_often(counts, 1 - gates.min_agreement)

    def quota(self) -> int:
        """Devices that shall have it at this stage."""
        eligible = sum(one.target is not None for one in self.view.devices)
        share = self.view.rollout.stages[self.view.stage].share
        return max(1, math.ceil(share * eligible - 1e-9))

    def counted(self) -> list[Member]:
        """Members whose failure is not excused."""
        gates = self.view.rollout.gates
        members = [one.member for one in self.view.devices if one.member is not None]
        return [
            one
            for one in members
            if failure(one, gates, self.now) is None or failure(one, gates, self.now) != one.excused
        ]

    def members(self, how: str) -> list[Member]:
        """Those that count and are `good`, `failed` or still `waiting`."""
        gates = self.view.rollout.gates
        sorts: dict[str, list[Member]] = {"good": [], "failed": [], "waiting": []}
        for one in self.counted():
            silent = self.now - max(one.assigned_at, one.heard_at or 0.0) > gates.silent_after
            if one.state == "confirmed":
                sorts["good"].append(one)
            elif one.state == "fell-back" or silent:
                sorts["failed"].append(one)
            else:
                sorts["waiting"].append(one)
        return sorts[how]

    def pick(self, data: st.DataObject, holds: object) -> DeviceView | None:
        """Some device for which this holds, if there is one."""
        assert callable(holds)
        some = [one for one in self.view.devices if holds(one)]
        return data.draw(st.sampled_from(some)) if some else None

    def put(self, device: DeviceView) -> None:
        """Replaces a device."""
        devices = [device if one.id == device.id else one for one in self.view.devices]
        self.view = replace(self.view, devices=devices)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=50, stateful_step_count=50)

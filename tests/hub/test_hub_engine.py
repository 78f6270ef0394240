"""`decide()`: single rules by hand, and all of them together on random fleets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgestill.core.release import Gates, Rollout, Stage
from edgestill.core.wire import DeviceState
from edgestill.hub.engine import (
    Action,
    Advance,
    Assign,
    DeviceView,
    Finish,
    Member,
    MemberState,
    Pause,
    RollBack,
    View,
    decide,
    excusable,
    explain,
    failure,
    merge,
)
from edgestill.hub.sequential import Count, looks_too_often

NOW = 1_800_000_000.0
TARGET = "watch/1.1.0/x86_64-vnni-onnxruntime.esb"
BEFORE = "watch/1.0.0/x86_64-vnni-onnxruntime.esb"
STATES = get_args(DeviceState)


def fleet(count: int, **changes: Any) -> list[DeviceView]:
    """Devices d0, d1, ... that were just seen."""
    given: dict[str, Any] = {"target": TARGET, "last_seen": NOW} | changes
    return [DeviceView(id=f"d{index}", **given) for index in range(count)]


def view(devices: list[DeviceView], *shares: float, gates: Gates | None = None, **changes: Any) -> View:
    """A running rollout in its first stage."""
    stages = tuple(Stage(share=share) for share in shares or (1.0,))
    rollout = Rollout(release="watch/1.1.0", stages=stages, gates=gates or Gates())
    given: dict[str, Any] = {"id": 7, "state": "running", "stage": 0} | changes
    return View(rollout=rollout, devices=devices, **given)


def member(state: MemberState = "assigned", **changes: Any) -> Member:
    """A member assigned just now."""
    given: dict[str, Any] = {"assigned_at": NOW} | changes
    return Member(state=state, **given)


def take(before: View, actions: list[Action], now: float) -> View:
    """What the registry does, on a view."""
    devices = {device.id: device for device in before.devices}
    changes: dict[str, Any] = {}
    for action in actions:
        match action:
            case Assign(device, _):
                assert devices[device].member is None
                devices[device] = replace(devices[device], member=Member(state="assigned", assigned_at=now))
            case RollBack(device, _):
                known = devices[device].member
                assert known is not None
                devices[device] = replace(devices[device], member=replace(known, returned=True))
            case Advance(stage):
                changes["stage"] = stage
            case Pause(_):
                changes["state"] = "paused"
            case Finish():
                changes["state"] = "done"
    return replace(before, devices=list(devices.values()), **changes)


def settle(before: View, now: float = NOW) -> tuple[View, list[Action]]:
    """Asks until there is nothing to do, and tells all that was done."""
    done: list[Action] = []
    for _ in range(100):
        actions = decide(before, now)
        if not actions:
            return before, done
        done += actions
        before = take(before, actions, now)
    pytest.fail(f"it never comes to rest: {done}")


def report(
    before: View, device: str, state: DeviceState, *, now: float = NOW, audits: int = 0, agreed: int = 0
) -> View:
    """A device of the rollout tells a step, or audits."""

    def told(one: DeviceView) -> DeviceView:
        if one.id != device or one.member is None:
            return one
        known = one.member
        return replace(
            one,
            last_seen=now,
            member=replace(
                known,
                state=merge(known.state, state),
                heard_at=now,
                audits=known.audits + audits,
                agreed=known.agreed + agreed,
            ),
        )

    return replace(before, devices=[told(one) for one in before.devices])


def assigned(seen: View) -> set[str]:
    """Who is in the rollout."""
    return {device.id for device in seen.devices if device.member is not None}


def test_a_stage_takes_its_share_rounded_up() -> None:
    """A fifth of ten devices are two, a fifth of eleven are three, and of one it is still one."""
    for count, wanted in ((10, 2), (11, 3), (1, 1), (5, 1)):
        seen, _ = settle(view(fleet(count), 0.2, 1.0))
        assert len(assigned(seen)) == wanted, count


def test_shares_are_not_fooled_by_rounding() -> None:
    """7 % of 100 devices are 7, although 0.07 * 100 is a little more than 7 in binary."""
    seen, _ = settle(view(fleet(100), 0.07, 1.0))
    assert len(assigned(seen)) == 7


def test_the_first_devices_differ_from_rollout_to_rollout() -> None:
    """No device is always the first to be tried."""
    first = set()
    for number in range(20):
        seen, _ = settle(view(fleet(20), 0.05, 1.0, id=number))
        first |= assigned(seen)
    assert len(first) > 5


def test_a_device_without_a_bundle_is_left_alone_and_not_counted() -> None:
    """Half of four eligible devices are two, however many others there are."""
    others = [replace(one, id=f"x{i}", target=None) for i, one in enumerate(fleet(6))]
    seen, _ = settle(view(fleet(4) + others, 0.5, 1.0))
    assert len(assigned(seen)) == 2
    assert all(name.startswith("d") for name in assigned(seen))


def test_an_absent_device_is_not_taken_until_it_returns() -> None:
    """A device not seen for `silent_after` could only be silent."""
    absent = replace(fleet(1)[0], id="gone", last_seen=NOW - 3601)
    seen, _ = settle(view([absent, *fleet(1)]))
    assert assigned(seen) == {"d0"}
    back = replace(seen, devices=[replace(one, last_seen=NOW) for one in seen.devices])
    assert Assign("gone", TARGET) in decide(back, NOW)


def test_the_next_stage_waits_for_all_of_this_one() -> None:
    """With one of two confirmed nothing happens; with both the next stage begins and takes the rest."""
    seen, _ = settle(view(fleet(4), 0.5, 1.0))
    first, second = sorted(assigned(seen))
    seen = report(seen, first, "confirmed")
    assert decide(seen, NOW) == []
    assert explain(seen, NOW) == f"waiting for {second} to confirm"
    assert decide(report(seen, second, "confirmed"), NOW) == [Advance(1)]


def test_the_last_stage_finishes() -> None:
    """When everybody confirmed in the last stage, the rollout is done, and then rests."""
    seen, _ = settle(view(fleet(3)))
    for name in assigned(seen):
        seen = report(seen, name, "confirmed")
    seen, actions = settle(seen)
    assert actions == [Finish()]
    assert seen.state == "done"
    assert decide(seen, NOW) == []


def test_an_empty_fleet_waits() -> None:
    """No device confirmed, so nothing can be complete."""
    empty = view([], 0.5, 1.0)
    assert decide(empty, NOW) == []
    assert explain(empty, NOW) == "waiting for a device that can be assigned"


def test_a_device_that_falls_back_pauses_the_rollout() -> None:
    """The default gate allows none; the reason names the device."""
    seen, _ = settle(view(fleet(4), 0.5, 1.0))
    name = min(assigned(seen))
    (action,) = decide(report(seen, name, "fell-back"), NOW)
    assert action == Pause(f"{name} failed, of 2 that have the release (allowed: 0%)")


def test_falling_back_after_confirming_counts() -> None:
    """A bundle that dies an hour later is no success."""
    seen, _ = settle(view(fleet(2), 0.5, 1.0))
    (name,) = assigned(seen)
    seen, _ = settle(report(seen, name, "confirmed"))
    assert isinstance(decide(report(seen, name, "fell-back"), NOW)[0], Pause)


def test_a_silent_device_counts_as_failed() -> None:
    """Whoever is assigned and tells nothing for `silent_after` breaks the gate; a report in between restarts the wait."""
    seen, _ = settle(view(fleet(1), gates=Gates(silent_after=60)))
    assert decide(seen, NOW + 60) == []
    assert isinstance(decide(seen, NOW + 61)[0], Pause)
    heard = report(seen, "d0", "downloaded", now=NOW + 50)
    assert decide(heard, NOW + 110) == []
    assert isinstance(decide(heard, NOW + 111)[0], Pause)


def test_a_confirmed_device_may_be_quiet() -> None:
    """Once it confirmed, a device owes nothing."""
    seen, _ = settle(view(fleet(1), gates=Gates(silent_after=60)))
    seen, actions = settle(report(seen, "d0", "confirmed"), NOW + 1_000_000)
    assert actions == [Finish()]


def test_tolerated_failures_are_replaced() -> None:
    """With half allowed to fail, a failed device's place in the stage is taken by another."""
    seen, _ = settle(view(fleet(10), 0.4, 1.0, gates=Gates(max_failed=0.5)))
    failed = min(assigned(seen))
    seen, actions = settle(report(seen, failed, "fell-back"))
    assert [type(action) for action in actions] == [Assign]
    assert len(assigned(seen)) == 5


def test_disagreement_pauses_once_it_is_sure() -> None:
    """80 % of ten may be chance where 90 % are asked for, and the stage waits; half of twenty is none."""
    gates = Gates(min_agreement=0.9, min_audits=10)
    seen, _ = settle(view(fleet(2), 0.5, 1.0, gates=gates))
    (name,) = assigned(seen)
    few = report(seen, name, "confirmed", audits=9, agreed=9)
    assert decide(few, NOW) == []
    assert "9 of 10" in explain(few, NOW)
    doubtful = report(seen, name, "confirmed", audits=10, agreed=8)
    assert decide(doubtful, NOW) == []
    assert explain(doubtful, NOW).endswith(
        "80.0% on 10 audits of 1 device (least: 90.0%), which may be chance"
    )
    assert decide(report(doubtful, name, "confirmed", audits=10, agreed=2), NOW) == [
        Pause("agreement with the teacher is 50.0% on 20 audits of 1 device (least: 90.0%)")
    ]
    assert decide(report(doubtful, name, "confirmed", audits=10, agreed=10), NOW) == [Advance(1)]


def test_a_device_that_became_slow_counts_as_failed() -> None:
    """Until it tells otherwise; an operator may excuse it as any other failure."""
    gates = Gates(max_latency=0.1)
    slow = member("confirmed", latency=0.2, answers=20)
    assert failure(replace(slow, answers=19), gates, NOW) is None, "a few answers are a warm-up"
    assert failure(replace(slow, state="serving"), gates, NOW) is None
    seen = view([replace(fleet(1)[0], member=slow)], 1.0, gates=gates)
    assert isinstance(decide(seen, NOW)[0], Pause)
    assert excusable(seen, NOW) == {"d0": "slow"}
    excused = view([replace(fleet(1)[0], member=replace(slow, excused="slow"))], 1.0, gates=gates)
    assert decide(excused, NOW) == [Finish()], "it serves, and that is as good as it gets"
    assert failure(replace(slow, latency=0.05), gates, NOW) is None
    assert failure(slow, Gates(), NOW) is None


def test_nobody_else_gets_what_looks_bad() -> None:
    """A second device of the stage that comes online waits with it, until an operator accepts what is seen."""
    gates = Gates(min_agreement=0.9, min_audits=10)
    seen, _ = settle(
        view([*fleet(1), replace(fleet(1)[0], id="late", last_seen=NOW - 1e6)], 1.0, gates=gates)
    )
    doubtful = report(seen, "d0", "confirmed", audits=12, agreed=9)
    online = replace(doubtful, devices=[replace(one, last_seen=NOW) for one in doubtful.devices])
    assert decide(online, NOW) == []
    assert "which may be chance" in explain(online, NOW)
    accepted = replace(online, accepted=0)
    assert [type(action) for action in decide(accepted, NOW)] == [Assign]


@pytest.mark.parametrize("gate", [{"max_errors": 0.1}, {"max_escalated": 0.5}, {"max_latency": 1.0}])
def test_a_canary_that_has_answered_nothing_says_nothing(gate: dict[str, float]) -> None:
    """Where errors, escalations or latency are bounded, some answers are waited for."""
    seen, _ = settle(view(fleet(2), 0.5, 1.0, gates=Gates(**gate)))  # type: ignore[arg-type]  # one of three floats
    (name,) = assigned(seen)
    seen = report(seen, name, "confirmed")
    assert decide(seen, NOW) == []
    assert explain(seen, NOW) == "waiting for answers: 0 of 20 that the gates ask"
    told = [
        replace(one, member=replace(one.member, answers=20)) if one.member else one for one in seen.devices
    ]
    assert decide(replace(seen, devices=told), NOW) == [Advance(1)]


def test_latency_is_told_by_a_device_that_has_answered_enough() -> None:
    """Ten with two answers each say nothing of it, whatever they add up to."""
    gates = Gates(max_latency=0.1)
    few = [replace(one, member=member("confirmed", answers=2, latency=5.0)) for one in fleet(10)]
    assert decide(view(few, 1.0, gates=gates), NOW) == []
    assert "whose latency can be told" in explain(view(few, 1.0, gates=gates), NOW)


def test_agreement_lets_the_rollout_advance() -> None:
    """With enough audits and enough agreement the stage is complete."""
    seen, _ = settle(view(fleet(2), 0.5, 1.0, gates=Gates(min_agreement=0.9, min_audits=20)))
    (name,) = assigned(seen)
    assert decide(report(seen, name, "confirmed", audits=20, agreed=18), NOW) == [Advance(1)]


def test_a_paused_rollout_does_nothing() -> None:
    """Whatever is reported meanwhile."""
    seen, _ = settle(view(fleet(4), 0.5, 1.0))
    seen = replace(seen, state="paused")
    for name in assigned(seen):
        seen = report(seen, name, "confirmed")
    assert decide(seen, NOW) == []
    assert explain(seen, NOW) == ""


def test_excused_failures_let_a_resumed_rollout_go_on() -> None:
    """The device that fell back is left behind; the others get their release, and it finishes."""
    seen, _ = settle(view(fleet(4), 0.5, 1.0))
    failed = min(assigned(seen))
    seen, _ = settle(report(seen, failed, "fell-back"))
    assert seen.state == "paused"
    assert excusable(seen, NOW) == {failed: "fell-back"}
    devices = [
        replace(one, member=replace(one.member, excused="fell-back"))
        if one.id == failed and one.member
        else one
        for one in seen.devices
    ]
    seen = replace(seen, state="running", devices=devices)
    for _ in range(5):
        seen, _ = settle(seen)
        for name in assigned(seen) - {failed}:
            seen = report(seen, name, "confirmed")
    assert seen.state == "done"
    assert len(assigned(seen)) == 4


def test_an_excused_silence_does_not_excuse_falling_back() -> None:
    """Excused is one kind of failure; another kind is new."""
    late = member("fell-back", excused="silent")
    seen = view([replace(fleet(1)[0], member=late), *[replace(one, id="e") for one in fleet(1)]])
    assert isinstance(decide(seen, NOW)[0], Pause)


def test_a_silent_device_that_comes_back_is_waited_for_again() -> None:
    """It was excused and replaced; when it reports, it belongs to the stage again, which then has one more."""
    quiet = member("assigned", assigned_at=NOW - 4000, excused="silent")
    replacement = replace(fleet(1)[0], id="other", member=member("confirmed"))
    seen = view([replace(fleet(1)[0], member=quiet), replacement, *fleet(9)[2:]], 0.1, 1.0)
    assert decide(seen, NOW) == [Advance(1)]
    back = report(seen, "d0", "downloaded")
    assert decide(back, NOW) == []
    assert explain(back, NOW) == "waiting for d0 to confirm"
    assert decide(report(back, "d0", "fell-back"), NOW) == [
        Pause("d0 failed, of 2 that have the release (allowed: 0%)")
    ]


def test_a_finished_rollout_welcomes_who_comes_later() -> None:
    """A new device, or one that was absent, is brought to the release; one that a later rollout holds is not."""
    devices = [
        replace(fleet(1)[0], id="old", member=member("confirmed")),
        replace(fleet(1)[0], id="new"),
        replace(fleet(1)[0], id="held", held=True),
        replace(fleet(1)[0], id="gone", last_seen=0.0),
    ]
    assert decide(view(devices, state="done"), NOW) == [Assign("new", TARGET)]


def test_rolling_back_sends_every_member_to_what_it_had() -> None:
    """Each goes back once; one without a past has its assignment withdrawn; one that a later rollout holds stays."""
    devices = [
        replace(fleet(1)[0], id="a", member=member("confirmed"), back_to=BEFORE),
        replace(fleet(1)[0], id="b", member=member("staged")),
        replace(fleet(1)[0], id="c", member=member("confirmed"), held=True, back_to=BEFORE),
        replace(fleet(1)[0], id="d"),
    ]
    seen, actions = settle(view(devices, state="rolled-back"))
    assert actions == [RollBack("a", BEFORE), RollBack("b", None)]
    assert decide(seen, NOW) == []


def test_many_failures_are_named_briefly() -> None:
    """Five names and a number."""
    devices = [replace(one, member=member("fell-back")) for one in fleet(8)]
    (action,) = decide(view(devices), NOW)
    assert isinstance(action, Pause)
    assert action.reason.startswith("d0, d1, d2, d3, d4 and 3 more failed")


@given(st.lists(st.sampled_from(STATES), max_size=12), st.randoms(use_true_random=False))
def test_reports_merge_the_same_in_any_order(states: list[DeviceState], random: Any) -> None:
    """Shuffled and repeated reports lead to the same step."""

    def merged(told: list[DeviceState]) -> str:
        known: Any = "assigned"
        for state in told:
            known = merge(known, state)
        return str(known)

    shuffled = states + random.sample(states, len(states) // 2)
    random.shuffle(shuffled)
    assert merged(states) == merged(shuffled)


@given(st.lists(st.sampled_from(STATES), max_size=6))
def test_a_device_that_fell_back_is_never_done(states: list[DeviceState]) -> None:
    """Nothing told before or after makes it a success."""
    known: Any = merge("assigned", "fell-back")
    for state in states:
        known = merge(known, state)
    assert failure(member(known), Gates(), NOW) == "fell-back"


shares = st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(lambda some: (*sorted(some), 1.0))


@given(st.integers(1, 30), shares, st.permutations(range(30)))
def test_every_device_ends_assigned_when_all_confirm(
    count: int, some: tuple[float, ...], order: list[int]
) -> None:
    """Whatever the stages, and in whatever order devices confirm and are listed, the rollout comes to its end."""
    devices = fleet(count)
    seen = view([devices[i] for i in order if i < count], *some)
    for _ in range(len(some) + 1):
        seen, _ = settle(seen)
        for index in order:
            seen = report(seen, f"d{index}", "confirmed")
    seen, _ = settle(seen)
    assert seen.state == "done"
    assert assigned(seen) == {device.id for device in devices}


@given(st.permutations(range(8)), st.lists(st.sampled_from(STATES), min_size=8, max_size=8))
@settings(max_examples=100)
def test_the_order_of_reports_and_devices_does_not_matter(
    order: list[int], states: list[DeviceState]
) -> None:
    """The same reports lead to the same decision, whoever tells first and however the view is sorted."""
    gates = Gates(max_failed=0.3, min_agreement=0.5, min_audits=3)
    start, _ = settle(view(fleet(8), 0.6, 1.0, gates=gates))

    def told(indices: list[int]) -> list[Action]:
        seen = start
        for index in indices:
            seen = report(seen, f"d{index}", states[index], audits=index, agreed=index // 2)
        return decide(replace(seen, devices=[seen.devices[index] for index in indices]), NOW)

    assert told(order) == told(list(range(8)))


class RolloutMachine(RuleBasedStateMachine):
    """A fleet in which anything may happen, and a rollout that must keep its promises all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.seen = view([])

    @initialize(
        count=st.integers(1, 8),
        some=shares,
        max_failed=st.sampled_from([0.0, 0.2, 0.5]),
        least=st.sampled_from([None, 0.7]),
    )
    def begin(self, count: int, some: tuple[float, ...], max_failed: float, least: float | None) -> None:
        """A rollout starts on a fleet of some size."""
        gates = Gates(max_failed=max_failed, min_agreement=least, min_audits=4, silent_after=100)
        odd = DeviceView(id="odd", target=None, last_seen=NOW)
        self.seen = view([*fleet(count), odd], *some, gates=gates)
        self.look()

    def look(self) -> None:
        """Lets the rollout act, and checks each action before it is taken."""
        for _ in range(100):
            actions = decide(self.seen, self.now)
            if not actions:
                return
            self.check_size(sum(isinstance(action, Assign) for action in actions))
            for action in actions:
                self.check(action)
            self.seen = take(self.seen, actions, self.now)
        pytest.fail("it never comes to rest")

    def check_size(self, taken: int) -> None:
        """No device is taken beyond the stage's share of those that have a bundle."""
        if not taken or self.seen.state != "running":
            return
        eligible = sum(device.target is not None for device in self.seen.devices)
        share = self.seen.rollout.stages[self.seen.stage].share
        gates = self.seen.rollout.gates
        good = sum(
            device.member is not None and failure(device.member, gates, self.now) is None
            for device in self.seen.devices
        )
        assert good + taken <= max(1, math.ceil(share * eligible - 1e-9))

    def check(self, action: Action) -> None:
        """No action breaks a promise."""
        devices = {device.id: device for device in self.seen.devices}
        gates = self.seen.rollout.gates
        standing = [device.member for device in self.seen.devices if device.member]
        counted = [one for one in standing if failure(one, gates, self.now) != (one.excused or "none")]
        failed = [one for one in counted if failure(one, gates, self.now)]
        match action:
            case Assign(device, target):
                assert target == devices[device].target, "only what is listed for its class"
                assert self.now - devices[device].last_seen <= gates.silent_after
                assert self.seen.state in {"running", "done"}
            case Advance(stage):
                assert stage == self.seen.stage + 1 < len(self.seen.rollout.stages)
            case Pause(reason):
                assert reason
            case RollBack(device, _):
                assert self.seen.state == "rolled-back"
                assert devices[device].member is not None
            case Finish():
                assert self.seen.stage == len(self.seen.rollout.stages) - 1
        if isinstance(action, Advance | Finish):
            assert len(failed) <= gates.max_failed * len(counted) + 1e-9, "never past a broken gate"
            assert any(one.state == "confirmed" for one in counted)
            assert all(one.state == "confirmed" or one in failed for one in counted)
            audits = sum(one.audits for one in counted)
            if gates.min_agreement is not None:
                assert audits >= gates.min_audits
                counts = [Count(one.audits - one.agreed, one.audits) for one in counted]
                assert not looks_too_often(counts, 1 - gates.min_agreement)

    @rule(index=st.integers(0, 9), state=st.sampled_from(STATES), audits=st.integers(0, 4), bad=st.booleans())
    def tell(self, index: int, state: DeviceState, audits: int, bad: bool) -> None:
        """A device tells a step, and audits."""
        agreed = 0 if bad else audits
        self.seen = report(self.seen, f"d{index}", state, now=self.now, audits=audits, agreed=agreed)
        self.look()

    @rule(seconds=st.floats(1, 80))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.look()

    @rule(index=st.integers(0, 9))
    def call(self, index: int) -> None:
        """A device is seen."""
        devices = [
            replace(one, last_seen=self.now) if one.id == f"d{index}" else one for one in self.seen.devices
        ]
        self.seen = replace(self.seen, devices=devices)
        self.look()

    @rule(index=st.integers(8, 9))
    def enrol(self, index: int) -> None:
        """A device joins."""
        if f"d{index}" not in {device.id for device in self.seen.devices}:
            new = DeviceView(id=f"d{index}", target=TARGET, last_seen=self.now)
            self.seen = replace(self.seen, devices=[*self.seen.devices, new])
        self.look()

    @precondition(lambda self: self.seen.state == "paused")
    @rule()
    def resume(self) -> None:
        """The operator accepts what went wrong: the gates hold again at once."""
        excused = excusable(self.seen, self.now)
        devices = [
            replace(one, member=replace(one.member, excused=excused.get(one.id), audits=0, agreed=0))
            if one.member
            else one
            for one in self.seen.devices
        ]
        self.seen = replace(self.seen, state="running", devices=devices)
        assert not any(isinstance(action, Pause) for action in decide(self.seen, self.now))
        self.look()

    @precondition(lambda self: self.seen.state in {"running", "paused", "done"})
    @rule()
    def roll_back(self) -> None:
        """The operator gives up: everybody goes back."""
        if len(assigned(self.seen)) > 3:
            self.seen = replace(self.seen, state="rolled-back")
            self.look()
            assert all(device.member.returned for device in self.seen.devices if device.member)

    @invariant()
    def a_device_without_a_bundle_is_never_assigned(self) -> None:
        """There is nothing it could install."""
        assert "odd" not in assigned(self.seen)


TestRolloutMachine = RolloutMachine.TestCase

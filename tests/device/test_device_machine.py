"""The machine, step by step, and under arbitrary sequences of events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from device_worlds import target
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgestill.core.release import MAX_COUNTER
from edgestill.device.events import (
    Assigned,
    Booted,
    Clear,
    Confirm,
    Download,
    Downloaded,
    EngineDied,
    EngineReady,
    Failed,
    Hindered,
    Probe,
    Probed,
    Retried,
    Serve,
    Stage,
    Staged,
    Tell,
    Verified,
    Verify,
    Watched,
)
from edgestill.device.machine import Rules, step
from edgestill.device.state import INSTALLING, State, contradiction

if TYPE_CHECKING:
    from edgestill.device.events import Effect, Event

RULES = Rules(window=10, max_boots=2, max_deaths=2, max_hindered=2)
OLD, NEW, NEWER = target(1), target(2), target(3)
SERVING = State(active="a", a=OLD, seen=1, counter=1)


def run(state: State, *events: Event) -> tuple[State, list[Effect]]:
    """The state after the events, and the effects of the last one."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event, RULES)
        assert contradiction(state) == ""
    return state, list(effects)


def installed(state: State, counter: int = 2) -> State:
    """The state in which NEW has just been switched to."""
    digest = NEW.digest
    done = (Downloaded(digest), Verified(digest), Staged(digest), Probed(digest))
    return run(state, Assigned(counter, NEW), *done)[0]


def states(effects: list[Effect]) -> list[str]:
    """The reports among the effects."""
    return [effect.state for effect in effects if isinstance(effect, Tell)]


def test_an_assignment_walks_from_download_to_confirmation() -> None:
    """Each step waits for the one before, and the reports come in their order."""
    digest = NEW.digest
    state, effects = run(SERVING, Assigned(2, NEW))
    assert effects == [Clear("b"), Download("b", NEW, OLD)]
    state, effects = run(state, Downloaded(digest))
    assert effects == [Tell(2, "downloaded", NEW), Verify("b", NEW)]
    state, effects = run(state, Verified(digest))
    assert effects == [Tell(2, "verified", NEW), Stage("b", NEW, 2)]
    state, effects = run(state, Staged(digest))
    assert effects == [Tell(2, "staged", NEW), Probe("b", NEW)]
    assert state.active == "a"
    state, effects = run(state, Probed(digest))
    assert (state.active, state.phase, effects) == ("b", "watching", [Serve("b", 0)])
    state, effects = run(state, EngineReady("b"))
    assert effects == [Tell(2, "serving", NEW)]
    state, effects = run(state, Watched("b", 9.0, 100, 0))
    assert (state.phase, effects) == ("watching", [])
    state, effects = run(state, Watched("b", 1.0, 100, 0))
    assert (state.phase, effects) == ("idle", [Confirm("b"), Tell(2, "confirmed", NEW)])


def test_what_failed_is_not_tried_again_under_the_next_key_of_the_hub() -> None:
    """The same assignment comes with another place then; the next counter is another assignment, and a new try."""
    failed, _ = run(SERVING, Assigned(2, NEW), Failed(NEW.digest, "rotten"))
    epoch = MAX_COUNTER + 1
    for place in (2, epoch + 2, 3 * epoch + 2):
        state, effects = run(failed, Assigned(place, NEW))
        assert (state.phase, effects) == ("idle", []), place
    assert run(failed, Assigned(epoch + 3, NEW))[0].phase == "downloading"
    other = replace(NEW, name="watch/9.0.0/any-base-onnxruntime.esb")
    assert run(failed, Assigned(epoch + 2, other))[0].phase == "downloading", (
        "another hub counts from the beginning"
    )


def test_serving_is_reported_only_when_the_engine_says_so() -> None:
    """A rollout must never look successful while the old image runs: the switch alone reports nothing."""
    assert states(run(SERVING, Assigned(2, NEW))[1]) == []
    state = installed(SERVING)
    assert states(run(state, EngineReady("a"))[1]) == []
    assert states(run(state, EngineReady("b"))[1]) == ["serving"]


@pytest.mark.parametrize("phase", ["downloading", "verifying", "staging", "probing"])
def test_a_start_takes_up_the_work_of_the_phase(phase: str) -> None:
    """After a kill the old slot serves, and the work goes on where it was."""
    digest = NEW.digest
    walk: list[Event] = [Assigned(2, NEW), Downloaded(digest), Verified(digest), Staged(digest)]
    names = ["downloading", "verifying", "staging", "probing"]
    state, _ = run(SERVING, *walk[: names.index(phase) + 1])
    assert state.phase == phase
    again, effects = run(state, Booted())
    assert again == state
    assert effects[0] == Serve("a", 0)
    assert (
        type(effects[1])
        is {"downloading": Download, "verifying": Verify, "staging": Stage, "probing": Probe}[phase]
    )
    assert run(state, Retried())[1] == effects[1:]


def test_a_bundle_that_fails_its_probe_never_serves() -> None:
    """The active slot stays as it is, and the reason is reported."""
    digest = NEW.digest
    state, effects = run(
        SERVING,
        Assigned(2, NEW),
        Downloaded(digest),
        Verified(digest),
        Staged(digest),
        Failed(digest, "too slow"),
    )
    assert (state.active, state.b, state.phase) == ("a", None, "idle")
    assert effects == [Clear("b"), Tell(2, "fell-back", NEW, "too slow")]


def test_a_failed_target_is_not_tried_again_under_the_same_counter() -> None:
    """The hub may repeat an assignment for ever; only a new one makes the device try again."""
    state, _ = run(SERVING, Assigned(2, NEW), Failed(NEW.digest, "broken"))
    again, effects = run(state, Assigned(2, NEW))
    assert (again, effects) == (state, [])
    assert run(state, Assigned(3, NEW))[1] == [Clear("b"), Download("b", NEW, OLD)]


def test_an_engine_that_keeps_dying_in_its_trial_brings_the_old_slot_back() -> None:
    """Two restarts are allowed here; the third death ends the trial."""
    state = installed(SERVING)
    state, effects = run(state, EngineDied("b", "segfault"))
    assert effects == [Serve("b", 1)]
    state, effects = run(state, EngineDied("b", "segfault"))
    assert effects == [Serve("b", 2)]
    state, effects = run(state, EngineDied("b", "segfault"))
    assert (state.active, state.b) == ("a", None)
    assert effects[:2] == [Serve("a", 0), Clear("b")]
    assert effects[2] == Tell(2, "fell-back", NEW, "the engine died 3 times: segfault")


def test_what_serves_after_a_fall_back_is_reported_too() -> None:
    """The hub must know what runs now, and only once the engine has said so."""
    state = installed(SERVING)
    for _ in range(3):
        state, _ = run(state, EngineDied("b", "segfault"))
    assert run(state, EngineReady("a"))[1] == [Tell(2, "serving", OLD)]
    assert run(SERVING, EngineReady("a"))[1] == []


def test_too_many_starts_within_the_trial_bring_the_old_slot_back() -> None:
    """A bundle that takes the whole device down is found by the boot counter."""
    state = installed(SERVING)
    state, effects = run(state, Booted())
    assert (state.boots, effects) == (1, [Serve("b", 0)])
    state, _ = run(state, Booted())
    state, effects = run(state, Booted())
    assert (state.active, state.boots) == ("a", 0)
    assert effects[2] == Tell(2, "fell-back", NEW, "not confirmed within 2 starts")


def test_failing_answers_within_the_trial_bring_the_old_slot_back() -> None:
    """Three errors and more than a tenth of the answers are too many."""
    state = installed(SERVING)
    assert run(state, Watched("b", 1, 100, 3))[0].phase == "watching"
    state, effects = run(state, Watched("b", 1, 20, 3))
    assert (state.active, states(effects)) == ("a", ["fell-back"])
    assert state.failure is not None
    assert state.failure.reason == "3 of 23 answers failed"


def test_the_first_bundle_that_fails_its_trial_leaves_nothing_serving() -> None:
    """There is nothing to fall back to, and the device says so instead of serving what failed."""
    state = installed(State())
    for _ in range(3):
        state, effects = run(state, EngineDied(state.active or "a", "no memory"))
    assert (state.active, state.phase, state.a) == (None, "idle", None)
    assert states(effects) == ["fell-back"]


def test_a_confirmed_bundle_that_goes_bad_gives_way_to_the_other_slot() -> None:
    """Outside of a trial, too, a bounded number of restarts is tried first; the other slot's bundle then serves."""
    state, _ = run(installed(SERVING), Watched("b", 10, 1, 0))
    for _ in range(3):
        state, effects = run(state, EngineDied("b", "bad memory"))
    assert (state.active, state.b) == ("a", NEW)
    assert effects == [Serve("a", 0), Tell(2, "fell-back", NEW, "the engine died 3 times: bad memory")]
    assert run(state, Assigned(2, NEW))[1] == []


def test_an_engine_without_an_alternative_is_restarted_for_ever() -> None:
    """With growing pauses, because the attempt number grows."""
    state = SERVING
    for attempt in range(1, 7):
        state, effects = run(state, EngineDied("a", "x"))
        assert effects == [Serve("a", attempt)]
    assert run(state, Watched("a", 1, 1, 0))[0].deaths == 0


def test_being_offline_never_counts_against_a_release() -> None:
    """However often the network hinders it, the installation goes on."""
    state, _ = run(SERVING, Assigned(2, NEW))
    for _ in range(50):
        state, effects = run(state, Hindered(NEW.digest, "offline", counts=False))
        assert effects == []
    assert state.phase == "downloading"


def test_a_disk_that_stays_full_ends_the_installation() -> None:
    """No endless loop: after a bounded number of tries the release is reported as failed."""
    state, _ = run(SERVING, Assigned(2, NEW))
    for _ in range(2):
        state, effects = run(state, Hindered(NEW.digest, "no space", counts=True))
        assert effects == []
    state, effects = run(state, Hindered(NEW.digest, "no space", counts=True))
    assert (state.phase, states(effects)) == ("idle", ["fell-back"])


def test_attack_an_older_counter_changes_nothing() -> None:
    """A replayed assignment is ignored, even if its signature is good."""
    state, _ = run(SERVING, Assigned(5, OLD))
    assert run(state, Assigned(4, NEW)) == (state, [])


def test_going_back_needs_an_assignment_and_reuses_what_the_other_slot_holds() -> None:
    """A roll-back is a new assignment of an older target; nothing is fetched if the slot still holds it."""
    state, _ = run(installed(SERVING), Watched("b", 10, 1, 0))
    state, effects = run(state, Assigned(3, OLD))
    assert effects == [Tell(3, "downloaded", OLD), Verify("a", OLD)]


def test_an_assignment_of_what_serves_stops_an_installation() -> None:
    """The operator changed their mind: what was being installed is dropped, and the device reports in."""
    state, _ = run(SERVING, Assigned(2, NEW), Downloaded(NEW.digest))
    state, effects = run(state, Assigned(3, OLD))
    assert (state.phase, state.wanted, state.counter) == ("idle", None, 3)
    assert effects == [Clear("b"), Tell(3, "confirmed", OLD)]
    assert run(state, Verified(NEW.digest)) == (state, [])


def test_another_assignment_within_the_trial_waits() -> None:
    """The other slot holds the way back, so nothing is written until the trial has ended."""
    state = installed(SERVING)
    after, effects = run(state, Assigned(3, NEWER))
    assert (effects, after.seen, after.counter) == ([], 3, 2)
    after, _ = run(after, Watched("b", 10, 1, 0))
    assert run(after, Assigned(3, NEWER))[1] == [Clear("a"), Download("a", NEWER, NEW)]


def test_an_operators_roll_back_within_the_trial_happens_at_once() -> None:
    """The bundle from before serves again without a download, and the trial's is thrown away."""
    state, effects = run(installed(SERVING), Assigned(3, OLD))
    assert (state.active, state.phase, state.b, state.counter) == ("a", "idle", None, 3)
    assert effects[:2] == [Serve("a", 0), Clear("b")]
    assert states(effects) == ["serving", "confirmed"]


def test_a_newer_assignment_replaces_the_one_being_installed() -> None:
    """Late news about the older one is ignored."""
    state, effects = run(SERVING, Assigned(2, NEW), Assigned(3, NEWER))
    assert effects == [Clear("b"), Download("b", NEWER, OLD)]
    assert run(state, Downloaded(NEW.digest)) == (state, [])


def test_the_same_target_under_a_newer_counter_goes_on() -> None:
    """Work that is under way is not done twice."""
    state, effects = run(SERVING, Assigned(2, NEW), Downloaded(NEW.digest), Assigned(3, NEW))
    assert (state.phase, state.counter, effects) == ("verifying", 3, [])


class Device(RuleBasedStateMachine):
    """Events in any order, some of them late or about something else."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.confirmed_digest = None
        self.failed: set[int] = set()

    def let(self, event: Event) -> None:
        """One step, and what must hold about it."""
        before = self.state
        self.state, effects = step(before, event, RULES)
        for effect in effects:
            self.check_effect(before, effect)
        if self.state.active != before.active:
            self.check_switch(before, event)
        if self.state.failure is not None:
            self.failed.add(self.state.failure.counter)

    def check_effect(self, before: State, effect: Effect) -> None:
        """Nothing writes to the slot that serves, and nothing serves an empty slot."""
        after = self.state
        if isinstance(effect, Download | Verify | Stage | Probe):
            assert effect.slot != after.active
            assert after.counter not in self.failed or before.phase in INSTALLING
        if isinstance(effect, Clear):
            assert effect.slot != after.active
        if isinstance(effect, Serve):
            assert effect.slot == after.active
            assert after.serving is not None

    def check_switch(self, before: State, event: Event) -> None:
        """Another slot serves only after a probe, an assignment within a trial, or to fall back."""
        if isinstance(event, Probed):
            assert self.state.serving == before.wanted
        else:
            assert isinstance(event, Booted | EngineDied | Watched | Assigned)
            assert self.state.active is None or self.state.serving == before.held(self.state.active)

    @rule(counter=st.integers(1, 8), number=st.integers(1, 3))
    def assign(self, counter: int, number: int) -> None:
        """The hub assigns, perhaps something old."""
        seen = self.state.seen
        self.let(Assigned(counter, target(number)))
        assert self.state.seen == max(seen, counter)

    @rule(number=st.integers(1, 3), kind=st.sampled_from([Downloaded, Verified, Staged, Probed]))
    def progress(self, number: int, kind: type[Downloaded]) -> None:
        """The installer finishes something, perhaps late."""
        self.let(kind(target(number).digest))

    @rule()
    def go_on(self) -> None:
        """The installer finishes what is asked for now."""
        if self.state.wanted is not None:
            kind: dict[str, type[Downloaded | Verified | Staged | Probed]]
            kind = {"downloading": Downloaded, "verifying": Verified, "staging": Staged, "probing": Probed}
            self.let(kind[self.state.phase](self.state.wanted.digest))

    @rule(number=st.integers(1, 3))
    def fail(self, number: int) -> None:
        """The installer gives up."""
        self.let(Failed(target(number).digest, "broken"))

    @rule(number=st.integers(1, 3), counts=st.booleans())
    def hinder(self, number: int, counts: bool) -> None:
        """The installer is hindered."""
        self.let(Hindered(target(number).digest, "busy", counts))

    @rule(event=st.sampled_from([Booted(), Retried(), EngineReady("a"), EngineReady("b")]))
    def happen(self, event: Event) -> None:
        """A start, a retry, an engine that is ready."""
        self.let(event)

    @rule(slot=st.sampled_from("ab"))
    def die(self, slot: str) -> None:
        """An engine dies."""
        self.let(EngineDied("a" if slot == "a" else "b", "x"))

    @rule(slot=st.sampled_from("ab"), seconds=st.integers(0, 12), errors=st.integers(0, 4))
    def serve(self, slot: str, seconds: int, errors: int) -> None:
        """An engine has served for a while."""
        self.let(Watched("a" if slot == "a" else "b", seconds, 10, errors))

    @rule()
    def restart(self) -> None:
        """The process is killed: what was written is all that is left."""
        self.state = State.from_bytes(self.state.to_bytes())
        self.let(Booted())

    @invariant()
    def makes_sense(self) -> None:
        """The state never contradicts itself, and can always be written and read."""
        assert contradiction(self.state) == ""
        durable = replace(self.state, deaths=0, watched=0.0, answers=0, errors=0)
        assert State.from_bytes(self.state.to_bytes()) == durable


Device.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_sequence_of_events_keeps_the_promises = Device.TestCase

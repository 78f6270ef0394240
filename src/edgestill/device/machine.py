"""How a device changes what it runs: `step(state, event) -> (state, effects)`, without a clock, a disk or a network.

    assigned -> download -> verify -> stage -> probe -> switch -> watch -> confirm, or fall back

- The slot that serves is never written. It changes in one way only: by a new state, which the shell writes as one
  small file before it carries out any effect.
- Every effect may be carried out again. After a kill `Booted` names the work of the phase once more, and a report has
  the same id when it is told twice.
- A switch is a trial: the new bundle must serve through a health window, survive a bounded number of starts and
  engine deaths, and answer without too many failures; otherwise the other slot serves again.
- What failed is not tried again under the same assignment, nor when that comes again in the next epoch. Versions never go back by themselves: only by an
  assignment, or by falling back to what served before.
- An unattended update that is not for this device fails without being begun (`device.unattended`). After a restart it is looked at anew, and so is one
  that was begun and does not serve yet: its owner may have changed their mind.
- An engine that keeps dying outside of a trial makes the other slot serve, where that holds a bundle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import UnattendedError
from edgestill.core.release import MAX_COUNTER
from edgestill.device import unattended
from edgestill.device.events import (
    Assigned,
    Booted,
    Clear,
    Confirm,
    Download,
    Downloaded,
    Effects,
    EngineDied,
    EngineReady,
    Event,
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
    Work,
)
from edgestill.device.state import INSTALLING, Failure, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.device.state import SlotName, Target

MAX_REASON: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a trial must stand.

    Attributes:
        window: seconds that a new bundle must serve before it is confirmed.
        max_boots: starts of the agent within the window.
        max_deaths: engine deaths in a row that are answered by a restart.
        max_error_share: of answers within the window that may fail.
        min_errors: failed answers before their share counts.
        max_hindered: times that an installation may be hindered by more than being offline (a full disk, bytes
            that are not what the publisher signed) before it fails.
        accept_auto: whether its owner takes unattended updates; see `device.unattended`.
    """

    window: float = 30.0
    max_boots: int = 3
    max_deaths: int = 3
    max_error_share: float = 0.1
    min_errors: int = 3
    max_hindered: int = 5
    accept_auto: bool = False


def step(state: State, event: Event, rules: Rules = Rules()) -> tuple[State, Effects]:
    """What follows from an event.

    Args:
        state: without contradiction (see `state.contradiction`).
        event: what happened; one that does not fit the state (late, superseded) changes nothing.
        rules: what a trial must stand.

    Returns:
        The new state, to be written before anything else is done, and the effects in their order.
    """
    match event:
        case Booted():
            return _boot(state, rules)
        case Assigned():
            return _assign(state, event, rules)
        case EngineReady(slot):
            return _ready(state, slot)
        case EngineDied(slot, reason):
            return _mourn(state, slot, reason, rules)
        case Watched():
            return _watch(state, event, rules)
        case Retried():
            return state, _work(state)
        case _:
            return _install(state, event, rules)


def _boot(state: State, rules: Rules) -> tuple[State, Effects]:
    state = replace(state, deaths=0, watched=0.0, answers=0, errors=0)
    if state.failure is not None and state.failure.refused:
        state = replace(state, failure=None)
    served: Effects = () if state.active is None else (Serve(state.active, 0),)
    if state.active is None or state.phase != "watching":
        state, effects = _resume(state, rules)
        return state, (*served, *effects)
    if state.boots >= rules.max_boots:
        return _fall_back(state, f"not confirmed within {rules.max_boots} starts")
    return replace(state, boots=state.boots + 1), served


def _resume(state: State, rules: Rules) -> tuple[State, Effects]:
    """Goes on with an installation, unless the device's owner has opted out of it; all else was looked at when it began."""
    if state.wanted is None:
        return state, ()
    try:
        unattended.check_owner(state.wanted, state.role, accepted=rules.accept_auto)
    except UnattendedError as error:
        return _refuse(state, state.counter, state.wanted, str(error))
    return state, _work(state)


def _assign(state: State, event: Assigned, rules: Rules) -> tuple[State, Effects]:
    counter, target = event.counter, event.target
    if counter < state.seen:
        return state, ()
    state = replace(state, seen=counter)
    if state.failure is not None and _is_of(state.failure, counter, target):
        return state, ()
    if state.phase == "watching":
        return _assign_in_trial(state, counter, target)
    if state.serving == target:
        return _keep(state, counter, target)
    try:
        if (state.wanted, state.role) == (
            target,
            event.role,
        ):  # begun already, which has changed what the slots hold
            unattended.check_owner(target, event.role, accepted=rules.accept_auto)
        else:
            unattended.check(target, event.role, state, accepted=rules.accept_auto)
    except UnattendedError as error:
        return _refuse(state, counter, target, str(error))
    if state.wanted == target:
        return replace(state, counter=counter, role=event.role), ()
    return _begin(replace(state, role=event.role), counter, target)


def _refuse(state: State, counter: int, target: Target, reason: str) -> tuple[State, Effects]:
    """What is assigned is not for this device; nor is it what was being installed before that."""
    failure = Failure(counter=counter, target=target, reason=reason[:MAX_REASON], refused=True)
    told = Tell(counter, "fell-back", target, failure.reason)
    cleared: Effects = ()
    if state.phase in INSTALLING:
        state, cleared = state.holding(state.spare, None), (Clear(state.spare),)
    return replace(_rested(state), wanted=None, failure=failure, hindered=0), (*cleared, told)


def _is_of(failure: Failure, counter: int, target: Target) -> bool:
    """Whether an assignment is the one that failed; with another key of the hub it comes again, in another epoch."""
    return failure.counter == counter or (
        failure.target == target and (failure.counter - counter) % (MAX_COUNTER + 1) == 0
    )


def _assign_in_trial(state: State, counter: int, target: Target) -> tuple[State, Effects]:
    """The other slot holds what served before, so nothing may be written; but it can be gone back to at once."""
    before = state.held(state.spare)
    if state.serving == target:
        return replace(state, counter=counter), ()
    if before != target:
        return state, ()
    trial, active = state.active, state.spare
    assert trial is not None
    after = replace(_rested(state), active=active, counter=counter).holding(trial, None)
    return after, (
        Serve(active, 0),
        Clear(trial),
        Tell(counter, "serving", target),
        Tell(counter, "confirmed", target),
    )


def _keep(state: State, counter: int, target: Target) -> tuple[State, Effects]:
    """What is assigned serves already: whatever was being installed is dropped."""
    cleared: Effects = (Clear(state.spare),) if state.phase in INSTALLING else ()
    told: Effects = (Tell(counter, "confirmed", target),) if counter > state.counter else ()
    if state.phase in INSTALLING:
        state = state.holding(state.spare, None)
    return replace(_rested(state), wanted=None, counter=counter), cleared + told


def _begin(state: State, counter: int, target: Target) -> tuple[State, Effects]:
    """Starts an installation; an archive that the spare slot still holds from before is not fetched again."""
    slot, held = state.spare, state.held(state.spare)
    state = replace(_rested(state), wanted=target, counter=counter, hindered=0).holding(slot, None)
    if held is not None and held.digest == target.digest:
        told = Tell(counter, "downloaded", target)
        return replace(state, phase="verifying"), (told, Verify(slot, target))
    return replace(state, phase="downloading"), (Clear(slot), Download(slot, target, state.serving))


def _install(state: State, event: Event, rules: Rules) -> tuple[State, Effects]:
    wanted, slot = state.wanted, state.spare
    if wanted is None or getattr(event, "digest", None) != wanted.digest:
        return state, ()
    match state.phase, event:
        case _, Failed(_, reason):
            return _give_up(state, reason)
        case _, Hindered(_, reason, counts):
            return _hinder(state, reason, rules) if counts else (state, ())
        case "downloading", Downloaded():
            state = replace(state, phase="verifying")
            return state, (Tell(state.counter, "downloaded", wanted), *_work(state))
        case "verifying", Verified():
            state = replace(state, phase="staging")
            return state, (Tell(state.counter, "verified", wanted), *_work(state))
        case "staging", Staged():
            state = replace(state, phase="probing").holding(slot, wanted)
            return state, (Tell(state.counter, "staged", wanted), *_work(state))
        case "probing", Probed():
            state = replace(_rested(state), phase="watching", active=slot, wanted=None, hindered=0)
            return state, (Serve(slot, 0),)
        case _:
            return state, ()


def _work(state: State) -> Effects:
    """What the phase waits for."""
    if state.wanted is None:
        return ()
    slot, wanted = state.spare, state.wanted
    work: dict[str, Callable[[], Work]] = {
        "downloading": lambda: Download(slot, wanted, state.serving),
        "verifying": lambda: Verify(slot, wanted),
        "staging": lambda: Stage(slot, wanted, state.counter),
        "probing": lambda: Probe(slot, wanted),
    }
    return (work[state.phase](),)


def _ready(state: State, slot: SlotName) -> tuple[State, Effects]:
    """Only an engine that has said so serves; the switch alone is no success, and neither is a fall-back alone."""
    fell_back = state.failure is not None and state.failure.counter == state.counter
    if slot != state.active or state.serving is None or not (state.phase == "watching" or fell_back):
        return state, ()
    return state, (Tell(state.counter, "serving", state.serving),)


def _mourn(state: State, slot: SlotName, reason: str, rules: Rules) -> tuple[State, Effects]:
    if slot != state.active:
        return state, ()
    state = replace(state, deaths=state.deaths + 1)
    if state.deaths <= rules.max_deaths:
        return state, (Serve(slot, state.deaths),)
    if state.phase == "watching":
        return _fall_back(state, f"the engine died {state.deaths} times: {reason}")
    if state.phase == "idle" and state.held(state.spare) is not None:
        return _fall_over(state, f"the engine died {state.deaths} times: {reason}")
    return state, (Serve(slot, state.deaths),)


def _watch(state: State, event: Watched, rules: Rules) -> tuple[State, Effects]:
    if event.slot != state.active:
        return state, ()
    target = state.serving
    if state.phase != "watching" or target is None:
        return replace(state, deaths=0), ()
    watched = state.watched + event.seconds
    answers, errors = state.answers + event.answers, state.errors + event.errors
    state = replace(state, watched=watched, answers=answers, errors=errors)
    if errors >= rules.min_errors and errors > rules.max_error_share * (answers + errors):
        return _fall_back(state, f"{errors} of {answers + errors} answers failed")
    if watched < rules.window:
        return state, ()
    return _rested(state), (Confirm(event.slot), Tell(state.counter, "confirmed", target))


def _hinder(state: State, reason: str, rules: Rules) -> tuple[State, Effects]:
    state = replace(state, hindered=state.hindered + 1)
    return _give_up(state, reason) if state.hindered > rules.max_hindered else (state, ())


def _give_up(state: State, reason: str) -> tuple[State, Effects]:
    """Ends an installation that cannot succeed; the active slot never stopped serving."""
    wanted, slot = state.wanted, state.spare
    assert wanted is not None
    failure = Failure(counter=state.counter, target=wanted, reason=reason[:MAX_REASON])
    state = replace(_rested(state), wanted=None, failure=failure, hindered=0).holding(slot, None)
    return state, (Clear(slot), Tell(failure.counter, "fell-back", wanted, failure.reason))


def _fall_back(state: State, reason: str) -> tuple[State, Effects]:
    """Ends a trial: the other slot serves again, and the trial's bundle is thrown away."""
    trial, target = state.active, state.serving
    assert trial is not None
    assert target is not None
    before: SlotName | None = state.spare if state.held(state.spare) is not None else None
    failure = Failure(counter=state.counter, target=target, reason=reason[:MAX_REASON])
    state = replace(_rested(state), active=before, failure=failure).holding(trial, None)
    served: Effects = () if before is None else (Serve(before, 0),)
    return state, (*served, Clear(trial), Tell(failure.counter, "fell-back", target, failure.reason))


def _fall_over(state: State, reason: str) -> tuple[State, Effects]:
    """Lets the other slot serve after the active one, once confirmed, went bad. It is kept: the other may go bad too."""
    target = state.serving
    assert target is not None
    failure = Failure(counter=state.counter, target=target, reason=reason[:MAX_REASON])
    state = replace(_rested(state), active=state.spare, failure=failure)
    assert state.active is not None
    return state, (Serve(state.active, 0), Tell(failure.counter, "fell-back", target, failure.reason))


def _rested(state: State) -> State:
    return replace(state, phase="idle", boots=0, deaths=0, watched=0.0, answers=0, errors=0)

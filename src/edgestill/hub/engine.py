"""What a rollout does next: a pure function of what is known, without clock, database or randomness of its own.

`decide(view, now)` names the actions to take now; whoever takes them shows the new view and asks again, until the
answer is empty. The rules:

- Only a running rollout brings a release to further devices, and only while every gate holds. The first broken gate
  pauses it; a paused one does nothing until an operator resumes it or rolls it back.
- A stage asks for `share` of the devices that the release has a bundle for, at least one. Devices are taken in an order
  that is fixed by rollout and device, so that no device is always the first to be tried, and order of arrival never matters.
  A device not seen for `silent_after` is not taken: it could only be silent. It is welcomed when it comes back.
- A device is done when it has confirmed. One that fell back is never done, whatever it reported before or later.
  One that was assigned and then reports nothing for `silent_after` is silent, and counts as failed until it confirms.
  One whose answers last took longer than `max_latency` is slow, and counts as failed until it tells otherwise.
- Gates on how the model serves (agreement, errors, escalations) are tests that may be looked at after every report
  (`hub.sequential`): one is broken once that is sure, with a chance of `ALARM` that it is not so. While it merely looks so, nobody
  else gets the release; while there are fewer audits or answers than asked for, the stage is not complete. An operator may accept
  either for a stage, which then goes on; what is sure pauses it all the same.
- Failed devices within `max_failed` are replaced by others, so that a complete stage has its share of confirmed ones.
  A silent one that comes back after it was replaced is waited for again: the stage then has more than its share.
  No stage completes without a single confirmed device.
- A device whose owner takes no unattended updates (`device.unattended`) is no failure of the release: it counts neither for nor against, and another
  is taken in its place. The hub has its word for it only; so it never counts as served.
- Resuming excuses the failures there are (see `excusable`): they count neither for nor against. New ones break the gate again.
- A finished rollout stays a promise: a device that joins or returns later is brought to its release.
- Rolling back sends every member to what it had confirmed before. Where that is no longer listed, or there was nothing,
  the assignment is withdrawn and the device keeps what it has.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from edgestill.core.errors import UnattendedError
from edgestill.hub.sequential import Count, looks_too_often, too_often

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edgestill.core.release import Gates, Rollout, RolloutState
    from edgestill.core.wire import DeviceState

MemberState = Literal["assigned", "downloaded", "verified", "staged", "serving", "confirmed", "fell-back"]
Failure = Literal["fell-back", "silent", "slow"]

_RANK: Final = {state: rank for rank, state in enumerate(get_args(MemberState))}
_ROUNDING: Final = 1e-9
_NAMED: Final = 5
_REFUSED: Final = f"[{UnattendedError.code}]"
"""Begins the reason of a device that has not begun what it does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device that the rollout has assigned the release to.

    Attributes:
        state: the furthest step heard of.
        assigned_at: hub time in seconds, as all times here.
        heard_at: when it last reported about this release; None if never.
        reason: why it fell back.
        excused: the failure an operator has accepted by resuming, if any.
        returned: whether it was already sent back.
        audits: answers checked at random on this release, since it was assigned or excused.
        agreed: of these, the teacher named the same class.
        answers: inputs answered on this release, since then.
        escalated: of these, asked of a larger model.
        errors: inputs on which the engine failed, since then.
        latency: seconds within which 95 of 100 answers last came; 0 where it did not tell.
    """

    state: MemberState
    assigned_at: float
    heard_at: float | None = None
    reason: str = ""
    excused: Failure | None = None
    returned: bool = False
    audits: int = 0
    agreed: int = 0
    answers: int = 0
    escalated: int = 0
    errors: int = 0
    latency: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device of the rollout's cohort.

    Attributes:
        id: the device.
        target: TUF path of the release's bundle for its class; None where there is none.
        last_seen: hub time of its last call.
        member: None until the rollout assigns the release to it.
        held: whether a later rollout, not rolled back, has assigned something to it.
        back_to: TUF path of what it confirmed before this rollout and may still run; None if nothing.
    """

    id: str
    target: str | None
    last_seen: float
    member: Member | None = None
    held: bool = False
    back_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A rollout and all that is known about its devices.

    Attributes:
        id: of the rollout.
        rollout: release, stages and gates.
        state: running, paused, done or rolled-back.
        stage: index of the present stage.
        devices: the cohort, in any order.
        accepted: last stage at which an operator has accepted what gates wait for; -1 for none.
    """

    id: int
    rollout: Rollout
    state: RolloutState
    stage: int
    devices: Sequence[DeviceView]
    accepted: int = -1


@dataclass(frozen=True, slots=True)
class Assign:
    """Give this device the release."""

    device: str
    target: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Begin this stage."""

    stage: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop: a gate is broken."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The last stage is complete."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Give this device what it had before; None withdraws the assignment."""

    device: str
    target: str | None


Action = Assign | Advance | Pause | Finish | RollBack


def decide(view: View, now: float) -> list[Action]:
    """What to do now; empty where there is nothing to do but wait.

    Args:
        view: the rollout and its devices.
        now: hub time in seconds since 1970.
    """
    match view.state:
        case "running":
            return _guide(view, now)
        case "done":
            return _welcome(view, now)
        case "rolled-back":
            return _send_back(view)
        case "paused":
            return []


def explain(view: View, now: float) -> str:
    """One sentence on what a running rollout waits for; empty for any other."""
    if view.state != "running":
        return ""
    tally = _Tally(view, now)
    doubtful = tally.looks_bad() if view.accepted < view.stage else ""
    if doubtful:
        return doubtful
    if tally.pending:
        return f"waiting for {_names(tally.pending)} to confirm"
    if not tally.confirmed:
        return "waiting for a device that can be assigned" + (
            f"; {_names(tally.refused)} took no unattended update" if tally.refused else ""
        )
    return "" if view.accepted >= view.stage else tally.doubt()


def figures(view: View, now: float) -> list[str]:
    """How the model serves, in the words of each gate that looks at it."""
    return [gate.text for gate in _Tally(view, now).health()]


def merge(known: MemberState, reported: DeviceState) -> MemberState:
    """The furthest of two steps; merging any number of reports in any order gives the same.

    Falling back is furthest of all: nothing that arrives later makes such a device count as served.
    """
    return reported if _RANK[reported] > _RANK[known] else known


def failure(member: Member, gates: Gates, now: float) -> Failure | None:
    """How this member fails the rollout, if it does."""
    if member.state == "fell-back":
        return "fell-back"
    heard = max(member.assigned_at, member.heard_at or 0.0)
    if member.state != "confirmed" and now - heard > gates.silent_after:
        return "silent"
    # of this time, and of more than a few answers
    is_told = member.state == "confirmed" and member.answers >= gates.min_answers
    if gates.max_latency is not None and is_told and member.latency > gates.max_latency:
        return "slow"
    return None


def excusable(view: View, now: float) -> dict[str, Failure]:
    """The failures that resuming now would excuse, by device."""
    found = {}
    for device in view.devices:
        if device.member is not None:
            how = failure(device.member, view.rollout.gates, now)
            if how is not None:
                found[device.id] = how
    return found


@dataclass(frozen=True, slots=True)
class _Gate:
    """A gate on how the model serves.

    Attributes:
        what: it is like, in words.
        unit: of the trials.
        bound: in words.
        counts: of each device: events that must not be too many.
        most: probability of an event that is allowed.
    """

    what: str
    unit: str
    bound: str
    counts: list[Count]
    most: float

    @property
    def total(self) -> Count:
        """Of all devices."""
        return sum(self.counts, Count(0, 0))

    @property
    def text(self) -> str:
        """For people."""
        devices = sum(bool(one.trials) for one in self.counts)
        plural = "" if devices == 1 else "s"
        return f"{self.what} on {self.total.trials} {self.unit} of {devices} device{plural} ({self.bound})"


class _Tally:
    """The members of a rollout, sorted by how they stand."""

    def __init__(self, view: View, now: float) -> None:
        self.gates = view.rollout.gates
        self.confirmed: list[str] = []
        self.pending: list[str] = []
        self.failed: list[str] = []
        self.refused: list[str] = []
        self.told: list[Member] = []
        for device in view.devices:
            if device.member is not None:
                self._count(device.id, device.member, now)

    def _count(self, device: str, member: Member, now: float) -> None:
        if member.state == "fell-back" and member.reason.startswith(_REFUSED):
            self.refused.append(device)
            return
        how = failure(member, self.gates, now)
        if how == "slow" == member.excused:  # it serves, and that is as good as it gets
            how = None
        if how is not None and how == member.excused:
            return
        self.told.append(member)
        if how is not None:
            self.failed.append(device)
        elif member.state == "confirmed":
            self.confirmed.append(device)
        else:
            self.pending.append(device)

    def broken_gate(self) -> str | None:
        members = len(self.confirmed) + len(self.pending) + len(self.failed)
        if len(self.failed) > self.gates.max_failed * members + _ROUNDING:
            return f"{_names(self.failed)} failed, of {members} that have the release (allowed: {self.gates.max_failed:.0%})"
        for gate in self.health():
            if too_often(gate.counts, gate.most):
                return gate.text
        return None

    def looks_bad(self) -> str:
        """Of which gate it looks as if it were broken, in words; empty for none."""
        for gate in self.health():
            if looks_too_often(gate.counts, gate.most):
                return f"waiting for more reports: {gate.text}, which may be chance"
        return ""

    def doubt(self) -> str:
        """What keeps the stage from being complete although no gate is broken; empty where nothing does."""
        gates, audits = self.gates, sum(one.audits for one in self.told)
        if gates.min_agreement is not None and audits < gates.min_audits:
            return f"waiting for audits: {audits} of {gates.min_audits} that the agreement gate asks"
        answers = sum(one.answers + one.errors for one in self.told)
        bounds = (gates.max_errors, gates.max_escalated, gates.max_latency)
        if any(bound is not None for bound in bounds) and answers < gates.min_answers:
            return f"waiting for answers: {answers} of {gates.min_answers} that the gates ask"
        if gates.max_latency is not None and all(one.answers < gates.min_answers for one in self.told):
            return f"waiting for a device with {gates.min_answers} answers, whose latency can be told"
        return self.looks_bad()

    def health(self) -> Iterator[_Gate]:
        """The gates on how the model serves, each as events that must not be too many."""
        gates = self.gates
        if gates.min_agreement is not None:
            counts = [Count(one.audits - one.agreed, one.audits) for one in self.told]
            share = 1 - sum(counts, Count(0, 0)).share
            what = f"agreement with the teacher is {share:.1%}"
            yield _Gate(what, "audits", f"least: {gates.min_agreement:.1%}", counts, 1 - gates.min_agreement)
        if gates.max_errors is not None:
            counts = [Count(one.errors, one.answers + one.errors) for one in self.told]
            what = f"the engine fails on {sum(counts, Count(0, 0)).share:.2%}"
            yield _Gate(what, "inputs", f"most: {gates.max_errors:.2%}", counts, gates.max_errors)
        if gates.max_escalated is not None:
            counts = [Count(one.escalated, one.answers) for one in self.told]
            what = f"a larger model is asked about {sum(counts, Count(0, 0)).share:.1%}"
            yield _Gate(what, "answers", f"most: {gates.max_escalated:.1%}", counts, gates.max_escalated)


def _guide(view: View, now: float) -> list[Action]:
    tally = _Tally(view, now)
    broken = tally.broken_gate()
    if broken is not None:
        return [Pause(broken)]
    is_accepted = view.accepted >= view.stage
    if not is_accepted and tally.looks_bad():
        return []
    wanted = _quota(view) - len(tally.confirmed) - len(tally.pending)
    chosen = _candidates(view, now)[: max(0, wanted)]
    if chosen:
        return chosen
    if tally.pending or not tally.confirmed or (tally.doubt() and not is_accepted):
        return []
    is_last = view.stage + 1 == len(view.rollout.stages)
    return [Finish() if is_last else Advance(view.stage + 1)]


def _welcome(view: View, now: float) -> list[Action]:
    return _candidates(view, now)


def _send_back(view: View) -> list[Action]:
    return [
        RollBack(device.id, device.back_to)
        for device in sorted(view.devices, key=lambda device: device.id)
        if device.member is not None and not device.member.returned and not device.held
    ]


def _quota(view: View) -> int:
    """How many devices shall have the release when the present stage is complete."""
    eligible = sum(device.target is not None for device in view.devices)
    return max(1, math.ceil(view.rollout.stages[view.stage].share * eligible - _ROUNDING))


def _candidates(view: View, now: float) -> list[Action]:
    """The devices that could be assigned now, in the order in which they are taken."""
    present = [
        device
        for device in view.devices
        if device.member is None
        and not device.held
        and now - device.last_seen <= view.rollout.gates.silent_after
    ]
    return [
        Assign(device.id, device.target)
        for device in sorted(present, key=lambda device: _place(view.id, device.id))
        if device.target is not None
    ]


def _place(rollout: int, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()


def _names(devices: Iterable[str]) -> str:
    names = sorted(devices)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

"""What happens to a device, and what it is to do: the two alphabets of `device.machine`.

Each is data without behaviour. An event that carries a digest speaks of the target with that digest; the machine
ignores it once another target is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgestill.core.digest import Digest
    from edgestill.core.wire import DeviceState
    from edgestill.device.state import SlotName, Target

# Events: what has happened.


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent has started."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A verified assignment, which names a target that the publisher lists.

    Attributes:
        counter: its place among all assignments, `core.release.Assignment.place`.
        target: what it names.
        role: that lists it: `targets` for the publisher itself.
    """

    counter: int
    target: Target
    role: str = "targets"


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The archive with this digest is in the spare slot."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Verified:
    """The archive in the spare slot is a bundle for this device."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Staged:
    """The spare slot says, durably, what it holds."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Probed:
    """The bundle in the spare slot loads, and gives its golden answers in time."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Failed:
    """Work on the wanted target came to a bad end that no repetition mends."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """Work on the wanted target stopped for a reason that may pass.

    Attributes:
        digest: of the target.
        reason: for people.
        counts: whether the release fails after a number of these; being offline never counts against it.
    """

    digest: Digest
    reason: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Retried:
    """It is time to try again what was hindered."""


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine serves this slot."""

    slot: SlotName


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine of this slot ended, or never came up."""

    slot: SlotName
    reason: str


@dataclass(frozen=True, slots=True)
class Watched:
    """The engine of this slot has served for a while.

    Attributes:
        slot: which.
        seconds: since the last such event or since it was ready.
        answers: given in that time.
        errors: inputs that got none, because the engine failed.
    """

    slot: SlotName
    seconds: float
    answers: int
    errors: int


Event = (
    Booted
    | Assigned
    | Downloaded
    | Verified
    | Staged
    | Probed
    | Failed
    | Hindered
    | Retried
    | EngineReady
    | EngineDied
    | Watched
)


# Effects: what is to be done.


@dataclass(frozen=True, slots=True)
class Download:
    """Bring the target's archive into the slot; ends in `Downloaded`, `Failed` or `Hindered`.

    Attributes:
        slot: which.
        target: what.
        base: what the other slot holds, from which a patch may start.
    """

    slot: SlotName
    target: Target
    base: Target | None


@dataclass(frozen=True, slots=True)
class Verify:
    """Check the slot's archive; ends in `Verified`, `Failed` or `Hindered`."""

    slot: SlotName
    target: Target


@dataclass(frozen=True, slots=True)
class Stage:
    """Write the slot's record; ends in `Staged` or `Hindered`."""

    slot: SlotName
    target: Target
    counter: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Run the golden inputs in a process of their own; ends in `Probed`, `Failed` or `Hindered`."""

    slot: SlotName
    target: Target


@dataclass(frozen=True, slots=True)
class Serve:
    """Let the engine serve this slot; ends in `EngineReady` or `EngineDied`.

    Attributes:
        slot: which.
        attempt: 0 at first, then the number of deaths in a row: wait longer with each.
    """

    slot: SlotName
    attempt: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """Mark the slot's record as confirmed."""

    slot: SlotName


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty the slot: its record first, then its archive."""

    slot: SlotName


@dataclass(frozen=True, slots=True)
class Tell:
    """Report a step to the hub. The same counter, state and target make the same report."""

    counter: int
    state: DeviceState
    target: Target
    reason: str = ""


Work = Download | Verify | Stage | Probe
Effect = Work | Serve | Confirm | Clear | Tell
Effects = tuple[Effect, ...]

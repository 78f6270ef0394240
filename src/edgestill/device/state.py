"""What a device remembers about its two slots, and how that is written down.

- One small file holds it all; replacing that file *is* the switch from one slot to the other.
- What only matters until the next start (how long the trial has been watched, how often the engine died) is not
  written: flash wears out, and a restart begins these counts anew.
- A file that is torn or lost is no catastrophe: `settle` rebuilds the state from what the slots themselves hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.release import TARGET
from edgestill.trust.roles import PUBLISHER, ROLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import Json, JsonObject

SlotName = Literal["a", "b"]
Phase = Literal["idle", "downloading", "verifying", "staging", "probing", "watching"]

SLOTS: Final[tuple[SlotName, SlotName]] = ("a", "b")
INSTALLING: Final[frozenset[Phase]] = frozenset({"downloading", "verifying", "staging", "probing"})
MAX_STATE_BYTES: Final = 16_384
MAX_TARGET_BYTES: Final = 2**33
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bundle as the publisher lists it.

    Attributes:
        name: the TUF target path, `NAME/VERSION/CLASS.esb`.
        digest: of the archive.
        size: of the archive, in bytes.
    """

    name: str
    digest: Digest
    size: int

    @property
    def release(self) -> str:
        """`NAME/VERSION`."""
        return self.name.rpartition("/")[0]

    @property
    def parts(self) -> tuple[str, tuple[int, ...]]:
        """The bundle's name, and its version as numbers, which sorts versions."""
        name, version, _ = self.name.split("/")
        return name, tuple(map(int, version.split(".")))

    @property
    def hardware_class(self) -> str:
        """Where the bundle may run."""
        return self.name.rpartition("/")[2].removesuffix(".esb")

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads a target; MessageError where it is none."""
        return cls(
            name=fields.text("name", at_most=200, pattern=TARGET),
            digest=fields.digest("digest"),
            size=fields.integer("size", most=MAX_TARGET_BYTES),
        )

    def as_json(self) -> JsonObject:
        """The target as JSON."""
        return {"name": self.name, "digest": str(self.digest), "size": self.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An assignment that did not come to its end, so that it is not tried again.

    Attributes:
        counter: of the assignment.
        target: what was assigned.
        reason: why, for people.
        refused: whether this device's own settings were the reason; they may be others after a restart.
    """

    counter: int
    target: Target
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a slot says about itself, beside its archive.

    Attributes:
        target: the bundle it holds, whole and checked.
        counter: of the assignment that brought it.
        confirmed: whether it served through its health window.
    """

    target: Target
    counter: int
    confirmed: bool

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `slot.json`; MessageError where it is none."""
        fields = Fields(parse_object(data, where="slot.json", max_bytes=MAX_STATE_BYTES), "slot.json")
        return cls(
            target=Target.from_fields(fields.inner("target")),
            counter=fields.integer("counter"),
            confirmed=fields.boolean("confirmed"),
        )

    def to_bytes(self) -> bytes:
        """The bytes of `slot.json`."""
        return canonical(
            {"target": self.target.as_json(), "counter": self.counter, "confirmed": self.confirmed}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a device stands.

    Attributes:
        phase: what it is doing; `watching` is the health window after a switch.
        active: the slot that serves; None before the first bundle.
        a: what slot A holds, whole and staged; None while it is empty or being written.
        b: what slot B holds.
        wanted: what is being installed into the other slot; None outside of an installation.
        role: that lists `wanted`; its owner may stop taking what that role lists.
        seen: the largest counter of an assignment that was ever accepted; counters are places, see `events.Assigned`.
        counter: of the assignment that `wanted`, or else the active slot, came from.
        failure: the last assignment that failed.
        boots: starts of the agent since the switch, while watching.
        hindered: times that something other than being offline stopped the installation (a full disk).
        deaths: of the engine since it last served well. Not written.
        watched: seconds served since the switch. Not written.
        answers: given since the switch. Not written.
        errors: answers that failed since the switch. Not written.
    """

    phase: Phase = "idle"
    active: SlotName | None = None
    a: Target | None = None
    b: Target | None = None
    wanted: Target | None = None
    role: str = PUBLISHER
    seen: int = 0
    counter: int = 0
    failure: Failure | None = None
    boots: int = 0
    hindered: int = 0
    deaths: int = 0
    watched: float = 0.0
    answers: int = 0
    errors: int = 0

    @property
    def spare(self) -> SlotName:
        """The slot that may be written."""
        return "b" if self.active == "a" else "a"

    @property
    def serving(self) -> Target | None:
        """What the active slot holds."""
        return None if self.active is None else self.held(self.active)

    def held(self, slot: SlotName) -> Target | None:
        """What a slot holds."""
        return self.a if slot == "a" else self.b

    def holding(self, slot: SlotName, target: Target | None) -> State:
        """This state with another content of a slot."""
        return replace(self, a=target) if slot == "a" else replace(self, b=target)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `state.json`.

        Raises:
            MessageError: not a state, or one that contradicts itself.
        """
        fields = Fields(parse_object(data, where="state.json", max_bytes=MAX_STATE_BYTES), "state.json")
        fields.integer("schema", least=_SCHEMA, most=_SCHEMA)
        state = cls(
            phase=fields.text("phase", pattern="|".join(get_args(Phase))),  # type: ignore[arg-type]  # checked by the pattern
            active=fields.text("active", pattern="[ab]") if fields.has("active") else None,  # type: ignore[arg-type]  # checked by the pattern
            a=_target(fields, "a"),
            b=_target(fields, "b"),
            wanted=_target(fields, "wanted"),
            role=fields.text("role", at_most=80, pattern=ROLE) if fields.has("role") else PUBLISHER,
            seen=fields.integer("seen"),
            counter=fields.integer("counter"),
            failure=_failure(fields.inner("failure")) if fields.has("failure") else None,
            boots=fields.integer("boots"),
            hindered=fields.integer("hindered"),
        )
        flaw = contradiction(state)
        if flaw:
            raise MessageError(
                "a state that contradicts itself",
                where="state.json",
                got=flaw,
                expected="a state that the agent could have reached",
                fix="nothing: the agent begins anew from what its slots hold",
            )
        return state

    def to_bytes(self) -> bytes:
        """The bytes of `state.json`: what must outlive a restart."""
        failure = self.failure
        return canonical(
            {
                "schema": _SCHEMA,
                "phase": self.phase,
                "active": self.active,
                "a": _json(self.a),
                "b": _json(self.b),
                "wanted": _json(self.wanted),
                "role": self.role,
                "seen": self.seen,
                "counter": self.counter,
                "failure": None
                if failure is None
                else {
                    "counter": failure.counter,
                    "target": failure.target.as_json(),
                    "reason": failure.reason,
                    "refused": failure.refused,
                },
                "boots": self.boots,
                "hindered": self.hindered,
            }
        )


def contradiction(state: State) -> str:
    """What is wrong with a state, or nothing: the invariants that every step keeps."""
    if state.active is not None and state.serving is None:
        return "the active slot is empty"
    if state.phase == "watching" and state.active is None:
        return "watching nothing"
    if (state.phase in INSTALLING) != (state.wanted is not None):
        return "an installation without a target, or a target without an installation"
    if state.phase in {"downloading", "verifying", "staging"} and state.held(state.spare) is not None:
        return "the slot being written counts as whole"
    if state.phase == "probing" and state.held(state.spare) != state.wanted:
        return "the slot being probed holds something else"
    if state.counter > state.seen:
        return "an assignment that was never seen"
    return ""


def settle(state: State | None, found: Mapping[SlotName, Record | None]) -> State:
    """The state that is true, given what was read and what the slots really hold.

    Args:
        state: as read from its file; None where that is missing or torn.
        found: per slot its record, if the archive beside it is whole and matches it.

    Returns:
        A state without contradiction. If the slot that should serve is damaged, the other one serves.
    """
    if state is None:
        return _rebuilt(found)
    for slot in SLOTS:
        record, held = found[slot], state.held(slot)
        if held is not None and (record is None or record.target.digest != held.digest):
            state = state.holding(slot, None)
    if state.phase == "probing" and state.held(state.spare) is None:
        state = replace(state, phase="downloading")
    if state.active is None or state.serving is not None:
        return state
    other = state.spare
    held = state.held(other)
    if held is not None and state.phase not in INSTALLING:
        return replace(state, phase="idle", active=other, boots=0)
    rebuilt = _rebuilt(found)
    return replace(rebuilt, seen=max(rebuilt.seen, state.seen), failure=state.failure)


def _rebuilt(found: Mapping[SlotName, Record | None]) -> State:
    records = [(slot, record) for slot in SLOTS if (record := found[slot]) is not None]
    if not records:
        return State()
    active, best = max(records, key=lambda pair: (pair[1].confirmed, pair[1].counter))
    state = State(active=active, seen=max(one.counter for _, one in records), counter=best.counter)
    for slot, record in records:
        state = state.holding(slot, record.target)
    return state


def _target(fields: Fields, name: str) -> Target | None:
    return Target.from_fields(fields.inner(name)) if fields.has(name) else None


def _failure(fields: Fields) -> Failure:
    return Failure(
        counter=fields.integer("counter"),
        target=Target.from_fields(fields.inner("target")),
        reason=fields.text("reason"),
        refused=fields.has("refused") and fields.boolean("refused"),
    )


def _json(target: Target | None) -> Json:
    return None if target is None else target.as_json()

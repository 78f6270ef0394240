"""When a student asks its teacher: `policy.json`, and one pure decision per input.

Standard library only; confidence, coin, time and cost come in as arguments, so every decision can be a test.

- The audit coin is looked at before the confidence is: audits are a fair sample of everything the device sees.
- The bundle's threshold is where the device starts. From there an online quantile tracker holds the *share* of
  inputs asked at the budget, whatever happens to the confidences (see `decide` for its rule, bound and source).
- Bytes are counted per UTC day and never exceeded; a part of them is kept for audits.
- The promise made for the bundle's threshold holds only while at least that much is asked. Moving averages of what
  the promise needs and of what was asked and answered are kept, and `promise_is_void` says when they part.
- Where the policy lets no raw input leave the device, nothing is ever asked.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal, Self, cast, get_args

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object

SCHEMA: Final = 1
MAX_BYTES: Final = 1_000_000
MAX_LABELS: Final = 65_536
ALWAYS: Final = 2.0
"""A threshold above every confidence: all inputs are escalated."""

STEP: Final = 0.3
FLOOR: Final = 1e-4
MEMORY: Final = 500
SLACK: Final = 0.02
_DAY: Final = 86_400
_FIRST_DAY: Final = 18_262  # 2020-01-01: an earlier wall clock has not been set yet
_TEMPERATURES: Final = (1e-3, 1e3)

Measure = Literal["max_probability", "margin", "entropy"]
Decision = Literal["alone", "escalate", "audit"]
Leaves = Literal["nothing", "features", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a student answers, when it asks, and what may leave the device.

    Attributes:
        labels: names of the classes, in the order of the logits.
        temperature: divides the student's logits before the softmax, in [0.001, 1000].
        teacher_temperature: divides the teacher's.
        alpha: the teacher's weight in a fused answer, in [0, 1].
        threshold: inputs with a confidence below it are escalated; in [0, 2], above 1 (`ALWAYS`) means all.
        measure: of confidence (see `infer.confidence`).
        escalation_share: of inputs asked of the teacher, audits included, in [0, 1].
        bytes_per_day: of raw input sent, at most; None leaves it open.
        audit_share: of inputs asked whatever the confidence, in [0, escalation_share].
        leaves: what may leave the device; anything but `raw` means that nothing is asked.
        evidence: what the values were fitted on: n, epsilon, delta, promised, and whatever the lab adds.
        unknown: fields a newer writer added.
    """

    labels: tuple[str, ...]
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    alpha: float = 0.5
    threshold: float = 0.5
    measure: Measure = "max_probability"
    escalation_share: float = 0.2
    bytes_per_day: int | None = None
    audit_share: float = 0.01
    leaves: Leaves = "raw"
    evidence: JsonObject = field(default_factory=dict)
    unknown: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels) or len(self.labels) > MAX_LABELS:
            raise _wrong("labels", f"1 to {MAX_LABELS} different names", f"{len(self.labels)} names")
        for name in ("temperature", "teacher_temperature"):
            _within(name, getattr(self, name), *_TEMPERATURES)
        _within("threshold", self.threshold, 0, ALWAYS)
        for name in ("alpha", "escalation_share"):
            _within(name, getattr(self, name), 0, 1)
        _within("audit_share", self.audit_share, 0, self.escalation_share)
        if self.bytes_per_day is not None:
            _within("bytes_per_day", self.bytes_per_day, 0, 2**53 - 1)
        if self.measure not in get_args(Measure):
            raise _wrong("measure", ", ".join(get_args(Measure)), self.measure)
        if self.leaves not in get_args(Leaves):
            raise _wrong("leaves", ", ".join(get_args(Leaves)), self.leaves)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `policy.json`; fields that are left out have their defaults.

        Raises:
            MessageError: not the format, or another schema.
            SettingError: a value out of its range.
        """
        fields = Fields(parse_object(data, where="policy.json", max_bytes=MAX_BYTES), "policy.json")
        schema = fields.integer("schema")
        if schema != SCHEMA:
            raise MessageError(
                "a policy of another schema",
                where="policy.json",
                expected=f"schema {SCHEMA}",
                got=schema,
                fix="update edgestill, or build the bundle again",
            )
        numbers = {name: fields.number(name) for name in _NUMBERS if fields.has(name)}
        return cls(
            labels=_labels(fields),
            **numbers,
            measure=cast("Measure", fields.text("measure")) if fields.has("measure") else "max_probability",
            bytes_per_day=fields.integer("bytes_per_day") if fields.has("bytes_per_day") else None,
            leaves=cast("Leaves", fields.text("leaves")) if fields.has("leaves") else "raw",
            evidence=fields.inner("evidence").unknown(()) if fields.has("evidence") else {},
            unknown=fields.unknown(_KNOWN),
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes of `policy.json`."""
        own: JsonObject = {name: getattr(self, name) for name in _KNOWN if name not in {"schema", "labels"}}
        return canonical(self.unknown | own | {"schema": SCHEMA, "labels": list(self.labels)})

    @property
    def label_digest(self) -> Digest:
        """Names the labels and their order; fixed within a lineage."""
        return Digest.of(canonical(list(self.labels)))

    @property
    def promised(self) -> bool:
        """Whether a risk promise was made for the threshold when it was chosen."""
        return self.evidence.get("promised") is True

    def limited_to(self, leaves: Leaves) -> Policy:
        """This policy, or a stricter one: a device may let less leave than its bundle allows, never more."""
        order = get_args(Leaves)
        return replace(self, leaves=min(self.leaves, leaves, key=order.index))


_NUMBERS: Final = (
    "temperature",
    "teacher_temperature",
    "alpha",
    "threshold",
    "escalation_share",
    "audit_share",
)
_KNOWN: Final = ("schema", "labels", *_NUMBERS, "measure", "bytes_per_day", "leaves", "evidence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What the policy remembers from one input to the next; keep it over restarts (`to_bytes`).

    Attributes:
        level: of the tracked threshold, on the tracker's scale (see `decide`).
        asked: moving average of inputs that were asked and answered; audits are left out.
        needed: moving average of inputs below the bundle's threshold; audits are left out.
        day: number of the UTC day `spent` belongs to.
        spent: bytes sent on that day.
        audits_lost: tossed but not sent, or sent but not answered, since the start.
    """

    level: float
    asked: float = 0.0
    needed: float = 0.0
    day: int = 0
    spent: int = 0
    audits_lost: int = 0

    @classmethod
    def start(cls, policy: Policy) -> Self:
        """The state of a device that begins with this bundle."""
        return cls(level=_level(policy.threshold))

    @property
    def threshold(self) -> float:
        """The tracked threshold as a confidence, in [0, 2]; above 1 everything is escalated."""
        return ALWAYS if self.level > _level(1.0) else max(0.0, 1.0 + FLOOR - math.exp(-self.level))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote; MessageError where it is something else."""
        fields = Fields(parse_object(data, where="policy state", max_bytes=4096), "policy state")
        return cls(
            level=fields.number("level", least=_level(0) - STEP, most=_level(ALWAYS)),
            asked=fields.number("asked", least=0, most=1),
            needed=fields.number("needed", least=0, most=1),
            day=fields.integer("day", most=10**9),
            spent=fields.integer("spent"),
            audits_lost=fields.integer("audits_lost"),
        )

    def to_bytes(self) -> bytes:
        """The state as canonical JSON."""
        return canonical(asdict(self))


def decide(
    policy: Policy, state: PolicyState, *, confidence: float, coin: float, now: float = 0.0, cost: int = 0
) -> tuple[Decision, PolicyState]:
    """Whether to ask about one input, and the state after it.

    With s the confidence and l(s) = -ln(1 - s + 1e-4), an input that is not audited is asked if l(s) < q, and then

        q <- q + STEP * (target - 1[l(s) < q]),   target = (escalation_share - audit_share) / (1 - audit_share).

    This is the quantile tracker of Angelopoulos, Candes and Tibshirani, "Conformal PID control for time series
    prediction" (2023), eq. 3, itself stochastic approximation after Robbins and Monro (1951) and the update of Gibbs
    and Candes, "Adaptive conformal inference under distribution shift" (2021), applied to the confidence. As q stays
    within one step of the range of l, which is 9.3 wide, the sum of the updates telescopes: after T inputs *of any
    stream* the share asked differs from the target by at most 9.6 / (STEP * T), that is 32 / T. The logarithm spreads
    the confidences near 1, where most of them lie, without changing their order.

    Args:
        policy: of the bundle, perhaps made stricter.
        state: after the input before.
        confidence: of the student, in [0, 1].
        coin: uniform in [0, 1), tossed for this input before its confidence was known.
        now: seconds since 1970, for the byte budget; before 2020 the clock counts as not set, and the day stays.
        cost: bytes that asking about this input would send.
    """
    if policy.leaves != "raw":
        return "alone", state
    state = _on_day(state, math.floor(now / _DAY))
    if coin < policy.audit_share:
        return _audit(policy, state, cost)
    return _escalate(policy, state, confidence, cost)


def unanswered(state: PolicyState, decision: Decision) -> PolicyState:
    """The state after an input that was asked and stayed without an answer."""
    if decision == "audit":
        return replace(state, audits_lost=state.audits_lost + 1)
    if decision == "escalate":
        return replace(state, asked=max(0.0, state.asked - 1 / MEMORY))
    return state


def promise_is_void(policy: Policy, state: PolicyState) -> bool:
    """Whether the bundle's promise does not hold now.

    It does not where none was made, where nothing may be asked, and where over the last 500 inputs or so the share
    asked and answered fell more than 0.02 below the share that the bundle's threshold needs.
    """
    return not policy.promised or policy.leaves != "raw" or state.asked < state.needed - SLACK


def _audit(policy: Policy, state: PolicyState, cost: int) -> tuple[Decision, PolicyState]:
    if policy.bytes_per_day is not None and state.spent + cost > policy.bytes_per_day:
        return "alone", replace(state, audits_lost=state.audits_lost + 1)
    return "audit", replace(state, spent=state.spent + cost)


def _escalate(
    policy: Policy, state: PolicyState, confidence: float, cost: int
) -> tuple[Decision, PolicyState]:
    target = _target(policy)
    wanted = target > 0 and _level(confidence) < state.level
    given = wanted and _affords(policy, state, cost)
    after = PolicyState(
        # the tracker follows what was wanted: what the bytes forbid must not wind it up
        level=state.level + STEP * (target - wanted) if target > 0 else state.level,
        asked=state.asked + (given - state.asked) / MEMORY,
        needed=state.needed + ((confidence < policy.threshold) - state.needed) / MEMORY,
        day=state.day,
        spent=state.spent + cost if given else state.spent,
        audits_lost=state.audits_lost,
    )
    return "escalate" if given else "alone", after


def _target(policy: Policy) -> float:
    if policy.audit_share >= 1:
        return 0.0
    return (policy.escalation_share - policy.audit_share) / (1 - policy.audit_share)


def _affords(policy: Policy, state: PolicyState, cost: int) -> bool:
    """Whether an escalation leaves audits their part of the day's bytes."""
    if policy.bytes_per_day is None:
        return True
    kept = policy.audit_share / policy.escalation_share
    return state.spent + cost <= policy.bytes_per_day * (1 - kept)


def _on_day(state: PolicyState, day: int) -> PolicyState:
    """A later day gives a fresh budget; a clock that is set back does not."""
    if day < _FIRST_DAY:
        return state  # a device that woke without the time: its next day must not be a fresh one
    if day > state.day:
        return replace(state, day=day, spent=0)
    if day < state.day - 1:
        return replace(
            state, day=day
        )  # it had been too far ahead; waiting for that day again could take years
    return state


def _level(confidence: float) -> float:
    if confidence > 1:
        return -math.log(FLOOR) + STEP
    return -math.log(1 - max(0.0, confidence) + FLOOR)


def _labels(fields: Fields) -> tuple[str, ...]:
    names = fields.items("labels", at_most=MAX_LABELS)
    numbered = Fields({str(index): name for index, name in enumerate(names)}, "policy.json: labels")
    return tuple(numbered.text(str(index), at_most=200) for index in range(len(names)))


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise _wrong(name, f"a number from {least} to {most}", value)


def _wrong(name: str, expected: str, got: object) -> SettingError:
    return SettingError(
        "a policy value is out of range",
        where=f"policy: {name}",
        expected=expected,
        got=got,
        fix="leave it out where you are unsure",
    )

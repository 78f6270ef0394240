"""When a student asks its teacher: one pure decision per input.

Standard library only; confidence, coin, time and cost come in as arguments, so every decision can be a test.

- The audit coin is looked at before the confidence is: audits are a fair sample of everything the device sees.
- The bundle's threshold is where the device starts. From there an online quantile tracker holds the *share* of
  inputs asked at the budget, whatever happens to the confidences (see `decide` for its rule, bound and source).
- Bytes are counted per UTC day: a question is charged with what it may take at most, and settled once it is known what it
  took. As many as the audits of the day still need are kept for them. Where the bytes allow less than the
  share, the tracker is given what they allow for each of the inputs that are still to come (`infer.pacing`), so that
  the hardest of the whole day are asked about, and not all of a morning's.
- The promise made for the bundle's threshold holds only while at least that much is asked. Moving averages of what
  the promise needs and of what was asked and answered are kept, and `promise_is_void` says when they part.
- Where the policy lets nothing leave the device, or features and names no adapter, nothing is ever asked.
- After a change of the world more inputs may be audited for a while (`raised`): what they take, escalations lack. Share and
  bytes are bounded as ever, and the raised share is known before the coin is tossed, so audits stay a fair sample.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, Self

from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.infer.pacing import Pace
from edgestill.infer.policy import ALWAYS
from edgestill.infer.reaction import MOST_INPUTS

if TYPE_CHECKING:
    from edgestill.infer.policy import Policy

STEP: Final = 0.05
HASTE: Final = 0.3
"""The step while the share is further off than `PATIENCE` inputs."""
PATIENCE: Final = 8.0
YOUNG: Final = 64
"""Inputs of a stream in which the step is `HASTE` as well: where the threshold lies is not known yet."""
REPAID: Final = 0.1
"""Of the target: what is asked more, or less, until the share is made up."""
FLOOR: Final = 1e-4
MEMORY: Final = 500
SLACK: Final = 0.02
_DAY: Final = 86_400
_FIRST_DAY: Final = 18_262  # 2020-01-01: an earlier wall clock has not been set yet

Decision = Literal["alone", "escalate", "audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What the policy remembers from one input to the next; keep it over restarts (`to_bytes`).

    Attributes:
        level: of the tracked threshold, on the tracker's scale (see `decide`).
        asked: moving average of inputs that were asked and answered; audits are left out.
        needed: moving average of inputs below the bundle's threshold; audits are left out.
        excess: inputs wanted until now beyond the targets; negative where there were fewer.
        seen: inputs that moved the threshold, up to `YOUNG`.
        day: number of the UTC day `spent` belongs to.
        spent: bytes sent on that day.
        audits_lost: tossed but not sent, or sent but not answered, since the start.
        pace: what was seen, hour by hour; kept where bytes are bounded.
        raised: inputs to come for which the audit share is raised.
    """

    level: float
    asked: float = 0.0
    needed: float = 0.0
    excess: float = 0.0
    seen: int = 0
    day: int = 0
    spent: int = 0
    audits_lost: int = 0
    pace: Pace = field(default_factory=Pace)
    raised: int = 0

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
            level=fields.number("level", least=_level(0) - HASTE, most=_level(ALWAYS)),
            asked=fields.number("asked", least=0, most=1),
            needed=fields.number("needed", least=0, most=1),
            excess=fields.number("excess", least=-1e15, most=1e15) if fields.has("excess") else 0.0,
            seen=fields.integer("seen", most=YOUNG) if fields.has("seen") else YOUNG,
            day=fields.integer("day", most=10**9),
            spent=fields.integer("spent"),
            audits_lost=fields.integer("audits_lost"),
            pace=Pace.from_fields(fields.inner("pace")) if fields.has("pace") else Pace(),
            raised=fields.integer("raised", most=MOST_INPUTS) if fields.has("raised") else 0,
        )

    def to_bytes(self) -> bytes:
        """The state as canonical JSON."""
        return canonical(asdict(self) | {"pace": self.pace.as_json()})


def decide(
    policy: Policy,
    state: PolicyState,
    *,
    confidence: float,
    coin: float,
    now: float = 0.0,
    cost: int = 0,
    most: int | None = None,
) -> tuple[Decision, PolicyState]:
    """Whether to ask about one input, and the state after it.

    With s the confidence and l(s) = -ln(1 - s + 1e-4), an input that is not audited is asked if l(s) < q, and then

        q <- q + step * (aim - 1[l(s) < q]),   aim = target * (1 - r),
        E <- E + 1[l(s) < q] - target,         target = (share - audit_share) / (1 - audit_share),

    the share being the policy's `escalation_share`, or what the day's bytes still allow, if that is less; the audit share
    is the policy's, or while it is raised that times `audit_factor`, at most the share. E is the
    excess; r = E / `PATIENCE` * `REPAID`, at most `REPAID` either way, makes it up again; and the step is `STEP`, or
    `HASTE` while |E| > `PATIENCE`, and for the first `YOUNG` inputs: small steps ask about the right inputs, large ones follow a shift.

    This is the quantile tracker with error integration of Angelopoulos, Candes and Tibshirani, "Conformal PID control
    for time series prediction" (2023), eqs. 3 to 5, itself stochastic approximation after Robbins and Monro (1951) and
    the update of Gibbs and Candes, "Adaptive conformal inference under distribution shift" (2021), applied to the
    confidence. As q stays within one step of the range of l, which is 9.3 wide, the sum of the updates telescopes while
    the step is large, and r then only draws E back: after T inputs *of any stream* the share asked differs from the
    target by at most (PATIENCE + 1 + 9.8 / HASTE) / T, that is 42 / T. The logarithm spreads the confidences near 1,
    where most of them lie, without changing their order.

    Args:
        policy: of the bundle, perhaps made stricter.
        state: after the input before.
        confidence: of the student, in [0, 1].
        coin: uniform in [0, 1), tossed for this input before its confidence was known.
        now: seconds since 1970, for the byte budget; before 2020 the clock counts as not set, and the day stays.
        cost: bytes that asking about an input sends, as expected.
        most: bytes that asking about this one may send, charged until `settled` knows better; None for `cost`.
    """
    charged = cost if most is None else most
    if policy.asks == "nothing":
        return "alone", state
    state = _at(policy, state, now)
    share = _share(policy, state, now, cost)
    audits = _audits(policy, state, share)
    kept = _kept(policy, state, now, cost, audits)
    if state.raised:
        state = replace(state, raised=state.raised - 1)
    if coin < audits:
        return _audit(policy, state, charged)
    target = 0.0 if audits >= 1 else max(0.0, (share - audits) / (1 - audits))
    return _escalate(policy, state, confidence, target=target, charged=charged, kept=kept)


def raised(policy: Policy, state: PolicyState) -> PolicyState:
    """The state once the world has changed: audits are raised, where the policy says so and there are any."""
    if "audit" not in policy.on_drift.do or policy.audits == 0 or policy.asks == "nothing":
        return state
    return replace(state, raised=policy.on_drift.audit_inputs)


def audit_share(policy: Policy, state: PolicyState, *, now: float = 0.0, cost: int = 0) -> float:
    """The chance that the next input is audited, as `decide` would have it: an audit stands for 1 / that many inputs."""
    if policy.asks == "nothing":
        return 0.0
    state = _at(policy, state, now)
    return _audits(policy, state, _share(policy, state, now, cost))


def settled(state: PolicyState, *, charged: int, sent: int) -> PolicyState:
    """The state once it is known that questions charged with so many bytes have sent others."""
    return replace(state, spent=max(0, state.spent - charged + sent))


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
    return not policy.promised or policy.asks == "nothing" or state.asked < state.needed - SLACK


def _audit(policy: Policy, state: PolicyState, cost: int) -> tuple[Decision, PolicyState]:
    if policy.bytes_per_day is not None and state.spent + cost > policy.bytes_per_day:
        return "alone", replace(state, audits_lost=state.audits_lost + 1)
    return "audit", replace(state, spent=state.spent + cost)


def _escalate(
    policy: Policy, state: PolicyState, confidence: float, *, target: float, charged: int, kept: float
) -> tuple[Decision, PolicyState]:
    wanted = target > 0 and _level(confidence) < state.level
    bound = policy.bytes_per_day
    given = wanted and (bound is None or state.spent + charged <= bound - kept)
    after = replace(
        state,
        # the tracker follows what was wanted: what the bytes forbid must not wind it up
        level=_moved(state, target, wanted=wanted) if target > 0 else state.level,
        excess=state.excess + wanted - target,
        seen=min(YOUNG, state.seen + 1),
        asked=state.asked + (given - state.asked) / MEMORY,
        needed=state.needed + ((confidence < policy.threshold) - state.needed) / MEMORY,
        spent=state.spent + charged if given else state.spent,
    )
    return "escalate" if given else "alone", after


def _moved(state: PolicyState, target: float, *, wanted: bool) -> float:
    """The tracked level after an input that was wanted, or not."""
    behind = max(-1.0, min(1.0, -state.excess / PATIENCE))
    step = STEP if state.seen >= YOUNG and abs(state.excess) <= PATIENCE else HASTE
    aim = min(1.0, target * (1 + REPAID * behind))
    return max(_level(0) - HASTE, min(_level(ALWAYS), state.level + step * (aim - wanted)))


def _share(policy: Policy, state: PolicyState, now: float, cost: int) -> float:
    """The share of inputs which may be asked about: the policy's, or what the bytes allow of it."""
    if policy.bytes_per_day is None or not cost or not state.pace.hour:
        return policy.escalation_share
    left = policy.bytes_per_day - state.spent
    return min(policy.escalation_share, left / (cost * state.pace.ahead(now)))


def _audits(policy: Policy, state: PolicyState, share: float) -> float:
    """The share of inputs which is audited: the policy's, or while it is raised as much of more as `share` has room for."""
    if not state.raised:
        return policy.audits
    return max(policy.audits, min(policy.audits * policy.on_drift.audit_factor, share))


def _kept(policy: Policy, state: PolicyState, now: float, cost: int, audits: float) -> float:
    """Bytes that escalations leave for the audits of the rest of the day; their whole part where the time is not known."""
    if policy.bytes_per_day is None or policy.escalation_share == 0:
        return 0.0
    part = policy.bytes_per_day * audits / policy.escalation_share
    if not state.pace.hour:
        return part
    ahead = state.pace.ahead(now)
    more = (audits - policy.audits) * min(state.raised, ahead)
    return min(part, cost * (policy.audits * ahead + more))


def _at(policy: Policy, state: PolicyState, now: float) -> PolicyState:
    """The state when an input comes at `now`."""
    state = _on_day(state, math.floor(now / _DAY))
    if policy.bytes_per_day is None or now < _FIRST_DAY * _DAY:
        return state
    return replace(state, pace=state.pace.after(now))


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
        return -math.log(FLOOR) + HASTE
    return -math.log(1 - max(0.0, confidence) + FLOOR)

"""A student that asks a larger model where the policy says so, and answers alone where it cannot.

For one batch, in this order:

1. A coin is tossed for every input, before anything is known of it.
2. The student answers all inputs.
3. The policy decides for each: alone, escalate or audit.
4. What is asked goes to the teacher as one batch, with the caller's deadline; audits go apart where an `auditor`
   is given, so that the far end can tell them. Where the policy lets nothing but features leave, the student's features go
   in the place of the inputs, to an adapter (`infer.adapter`) in the place of the teacher.
5. Where the teacher answered, the answer is `alpha * p_teacher + (1 - alpha) * p_student`. Where it failed in any of
   our ways, or answered something that is no set of probabilities, the student's answer stands, marked as its own.
   A device keeps answering.

A cascade is a `Predict` like its student and its teacher, so cascades nest: device, gateway, cloud.

Agreement is measured on audits alone, and lost audits are counted (`infer.health`). Whoever wants to learn from the
teacher passes `observe`, and is told about every batch after its answer is made.

A cascade may be called from several threads: state changes are short and locked, student and teacher run unlocked.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, final

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.errors import DeadlineError, EdgestillError, EngineError
from edgestill.infer.adapter import as_sent
from edgestill.infer.confidence import confidence_of, require_probabilities, require_voices
from edgestill.infer.decision import (
    Decision,
    PolicyState,
    audit_share,
    decide,
    promise_is_void,
    raised,
    settled,
    unanswered,
)
from edgestill.infer.fusion import fuse, weights
from edgestill.infer.health import Counts, HealthCounter
from edgestill.infer.student import is_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock, Predict
    from edgestill.core.wire import Health
    from edgestill.infer.policy import Policy

_NAMES: Final = {0.0: "student", 1.0: "teacher"}


class Metered(Protocol):
    """What knows how many bytes its questions take (`link.inference.RemoteModel`)."""

    def bytes_each(self, batch: NDArray[np.generic]) -> int:
        """Of asking about one input of a batch, as expected."""
        ...

    def take_sent(self) -> int:
        """Sent since this was last asked, whatever became of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Escalation:
    """What became of one batch of N inputs: what a device learns from.

    Attributes:
        batch: `[N, ...]`, as the sensor gave it.
        answer: as the caller got it; `answer.teacher` has NaN rows where the teacher itself was not heard.
        decisions: of the policy, per input. An audit or escalation without an answer has a NaN row.
        confidence: float32 `[N]`, of the student alone; `answer.confidence` is that of the fused answer.
        failures: codes of the errors that kept the teacher from answering, at most one per question.
        audit_shares: the chance that each input had of being audited, where that was raised; empty where it was the policy's.
    """

    batch: NDArray[np.generic]
    answer: Answer
    decisions: tuple[Decision, ...]
    confidence: NDArray[np.float32]
    failures: tuple[str, ...] = ()
    audit_shares: tuple[float, ...] = ()

    @property
    def heard(self) -> NDArray[np.bool_]:
        """`[N]`: where the teacher itself answered. Another student's answer is fused, and is no label."""
        if self.answer.teacher is None:
            return np.zeros(len(self.decisions), dtype=np.bool_)
        return np.isfinite(self.answer.teacher[:, 0])

    @property
    def audited(self) -> NDArray[np.bool_]:
        """`[N]`: where the coin, not the policy, asked."""
        return np.array([decision == "audit" for decision in self.decisions], dtype=np.bool_)


@final
class Cascade:
    """A `Predict` made of a student, a teacher and a policy.

    Args:
        student: answers everything first; gives calibrated probabilities.
        teacher: is asked where the policy says so, about what it lets go, and gives calibrated probabilities; None asks nobody.
        policy: decides, and holds `alpha`.
        state: of the policy, from before a restart; a fresh one where None.
        clock: for the deadline, the latency and the day of the byte budget.
        random: uniform in [0, 1).
        auditor: is asked about audits; None asks the teacher, in the same batch.
        names: for `Answer.tiers`, of the larger models behind `teacher`, in the order in which they are asked; the last is
            the auditor's. One stands before those whom it asked itself; several are named by the answer (`infer.tiers`).
        meters: of what is sent to the teacher and to the auditor; where there are none, an input takes its numbers' bytes.
        observe: is called with every batch, in the caller's thread. What it raises is the caller's to see.
    """

    def __init__(
        self,
        student: Predict,
        teacher: Predict | None,
        policy: Policy,
        *,
        state: PolicyState | None = None,
        clock: Clock,
        random: Callable[[], float],
        auditor: Predict | None = None,
        names: Sequence[str] = ("teacher",),
        meters: Sequence[Metered] = (),
        observe: Callable[[Escalation], None] | None = None,
    ) -> None:
        self.policy = policy
        self._student = student
        self._teacher = teacher
        self._auditor = auditor
        self._names = tuple(names)
        self._meters = tuple(meters)
        self._clock = clock
        self._random = random
        self._observe = observe
        self._state = PolicyState.start(policy) if state is None else state
        self._health = HealthCounter()
        self._lock = threading.Lock()

    @property
    def state(self) -> PolicyState:
        """Of the policy, now; hand it to the next cascade."""
        return self._state

    @property
    def promise_is_void(self) -> bool:
        """Whether the bundle's promise does not hold now (`infer.decision.promise_is_void`)."""
        return self._teacher is None or promise_is_void(self.policy, self._state)

    def raise_audits(self) -> bool:
        """Audits more for a while, where the policy says so (`infer.decision.raised`); whether it does."""
        if self._teacher is None:
            return False
        with self._lock:
            self._state = raised(self.policy, self._state)
            return self._state.raised > 0

    def take_health(self, *, drift: str = "none", leverage: float = 0.0) -> Health:
        """The figures since the last time (`infer.health.HealthCounter.take`)."""
        with self._lock:
            return self._health.take(drift=drift, leverage=leverage)

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """Answers a batch; in time, if the student and the teacher keep the deadline.

        Raises:
            ShapeError, DtypeError, NotFiniteError: the batch is not what the student takes.
            EngineError: the student's engine failed.
        """
        start = self._clock.monotonic()
        n = batch.shape[0] if is_array(batch, "batch").ndim and self._teacher is not None else 0
        coins = [self._random() for _ in range(n)]
        alone = self._ask_student(batch, deadline)
        question = None if self._teacher is None else self._question(batch, alone)
        decided = self._decide(alone.confidence, coins, question)
        decisions = decided.decisions
        if question is not None and (decided.lost or any(decision != "alone" for decision in decisions)):
            answer, failures = self._with_teacher(question, alone, decisions, deadline)
            answer = replace(answer, latency=self._clock.monotonic() - start)
            told = Escalation(
                batch=batch,
                answer=answer,
                decisions=decisions,
                confidence=alone.confidence,
                failures=failures,
                audit_shares=decided.audit_shares,
            )
            self._count(told, lost=decided.lost, charged=decided.charged)
            if self._observe is not None:
                self._observe(told)
            return answer
        with self._lock:
            self._health.add_alone(
                len(decisions), sum(alone.confidence.tolist()), self._clock.monotonic() - start
            )
        if self._observe is not None:
            self._observe(
                Escalation(batch=batch, answer=alone, decisions=decisions, confidence=alone.confidence)
            )
        return alone

    def _ask_student(self, batch: NDArray[np.generic], deadline: float | None) -> Answer:
        try:
            return self._student.predict(batch, deadline=deadline)
        except EngineError:
            with self._lock:
                self._health.add(Counts(errors=len(batch)))
            raise

    def _question(self, batch: NDArray[np.generic], alone: Answer) -> NDArray[np.generic] | None:
        """What may be sent of each input, `[N, ...]`; None where that is nothing."""
        if self.policy.asks == "raw":
            return batch
        if self.policy.asks == "features" and alone.features is not None:
            return as_sent(alone.features)
        return None

    def _decide(
        self, confidence: NDArray[np.float32], coins: Sequence[float], question: NDArray[np.generic] | None
    ) -> _Decided:
        """About each input, in order."""
        if question is None:
            none: Decision = "alone"
            return _Decided((none,) * len(confidence))
        now, most = self._clock.now(), question[0].nbytes
        # who was never asked says what the numbers take
        cost = min((meter.bytes_each(question) for meter in self._meters), default=most)
        decisions: list[Decision] = []
        shares: list[float] = []
        with self._lock:
            state = before = self._state
            for value, coin in zip(confidence.tolist(), coins, strict=True):
                if before.raised:
                    shares.append(audit_share(self.policy, state, now=now, cost=cost))
                decision, state = decide(
                    self.policy,
                    state,
                    confidence=value,
                    coin=coin,
                    now=now,
                    cost=cost,
                    most=max(cost, most),
                )
                decisions.append(decision)
            self._state = state
        asked = sum(decision != "alone" for decision in decisions)
        return _Decided(
            tuple(decisions),
            lost=state.audits_lost - before.audits_lost,
            charged=asked * max(cost, most),
            audit_shares=tuple(shares),
        )

    def _with_teacher(
        self,
        question: NDArray[np.generic],
        alone: Answer,
        decisions: tuple[Decision, ...],
        deadline: float | None,
    ) -> tuple[Answer, tuple[str, ...]]:
        """The fused answer, and the codes of what failed."""
        heard = _Heard(alone.probabilities, by_teacher=self.policy.asks == "raw")
        failures: list[str] = []
        tiers: list[str] = []
        for model, wanted, names in self._questions():
            asked = [index for index, decision in enumerate(decisions) if decision in wanted]
            if not asked:
                continue
            try:
                given = self._ask(model, question[asked], alone.probabilities.shape[1], deadline)
                heard.add(asked, given)
                tiers += (*(names if len(names) == 1 else ()), *given.tiers)
            except EdgestillError as error:
                failures.append(error.code)
                tiers += names
        answer = self._fused(alone, heard) if heard.any else alone
        return replace(answer, tiers=tuple(dict.fromkeys(tiers))), tuple(failures)

    def _questions(self) -> list[tuple[Predict, tuple[Decision, ...], tuple[str, ...]]]:
        """Who is asked, about which inputs, and the names of who may have been turned to."""
        assert self._teacher is not None
        if self._auditor is None:
            return [(self._teacher, ("escalate", "audit"), self._names)]
        return [
            (self._teacher, ("escalate",), self._names),
            (self._auditor, ("audit",), self._names[-1:]),
        ]

    def _ask(
        self, model: Predict, batch: NDArray[np.generic], classes: int, deadline: float | None
    ) -> Answer:
        if deadline is not None and self._clock.monotonic() >= deadline:
            raise DeadlineError(
                "no time left to ask",
                where="teacher",
                expected="more than 0 s",
                got="none",
                fix="allow more time",
            )
        answer = model.predict(batch, deadline=deadline)
        require_probabilities(answer.probabilities, len(batch), classes)
        require_voices(answer)
        return answer

    def _fused(self, alone: Answer, others: _Heard) -> Answer:
        given, heard = others.given, np.isfinite(others.given[:, 0])
        alpha = np.where(heard, weights(self.policy, alone.confidence), np.float32(0))
        probabilities, confidence = alone.probabilities.copy(), alone.confidence.copy()
        probabilities[heard] = fuse(given[heard], alone.probabilities[heard], alpha[heard])
        confidence[heard] = confidence_of(probabilities[heard], self.policy.measure)
        return Answer(
            probabilities=probabilities,
            confidence=confidence,
            decided_by=tuple(
                voice or (self._name(weight) if by_both else own)
                for by_both, weight, own, voice in zip(
                    heard, alpha.tolist(), alone.decided_by, others.deputies, strict=True
                )
            ),
            features=alone.features,
            alpha=alpha,
            student=alone.probabilities,
            teacher=others.teacher,
        )

    def _name(self, weight: float) -> str:
        """Who decided an answer with this weight of the other voice; an adapter's is never the teacher's."""
        return _NAMES.get(weight, "fused") if self.policy.asks == "raw" or not weight else "fused"

    def _count(self, told: Escalation, *, lost: int, charged: int) -> None:
        sent = sum(meter.take_sent() for meter in self._meters) if self._meters else charged
        asked = [index for index, decision in enumerate(told.decisions) if decision != "alone"]
        counts = Counts(
            answers=len(told.decisions),
            escalated=len(asked),
            audits_lost=lost,
            bytes_up=sent,
            confidence=float(told.confidence.sum()),
        )
        deaf: list[Decision] = []
        if asked:
            heard, audited = told.heard, told.audited
            # an adapter is asked about all in one question: it has answered each or none
            by_teacher = self.policy.asks == "raw"
            unheard = ~heard if by_teacher else np.full(len(heard), bool(told.failures))
            deaf = [told.decisions[index] for index in asked if unheard[index]]
            counts += Counts(
                audits=int((audited & heard).sum()),
                agreed=_agreed(told.answer, audited & heard),
                audits_lost=deaf.count("audit"),
            )
        with self._lock:
            self._state = settled(self._state, charged=charged, sent=sent)
            for decision in deaf:
                self._state = unanswered(self._state, decision)
            self._health.add(counts, latency=None if asked else told.answer.latency)


@dataclass(frozen=True, slots=True)
class _Decided:
    """What was decided about a batch of N inputs.

    Attributes:
        decisions: per input.
        lost: audits that the byte budget forbade.
        charged: bytes.
        audit_shares: as `Escalation`'s.
    """

    decisions: tuple[Decision, ...]
    lost: int = 0
    charged: int = 0
    audit_shares: tuple[float, ...] = ()


class _Heard:
    """What was said about a batch of N inputs.

    Attributes:
        given: `[N, C]`, to be fused; NaN where nobody answered.
        teacher: likewise, NaN also where another student answered in the teacher's place, or an adapter.
        deputies: who decided the answer of another student, per input; empty for the teacher's own, and an adapter's.
    """

    def __init__(self, like: NDArray[np.float32], *, by_teacher: bool) -> None:
        self._by_teacher = by_teacher
        self.given = np.full_like(like, np.nan)
        self.teacher = np.full_like(like, np.nan)
        self.deputies = [""] * len(like)

    @property
    def any(self) -> bool:
        return bool(np.isfinite(self.given[:, 0]).any())

    def add(self, asked: list[int], answer: Answer) -> None:
        self.given[asked] = answer.probabilities
        if not self._by_teacher:  # whatever it says of itself
            return
        # what is no cascade tells of no teacher: it is one
        self.teacher[asked] = answer.probabilities if answer.teacher is None else answer.teacher
        for place, voice in zip(asked, answer.decided_by, strict=True):
            if np.isnan(self.teacher[place, 0]):
                self.deputies[place] = voice


def _agreed(answer: Answer, where: NDArray[np.bool_]) -> int:
    if answer.student is None or answer.teacher is None or not where.any():
        return 0
    return int((answer.student[where].argmax(axis=1) == answer.teacher[where].argmax(axis=1)).sum())

"""What a device says of a timing job: that the models are there, how long they take, or why it times nothing.

- Times only: what each model is and has to do, the hub reads in the archive that the publisher signed. So a device can lie about
  times, and about nothing else, and the message is some kilobytes.
- The reader bounds every figure. A report is of one job, by its counter and the archive's digest; its id is made of these, so that it
  counts once however often it is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from edgestill.core.errors import MessageError
from edgestill.core.family import MAX_MODELS
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object, plain
from edgestill.core.release import MAX_COUNTER

if TYPE_CHECKING:
    from edgestill.core.digest import Digest

MAX_BYTES: Final = 200_000
MAX_REASON: Final = 300
SHORTEST, LONGEST = 1e-9, 1e6
"""Seconds that an answer may take."""

TimingState = Literal["downloaded", "measured", "refused"]
_WHERE: Final = "timing"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTime:
    """How long the answers of one model took; seconds.

    Attributes:
        at: its place in the family.
        p50: the median.
        p95: 95 of 100 answers.
        low: the lower quartile of `p95` over the rounds.
        high: the upper one.
    """

    at: int
    p50: float
    p95: float
    low: float
    high: float

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads one; MessageError where a figure is out of range, or figures contradict each other."""
        fields.only(("at", "p50", "p95", "low", "high"))
        p50 = fields.number("p50", least=SHORTEST, most=LONGEST)
        low = fields.number("low", least=SHORTEST, most=LONGEST)
        p95 = fields.number("p95", least=max(p50, low), most=LONGEST)
        return cls(
            at=fields.integer("at", most=MAX_MODELS - 1),
            p50=p50,
            p95=p95,
            low=low,
            high=fields.number("high", least=p95, most=LONGEST),
        )

    def as_json(self) -> JsonObject:
        """One as JSON."""
        return {"at": self.at, "p50": self.p50, "p95": self.p95, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingReport:
    """What a device says of a job.

    Attributes:
        counter: of the job, `core.release.Measurement.counter`.
        archive: digest of what was to be timed.
        state: `downloaded`, `measured` or `refused`.
        reason: why it was refused, or what was left out; otherwise empty.
        models: of `measured` at least one, in the order of their places; of the others none.
    """

    counter: int
    archive: Digest
    state: TimingState
    reason: str = ""
    models: tuple[ModelTime, ...] = ()

    @property
    def id(self) -> str:
        """The same for the same step of the same job."""
        said = canonical([self.counter, str(self.archive), self.state])
        return hashlib.sha256(said).hexdigest()[:40]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none, or contradicts itself."""
        fields = Fields(parse_object(data, where=_WHERE, max_bytes=MAX_BYTES), _WHERE)
        state = fields.text("state")
        if state not in get_args(TimingState):
            raise MessageError(
                "unknown state", where=_WHERE, expected=", ".join(get_args(TimingState)), got=state[:40]
            )
        found = cls(
            counter=fields.integer("counter", least=1, most=MAX_COUNTER),
            archive=fields.digest("archive"),
            state=state,  # type: ignore[arg-type]  # checked against the literal above
            reason=plain(fields.text("reason", at_most=MAX_REASON)) if fields.has("reason") else "",
            models=tuple(map(ModelTime.from_fields, fields.objects("models", at_most=MAX_MODELS)))
            if fields.has("models")
            else (),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raises MessageError where times and state do not belong together, or a model is named twice or out of order."""
        places = [one.at for one in self.models]
        if (self.state == "measured") != bool(places) or places != sorted(set(places)):
            raise MessageError(
                "times that contradict their report",
                where=_WHERE,
                expected="of `measured`: each model once, in order; of others: none",
                got=f"{self.state}, {len(places)} models",
            )

    def to_bytes(self) -> bytes:
        """The message; a reason too long for the wire is cut."""
        told: JsonObject = {
            "counter": self.counter,
            "archive": str(self.archive),
            "state": self.state,
            "reason": plain(self.reason[:MAX_REASON]),
            "models": [one.as_json() for one in self.models],
        }
        return canonical(told)

"""The control plane's messages: small JSON, bounded, the same on both ends.

| exchange | message there | message back |
|---|---|---|
| `POST /v1/enrol` | `Enrol` | `Enrolled` |
| `GET /v1/poll` | - | `Poll`, or 304 |
| `POST /v1/reports` | `[Report, ...]` | `{"accepted": n, "duplicates": m}` |
| `POST /v1/timing` | `core.timing.TimingReport` | `{"accepted": true or false}` |
| `POST /v1/evidence/statistics` | a `learn.statistics` message | `{"accepted": true or false}`, with a `reason` for false |
| `POST /v1/evidence/votes/ROUND` | a `learn.votes` ballot | `{"accepted": true or false}`, with a `reason` for false |
| `POST /v1/certificate` | `Certify` | `Certified` |
| `GET /v1/authorities` | - | the certificates of the fleet's authority (PEM) |

Certificates travel as PEM (RFC 7468), and are judged in `trust.certificates`. A device that sends no request gets none, and neither does
one from an old hub; both go on with the credential.

Reports carry an id made on the device: sending one twice counts once. So do statistics, in the header `x-edgestill-id`.
A second header, `x-edgestill-sequence`, grows with every message that a device makes: of one backbone and window the
largest counts, whatever arrives when. Devices of old send none; there the last to arrive counts. Ballots carry both: of one round the largest
sequence counts. Unknown fields are ignored, so that an old hub
serves a new device; a known field with a wrong value is refused.

What a device calls itself, its labels or a release is refused where it holds control characters. A reason may quote
anything, so there they become spaces, on both ends: a report that is refused for its wording would be lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Final, Literal, Self, get_args

from edgestill.core import hardware
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, Json, JsonObject, canonical, parse, parse_object, plain

MAX_REPORTS: Final = 200
MAX_MESSAGE_BYTES: Final = 1_000_000  # the longest batch of reports fits, however its reasons are spelt
MAX_REASON: Final = 500
MAX_REQUEST_BYTES: Final = 4096
MAX_CERTIFICATE_BYTES: Final = 4096
MAX_AUTHORITIES_BYTES: Final = 16_384
MAX_VOUCHED_BYTES: Final = 2 * MAX_AUTHORITIES_BYTES + 4096
"""JSON may spell the line ends of PEM at twice their length."""
MAX_SEQUENCE: Final = 2**53 - 1
ID_HEADER: Final = "x-edgestill-id"
SEQUENCE_HEADER: Final = "x-edgestill-sequence"
BELIEVES_HEADER: Final = "x-edgestill-believes"
"""Of a poll: `PLACE DIGEST`, the newest word about authorities that the device goes by (`trust.vouched`), and who has issued its certificate."""
_ID: Final = r"[A-Za-z0-9_-]{1,64}"

DeviceState = Literal["downloaded", "verified", "staged", "serving", "confirmed", "fell-back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrol:
    """A device asks to belong to the fleet.

    Attributes:
        join_token: what the operator gave it.
        device: the name it would like, unique in the fleet.
        hardware_class: where its bundles must run.
        labels: for cohorts, such as `{"site": "north"}`.
        request: for a certificate (PKCS #10 as PEM); empty asks for none.
    """

    join_token: str
    device: str
    hardware_class: str
    labels: dict[str, str] = field(default_factory=dict)
    request: str = ""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none."""
        fields = Fields(parse_object(data, where="enrol", max_bytes=MAX_MESSAGE_BYTES), "enrol")
        return cls(
            join_token=fields.secret("join_token", at_most=200),
            device=fields.text("device", pattern=_ID),
            hardware_class=fields.text("hardware_class", pattern=hardware.PATTERN),
            labels=fields.texts("labels", at_most=16, plain=True) if fields.has("labels") else {},
            request=_pem(fields, "request", MAX_REQUEST_BYTES),
        )

    def to_bytes(self) -> bytes:
        """The message."""
        return canonical(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """The hub's answer to `Enrol`.

    Attributes:
        device: the id to use from now on.
        credential: a secret for later calls; the hub keeps only its digest.
        root: the publisher's TUF root metadata. The join token pins its digest.
        interval: seconds between polls.
        certificate: for the key of the request; empty where none was made.
        authorities: whom to believe about members of the fleet; empty likewise.
    """

    device: str
    credential: str
    root: bytes
    interval: float
    certificate: str = ""
    authorities: str = ""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none."""
        fields = Fields(parse_object(data, where="enrolled", max_bytes=MAX_MESSAGE_BYTES), "enrolled")
        return cls(
            device=fields.text("device", pattern=_ID),
            credential=fields.secret("credential", at_most=200),
            root=fields.text("root", at_most=MAX_MESSAGE_BYTES).encode(),
            interval=fields.number("interval", least=0.01, most=86_400),
            certificate=_pem(fields, "certificate", MAX_CERTIFICATE_BYTES),
            authorities=_pem(fields, "authorities", MAX_AUTHORITIES_BYTES),
        )

    def to_bytes(self) -> bytes:
        """The message."""
        return canonical(
            {
                "device": self.device,
                "credential": self.credential,
                "root": self.root.decode(),
                "interval": self.interval,
                "certificate": self.certificate,
                "authorities": self.authorities,
            }
        )


@dataclass(frozen=True, slots=True)
class Certify:
    """A device asks for its next certificate.

    Attributes:
        request: PKCS #10 as PEM, with the key that it enrolled with.
    """

    request: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none."""
        fields = Fields(parse_object(data, where="certify", max_bytes=MAX_MESSAGE_BYTES), "certify")
        return cls(fields.text("request", at_most=MAX_REQUEST_BYTES))

    def to_bytes(self) -> bytes:
        """The message."""
        return canonical(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """The hub's answer to `Certify`.

    Attributes:
        certificate: for the key of the request.
        authorities: whom to believe from now on.
    """

    certificate: str
    authorities: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none."""
        fields = Fields(parse_object(data, where="certified", max_bytes=MAX_MESSAGE_BYTES), "certified")
        return cls(
            certificate=fields.text("certificate", at_most=MAX_CERTIFICATE_BYTES),
            authorities=fields.text("authorities", at_most=MAX_AUTHORITIES_BYTES),
        )

    def to_bytes(self) -> bytes:
        """The message."""
        return canonical(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """What the hub wants of a device.

    Attributes:
        assignment: a signed assignment (see `trust.assignment`), or None while nothing is assigned.
        interval: seconds until the next poll, jitter included.
        authorities: place of the newest word about the fleet's authority (see `trust.vouched`); 0 where there is none.
        measure: what it shall time, signed likewise; None for nothing. Devices of old do not look at it.
        vote: what it shall vote on, signed likewise; None for nothing. As `measure`.
    """

    assignment: JsonObject | None
    interval: float
    authorities: int = 0
    measure: JsonObject | None = None
    vote: JsonObject | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the message; MessageError where it is none."""
        value = parse_object(data, where="poll", max_bytes=MAX_MESSAGE_BYTES)
        fields = Fields(value, "poll")
        return cls(
            assignment=_envelope(value, "assignment"),
            interval=fields.number("interval", least=0.01, most=86_400),
            authorities=fields.integer("authorities", most=MAX_SEQUENCE) if fields.has("authorities") else 0,
            measure=_envelope(value, "measure"),
            vote=_envelope(value, "vote"),
        )

    def to_bytes(self) -> bytes:
        """The message."""
        told: JsonObject = {"assignment": self.assignment, "interval": self.interval}
        more: JsonObject = {"authorities": self.authorities} if self.authorities else {}
        more |= {} if self.measure is None else {"measure": self.measure}
        return canonical(told | more | ({} if self.vote is None else {"vote": self.vote}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a bundle served over a stretch of time.

    Attributes:
        answers: inputs answered.
        escalated: of these, asked of a larger model (audits included).
        audits: escalated at random, and answered by the teacher.
        agreed: audits on which student and teacher named the same class.
        audits_lost: tossed, but the teacher did not answer.
        errors: answers that failed.
        latency_p50: seconds, of answers given alone.
        latency_p95: seconds, of answers given alone.
        bytes_up: sent for escalation.
        drift: what a detector says: `none`, `suspected` or `confirmed`.
        confidence: mean confidence of the student.
        leverage: mean leverage of the features; NaN-free, 0 where not measured.
    """

    answers: int = 0
    escalated: int = 0
    audits: int = 0
    agreed: int = 0
    audits_lost: int = 0
    errors: int = 0
    latency_p50: float = 0.0
    latency_p95: float = 0.0
    bytes_up: int = 0
    drift: str = "none"
    confidence: float = 0.0
    leverage: float = 0.0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads the figures; MessageError where one is out of range."""
        counts = ("answers", "escalated", "audits", "agreed", "audits_lost", "errors", "bytes_up")
        values = {name: fields.integer(name) for name in counts}
        if not values["agreed"] <= values["audits"] <= values["escalated"] <= values["answers"]:
            raise MessageError(
                "figures that contradict each other",
                where=fields.where,
                expected="agreed <= audits <= escalated <= answers",
                got=values,
            )
        return cls(
            **values,
            latency_p50=fields.number("latency_p50", least=0, most=1e6),
            latency_p95=fields.number("latency_p95", least=0, most=1e6),
            drift=fields.text("drift", pattern="none|suspected|confirmed"),
            confidence=fields.number("confidence", least=0, most=1),
            leverage=fields.number("leverage", least=0, most=1e9),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a device says happened.

    Attributes:
        id: made on the device; the same id counts once.
        at: seconds since 1970, by the device's clock.
        bundle: digest of the bundle it is about, as text.
        release: `NAME/VERSION` of that bundle.
        state: a step of an update, or None in a health report.
        reason: why it fell back; otherwise empty.
        health: figures since the last health report, or None in a state report.
    """

    id: str
    at: float
    bundle: str
    release: str
    state: DeviceState | None = None
    reason: str = ""
    health: Health | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads one report; MessageError where it is none."""
        has_state, has_health = fields.has("state"), fields.has("health")
        if has_state == has_health:
            raise MessageError(
                "a report tells one thing",
                where=fields.where,
                expected="either state or health",
                got="both, or neither",
            )
        state = fields.text("state") if has_state else None
        if state is not None and state not in get_args(DeviceState):
            raise MessageError(
                "unknown state", where=fields.where, expected=", ".join(get_args(DeviceState)), got=state
            )
        return cls(
            id=fields.text("id", pattern=_ID),
            at=fields.number("at", least=0, most=1e11),
            bundle=str(fields.digest("bundle")),
            release=fields.text("release", at_most=100, plain=True),
            state=state,  # type: ignore[arg-type]  # checked against the literal two lines up
            reason=plain(fields.text("reason", at_most=MAX_REASON)) if fields.has("reason") else "",
            health=Health.from_fields(fields.inner("health")) if has_health else None,
        )

    def as_json(self) -> JsonObject:
        """One report as JSON; a reason too long for the wire is cut, because a refused one would be sent for ever."""
        return asdict(self) | {"reason": plain(self.reason[:MAX_REASON])}


def _envelope(poll: JsonObject, name: str) -> JsonObject | None:
    found = poll.get(name)
    if found is not None and not isinstance(found, dict):
        raise MessageError(
            "a field is not what it should be",
            where=f"poll: {name}",
            expected="{...} or null",
            got=type(found).__name__,
        )
    return found


def _pem(fields: Fields, name: str, at_most: int) -> str:
    """Text that an older writer leaves out."""
    return fields.text(name, at_most=at_most) if fields.has(name) else ""


def reports_from_bytes(data: bytes) -> list[Report]:
    """Reads a batch; MessageError where one of it is malformed, or there are too many."""
    value: Json = parse(data, where="reports", max_bytes=MAX_MESSAGE_BYTES)
    fields = Fields({"reports": value}, "reports")
    return [Report.from_fields(one) for one in fields.objects("reports", at_most=MAX_REPORTS)]


def reports_to_bytes(reports: list[Report]) -> bytes:
    """A batch of reports."""
    return canonical([report.as_json() for report in reports])

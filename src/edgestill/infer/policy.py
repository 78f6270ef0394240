"""`policy.json`: how a student answers, when it asks its teacher, what both together say, and what may leave the device.

Fields that are left out have their defaults, also in `on_drift` and `statistics`; fields that nobody knows are kept, so that a newer writer
loses nothing. So what they ask for is soft: an agent that does not know it does without. Only what must not be done without has a schema
of its own: noise, in which unknown fields are refused, too.

Standard library only. What follows from it for one input is decided in `infer.decision`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal, Self, cast, get_args

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.core.sharing import PLAIN, Sharing
from edgestill.infer.reaction import Reaction

SCHEMA: Final = 1
SCHEMA_NOISE: Final = 2
"""Of a policy that asks for noise: an agent that knows no noise must refuse it, or it would send the sums without."""
MAX_BYTES: Final = 1_000_000
MAX_LABELS: Final = 65_536
ALWAYS: Final = 2.0
"""A threshold above every confidence: all inputs are escalated."""

MAX_BANDS: Final = 32
_TEMPERATURES: Final = (1e-3, 1e3)

Measure = Literal["max_probability", "margin", "entropy", "leverage"]
Leaves = Literal["nothing", "features", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The teacher's weight where the student is less sure than that.

    Attributes:
        below: the student's confidence must lie below it; in [0, 2].
        alpha: the weight, in [0, 1].
    """

    below: float
    alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a student answers, when it asks, and what may leave the device.

    Attributes:
        labels: names of the classes, in the order of the logits.
        temperature: divides the student's logits before the softmax, in [0.001, 1000].
        teacher_temperature: divides the teacher's.
        alpha: the teacher's weight in a fused answer, in [0, 1], from the last of the bands on.
        bands: the weights below it, by the student's confidence, from the least sure on; usually none.
        threshold: inputs with a confidence below it are escalated; in [0, 2], above 1 (`ALWAYS`) means all.
        measure: of confidence (see `infer.confidence`).
        escalation_share: of inputs asked of the teacher, audits included, in [0, 1].
        bytes_per_day: of questions sent, at most; None leaves it open.
        audit_share: of inputs asked whatever the confidence, in [0, escalation_share].
        leaves: what may leave the device; see `asks`.
        lossy: whether inputs may lose something on their way to the teacher, to be fewer bytes (JPEG).
        adapter: digest of the model that answers from features (`infer.adapter`), for which temperatures, alpha and threshold
            were fitted; None where there is none. Of no use where inputs themselves may leave.
        on_drift: what a device does once it is sure that its world has changed (`infer.reaction`).
        statistics: how sums are sent.
        evidence: what the values were fitted on: n, epsilon, delta, promised, and whatever the lab adds.
        unknown: fields a newer writer added.
    """

    labels: tuple[str, ...]
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    alpha: float = 0.5
    bands: tuple[Band, ...] = ()
    threshold: float = 0.5
    measure: Measure = "max_probability"
    escalation_share: float = 0.2
    bytes_per_day: int | None = None
    audit_share: float = 0.01
    leaves: Leaves = "raw"
    lossy: bool = False
    adapter: Digest | None = None
    on_drift: Reaction = field(default_factory=Reaction)
    statistics: Sharing = PLAIN
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
        _check_bands(self.bands)
        if self.measure not in get_args(Measure):
            raise _wrong("measure", ", ".join(get_args(Measure)), self.measure)
        if self.leaves not in get_args(Leaves):
            raise _wrong("leaves", ", ".join(get_args(Leaves)), self.leaves)
        if self.adapter is not None and self.leaves == "raw":
            raise _wrong("adapter", "none, where inputs themselves may leave", self.adapter)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `policy.json`; fields that are left out have their defaults.

        Raises:
            MessageError: not the format, or another schema.
            SettingError: a value out of its range.
        """
        fields = Fields(parse_object(data, where="policy.json", max_bytes=MAX_BYTES), "policy.json")
        schema = fields.integer("schema")
        if schema not in {SCHEMA, SCHEMA_NOISE}:
            raise MessageError(
                "a policy of another schema",
                where="policy.json",
                expected=f"schema {SCHEMA} or {SCHEMA_NOISE}",
                got=schema,
                fix="update edgestill, or build the bundle again",
            )
        numbers = {name: fields.number(name) for name in _NUMBERS if fields.has(name)}
        on_drift, statistics = _parts(fields)
        return cls(
            labels=_labels(fields),
            **numbers,
            bands=_bands(fields),
            measure=cast("Measure", fields.text("measure")) if fields.has("measure") else "max_probability",
            bytes_per_day=fields.integer("bytes_per_day") if fields.has("bytes_per_day") else None,
            leaves=cast("Leaves", fields.text("leaves")) if fields.has("leaves") else "raw",
            lossy=fields.boolean("lossy") if fields.has("lossy") else False,
            adapter=fields.digest("adapter") if fields.has("adapter") else None,
            on_drift=on_drift,
            statistics=statistics,
            evidence=fields.inner("evidence").unknown(()) if fields.has("evidence") else {},
            unknown=fields.unknown(_KNOWN),
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes of `policy.json`."""
        own: JsonObject = {name: getattr(self, name) for name in _KNOWN if name not in _RARE}
        rare: JsonObject = {"labels": list(self.labels)}
        if self.lossy:
            rare["lossy"] = True
        if self.adapter is not None:
            rare["adapter"] = str(self.adapter)
        if self.on_drift != Reaction():
            rare["on_drift"] = self.on_drift.as_json()
        if self.statistics != PLAIN:
            rare["statistics"] = self.statistics.as_json()
        if self.bands:
            rare["bands"] = [{"below": band.below, "alpha": band.alpha} for band in self.bands]
        schema = SCHEMA if self.statistics.noise is None else SCHEMA_NOISE
        return canonical(self.unknown | own | rare | {"schema": schema})

    @property
    def label_digest(self) -> Digest:
        """Names the labels and their order; fixed within a lineage."""
        return Digest.of(canonical(list(self.labels)))

    @property
    def promised(self) -> bool:
        """Whether a risk promise was made for the threshold when it was chosen."""
        return self.evidence.get("promised") is True

    @property
    def asks(self) -> Leaves:
        """What of an input a question holds: the input, or its features where an adapter knows them; `nothing` asks nobody."""
        if self.leaves == "features" and self.adapter is None:
            return "nothing"
        return self.leaves

    @property
    def audits(self) -> float:
        """The share of inputs that is audited: none where the teacher itself cannot be asked."""
        return self.audit_share if self.leaves == "raw" else 0.0

    def alpha_at(self, confidence: float) -> float:
        """The teacher's weight where the student is so sure."""
        return next((band.alpha for band in self.bands if confidence < band.below), self.alpha)

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
_RARE: Final = ("schema", "labels", "bands", "lossy", "adapter", "on_drift", "statistics")
"""Written by hand, all but the first two only where they say something."""
_KNOWN: Final = (*_RARE, *_NUMBERS, "measure", "bytes_per_day", "leaves", "evidence")


def _parts(fields: Fields) -> tuple[Reaction, Sharing]:
    """What has a class of its own, which cannot know that a policy holds it."""
    try:
        return (
            Reaction.from_fields(fields.inner("on_drift")) if fields.has("on_drift") else Reaction(),
            Sharing.from_fields(fields.inner("statistics")) if fields.has("statistics") else PLAIN,
        )
    except SettingError as error:
        error.where = f"policy: {error.where}"
        raise


def _labels(fields: Fields) -> tuple[str, ...]:
    names = fields.items("labels", at_most=MAX_LABELS)
    numbered = Fields({str(index): name for index, name in enumerate(names)}, "policy.json: labels")
    return tuple(numbered.text(str(index), at_most=200) for index in range(len(names)))


def _bands(fields: Fields) -> tuple[Band, ...]:
    if not fields.has("bands"):
        return ()
    return tuple(
        Band(below=one.number("below"), alpha=one.number("alpha"))
        for one in fields.objects("bands", at_most=MAX_BANDS)
    )


def _check_bands(bands: tuple[Band, ...]) -> None:
    if len(bands) > MAX_BANDS:
        raise _wrong("bands", f"at most {MAX_BANDS}", f"{len(bands)}")
    for band in bands:
        _within("bands: below", band.below, 0, ALWAYS)
        _within("bands: alpha", band.alpha, 0, 1)
    if any(first.below >= second.below for first, second in pairwise(bands)):
        raise _wrong("bands", "from the least sure on, each border once", [band.below for band in bands])


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

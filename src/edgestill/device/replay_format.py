"""The file of a replay buffer: a head, two tallies in turn, and slots of one size.

    0       head      4096 bytes: magic, length, JSON, zeros, proof of the key, digest (`device.replay_head`)
    4096    tally 0   number of its writing, and how many samples of each class came, of both parts
            tally 1   the same; the one that was written later counts
            slot 0    a record: time, weight, class, source, target as float16, input
            ...       each of the same length; zeros where none was ever written

- All samples of a buffer have one dtype and one shape, so slots of one size waste nothing, and replacing or erasing a
  sample never moves another. The length of the file is fixed when it is made, and its room on the disk is taken
  then: a disk that others fill up later does not stop the buffer (on file systems that write in place).
- All numbers are little-endian. A record and a tally are written and read by a `device.sealing.Seal`, bound to where they stand.
- The head is never changed. It is compared with what the reader expects before anything is believed of it; every length
  follows from the few numbers in it, and these are bounded.
"""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, get_args

import numpy as np

from edgestill.core.errors import AccessError, DataError, MessageError, SettingError
from edgestill.core.jsonio import Fields, canonical
from edgestill.device.holding import Holding
from edgestill.device.replay_head import HEAD_BYTES, PROOF_BYTES, WHERE, Parts, said_of
from edgestill.device.sealing import ID_BYTES, Checked, Sealed, seal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.device.sealing import Seal

Source = Literal["label", "teacher", "audit"]
"""Where a target came from: a label that somebody told, the teacher who was asked, or the teacher by an audit."""
SOURCES: Final[tuple[Source, ...]] = get_args(Source)

SCHEMA: Final = 1
SEED_BYTES: Final = 16
MAX_SIZE: Final = 1 << 40
MAX_SAMPLE_BYTES: Final = 64_000_000
MAX_CLASSES: Final = 65_536
MAX_AXES: Final = 8
MAX_SLOTS: Final = 1_000_000
MAX_TIME: Final = 1e11
MAX_WEIGHT: Final = 1e6
DTYPES: Final = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_SPARE_SHARE: Final = 32
_MAX_SPARE: Final = 64
_NUMBER: Final = struct.Struct("<Q")
_ABOUT: Final = struct.Struct("<dfIB3x")
_ANEW: Final = "begin it anew with Replay.create; what it holds is lost then"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a buffer is for, and how large it is.

    Attributes:
        dtype: of inputs, one of `DTYPES`.
        shape: of one input, at most 8 axes; `()` for a single number.
        classes: C, from 2 to 65536.
        size: bytes of the file at most.
        holding: which samples are held back.
    """

    dtype: str
    shape: tuple[int, ...]
    classes: int
    size: int
    holding: Holding = field(default_factory=Holding)

    def __post_init__(self) -> None:
        elements = 1
        for axis in self.shape:
            elements *= max(axis, 0)  # whole numbers of Python: none overflows
        is_known = self.dtype in DTYPES and len(self.shape) <= MAX_AXES and 2 <= self.classes <= MAX_CLASSES
        if not is_known or not 0 < elements <= MAX_SAMPLE_BYTES or not 0 < self.size <= MAX_SIZE:
            raise SettingError(
                "a buffer that cannot be",
                where="replay plan",
                expected=f"a dtype of {', '.join(DTYPES)}; up to {MAX_AXES} axes of 1 or more, {MAX_SAMPLE_BYTES}"
                f" elements; 2 to {MAX_CLASSES} classes; at most {MAX_SIZE} bytes",
                got=self,
                fix="correct it",
            )

    @property
    def element(self) -> np.dtype[np.generic]:
        """Of an input, as it lies in the file."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def input_bytes(self) -> int:
        """Of one input."""
        return math.prod(self.shape) * self.element.itemsize

    @property
    def body_bytes(self) -> int:
        """Of one record, without its seal."""
        return _ABOUT.size + 2 * self.classes + self.input_bytes

    @property
    def tally_bytes(self) -> int:
        """Of one tally, without its seal."""
        return _NUMBER.size * (1 + 2 * self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything is.

    Attributes:
        plan: what the buffer is for.
        overhead: bytes of a seal.
    """

    plan: Plan
    overhead: int

    def __post_init__(self) -> None:
        if self.train_room < self.plan.classes or self.held_room < 1:
            raise SettingError(
                "a buffer too small for a sample of each class",
                where="replay plan: size",
                expected=f"at least {self.offset(_fewest_slots(self.plan))} bytes",
                got=self.plan.size,
                fix="allow it more room",
            )

    @property
    def stride(self) -> int:
        """Bytes of a slot."""
        return self.plan.body_bytes + self.overhead

    @property
    def tally(self) -> int:
        """Bytes of a tally."""
        return self.plan.tally_bytes + self.overhead

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return max(0, min((self.plan.size - self.offset(0)) // self.stride, MAX_SLOTS))

    @property
    def spare(self) -> int:
        """Slots that are free when everything is full: what is new is written before what it replaces goes."""
        return _spare_of(self.slots)

    @property
    def held_room(self) -> int:
        """Samples that may be held back: as large a share as that of the time."""
        return (self.slots - self.spare) // self.plan.holding.every

    @property
    def train_room(self) -> int:
        """Samples that may be trained on."""
        return self.slots - self.spare - self.held_room

    @property
    def bytes(self) -> int:
        """Length of the file."""
        return self.offset(self.slots)

    def offset(self, slot: int) -> int:
        """Where a slot begins."""
        return HEAD_BYTES + 2 * self.tally + slot * self.stride

    def tally_offset(self, page: int) -> int:
        """Where a tally begins."""
        return HEAD_BYTES + page * self.tally


def _spare_of(slots: int) -> int:
    return max(1, min(slots // _SPARE_SHARE, _MAX_SPARE))


def _fewest_slots(plan: Plan) -> int:
    """With a sample of each class to train on, and one held back."""
    every, used = plan.holding.every, max(plan.holding.every, plan.classes)
    while used - used // every < plan.classes:
        used += 1
    slots = used + 1
    while slots - _spare_of(slots) < used:
        slots += 1
    return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a file says of itself.

    Attributes:
        plan: what it was made for.
        identity: random, of this file only.
        seed: says what is held back.
        sealed: whether a key is needed.
    """

    plan: Plan
    identity: bytes
    seed: bytes
    sealed: bool

    def to_bytes(self, key: bytes | None) -> bytes:
        """The head, `HEAD_BYTES` long."""
        text = canonical(self._as_json())
        said, proof = said_of(text), bytes(PROOF_BYTES)
        if key is not None:
            proof = Sealed(self.identity, key).close(_place("head", said), b"")
        return Parts(said, proof).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, plan: Plan, key: bytes | None) -> Self:
        """Reads a head.

        Args:
            data: the first `HEAD_BYTES` of the file.
            plan: what the reader expects.
            key: that opens it, None where none should be needed.

        Raises:
            DataError: it is no head, damaged, of another version, or made for something else.
            AccessError: the key is another, or one is missing.
        """
        parts = Parts.of(data)
        if parts is None:
            raise _refused("the head of a buffer, whole", "something else, or a damaged one")
        try:
            head = cls._read(parts.fields())
        except (MessageError, SettingError) as error:
            raise _refused(f"{error.where}: {error.expected}", error.got or error.what) from error
        if head.sealed != (key is not None):
            got = "a sealed buffer, and no key" if head.sealed else "a key, and a buffer that is not sealed"
            raise _locked("a sealed buffer and its key, or a plain one and no key", got)
        if (
            key is not None
            and Sealed(head.identity, key).open(_place("head", parts.said), parts.proof) is None
        ):
            raise _locked("the key that it was made with", "another key")
        if head.plan != plan:
            raise _refused(f"a buffer for {plan}", head.plan)
        return head

    def seal(self, key: bytes | None) -> Seal:
        """How its records are read and written."""
        return seal_of(self.identity, key)

    def _as_json(self) -> JsonObject:
        plan = self.plan
        return {
            "schema": SCHEMA,
            "dtype": plan.dtype,
            "shape": list(plan.shape),
            "classes": plan.classes,
            "size": plan.size,
            "holding": asdict(plan.holding),
            "identity": self.identity.hex(),
            "seed": self.seed.hex(),
            "sealed": self.sealed,
        }

    @classmethod
    def _read(cls, fields: Fields) -> Self:
        fields.integer("schema", least=SCHEMA, most=SCHEMA)
        inner = fields.inner("holding")
        shape = Fields(
            {str(axis): size for axis, size in enumerate(fields.items("shape", at_most=MAX_AXES))},
            "head: shape",
        )
        plan = Plan(
            dtype=fields.text("dtype", at_most=20),
            shape=tuple(shape.integer(axis, least=1) for axis in shape.names()),
            classes=fields.integer("classes"),
            size=fields.integer("size"),
            holding=Holding(
                stretch=inner.number("stretch"), every=inner.integer("every"), gap=inner.number("gap")
            ),
        )
        return cls(
            plan=plan,
            identity=_hex(fields, "identity", ID_BYTES),
            seed=_hex(fields, "seed", SEED_BYTES),
            sealed=fields.boolean("sealed"),
        )


class About(NamedTuple):
    """What is known of a sample, besides its input and target.

    Attributes:
        at: seconds since 1970.
        weight: inputs that it stands for, positive.
        label: the class its target is largest at.
        source: where the target came from.
    """

    at: float
    weight: float
    label: int
    source: Source


class Sample(NamedTuple):
    """A record.

    Attributes:
        about: what is known of it.
        target: `[C]`, float32, adding up to 1.
        input: of the plan's dtype and shape.
    """

    about: About
    target: NDArray[np.float32]
    input: NDArray[np.generic]


def encode(plan: Plan, sample: Sample) -> bytes:
    """The body of a record."""
    about = sample.about
    return (
        _ABOUT.pack(about.at, about.weight, about.label, SOURCES.index(about.source))
        + sample.target.astype("<f2").tobytes()
        + sample.input.astype(plan.element).tobytes()
    )


def decode(plan: Plan, body: bytes) -> Sample | None:
    """The sample of a record; None where no sample can be like that.

    A plain file's digests can be made by whoever can write the file, so that what is whole need not make sense.
    """
    about = _about(plan, body)
    with np.errstate(invalid="ignore"):  # NaN of a stranger's
        target = np.frombuffer(body, "<f2", plan.classes, _ABOUT.size).astype(np.float32)
    if about is None or not ((target >= 0) & (target <= 1)).all() or target[about.label] < target.max():
        return None  # rounding keeps the largest the largest
    total = target.sum()
    if total == 0:
        return None
    values = _values(plan, body)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return None
    return Sample(about, target / total, values.reshape(plan.shape))


def _about(plan: Plan, body: bytes) -> About | None:
    at, weight, label, source = _ABOUT.unpack_from(body)
    is_sane = (
        0 <= at <= MAX_TIME and 0 < weight <= MAX_WEIGHT and label < plan.classes and source < len(SOURCES)
    )
    return About(at, weight, label, SOURCES[source]) if is_sane else None


def _values(plan: Plan, body: bytes) -> NDArray[np.generic]:
    offset = _ABOUT.size + 2 * plan.classes
    if plan.dtype == "bool":
        stored = np.frombuffer(body, np.uint8, offset=offset)
        return np.not_equal(stored, 0)  # no other byte may become a truth value
    values: NDArray[np.generic] = np.frombuffer(body, plan.element, offset=offset).astype(
        np.dtype(plan.dtype)
    )
    return values


@dataclass(frozen=True, slots=True)
class Tally:
    """How many samples came.

    Attributes:
        number: of this writing; grows by one.
        train: of each class, to be trained on.
        held: of each class, held back.
    """

    number: int
    train: tuple[int, ...]
    held: tuple[int, ...]

    @classmethod
    def none(cls, classes: int) -> Self:
        """Nothing came."""
        return cls(0, (0,) * classes, (0,) * classes)

    def to_bytes(self) -> bytes:
        """The body of a tally."""
        return struct.pack(f"<{1 + len(self.train) + len(self.held)}Q", self.number, *self.train, *self.held)

    @classmethod
    def from_bytes(cls, body: bytes, classes: int) -> Self | None:
        """Reads a tally; None where nothing can have been counted so."""
        number, *counts = struct.unpack(f"<{1 + 2 * classes}Q", body)
        if max(number, *counts) >= 1 << 62:
            return None
        return cls(number, tuple(counts[:classes]), tuple(counts[classes:]))


def newest(tallies: Sequence[Tally | None], classes: int) -> Tally:
    """The one that was written last; one of nothing where none can be read."""
    known = [one for one in tallies if one is not None]
    return max(known, key=lambda one: one.number, default=Tally.none(classes))


def slot_place(slot: int) -> bytes:
    """What a record is bound to."""
    return _place("slot", _NUMBER.pack(slot))


def tally_place(page: int) -> bytes:
    """What a tally is bound to."""
    return _place("tally", _NUMBER.pack(page))


def overhead_of(key: bytes | None) -> int:
    """Bytes by which a sealed record is longer than its body."""
    return Checked.overhead if key is None else Sealed.overhead


def _place(kind: str, number: bytes) -> bytes:
    return kind.encode() + b"\0" + number


def _hex(fields: Fields, name: str, size: int) -> bytes:
    return bytes.fromhex(fields.text(name, at_most=2 * size, pattern=f"[0-9a-f]{{{2 * size}}}"))


def _refused(expected: object, got: object) -> DataError:
    return DataError(
        "a replay buffer that cannot be used", where=WHERE, expected=expected, got=got, fix=_ANEW
    )


def _locked(expected: object, got: object) -> AccessError:
    return AccessError(
        "a replay buffer that this key does not open",
        where=WHERE,
        expected=expected,
        got=got,
        fix=f"give the key it was made with; or {_ANEW}",
    )

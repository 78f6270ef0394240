"""`train.json`: what whoever runs a `train.onnx` must know of it, so that no device needs to read ONNX.

It names the tensors that learn, the states of the optimiser, and, for each tensor, where its numbers stand in the bundle's `model.onnx`
and what they are there: floats, or codes with scales. So what was learned can be written into a copy of the model, byte by
byte (`learn.codes`).

The bundle's digests vouch for it; it is bounded all the same, since whoever signs may err.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, cast, final

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, canonical, parse_object

if TYPE_CHECKING:
    from edgestill.core.jsonio import Json, JsonObject

VERSION: Final = 1
MAX_BYTES: Final = 1_000_000
MAX_TENSORS: Final = 2_048
MAX_NUMBERS: Final = 2**28
"""Of all tensors together."""
NEXT: Final = "next."
"""What the name of an output begins with, before that of the input that it becomes."""
COUNT: Final = "step"

Kind = Literal["float32", "int8", "uint8", "int32"]
WIDTHS: Final[dict[Kind, int]] = {"float32": 4, "int8": 1, "uint8": 1, "int32": 4}
"""Bytes of one number."""

_WHERE: Final = "train.json"
_MAX_RANK: Final = 8
_MAX_OFFSET: Final = 2**31
_MAX_SLOTS: Final = 4
_NAME: Final = r"[^\x00-\x1f]{1,200}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor's numbers stand in the model's file, and how they are written there.

    Attributes:
        kind: `float32`, or the type of codes.
        start: first byte.
        scale: first byte of the scales, float32; None of floats.
        channels: how many scales there are.
        axis: of the channels; None where there is one scale for all.
        zero: first byte of the zero points, of the codes' type; None where they are all 0.
        limit: the largest code that an int8 weight may have; smaller than 127 where products could saturate.
    """

    kind: Kind
    start: int
    scale: int | None = None
    channels: int = 1
    axis: int | None = None
    zero: int | None = None
    limit: int = 127

    def as_json(self) -> JsonObject:
        """Without what is as usual."""
        told: JsonObject = {"kind": self.kind, "start": self.start}
        usual = {"scale": None, "channels": 1, "axis": None, "zero": None, "limit": 127}
        return told | {key: getattr(self, key) for key, value in usual.items() if getattr(self, key) != value}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""

        def place(name: str) -> int | None:
            return fields.integer(name, most=_MAX_OFFSET) if fields.has(name) else None

        def number(name: str, usual: int, most: int) -> int:
            return fields.integer(name, least=1, most=most) if fields.has(name) else usual

        kind = cast("Kind", fields.text("kind", pattern="|".join(WIDTHS)))
        if (kind == "float32") == fields.has("scale"):
            raise MessageError(
                "floats have no scale, codes have one",
                where=fields.where,
                expected="a scale for codes alone",
                got=f"{kind} {'with' if fields.has('scale') else 'without'} a scale",
            )
        return cls(
            kind=kind,
            start=fields.integer("start", most=_MAX_OFFSET),
            scale=place("scale"),
            channels=number("channels", 1, MAX_NUMBERS),
            axis=fields.integer("axis", most=_MAX_RANK) if fields.has("axis") else None,
            zero=place("zero"),
            limit=number("limit", 127, 127),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor that a step changes.

    Attributes:
        name: of the input; its output is `next.NAME`.
        shape: of both.
        role: what it is in its layer, such as `weight`; `running` for a figure that follows the batches.
        place: where it stands in `model.onnx`; None where it has no place of its own there.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    place: Place | None = None

    @property
    def size(self) -> int:
        """Numbers."""
        return math.prod(self.shape)

    def as_json(self) -> JsonObject:
        """As JSON."""
        told: JsonObject = {"name": self.name, "shape": list(self.shape), "role": self.role}
        return told if self.place is None else told | {"place": self.place.as_json()}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        shape = Fields(
            {str(at): dim for at, dim in enumerate(fields.items("shape", at_most=_MAX_RANK))}, fields.where
        )
        tensor = cls(
            name=fields.text("name", pattern=_NAME),
            shape=tuple(shape.integer(at, least=1, most=MAX_NUMBERS) for at in shape.names()),
            role=fields.text("role", pattern=r"[a-z]{1,20}"),
            place=Place.from_fields(fields.inner("place")) if fields.has("place") else None,
        )
        _check_channels(tensor, fields.where)
        return tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepFile:
    """What a `train.onnx` is.

    Attributes:
        optimiser: its name, for people.
        slots: names of the optimiser's states; each parameter has one tensor of each, as `SLOT.PARAMETER`.
        counts: whether there is an input `step`, the number of steps so far.
        classes: C.
        rate: learning rate that the lab found good.
        batch: samples in a batch that the lab found good.
        tensors: parameters, then running figures, in the order of the graph.
    """

    optimiser: str
    slots: tuple[str, ...]
    counts: bool
    classes: int
    rate: float
    batch: int
    tensors: tuple[Tensor, ...]

    @property
    def states(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of all that the optimiser keeps; they begin as zeros."""
        kept = [
            (f"{slot}.{one.name}", one.shape)
            for one in self.tensors
            if one.role != "running"
            for slot in self.slots
        ]
        return (*kept, *([(COUNT, ())] if self.counts else []))

    def to_bytes(self) -> bytes:
        """The file, in canonical JSON."""
        tensors: list[Json] = [one.as_json() for one in self.tensors]
        return canonical(
            {
                "version": VERSION,
                "optimiser": self.optimiser,
                "slots": list(self.slots),
                "counts": self.counts,
                "classes": self.classes,
                "rate": self.rate,
                "batch": self.batch,
                "tensors": tensors,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the file.

        Raises:
            MessageError: not such a file, one of another version, or over a bound.
        """
        fields = Fields(parse_object(data, where=_WHERE, max_bytes=MAX_BYTES), _WHERE)
        fields.integer("version", least=VERSION, most=VERSION)
        slots = Fields(
            {str(at): slot for at, slot in enumerate(fields.items("slots", at_most=_MAX_SLOTS))}, _WHERE
        )
        made = cls(
            optimiser=fields.text("optimiser", pattern=r"[a-z0-9]{1,20}"),
            slots=tuple(slots.text(at, pattern=r"[a-z]{1,20}") for at in slots.names()),
            counts=fields.boolean("counts"),
            classes=fields.integer("classes", least=1, most=65_536),
            rate=fields.number("rate", least=0, most=1e3),
            batch=fields.integer("batch", least=1, most=65_536),
            tensors=tuple(map(Tensor.from_fields, fields.objects("tensors", at_most=MAX_TENSORS))),
        )
        _check_whole(made)
        return made


def _check_channels(tensor: Tensor, where: str) -> None:
    """A scale for each channel, or one for all."""
    place = tensor.place
    if place is None:
        return
    axis = place.axis
    wanted = 1 if axis is None else tensor.shape[axis] if axis < len(tensor.shape) else None
    if place.channels != wanted:
        raise MessageError(
            "scales and channels disagree",
            where=where,
            expected=f"{wanted} scales" if wanted else f"an axis of {list(tensor.shape)}",
            got=f"{place.channels} scales on axis {axis}",
        )


def _check_whole(made: StepFile) -> None:
    names = [one.name for one in made.tensors]
    if len(set(names)) != len(names) or not names:
        raise MessageError(
            "tensors that cannot be told apart",
            where=_WHERE,
            expected="at least one, each with a name of its own",
            got=f"{len(names)} tensors of {len(set(names))} names",
        )
    total = sum(one.size for one in made.tensors)
    if total > MAX_NUMBERS:
        raise MessageError(
            "too much to train", where=_WHERE, expected=f"at most {MAX_NUMBERS} numbers", got=total
        )

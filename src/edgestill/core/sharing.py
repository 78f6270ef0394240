"""How a device sends its sums (`learn.statistics`): what a bundle's policy says about it, as pure data.

A policy that says nothing means what devices did before they could be told: the features' own sums, as float32, from 16 samples on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Self, cast, get_args

from edgestill.core.errors import SettingError

if TYPE_CHECKING:
    from edgestill.core.jsonio import Fields, JsonObject

Encoding = Literal["float16", "float32", "float64", "int8"]
Unit = Literal["message", "sample"]

ALL: Final = 2_048
"""Coordinates that are kept where as many as there are features shall be."""
_MOST: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Differential privacy for a device's sums; see `learn.privacy` for what each value means.

    Attributes:
        unit: what is hidden: a `message`, which is all of a window, or a `sample`.
        epsilon: of all messages that a device sends together; it sends no more when that is spent.
        delta: likewise, between 0 and 1.
        messages: among which epsilon is shared out evenly.
        norm: to which a sample's coordinates are clipped.
        weight: of one sample, at most.
        most: samples' worth that a message may hold; counts where the unit is a message.
    """

    unit: Unit = "sample"
    epsilon: float = 8.0
    delta: float = 1e-6
    messages: int = 30
    norm: float = 4.0
    weight: float = 1.0
    most: float = 1_000.0

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise _wrong("unit", " or ".join(get_args(Unit)), self.unit, part="noise")
        for name in ("epsilon", "norm", "weight", "most"):
            if not 0 < getattr(self, name) <= _MOST:
                raise _wrong(name, f"above 0, at most {_MOST:g}", getattr(self, name), part="noise")
        if not 0 < self.delta < 1:
            raise _wrong("delta", "between 0 and 1", self.delta, part="noise")
        if not 1 <= self.messages <= _MOST:
            raise _wrong("messages", "at least 1", self.messages, part="noise")

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError or SettingError where it is something else: of noise nothing is left out or passed over."""
        fields.only(("unit", "messages", "epsilon", "delta", "norm", "weight", "most"))
        numbers = {name: fields.number(name) for name in ("epsilon", "delta", "norm", "weight", "most")}
        return cls(
            unit=cast("Unit", fields.text("unit", at_most=20)),
            messages=fields.integer("messages"),
            **numbers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What a message of sums is made of.

    Attributes:
        encoding: to which the elements are rounded.
        kept: coordinates of the reference that sums are of (`learn.coordinates`), all where it is more than there are; 0 sends
            the features' own sums.
        least: samples before a window's sums are sent.
        noise: what is added; None for nothing.
        unknown: fields a newer writer added.
    """

    encoding: Encoding = "int8"
    kept: int = ALL
    least: int = 16
    noise: Noise | None = None
    unknown: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise _wrong("encoding", ", ".join(get_args(Encoding)), self.encoding)
        if not 0 <= self.kept <= ALL:
            raise _wrong("kept", f"0 to {ALL}", self.kept)
        if not 1 <= self.least <= _MOST:
            raise _wrong("least", "at least 1", self.least)
        if self.noise is not None and (self.encoding == "int8" or self.kept == 0):
            raise _wrong(
                "noise",
                "floats of sums in coordinates",
                f"{self.encoding}, {self.kept} kept",
                fix='say encoding = "float32", and keep some coordinates, such as kept = 16',
            )

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads `statistics` of `policy.json`; what is left out has its default, what is unknown is kept.

        Raises:
            MessageError: not the format. SettingError: a value out of its range.
        """
        counts = {name: fields.integer(name) for name in ("kept", "least") if fields.has(name)}
        encoding = fields.text("encoding", at_most=20) if fields.has("encoding") else cls().encoding
        return cls(
            encoding=cast("Encoding", encoding),
            **counts,
            noise=_noise(fields) if fields.has("noise") else None,
            unknown=fields.unknown(("encoding", "kept", "least", "noise")),
        )

    def as_json(self) -> JsonObject:
        """The part of `policy.json`."""
        own: JsonObject = self.unknown | {"encoding": self.encoding, "kept": self.kept, "least": self.least}
        return own if self.noise is None else own | {"noise": asdict(self.noise)}


def _noise(fields: Fields) -> Noise:
    """Its noise, which cannot know what it is a part of."""
    try:
        return Noise.from_fields(fields.inner("noise"))
    except SettingError as error:
        error.where = f"statistics: {error.where}"
        raise


PLAIN: Final = Sharing(encoding="float32", kept=0)
"""What a policy that says nothing means."""


def _wrong(
    name: str,
    expected: str,
    got: object,
    *,
    part: str = "statistics",
    fix: str = "leave it out where you are unsure",
) -> SettingError:
    return SettingError(
        "a policy value is out of range",
        where=f"{part}: {name}",
        expected=expected,
        got=got,
        fix=fix,
    )

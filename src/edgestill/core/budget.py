"""What a device can afford."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeVar

from edgestill.core.errors import SettingError
from edgestill.core.units import parse_duration, parse_share, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Upper bounds a student must keep; `None` leaves that side open.

    Each is given as a number in the unit below, or as people write it: `Budget(size="120 kB", latency="1.5 ms")`.

    Attributes:
        size: bytes of the bundle without `train.onnx`.
        latency: seconds per answer, batch 1.
        memory: bytes of memory while answering.
        update: bytes of a patch from one version to the next.
        escalation: share of inputs that may be passed to a larger model, in [0, 1].

    Raises:
        UnitError: a quantity that cannot be read.
    """

    size: int | None
    latency: float | None
    memory: int | None
    update: int | None
    escalation: float | None

    def __init__(
        self,
        *,
        size: int | str | None = None,
        latency: float | str | None = None,
        memory: int | str | None = None,
        update: int | str | None = None,
        escalation: float | str | None = None,
    ) -> None:
        # a frozen value is written past its own guard, once, here
        object.__setattr__(self, "size", _read(parse_size, size))
        object.__setattr__(self, "latency", _read(parse_duration, latency))
        object.__setattr__(self, "memory", _read(parse_size, memory))
        object.__setattr__(self, "update", _read(parse_size, update))
        object.__setattr__(self, "escalation", _read(parse_share, escalation))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `"size=120kB,latency=1.5ms,escalation=20%"`.

        Raises:
            SettingError: an unknown or repeated name, or a part without `=`.
            UnitError: a quantity that cannot be read.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, str] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known or name in values:
                raise SettingError(
                    "cannot read a budget",
                    where=repr(part),
                    expected=f"NAME=VALUE, each once, of {', '.join(known)}",
                )
            values[name] = value
        return cls(**values)


def _read(parse: Callable[[str], T], value: T | str | None) -> T | None:
    return parse(value) if isinstance(value, str) else value

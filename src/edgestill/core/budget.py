"""What a device can afford."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeVar

from edgestill.core.errors import SettingError
from edgestill.core.units import parse_duration, parse_share, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper bounds a student must keep; `None` leaves that side open.

    Attributes:
        size: bytes of the bundle without `train.onnx`.
        latency: seconds per answer, batch 1.
        memory: bytes of memory while answering.
        update: bytes of a patch from one version to the next.
        escalation: share of inputs that may be passed to a larger model, in [0, 1].
    """

    size: int | None = None
    latency: float | None = None
    memory: int | None = None
    update: int | None = None
    escalation: float | None = None

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
        return cls(
            size=_maybe(parse_size, values.get("size")),
            latency=_maybe(parse_duration, values.get("latency")),
            memory=_maybe(parse_size, values.get("memory")),
            update=_maybe(parse_size, values.get("update")),
            escalation=_maybe(parse_share, values.get("escalation")),
        )


def _maybe(parse: Callable[[str], T], text: str | None) -> T | None:
    return None if text is None else parse(text)

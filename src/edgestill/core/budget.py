"""What a device can afford."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Self, TypeVar

from edgestill.core.errors import SettingError, UnitError
from edgestill.core.units import parse_duration, parse_share, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T", bound=float)


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Upper bounds a student must keep; `None` leaves that side open.

    Each is given as a number in the unit below, or as people write it: `Budget(size="120 kB", latency="1.5 ms")`.

    Attributes:
        size: bytes of the bundle without `train.onnx`.
        latency: seconds within which 95 of 100 answers come, one at a time, on one thread.
        memory: bytes that loading the model and answering add to a process.
        update: bytes of a patch from one version to the next.
        escalation: share of inputs that may be passed to a larger model, in [0, 1].

    Raises:
        UnitError: a quantity that cannot be read. SettingError: one below 0, or a share above 1.
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
        for name, value in (
            ("size", _bytes("size", size)),
            ("latency", _read("latency", parse_duration, latency, (int, float), "seconds, at least 0")),
            ("memory", _bytes("memory", memory)),
            ("update", _bytes("update", update)),
            ("escalation", _read("escalation", parse_share, escalation, (int, float), "0 to 1", most=1)),
        ):
            # a frozen value is written past its own guard, once, here
            object.__setattr__(self, name, value)

    def with_latency(self, latency: float) -> Self:
        """The same with another bound on the latency, in seconds."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**known | {"latency": latency})

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
                    got=repr(part),
                    fix="write for instance size=120kB,latency=1.5ms",
                )
            values[name] = value
        return cls(**values)


def _bytes(name: str, value: int | str | None) -> int | None:
    return _read(name, parse_size, value, (int,), "whole bytes, at least 0")


def _read(
    name: str,
    parse: Callable[[str], T],
    value: T | str | None,
    kinds: tuple[type, ...],
    expected: str,
    *,
    most: float = inf,
) -> T | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return parse(value)
        except UnitError as error:  # which cannot know what the quantity is of
            error.where = f"budget: {name}"
            raise
    if not _is_number(value, kinds) or not 0 <= value <= most:  # NaN is within no bounds
        raise SettingError(
            "a budget's value is out of range",
            where=f"budget: {name}",
            expected=expected,
            got=repr(value),
            fix="give an upper bound, or leave it out",
        )
    return value


def _is_number(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)

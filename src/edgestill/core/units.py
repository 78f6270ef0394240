"""Sizes, durations and shares as people write them, and back.

Sizes are bytes with decimal prefixes (1 kB = 1000 B) or binary ones (1 KiB = 1024 B); durations are seconds.
A number without a unit is refused: "120" could be anything. Reading is exact: "1.001 kB" is 1001 bytes. It reckons with whole numbers and
their quotients, not with `decimal`, whose library an idle agent would hold for the four durations that it was started with.
"""

from __future__ import annotations

import re
from typing import Final

from edgestill.core.errors import UnitError

_SIZES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_MICROSECONDS: Final = {
    "us": 1,
    "ms": 10**3,
    "s": 10**6,
    "min": 60 * 10**6,
    "h": 3600 * 10**6,
    "d": 86400 * 10**6,
}
_QUANTITY: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z%]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """The size in bytes: `parse_size("120 kB") == 120_000`.

    Raises:
        UnitError: no number, no unit, an unknown unit, or a part of a byte.
    """
    number, parts = _read(text, _SIZES, "a size such as '120 kB'")
    size, rest = divmod(number, parts)
    if rest:
        raise UnitError(
            "a size must be whole bytes",
            expected="whole bytes",
            got=repr(text),
            fix="round it to whole bytes",
        )
    return size


def parse_duration(text: str) -> float:
    """The duration in seconds: `parse_duration("1.5 ms") == 0.0015`.

    Raises:
        UnitError: no number, no unit or an unknown unit.
    """
    number, parts = _read(text, _MICROSECONDS, "a duration such as '1.5 ms'")
    return number / (parts * 10**6)  # the nearest there is: Python divides whole numbers as if by hand


def parse_share(text: str) -> float:
    """The share in [0, 1]; "20 %" and "0.2" are the same share.

    Raises:
        UnitError: not a number, or outside [0, 1].
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in {"", "%"}:
        raise UnitError(
            "cannot read a share",
            expected="a share such as '20 %' or '0.2'",
            got=repr(text),
            fix="write a number from 0 to 1, or a percentage",
        )
    share = float(match[1]) / (100 if match[2] else 1)
    if not 0 <= share <= 1:
        raise UnitError(
            "a share lies between 0 and 1",
            expected="0 to 1, or 0 % to 100 %",
            got=repr(text),
            fix="write a number from 0 to 1, or a percentage",
        )
    return share


def format_size(size: float) -> str:
    """A size for people: `format_size(24_100) == "24.1 kB"`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size) >= factor:
            return f"{_three_digits(size / factor)} {unit}"
    return f"{size:.0f} B"


def format_duration(seconds: float) -> str:
    """A duration for people: `format_duration(0.00153) == "1.53 ms"`."""
    for unit, factor in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} us"


def _three_digits(value: float) -> str:
    """Three digits that count, or all before the point; never an exponent."""
    return f"{value:.3g}" if abs(value) < 99.95 else f"{value:.0f}"  # 99.95 is the first that rounds to 100


def _read(text: str, units: dict[str, int], example: str) -> tuple[int, int]:
    """The quantity in the smallest of the units, as a whole number and what to divide it by, a power of ten."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(
            "cannot read a quantity", expected=example, got=repr(text), fix="write a number and its unit"
        )
    if match[2] not in units:
        problem = "a quantity has an unknown unit" if match[2] else "a quantity needs a unit"
        raise UnitError(
            problem,
            expected=f"{example}; units: {', '.join(units)}",
            got=repr(text),
            fix="write a number and one of these units",
        )
    whole, _, digits = match[1].partition(".")
    return int(whole + digits) * units[match[2]], 10 ** len(digits)

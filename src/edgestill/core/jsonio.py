"""JSON from outside, bounded before it is parsed, and read field by field.

- `parse` refuses what is too long, too deep, not UTF-8, or holds NaN, infinity, a repeated key or half a character
  (a lone surrogate). Its time and memory grow with the length of the text and no faster, whatever the text says.
- `Fields` reads one object: each getter checks type and range and names the field when it refuses.
- `canonical` writes the same value always as the same bytes: sorted keys, no spaces, no NaN.
- What strangers call themselves is asked for as `plain` text, and what they say at length is made plain by `plain()`:
  no NUL (no database of ours need take one), no line end, no escape sequence, nothing that turns the direction of text.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
JsonObject = dict[str, Json]

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 32

# C0 and C1 controls with DEL, line and paragraph separators, marks that turn the direction of what follows (UAX 9), and
# halves of characters.
_NOT_PLAIN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Strings are skipped whole, an unterminated one to the end of the text; possessive (`*+`), because going back would make
# a hostile text cost the square of its length.
_STRINGS_OR_BRACKETS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|([\[\]{}])', re.DOTALL)


def parse(data: bytes, *, where: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Json:
    """The value that `data` spells.

    Raises:
        MessageError: over a bound, or not strict JSON (RFC 8259, with unique keys).
    """
    if len(data) > max_bytes:
        raise MessageError(
            "JSON is too long", where=where, expected=f"at most {max_bytes} bytes", got=len(data)
        )
    if _depth(data) > max_depth:
        raise MessageError(
            "JSON is nested too deeply",
            where=where,
            expected=f"at most {max_depth} levels",
            got=f"{_depth(data)} levels",
        )
    try:
        text = data.decode("utf-8")
        value: Json = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written again
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        # Python adds advice to this one that is for its programmers
        got = "a number of too many digits" if "int_max_str_digits" in str(error) else error
        raise MessageError("not valid JSON", where=where, expected="strict JSON in UTF-8", got=got) from error
    return value


def parse_object(
    data: bytes, *, where: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> JsonObject:
    """As `parse`, for a value that must be an object.

    Raises:
        MessageError: as `parse`, or the value is no object.
    """
    value = parse(data, where=where, max_bytes=max_bytes, max_depth=max_depth)
    if not isinstance(value, dict):
        raise MessageError("not a JSON object", where=where, expected="{...}", got=type(value).__name__)
    return value


def canonical(value: Json | Mapping[str, Json]) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, UTF-8.

    Raises:
        MessageError: NaN, infinity or half a character, which JSON cannot spell.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except ValueError as error:
        raise MessageError(
            "cannot be written as JSON",
            expected="finite numbers and whole characters",
            got=error,
            where="JSON",
            fix="look for NaN, infinity and halves of characters among the values",
        ) from error


def plain(text: str) -> str:
    """The text with a space in place of every control character."""
    return _NOT_PLAIN.sub(" ", text)


class Fields:
    """One JSON object, read field by field.

    Args:
        value: the object.
        where: its name in error texts, such as `bundle.json`.
    """

    def __init__(self, value: Mapping[str, Json], where: str) -> None:
        self.where = where
        self._value = value

    @classmethod
    def of(cls, value: Json, where: str) -> Fields:
        """The fields of a value that must be an object."""
        if not isinstance(value, dict):
            raise MessageError("not a JSON object", where=where, expected="{...}", got=type(value).__name__)
        return cls(value, where)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(name) is not None

    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._value)

    def only(self, names: Iterable[str]) -> None:
        """Refuses any field that is not among `names`."""
        unknown = sorted(set(self._value) - set(names))
        if unknown:
            raise MessageError(
                "unknown field", where=self.where, expected=", ".join(names), got=", ".join(unknown)
            )

    def unknown(self, names: Iterable[str]) -> JsonObject:
        """The fields that are not among `names`: kept, so that a newer writer loses nothing."""
        known = set(names)
        return {name: value for name, value in self._value.items() if name not in known}

    def text(self, name: str, *, at_most: int = 500, pattern: str | None = None, plain: bool = False) -> str:
        """A string of bounded length, matching `pattern` as a whole where one is given; `plain` refuses control characters."""
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > at_most:
            self._refuse(name, f"a string of at most {at_most} characters", value)
        if pattern is not None and re.fullmatch(pattern, value) is None:
            self._refuse(name, f"a string that matches {pattern}", value)
        if plain and _NOT_PLAIN.search(value):
            self._refuse(name, "a string without control characters", value)
        return value

    def secret(self, name: str, *, at_most: int) -> str:
        """A string of bounded length that no error repeats."""
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > at_most:
            told = None if value is None else _Untold(value)
            self._refuse(name, f"a string of at most {at_most} characters", told)
        return value

    def integer(self, name: str, *, least: int = 0, most: int = 2**53 - 1) -> int:
        """A whole number within bounds."""
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(name, f"a whole number from {least} to {most}", value)
        return value

    def number(self, name: str, *, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number within bounds."""
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            self._refuse(name, _range(least, most), value)
        if not -sys.float_info.max <= value <= sys.float_info.max:
            self._refuse(name, "a finite number", value)
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._value.get(name)
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def digest(self, name: str) -> Digest:
        """A digest in its text form."""
        try:
            return Digest.parse(self.text(name, at_most=80))
        except MessageError as error:
            raise MessageError(
                error.what,
                where=f"{self.where}: {name}",
                expected=error.expected,
                got=error.got,
                fix=error.fix,
            ) from error

    def items(self, name: str, *, at_most: int) -> list[Json]:
        """A list of bounded length. An error tells what was found, and not what was in it."""
        value = self._value.get(name)
        if not isinstance(value, list):
            self._refuse(
                name, f"a list of at most {at_most} items", value if value is None else _Untold(value)
            )
        if len(value) > at_most:
            self._refuse(name, f"a list of at most {at_most} items", len(value))
        return value

    def objects(self, name: str, *, at_most: int) -> list[Fields]:
        """A list of objects, each ready to be read."""
        return [
            Fields.of(item, f"{self.where}: {name}[{index}]")
            for index, item in enumerate(self.items(name, at_most=at_most))
        ]

    def inner(self, name: str) -> Fields:
        """An object within this one."""
        return Fields.of(self._value.get(name), f"{self.where}: {name}")

    def texts(self, name: str, *, at_most: int = 64, plain: bool = False) -> dict[str, str]:
        """An object of strings, such as labels; `plain` refuses control characters in names and values."""
        inner = self.inner(name)
        if len(inner.names()) > at_most:
            self._refuse(name, f"at most {at_most} entries", len(inner.names()))
        if plain and any(map(_NOT_PLAIN.search, inner.names())):
            self._refuse(name, "names without control characters", inner.names())
        return {key: inner.text(key, plain=plain) for key in inner.names()}

    def _refuse(self, name: str, expected: str, got: object) -> NoReturn:
        raise MessageError(
            "a field is missing" if got is None else "a field is not what it should be",
            where=f"{self.where}: {name}",
            expected=expected,
            got="nothing" if got is None else repr(got)[:80],
        )


def _range(least: float, most: float) -> str:
    bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
    return ", ".join(["a number", *bounds])


class _Untold:
    """Something that must not be repeated."""

    def __init__(self, value: object) -> None:
        self._kind = type(value).__name__

    def __repr__(self) -> str:
        return f"a {self._kind} that is not repeated here"


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for token in _STRINGS_OR_BRACKETS.finditer(data):
        if token[1] is not None:
            depth += 1 if token[1] in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        msg = "a repeated key"
        raise ValueError(msg)
    return value


def _no_constant(text: str) -> NoReturn:
    msg = f"{text} is no JSON number"
    raise ValueError(msg)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text} is out of range"
        raise ValueError(msg)
    return value

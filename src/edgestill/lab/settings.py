"""TOML tables into frozen dataclasses: nothing misspelt or mistyped becomes a silent default.

A path in a table is relative to the file it stands in. A table within a table is a dataclass within a dataclass.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgestill.core.errors import SettingError, within
from edgestill.core.files import read_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BYTES: Final = 2**20

T = TypeVar("T")

Table = dict[str, object]

_IN_WORDS: Final = {
    str: "text",
    Path: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    tuple: "a list",
}
_KEPT: Final = "unknown"
"""Where a dataclass keeps what a newer writer added to its own format: nobody sets that by hand."""
_NAMES: Final = {"JsonObject": dict}
"""Of types that such a dataclass's module has for the type checker alone."""


def read_toml(path: Path) -> Table:
    """The tables of a file.

    Raises:
        PathError: it cannot be read. SettingError: not TOML.
    """
    try:
        return tomllib.loads(
            read_plain(path, what="a job or recipe", at_most=_MAX_BYTES).decode().replace("\r\n", "\n")
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(
            "not a TOML file",
            where=path,
            got=error,
            expected="TOML in UTF-8",
            fix="mend the line that the text names",
        ) from error


def from_table(kind: type[T], table: Mapping[str, object], *, where: str, what: str, folder: Path) -> T:
    """Builds `kind` of the values of a table.

    Args:
        kind: a dataclass.
        table: names and values.
        where: the file, for errors.
        what: what it describes, such as `a recipe`, for errors.
        folder: what paths are relative to.

    Raises:
        SettingError: an unknown, missing or mistyped key; or whatever the dataclass itself refuses.
    """
    hints = get_type_hints(kind, localns=_NAMES)
    known = {one.name: hints[one.name] for one in fields(kind) if one.init and one.name != _KEPT}  # type: ignore[arg-type]  # it is a dataclass
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise SettingError(
                f"unknown key in {what}",
                where=f"{where}: {name}",
                fix=nearest(name, known),
                expected=", ".join(known),
                got=repr(name),
            )
        values[name] = _typed(value, known[name], what=what, where=f"{where}: {name}", folder=folder)
    for one in fields(kind):  # type: ignore[arg-type]
        if one.init and one.default is MISSING and one.default_factory is MISSING and one.name not in values:
            raise SettingError(
                f"a key is missing in {what}",
                where=where,
                expected=one.name,
                got="none",
                fix=f"add {one.name} = ...",
            )
    with within(where):  # an error names the value, and cannot know where it was written
        return kind(**values)


def nearest(name: str, known: Mapping[str, object]) -> str:
    """What was probably meant; the known names are what the error expects."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "name one of these"


def check_types(value: object, *, what: str) -> None:
    """Whether the fields of a dataclass hold what they say: a caller from Python may pass anything.

    Args:
        value: whose fields are texts, numbers, truths, paths, or None where that is allowed.
        what: it is, such as `a recipe`, for errors.

    Raises:
        SettingError: a field of another type; a whole number will do for a number, and nothing else for anything.
    """
    hints = get_type_hints(type(value))
    for one in fields(value):  # type: ignore[arg-type]  # it is a dataclass
        given, hint = getattr(value, one.name), hints[one.name]
        if given is None and type(None) in get_args(hint):
            continue
        wanted = _plain(_without_none(hint))
        fits = isinstance(given, wanted) or (wanted is float and type(given) is int)
        if not fits or (isinstance(given, bool) and wanted is not bool):
            raise SettingError(
                f"{what}'s value has the wrong type",
                where=one.name,
                expected="a pathlib.Path" if wanted is Path else _IN_WORDS.get(wanted, wanted.__name__),
                got=f"{given!r} ({type(given).__name__})",
                fix="convert it first",
            )


def _typed(value: object, hint: object, *, what: str, where: str, folder: Path) -> object:
    hint = _without_none(hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(
            _typed(one, get_args(hint)[0], what=what, where=f"{where}[{at}]", folder=folder)
            for at, one in enumerate(value)
        )
    wanted = _plain(hint)
    if is_dataclass(wanted) and isinstance(value, dict):
        return from_table(wanted, value, where=where, what=where.rpartition(": ")[2], folder=folder)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is Path and isinstance(value, str):
        return folder / value
    if type(value) is not wanted:
        raise SettingError(
            f"{what}'s value has the wrong type",
            where=where,
            expected="a table" if is_dataclass(wanted) else _IN_WORDS.get(wanted, wanted.__name__),
            got=repr(value),
            fix="numbers, true and false stand without quotes, texts with them",
        )
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise SettingError(
            f"{what}'s value is out of range",
            where=where,
            expected=", ".join(get_args(hint)),
            got=value,
            fix="choose one of these",
        )
    return value


def _without_none(hint: object) -> object:
    """`X | None` is X: TOML has no None, a key is left out."""
    if get_origin(hint) not in {Union, UnionType}:
        return hint
    (kept,) = (one for one in get_args(hint) if one is not type(None))
    return kept


def _plain(hint: object) -> type:
    """The one type a TOML value must have: a literal's is text, `dict[...]` is dict."""
    if get_origin(hint) is Literal:
        return str
    found = get_origin(hint) or hint
    assert isinstance(found, type)
    return found

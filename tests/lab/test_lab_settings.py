"""TOML tables into dataclasses: what is misspelt, missing or of another type is an error that says where."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgestill.core.errors import PathError, SettingError
from edgestill.lab.settings import from_table, nearest, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoon:
    """A table within a table within a table."""

    length: float = 10.0
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saucer:
    """A table within a table."""

    width: int = 12
    spoon: Spoon | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tea:
    """One of each kind of value."""

    cups: int
    sugar: float = 0.0
    hot: bool = True
    kind: Literal["green", "black"] = "green"
    pot: Path | None = None
    names: tuple[str, ...] = ()
    size: tuple[int, ...] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    saucer: Saucer = field(default_factory=Saucer)

    def __post_init__(self) -> None:
        if self.cups < 0:
            raise SettingError("fewer cups than none", where="cups", expected="at least 0", got=self.cups)


def read(table: dict[str, object]) -> Tea:
    """As a file `tea.toml` in `/kitchen` would be."""
    return from_table(Tea, table, where="tea.toml", what="a tea", folder=Path("/kitchen"))


def test_every_kind_of_value_is_read() -> None:
    """Whole numbers serve as numbers, lists become tuples, paths are relative to the file's folder."""
    tea = read(
        {"cups": 2, "sugar": 1, "hot": False, "kind": "black", "pot": "pot", "names": ["a"], "size": [3, 4]}
    )
    assert (tea.sugar, tea.hot, tea.kind, tea.pot) == (1.0, False, "black", Path("/kitchen/pot"))
    assert (type(tea.sugar), tea.names, tea.size) == (float, ("a",), (3, 4))


def test_what_is_left_out_has_its_default() -> None:
    """Only a key without a default is wanted."""
    assert read({"cups": 1}) == Tea(cups=1)


def test_an_absolute_path_stays() -> None:
    """A path that is not relative is taken as it is."""
    assert read({"cups": 1, "pot": "/shelf/pot"}).pot == Path("/shelf/pot")


def test_an_unknown_key_names_the_nearest() -> None:
    """A misspelt key is never a silent default."""
    with pytest.raises(
        SettingError, match=r"unknown key in a tea; at tea.toml: suger; .*; did you mean 'sugar'"
    ):
        read({"cups": 1, "suger": 2})


def test_a_key_like_no_other_gets_the_list() -> None:
    """Where nothing is near, nothing is guessed: the error lists what it expects."""
    assert nearest("zzz", {"cups": None, "pot": None}) == "name one of these"


def test_a_missing_key_is_named() -> None:
    """The text says which one."""
    with pytest.raises(SettingError, match=r"a key is missing in a tea; at tea.toml; expected cups"):
        read({})


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"cups": 1.5}, "a whole number; got 1.5"),
        ({"cups": True}, "a whole number; got True"),
        ({"cups": "1"}, "a whole number; got '1'"),
        ({"cups": 1, "sugar": True}, "a number; got True"),
        ({"cups": 1, "sugar": "2"}, "a number; got '2'"),
        ({"cups": 1, "hot": 1}, "true or false; got 1"),
        ({"cups": 1, "kind": 3}, "text; got 3"),
        ({"cups": 1, "kind": "grey"}, "green, black; got grey"),
        ({"cups": 1, "pot": 3}, "text; got 3"),
        ({"cups": 1, "names": "a"}, "a list; got 'a'"),
        ({"cups": 1, "names": ["a", 2]}, "text; got 2"),
        ({"cups": 1, "size": [1, 2.5]}, "a whole number; got 2.5"),
        ({"cups": 1, "more": 3}, "a table; got 3"),
    ],
)
def test_a_value_of_another_type_is_refused(table: dict[str, object], expected: str) -> None:
    """The text says what is wanted, in words."""
    with pytest.raises(SettingError, match=f"expected {expected}"):
        read(table)


def test_an_element_of_a_list_is_named_by_its_place() -> None:
    """So that it is found in a long list."""
    with pytest.raises(SettingError, match=r"tea.toml: names\[1\]"):
        read({"cups": 1, "names": ["a", 2]})


def test_a_value_out_of_range_is_found_in_its_file() -> None:
    """The dataclass knows the name, the reader the file: the text has both."""
    with pytest.raises(
        SettingError, match=r"fewer cups than none; at tea.toml: cups; expected at least 0; got -1"
    ):
        read({"cups": -1})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As a path that cannot be read."""
    with pytest.raises(PathError, match=r"none.toml"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"cups = ", b"\xff\xfe", b"cups = 1\ncups = 2"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    """Cut off, not text, or a key twice."""
    (tmp_path / "tea.toml").write_bytes(content)
    with pytest.raises(SettingError, match="not a TOML file"):
        read_toml(tmp_path / "tea.toml")


def test_a_table_within_a_table_is_read() -> None:
    """To any depth; what is left out has its default, and there is none where none may be."""
    assert read({"cups": 1, "saucer": {}}).saucer == Saucer()
    assert read({"cups": 1, "saucer": {"spoon": {"length": 9}}}).saucer == Saucer(spoon=Spoon(length=9.0))


@pytest.mark.parametrize(
    ("saucer", "wrong"),
    [
        ({"wide": 3}, r"unknown key in saucer; at tea.toml: saucer: wide; .*; did you mean 'width'"),
        ({"spoon": {"length": "9"}}, r"wrong type; at tea.toml: saucer: spoon: length; expected a number"),
        ({"spoon": {"unknown": {}}}, r"unknown key in spoon; .* expected length; got 'unknown'"),
        (3, r"wrong type; at tea.toml: saucer; expected a table; got 3"),
        ([], r"expected a table; got \[\]"),
    ],
)
def test_what_is_wrong_within_is_named_by_its_whole_way(saucer: object, wrong: str) -> None:
    """Where formats keep what newer writers added is no key."""
    with pytest.raises(SettingError, match=wrong):
        read({"cups": 1, "saucer": saucer})

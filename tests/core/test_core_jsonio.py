"""JSON from outside: bounds, strictness, attacks; and the fields of one object."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import MAX_BYTES, MAX_DEPTH, Fields, canonical, parse, parse_object, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import Json

WHOLE_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WHOLE_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WHOLE_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_writing_and_reading_give_the_same_value(value: Json) -> None:
    """Every value survives its canonical spelling."""
    assert parse(canonical(value), where="test") == value


@given(VALUES)
def test_a_value_has_one_spelling(value: Json) -> None:
    """Reading any spelling and writing it again gives the same canonical bytes."""
    spaced = json.dumps(value, indent=3, ensure_ascii=True).encode()
    assert canonical(parse(spaced, where="test")) == canonical(value)


def test_the_canonical_spelling() -> None:
    """Keys are sorted, there are no spaces, and letters stay letters."""
    assert canonical({"b": [1, 2.5, None], "a": {"é": True}}) == '{"a":{"é":true},"b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800"])
def test_what_json_cannot_spell_is_not_written(value: Json) -> None:
    """NaN, infinity and half a character are refused on the way out."""
    with pytest.raises(MessageError, match="cannot be written as JSON"):
        canonical({"x": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b'{"a": 1, "a": 2}',
        b'[{"a": {"b": 1, "b": 1}}]',
        b'{"a": 1, "\\u0061": 2}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'"\x00"',
        b'"a\nb"',
        b"[1] [2]",
        b"// no\n1",
        b"01",
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_what_is_no_strict_json_is_refused(data: bytes) -> None:
    """Half objects, NaN, infinities, repeated keys, other encodings and half characters are all refused."""
    with pytest.raises(MessageError, match="not valid JSON") as caught:
        parse(data, where="poll")
    assert caught.value.where == "poll"


def test_a_whole_character_written_as_two_escapes_is_read() -> None:
    """A surrogate pair is one character and is accepted."""
    assert parse(b'"\\ud83d\\ude00"', where="test") == "\U0001f600"


def test_length_is_bounded_before_reading() -> None:
    """One byte more than allowed is refused with the bound; the bound itself is accepted."""
    assert parse(b'"' + b"a" * 8 + b'"', where="test", max_bytes=10) == "a" * 8
    with pytest.raises(MessageError, match="expected at most 10 bytes; got 11"):
        parse(b'"' + b"a" * 9 + b'"', where="test", max_bytes=10)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded(opening: bytes, closing: bytes) -> None:
    """The deepest allowed nesting is read, one level more is refused."""
    deepest = opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH
    assert parse(deepest, where="test") is not None
    with pytest.raises(MessageError, match="nested too deeply"):
        parse(opening + deepest + closing, where="test")


def test_brackets_within_strings_are_no_nesting() -> None:
    """Brackets and escaped quotes within a string do not count as depth."""
    value: Json = {'[[["{{{\\': ["[" * 200, '\\"[[' * 50]}
    assert parse(canonical(value), where="test", max_depth=2) == value


def test_attack_depth_cannot_be_hidden_behind_closing_brackets() -> None:
    """Closing brackets first, to bring the count below zero, are no JSON and are refused."""
    with pytest.raises(MessageError):
        parse(b"]" * 100 + b"[" * 130, where="test")


@pytest.mark.parametrize("data", [b"[" * 500_000, b'{"a":' * 150_000, b"[[" * 200_000 + b'"'])
def test_attack_nesting_bombs_do_not_reach_the_parser(data: bytes) -> None:
    """A text of brackets is refused as too deep, not by exhausting the stack."""
    with pytest.raises(MessageError, match="nested too deeply"):
        parse(data, where="test")


@pytest.mark.parametrize(
    "data",
    [
        b'"' + b'\\"' * 400_000,
        b'"' + b'\\"' * 400_000 + b"\\",
        b'"\\' * 300_000,
        b'"' * 900_000 + b"\\",
        b'"' + b"\\" * 900_000,
    ],
)
def test_attack_a_hostile_string_costs_time_only_in_proportion_to_its_length(data: bytes) -> None:
    """Unfinished strings full of escapes, which make a naive scanner quadratic, are refused within a moment."""
    start = time.monotonic()
    with pytest.raises(MessageError):
        parse(data, where="test")
    assert time.monotonic() - start < 5  # a quadratic scan of these takes an hour


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_message_error(data: bytes) -> None:
    """No bytes make the reader fail in another way; what it takes is written and read again as the same."""
    try:
        written = canonical(parse(data, where="test"))
    except MessageError:
        return
    assert canonical(parse(written, where="test")) == written


@given(st.text(alphabet='[]{}",:\\u0d8 1a', max_size=60))
def test_near_json_gives_a_value_or_a_message_error(text: str) -> None:
    """Texts made of JSON's own characters give a value that can be written again, or a refusal."""
    try:
        written = canonical(parse(text.encode(), where="test"))
    except MessageError:
        return
    assert canonical(parse(written, where="test")) == written


def test_an_object_is_asked_for() -> None:
    """`parse_object` refuses every other kind of value by its name."""
    assert parse_object(b'{"a": 1}', where="test") == {"a": 1}
    with pytest.raises(MessageError, match=r"not a JSON object; at test; expected \{\.\.\.\}; got list"):
        parse_object(b"[]", where="test")


def test_fields_are_read_by_name_and_type() -> None:
    """Each getter gives its field's value."""
    digest = Digest.of(b"x")
    fields = Fields(
        {
            "t": "text",
            "i": 7,
            "n": 1.5,
            "b": False,
            "d": str(digest),
            "l": [1, 2],
            "o": {"x": "y"},
            "z": None,
        },
        "test",
    )
    assert fields.text("t") == "text"
    assert fields.integer("i") == 7
    assert fields.number("n") == 1.5
    assert fields.number("i") == 7.0
    assert fields.boolean("b") is False
    assert fields.digest("d") == digest
    assert fields.items("l", at_most=2) == [1, 2]
    assert fields.inner("o").text("x") == "y"
    assert fields.texts("o") == {"x": "y"}
    assert fields.has("t")
    assert not fields.has("z")
    assert not fields.has("nobody")
    assert set(fields.names()) == set("tinbdloz")


def test_fields_nobody_knows_can_be_kept_or_refused() -> None:
    """`unknown` hands out the other fields, `only` refuses them by name."""
    fields = Fields({"a": 1, "c": 3, "b": 2}, "test")
    assert fields.unknown(("a",)) == {"c": 3, "b": 2}
    fields.only(("a", "b", "c"))
    with pytest.raises(MessageError, match="unknown field; at test; expected a; got b, c"):
        fields.only(("a",))


WRONG: list[tuple[Json, Callable[[Fields], object], str]] = [
    (None, lambda f: f.text("x"), "a field is missing; at test: x; expected a string"),
    (3, lambda f: f.text("x"), "a field is not what it should be; at test: x; expected a string"),
    ("aaaa", lambda f: f.text("x", at_most=3), "at most 3 characters"),
    ("ab\n", lambda f: f.text("x", pattern="ab"), "a string that matches ab"),
    (True, lambda f: f.integer("x"), "a whole number from 0 to"),
    (1.0, lambda f: f.integer("x"), "a whole number"),
    ("1", lambda f: f.integer("x"), "a whole number"),
    (-1, lambda f: f.integer("x"), "a whole number from 0 to"),
    (2**53, lambda f: f.integer("x"), "a whole number"),
    (5, lambda f: f.integer("x", least=6), "from 6"),
    (True, lambda f: f.number("x"), "a number"),
    ("1.5", lambda f: f.number("x"), "a number"),
    (math.nan, lambda f: f.number("x"), "a number"),
    (math.inf, lambda f: f.number("x"), "a finite number"),
    (10**400, lambda f: f.number("x"), "a finite number"),
    (-(10**400), lambda f: f.number("x"), "a finite number"),
    (1.5, lambda f: f.number("x", most=1), "expected a number, at most 1"),
    (0, lambda f: f.boolean("x"), "true or false"),
    ("sha256:00", lambda f: f.digest("x"), "not a digest; at test: x"),
    ({}, lambda f: f.items("x", at_most=3), "a list of at most 3 items"),
    ([1, 2, 3, 4], lambda f: f.items("x", at_most=3), "a list of at most 3 items"),
    ([{}, 1], lambda f: f.objects("x", at_most=3), r"not a JSON object; at test: x\[1\]"),
    ([], lambda f: f.inner("x"), "not a JSON object; at test: x"),
    ({"a": "1", "b": "2"}, lambda f: f.texts("x", at_most=1), "at most 1 entries"),
    ({"a": 1}, lambda f: f.texts("x"), "at test: x: a; expected a string"),
    ("a\0b", lambda f: f.text("x", plain=True), r"a string without control characters; got 'a\\x00b'"),
    ({"a": "b\n"}, lambda f: f.texts("x", plain=True), "at test: x: a; expected a string without control"),
    ({"a\x1b": "b"}, lambda f: f.texts("x", plain=True), "at test: x; expected names without control"),
]


@pytest.mark.parametrize(("value", "read", "message"), WRONG)
def test_a_wrong_field_is_refused_by_name(
    value: Json, read: Callable[[Fields], object], message: str
) -> None:
    """Each getter refuses a wrong type or range and says which field, what was expected and what it got."""
    with pytest.raises(MessageError, match=message):
        read(Fields({"x": value}, "test"))


@pytest.mark.parametrize("letter", "\0\x01\t\n\r\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066")
def test_attack_control_characters_are_no_plain_text(letter: str) -> None:
    """NUL, line ends, escapes of both kinds and marks that turn text around: refused where asked, else spaced out."""
    fields = Fields({"x": f"a{letter}b"}, "test")
    with pytest.raises(MessageError, match="without control characters"):
        fields.text("x", plain=True)
    assert fields.text("x") == f"a{letter}b"
    assert plain(fields.text("x")) == "a b"


@given(WHOLE_TEXT)
def test_what_was_made_plain_is_plain(text: str) -> None:
    """Whatever it was: of the same length, taken as plain text, and not changed again."""
    made = plain(text)
    assert Fields({"x": made}, "test").text("x", plain=True) == made == plain(made)
    assert len(made) == len(text)


@pytest.mark.parametrize(
    "text",
    [
        "Zürich 3",
        "東京\u3000駅",
        "नमस्ते",
        "\u0645\u06cc\u200c\u062e\u0648\u0631\u0645",
        "👩\u200d🔧",
        "a\xa0b",
    ],
)
def test_the_texts_of_every_people_are_plain(text: str) -> None:
    """Letters, wide spaces and the joiners that scripts need are no controls."""
    assert Fields({"x": text}, "test").text("x", plain=True) == plain(text) == text


def test_half_a_character_is_made_plain() -> None:
    """A file name that was no UTF-8 may come into a reason, which must still be written."""
    assert canonical([plain("no room for \udcff.esb")]) == b'["no room for  .esb"]'


def test_attack_a_huge_wrong_value_is_not_repeated_in_the_refusal() -> None:
    """The refusal quotes at most 80 characters of what it got."""
    with pytest.raises(MessageError) as caught:
        Fields({"x": "y" * 500_000}, "test").integer("x")
    assert len(str(caught.value)) < 300


def test_the_default_bound_is_a_megabyte() -> None:
    """Without another bound a text may have 1,000,000 bytes."""
    assert MAX_BYTES == 1_000_000
    with pytest.raises(MessageError, match="too long"):
        parse(b" " * 1_000_001, where="test")


@pytest.mark.parametrize("value", ["x" * 11, ["s3cret"], 5, True])
def test_a_secret_is_not_repeated(value: Any) -> None:
    """One that is no text, or too long, is refused without a word of it; the others are handed out."""
    fields = Fields({"token": value, "good": "s3cret"}, "enrol")
    with pytest.raises(
        MessageError, match=r"at enrol: token; .*at most 10 characters; got a \w+ that is not"
    ) as caught:
        fields.secret("token", at_most=10)
    assert "s3cret" not in str(caught.value)
    assert fields.secret("good", at_most=10) == "s3cret"
    with pytest.raises(MessageError, match=r"a field is missing; at enrol: none; .*; got nothing"):
        fields.secret("none", at_most=10)


def test_a_number_is_asked_for_in_plain_words() -> None:
    """Bounds are told where there are some, and Python's advice to its programmers nowhere."""
    fields = Fields({"x": "a"}, "policy.json")
    with pytest.raises(MessageError, match="expected a number; got 'a'"):
        fields.number("x")
    with pytest.raises(MessageError, match="expected a number, at least 0, at most 1; got 'a'"):
        fields.number("x", least=0, most=1)
    with pytest.raises(MessageError, match="got a number of too many digits; make it anew"):
        parse(b"[" + b"1" * 5000 + b"]", where="x")

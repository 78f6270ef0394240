"""Errors: one tree, one code each, one readable line."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import errors
from edgestill.core.errors import BundleError, EdgestillError, codes


def test_the_text_answers_what_where_expected_got_and_what_to_do() -> None:
    """An error's text gives all five answers on one line, after its code."""
    error = BundleError(
        "a blob is missing", where="watch.esb", expected="model.onnx", got="nothing", fix="build it again"
    )
    assert str(error) == (
        "[bundle-invalid] a blob is missing; at watch.esb; expected model.onnx; got nothing; build it again"
    )


def test_answers_nobody_gave_are_left_out() -> None:
    """An error with only a statement shows only that statement."""
    assert str(BundleError("a blob is missing")) == "[bundle-invalid] a blob is missing"


def test_falsy_answers_are_still_answers() -> None:
    """Zero and the empty string are shown; only None is left out."""
    assert str(BundleError("too few", expected=0, got="")) == "[bundle-invalid] too few; expected 0; got "


def test_the_json_form_carries_every_answer_as_text() -> None:
    """Machines get the same facts, each a string or null."""
    body = BundleError("too long", where="a", expected=3, got=4).as_json()
    assert body == {
        "code": "bundle-invalid",
        "what": "too long",
        "where": "a",
        "expected": "3",
        "got": "4",
        "fix": None,
    }
    assert json.loads(json.dumps(body)) == body


@given(st.text(), st.text(), st.text())
def test_whatever_strangers_wrote_the_text_is_one_printable_line(what: str, where: str, got: str) -> None:
    """No text from outside breaks the line or brings control characters into it."""
    text = str(BundleError(what, where=where, got=got))
    assert text.isprintable()


def test_attack_an_escape_sequence_does_not_reach_the_terminal() -> None:
    """A file name with a terminal escape sequence is shown defused."""
    text = str(BundleError("no such file", where="\x1b]0;owned\x07\x1b[2J"))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_long_answer_is_cut() -> None:
    """One answer takes at most 400 characters of the line."""
    assert len(str(BundleError("x", got="y" * 10_000))) < 450


def test_every_code_is_a_short_lower_case_name() -> None:
    """Codes are lower-case words with dashes, so that they can be headings, JSON values and search terms."""
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes())


def test_the_tree_holds_every_error_class_of_the_module() -> None:
    """Every error class of `core.errors` is registered under its own code."""
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, EdgestillError) and value is not EdgestillError
    }
    assert classes <= set(codes().values())
    assert all(codes()[one.code] is one for one in classes)


def test_every_error_class_is_named_error_and_described() -> None:
    """Class names end with `Error` and each has a docstring."""
    for one in codes().values():
        assert one.__name__.endswith("Error")
        assert one.__doc__


def test_a_code_cannot_be_given_twice() -> None:
    """A second class with a code that is taken is refused when it is defined."""
    with pytest.raises(TypeError, match="'bundle-invalid' is already BundleError's"):
        type("AnotherError", (EdgestillError,), {"code": "bundle-invalid"})


def test_codes_hands_out_a_copy() -> None:
    """Changing the mapping that `codes()` returned changes nothing else."""
    codes().clear()
    assert "bundle-invalid" in codes()

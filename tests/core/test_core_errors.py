"""Errors: one tree, one code each, one readable line."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import errors
from edgestill.core.errors import BundleError, EdgestillError, MessageError, ShapeError, codes, within


class Spelt(NamedTuple):
    """A tuple that has its own way to be told."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows} by {self.columns}"


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


def test_a_shape_is_told_in_one_notation() -> None:
    """A tuple of whole numbers, of whatever class, is `[2, 3]`; any other tuple is what it is."""
    error = ShapeError("another shape", where="x", expected=(), got=(np.int64(2), 3), fix="turn it")
    assert str(error) == "[shape-mismatch] another shape; at x; expected []; got [2, 3]; turn it"
    assert error.as_json()["got"] == "[2, 3]"
    assert ShapeError("x", got=Spelt(2, 3)).as_json()["got"] == "2 by 3"
    assert ShapeError("x", got=("a", 1)).as_json()["got"] == "('a', 1)"


def test_what_to_do_is_the_classs_remedy_where_the_place_knows_no_better() -> None:
    """Where an error arises hundreds of times and the same is to be done, nobody has to say so."""
    assert MessageError.remedy is not None
    assert str(MessageError("not JSON")).endswith(f"; {MessageError.remedy}")
    assert MessageError("not JSON", fix="write JSON").fix == "write JSON"
    assert BundleError.remedy is None


def test_a_place_around_an_error_comes_before_its_own() -> None:
    """A file that holds what is wrong is named; a name that both know is said once."""
    for own, told in ((None, "a.esb: b"), ("c", "a.esb: b: c"), ("b", "a.esb: b"), ("b: c", "a.esb: b: c")):
        with pytest.raises(BundleError) as caught, within("a.esb: b"):
            raise BundleError("wrong", where=own)
        assert caught.value.where == told


def test_a_place_may_know_better_what_to_do_than_a_class() -> None:
    """Only where the error itself said nothing."""
    for own, told in ((None, "build it again"), ("write JSON", "write JSON")):
        with pytest.raises(MessageError) as caught, within("a", fix="build it again"):
            raise MessageError("wrong", fix=own)
        assert caught.value.fix == told
    with pytest.raises(BundleError) as other, within("a"):
        raise BundleError("wrong")
    assert other.value.fix is None


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

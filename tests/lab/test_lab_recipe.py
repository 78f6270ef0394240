"""Recipes: nothing misspelt, mistyped or out of range becomes a silent default."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.errors import PathError, SettingError
from edgestill.core.jsonio import canonical, parse_object
from edgestill.lab.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path


def read(tmp_path: Path, text: str) -> Recipe:
    """The recipe of a TOML file with this text."""
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    return Recipe.from_toml(file)


def test_a_toml_table_becomes_a_recipe(tmp_path: Path) -> None:
    """Named values are taken, whole numbers serve as floats, the rest has its defaults; other tables are not ours."""
    found = read(tmp_path, '[recipe]\nlr = 1\nepochs = 3\noptimiser = "sgd"\n[other]\nx = 1\n')
    assert found == Recipe(lr=1.0, epochs=3, optimiser="sgd")
    assert isinstance(found.lr, float)


@pytest.mark.parametrize(
    ("key", "near"), [("lrr", "lr"), ("epoch", "epochs"), ("softweight", "soft_weight"), ("Tau", "tau")]
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    """A misspelt key is refused with the name that was probably meant."""
    with pytest.raises(SettingError, match=r"\[setting-invalid\] unknown key in a recipe") as caught:
        read(tmp_path, f"[recipe]\n{key} = 1\n")
    assert caught.value.fix == f"did you mean {near!r}?"
    assert str(caught.value.where).endswith(f"recipe.toml: {key}")


def test_a_key_like_no_other_lists_all(tmp_path: Path) -> None:
    """Where nothing is near, the known keys are listed."""
    with pytest.raises(SettingError, match=r"expected epochs, batch, optimiser, .*; name one of these"):
        read(tmp_path, "[recipe]\nzzzzzz = 1\n")


@pytest.mark.parametrize("text", ["", "lr = 1\n", "[recipee]\nlr = 1\n", "recipe = 3\n"])
def test_a_file_without_the_table_is_refused(tmp_path: Path, text: str) -> None:
    """A misspelt or forgotten table must not be the defaults."""
    with pytest.raises(SettingError, match=r"no recipe in this file; .*expected a \[recipe\] table"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "3", "a whole number"),
        ("epochs", 3.0, "a whole number"),
        ("epochs", np.int64(3), "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", None, "a whole number"),
        ("lr", "1e-3", "a number"),
        ("optimiser", 3, "text"),
        ("hint", None, "text"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, expected: str) -> None:
    """As in a TOML file: what it is, with its type, and what it should be."""
    with pytest.raises(
        SettingError, match=r"a recipe's value has the wrong type; .*convert it first"
    ) as caught:
        Recipe(**{name: value})  # type: ignore[arg-type]  # on purpose
    got = f"{value!r} ({type(value).__name__})"
    assert (caught.value.where, caught.value.expected, caught.value.got) == (name, expected, got)


def test_a_whole_number_is_a_number() -> None:
    """`lr=1` is no mistake."""
    assert Recipe(lr=1).lr == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "at least 1"),
        ("batch", 0, "at least 1"),
        ("lr", 0.0, "more than 0, finite"),
        ("lr", nan, "more than 0, finite"),
        ("lr", inf, "more than 0, finite"),
        ("momentum", 1.0, "at least 0, less than 1"),
        ("weight_decay", -1e-9, "at least 0, finite"),
        ("average_tail", 1.1, "0 to 1"),
        ("label_smoothing", 1.0, "at least 0, less than 1"),
        ("tau", 0.0, "more than 0, finite"),
        ("soft_weight", 1.01, "0 to 1"),
        ("views", -1, "at least 0"),
        ("top_k", -1, "at least 0"),
        ("clip", -0.1, "at least 0, finite"),
        ("method", "crd", "kd, dkd, dist"),
        ("dkd_beta", -1.0, "at least 0, finite"),
        ("dist_gamma", inf, "at least 0, finite"),
        ("hint", "conv3", "TEACHER_LAYER=STUDENT_LAYER, or empty"),
        ("hint", "=conv3", "TEACHER_LAYER=STUDENT_LAYER, or empty"),
        ("hint_channels", "middle", "first, last"),
        ("hint_weight", nan, "at least 0, finite"),
        ("huber", -1.0, "at least 0, finite"),
        ("seed", -1, "0 to 2^32 - 1"),
        ("optimiser", "adam", "sgd, adamw"),
        ("schedule", "linear", "constant, cosine, one-cycle"),
        ("inherit", "last", "random, uniform, first, magnitude"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object, expected: str) -> None:
    """Each field names itself, what it takes and what it got."""
    with pytest.raises(SettingError, match="value is out of range") as caught:
        Recipe(**{name: value})  # type: ignore[arg-type]  # wrong on purpose
    assert (caught.value.where, caught.value.expected, caught.value.got) == (name, expected, caught.value.got)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("epochs = 2.0", "a whole number"),
        ('lr = "1"', "a number"),
        ("epochs = true", "a whole number"),
        ("optimiser = 1", "text"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, line: str, kind: str) -> None:
    """Nothing is converted except a whole number to a float."""
    with pytest.raises(SettingError, match=f"a recipe's value has the wrong type; .*expected {kind}"):
        read(tmp_path, f"[recipe]\n{line}\n")


def test_a_file_that_is_absent_or_no_toml_is_told_apart(tmp_path: Path) -> None:
    """Absent is a path error, damaged a setting error, each with the file's name."""
    with pytest.raises(PathError, match=r"cannot read a job or recipe.*No such file"):
        Recipe.from_toml(tmp_path / "absent.toml")
    with pytest.raises(SettingError, match="not a TOML file"):
        read(tmp_path, "[recipe\n")
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="not a TOML file"):
        Recipe.from_toml(tmp_path / "recipe.toml")


def test_the_digest_names_every_value() -> None:
    """Equal recipes have one digest; any other value has another; the JSON reads back as the same recipe."""
    recipe = Recipe(epochs=3)
    assert recipe.digest == Recipe(epochs=3).digest
    assert recipe.digest != replace(recipe, seed=1).digest
    read_back = parse_object(canonical(recipe.as_json()), where="here")
    assert Recipe.from_mapping(dict(read_back), where="here") == recipe


def test_a_recipe_of_another_version_is_refused(tmp_path: Path) -> None:
    """A file that says what it was written for is believed."""
    assert read(tmp_path, "[recipe]\nversion = 1\n") == Recipe()
    with pytest.raises(SettingError, match=r"a recipe of another version; .*expected 1 .*got 2"):
        read(tmp_path, "[recipe]\nversion = 2\n")


def test_a_hint_that_weighs_nothing_is_none() -> None:
    """Two layers and a weight make a hint; two layers alone are a mistake, and a weight alone is none."""
    with pytest.raises(SettingError, match="at hint_weight; expected more than 0, where there is a hint"):
        Recipe(hint="a.b=c")
    assert Recipe(hint_weight=0.5).hinted is None
    found = Recipe(hint="a.b=c", hint_weight=0.5, hint_channels="last").hinted
    assert found is not None
    assert (found.teacher_layer, found.student_layer, found.channels) == ("a.b", "c", "last")


def test_a_recipe_says_what_is_minimised_for_each_task() -> None:
    """Its values reach the objective; what a task does not have is refused before training."""
    recipe = Recipe(soft_weight=0.3, tau=5.0, method="dkd", dkd_beta=2.0)
    found = recipe.objective("classes")
    assert (found.soft_weight, found.tau, found.method, found.dkd_beta) == (0.3, 5.0, "dkd", 2.0)
    with pytest.raises(SettingError, match="exclude each other; at method"):
        recipe.objective("regression")

"""Parts that are installed only where they are needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from edgestill.core.errors import MissingExtraError
from edgestill.core.extras import look_for, require

if TYPE_CHECKING:
    from pathlib import Path


def test_an_installed_module_is_imported() -> None:
    """The module itself is handed out, also one within a package."""
    assert require("json", extra="device", purpose="to read").loads("1") == 1
    assert require("os.path", extra="device", purpose="to read").join("a", "b") == "a/b"


def test_a_missing_module_is_answered_with_the_line_that_brings_it() -> None:
    """The error says what is missing, what for, and the `pip install` line."""
    with pytest.raises(MissingExtraError) as caught:
        require("nobody_has_this", extra="device", purpose="to run a model")
    assert str(caught.value) == (
        "[extra-missing] nobody_has_this is not installed; it is needed to run a model; "
        'at import nobody_has_this; run: pip install "edgestill[device]"'
    )


def test_what_a_module_itself_misses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an installed module needs another one, the other one is named."""
    (tmp_path / "half_installed.py").write_text("import its_missing_half\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="its_missing_half is not installed"):
        require("half_installed", extra="lab", purpose="to distil")


def test_any_other_failure_of_a_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is there and broken fails with its own error."""
    (tmp_path / "broken_inside.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        require("broken_inside", extra="lab", purpose="to distil")
    assert "broken_inside" not in sys.modules


def test_what_is_only_looked_for_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is there is found, even one that would fail, and stays where it is."""
    (tmp_path / "broken_and_found.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    look_for("broken_and_found", extra="agent", purpose="to keep a device up to date")
    assert "broken_and_found" not in sys.modules


def test_what_is_looked_for_in_vain_is_answered_with_the_line_that_brings_it() -> None:
    """The error is that of `require`."""
    with pytest.raises(MissingExtraError) as looked:
        look_for("nobody_has_this", extra="agent", purpose="to keep a device up to date")
    with pytest.raises(MissingExtraError) as required:
        require("nobody_has_this", extra="agent", purpose="to keep a device up to date")
    assert str(looked.value) == str(required.value)

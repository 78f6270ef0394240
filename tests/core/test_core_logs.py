"""Logs of hub and device: one form, one event a line."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from edgestill.core import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def as_new() -> Iterator[logging.Logger]:
    """The root logger as a new process finds it; as it was afterwards."""
    found = logging.getLogger()
    before, level = found.handlers[:], found.level
    found.handlers.clear()
    try:
        yield found
    finally:
        found.handlers[:] = before
        found.setLevel(level)


def written(
    capsys: pytest.CaptureFixture[str], tell: Callable[[logging.Logger], None], level: str = "info"
) -> str:
    """What a new process writes that is told something."""
    with as_new():
        logs.begin(level, chatty=["a.library"])
        tell(logging.getLogger("edgestill.hub.control"))
    return capsys.readouterr().err


def test_an_event_is_one_line_with_time_level_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    """In one form for hub and device; neither what is less than the level nor a library's chatter is written."""

    def tell(log: logging.Logger) -> None:
        log.info("device %s has enrolled", "camera-1")
        log.debug("nothing")
        logging.getLogger("a.library").info("chatter")

    said = written(capsys, tell)
    assert said.endswith(" INFO edgestill.hub.control: device camera-1 has enrolled\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("level", ["loud", "", "20"])
def test_a_level_that_nobody_knows_is_info(level: str) -> None:
    """A log is no reason not to start."""
    with as_new() as root:
        logs.begin(level)
        assert root.level == logging.INFO


def test_attack_a_strangers_text_cannot_pass_for_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a line feed nor a terminal's escape sequence reaches the log."""
    said = written(
        capsys, lambda log: log.warning("refused %s", "a\n2026-01-01 INFO hub: all is well\x1b[2J")
    )
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_a_trace_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug of ours is told with all there is."""
    said = written(capsys, lambda log: log.error("a bug", exc_info=ZeroDivisionError("why")))
    assert said.endswith("a bug\nZeroDivisionError: why\n")

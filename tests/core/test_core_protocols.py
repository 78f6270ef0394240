"""The protocols and the answer: importable with the standard library alone, met by what the house ships."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.answer import Answer
from edgestill.core.clock import SystemClock
from edgestill.core.protocols import Request
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock


def test_core_loads_nothing_but_the_standard_library() -> None:
    """Importing every module of core brings in no third-party module."""
    program = """
import pkgutil, sys, importlib
import edgestill.core
for module in pkgutil.walk_packages(edgestill.core.__path__, "edgestill.core."):
    importlib.import_module(module.name)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded - set(sys.stdlib_module_names) - {"edgestill", "__main__"}))
"""
    found = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert [name for name in found.stdout.split() if not name.startswith("_")] == []


def test_an_answer_is_as_long_as_its_batch() -> None:
    """The length of an answer is the number of inputs it is about."""
    answer = Answer(
        probabilities=np.full((2, 3), 1 / 3, np.float32),
        confidence=np.full(2, 1 / 3, np.float32),
        decided_by=("student", "fused"),
    )
    assert len(answer) == 2
    assert answer.teacher is None
    assert answer.latency == 0.0


def test_an_answer_is_equal_only_to_itself() -> None:
    """Answers hold arrays, so they are compared by identity and never by a truth value of arrays."""
    one = np.ones((1, 1), np.float32)
    first = Answer(probabilities=one, confidence=one[0], decided_by=("student",))
    second = Answer(probabilities=one, confidence=one[0], decided_by=("student",))
    assert first != second
    assert first == first  # noqa: PLR0124  # the point of the test


def test_a_request_is_a_value() -> None:
    """Two requests with the same parts are the same request."""
    assert Request("GET", "http://127.0.0.1/") == Request("GET", "http://127.0.0.1/", {}, b"")


def test_the_systems_clock_tells_both_times() -> None:
    """Wall time is the system's, and monotonic time does not go back."""
    clock: Clock = SystemClock()
    assert clock.now() == pytest.approx(time.time(), abs=60)
    assert clock.monotonic() <= clock.monotonic()


def test_the_fake_clock_moves_only_when_told() -> None:
    """Advancing moves both times; jumping moves wall time alone, as a time server does."""
    fake = FakeClock(now=1_000.0, monotonic=5.0)
    clock: Clock = fake
    assert (clock.now(), clock.monotonic()) == (1_000.0, 5.0)
    fake.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (1_002.5, 7.5)
    fake.jump(-500.0)
    assert (clock.now(), clock.monotonic()) == (502.5, 7.5)

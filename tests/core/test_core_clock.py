"""The machine's own clock."""

from __future__ import annotations

import time

from edgestill.core.clock import SystemClock


def test_the_system_clock_tells_both_times() -> None:
    """Wall time lies between two readings of the machine's, and the other time never goes back."""
    clock, before = SystemClock(), time.time()
    assert before <= clock.now() <= time.time()
    readings = [clock.monotonic() for _ in range(100)]
    assert readings == sorted(readings)

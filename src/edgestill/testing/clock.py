"""A clock that moves only when told."""

from __future__ import annotations

from typing import final


@final
class FakeClock:
    """A `core.protocols.Clock` for tests.

    Args:
        now: wall time in seconds since 1970.
        monotonic: the other time, in seconds.
    """

    def __init__(self, now: float = 1_800_000_000.0, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic

    def now(self) -> float:
        """Wall time in seconds since 1970."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Lets both times pass."""
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Sets wall time forward or back, as a time server or a flat battery does."""
        self._now += seconds

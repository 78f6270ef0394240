"""Waking polls that wait: one bell for each device, rung when its assignment changes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@final
class Bell:
    """Who waits for which device. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def listening(self, device: str) -> Iterator[asyncio.Event]:
        """An event that is set by the next ring. Listen first, look then: no ring is missed."""
        event = asyncio.Event()
        self._waiting.setdefault(device, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[device].discard(event)
            if not self._waiting[device]:
                del self._waiting[device]

    def ring(self, devices: Iterable[str]) -> None:
        """Wakes whoever waits for one of these devices."""
        for device in devices:
            for event in self._waiting.get(device, ()):
                event.set()

    def ring_all(self) -> None:
        """Wakes everybody."""
        self.ring(list(self._waiting))

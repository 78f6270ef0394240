"""The machine's own clock: the one place where places get the time that tools are handed."""

from __future__ import annotations

import time
from typing import final


@final
class SystemClock:
    """The `core.protocols.Clock` of this machine."""

    def now(self) -> float:
        """Wall time in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()

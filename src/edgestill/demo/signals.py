"""Signals that wait until what was begun is known."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_put_off() -> Iterator[None]:
    """Lets Ctrl-C and its like take effect at the end: a process that was started must be known before they do."""
    came: list[int] = []
    before: dict[signal.Signals, object] = {}
    try:
        for number in _ENDING:
            before[number] = signal.signal(number, lambda one, _: came.append(one))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal.signal` gave
        for one in came:
            signal.raise_signal(one)

"""How hub and device write their logs: to standard error, one event a line, in one form.

    2026-01-31 12:00:00,000 INFO edgestill.hub.control: device camera-1 has enrolled

- INFO is what an operator would want to know afterwards: what was accepted, what was released, and what became of it.
- WARNING is what was refused or went wrong, with its code and reason. DEBUG is every single exchange.
- No secret is ever told to a log, and no stranger's text can pass for a line of its own or reach a terminal's controls.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from edgestill.core.jsonio import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_DEFAULT: Final = "INFO"


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name that the library calls
        return plain(super().formatMessage(record))


def begin(level: str = _DEFAULT, *, chatty: Sequence[str] = ()) -> None:
    """Begins the log of this process.

    Args:
        level: the least that is written: DEBUG, INFO, WARNING, ERROR; INFO for any other word.
        chatty: loggers of libraries, of whom only warnings are wanted.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(FORMAT))
    wanted = level.upper()
    logging.basicConfig(
        level=wanted if wanted in logging.getLevelNamesMapping() else _DEFAULT, handlers=[handler]
    )
    for name in chatty:
        logging.getLogger(name).setLevel(logging.WARNING)

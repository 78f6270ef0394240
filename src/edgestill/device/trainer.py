"""The process that trains, as the agent sees it: started on one bundle, told to end, and asked what it took (`device.oneword`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import EdgestillError
from edgestill.core.jsonio import Fields
from edgestill.device.oneword import OneWord

if TYPE_CHECKING:
    from pathlib import Path

_MOST_TEXT: Final = 2000


@final
class TrainerProcess:
    """A running one.

    Args:
        child: started by `start`.
    """

    def __init__(self, child: OneWord) -> None:
        self._child = child
        self._cpu_seconds = 0.0
        self._failure = ""

    @classmethod
    def start(cls, home: Path, archive: Path, seconds: float) -> Self:
        """Starts a child on a bundle's archive, for at most so many seconds.

        Raises:
            EngineError: the process cannot be started.
        """
        options = ["--home", str(home), "--archive", str(archive), "--seconds", f"{seconds:g}"]
        return cls(OneWord.start("trainer_child", options))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself within so many seconds."""
        return self._child.wait(seconds)

    def stop(self) -> None:
        """Ends it, and reads what it said."""
        self._child.stop()
        self._failure = self._child.failure
        if self._child.said is None:
            return
        try:
            fields = Fields(self._child.said.header, "trainer")
            self._cpu_seconds = fields.number("cpu_seconds", least=0, most=1e9)
            if fields.has("failure"):
                self._failure = fields.text("failure", at_most=_MOST_TEXT)
        except EdgestillError as error:
            self._failure = str(error)

    @property
    def cpu_seconds(self) -> float:
        """That it took, by its own word; known once it was stopped."""
        return self._cpu_seconds

    @property
    def failure(self) -> str:
        """Why it failed; empty where it did not. Known likewise."""
        return self._failure

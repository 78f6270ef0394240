"""The process that answers a proxy set, as the agent sees it: started on a bundle and a set, and asked for a ballot (`device.oneword`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import EdgestillError
from edgestill.core.jsonio import Fields
from edgestill.device.frames import Bounds
from edgestill.device.oneword import OneWord
from edgestill.device.stopwatch import memory

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.digest import Digest

MAX_BALLOT: Final = 32_768
"""As `learn.votes.MAX_BYTES`, which would load numpy."""
CPU_SECONDS: Final = 3600
_SAID: Final = Bounds(header=64_000, body=MAX_BALLOT)
_MOST_TEXT: Final = 2000


@dataclass(frozen=True, slots=True)
class Voted:
    """A ballot, and on how many samples it does not abstain."""

    ballot: bytes
    votes: int


@dataclass(frozen=True, slots=True)
class NotYet:
    """It may vote later, and why not now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """This bundle cannot vote on this set, or must not, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The process ended without an answer, or with one that is none."""

    reason: str


Answer = Voted | NotYet | Refused | Broken


@final
class Voter:
    """A running one.

    Args:
        child: started by `start`.
    """

    def __init__(self, child: OneWord) -> None:
        self._child = child

    @classmethod
    def start(cls, home: Path, archive: Path, proxy: Path, digest: Digest) -> Self:
        """Starts a child on a bundle's archive and a proxy set, whose digest the publisher lists.

        Raises:
            EngineError: the process cannot be started.
        """
        options = ["--home", str(home), "--archive", str(archive), "--proxy", str(proxy)]
        options += ["--digest", digest.hex, "--memory", str(memory()), "--seconds", str(CPU_SECONDS)]
        return cls(OneWord.start("voting_child", options, within=_SAID))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def wait(self, seconds: float) -> bool:
        """Whether it answered or ended within so many seconds."""
        return self._child.wait(seconds)

    def stop(self) -> None:
        """Ends it."""
        self._child.stop()

    @property
    def answer(self) -> Answer:
        """What it said, once it was stopped; bounded as if a stranger said it."""
        said = self._child.said
        if said is None:
            return Broken(self._child.failure)
        try:
            fields = Fields(said.header, "voter")
            match fields.text("op"):
                case "voted":
                    tensor = said.tensor("ballot")
                    if tensor is None or tensor.datatype != "UINT8":
                        return Broken("it named no ballot")
                    return Voted(bytes(tensor.data), fields.integer("votes"))
                case "not-yet":
                    return NotYet(fields.text("reason", at_most=_MOST_TEXT))
                case "broken":
                    return Broken(fields.text("reason", at_most=_MOST_TEXT))
                case "refused":
                    return Refused(fields.text("reason", at_most=_MOST_TEXT))
                case other:
                    return Broken(f"it said {other!r}")
        except EdgestillError as error:
            return Broken(str(error))

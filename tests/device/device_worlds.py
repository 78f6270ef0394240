"""What the tests of the device share: targets, a fleet of one, a disk that fails where it is told to."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest.mock import patch

from edgestill.core.digest import Digest
from edgestill.device.agent import Agent
from edgestill.device.events import (
    Clear,
    Confirm,
    Download,
    EngineDied,
    EngineReady,
    Probe,
    Serve,
    Stage,
    Verify,
    Watched,
)
from edgestill.device.machine import Rules
from edgestill.device.outbox import Outbox
from edgestill.device.slots import Slots, SyncedDisk, holds
from edgestill.device.state import Target
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.device.events import Effect, Event

CLASS = "x86_64-vnni-onnxruntime"


def archive_of(number: int) -> bytes:
    """The bytes of the archive of version `number`."""
    return f"bundle {number}".encode() * 50


def target(number: int) -> Target:
    """The target `watch/1.0.NUMBER`."""
    data = archive_of(number)
    return Target(name=f"watch/1.0.{number}/{CLASS}.esb", digest=Digest.of(data), size=len(data))


class Killed(BaseException):
    """The power failed: nothing of ours may catch it."""


@dataclass
class FaultyDisk:
    """A disk that counts its operations and fails at one of them.

    Attributes:
        at: number of the operation that fails; None never.
        fault: `before` or `after`: the power fails there; `torn`: the file holds half of the bytes when it does (a
            disk that lies about fsync); `ENOSPC` or `EIO`: the kernel refuses to sync what is written, or to remove.
        lasting: whether a refusal lasts for all operations to come.
    """

    at: int | None = None
    fault: str = "before"
    lasting: bool = False
    operations: list[str] = field(default_factory=list)

    def write(self, path: Path, data: bytes) -> None:
        """Replaces a file, or fails."""
        self._act(f"write {path.name}", lambda: SyncedDisk().write(path, data), path, data)

    def remove(self, path: Path) -> None:
        """Removes a file, or fails."""
        self._act(f"remove {path.suffix or path.name}", lambda: SyncedDisk().remove(path), None, b"")

    def _act(self, name: str, act: Callable[[], None], path: Path | None, data: bytes) -> None:
        number = len(self.operations)
        self.operations.append(name)
        hit = self.at is not None and (number == self.at or (self.lasting and number > self.at))
        if not hit:
            act()
        elif self.fault in {"ENOSPC", "EIO"}:
            number = getattr(errno, self.fault)
            calls = ("pathlib.Path.unlink", "shutil.rmtree") if path is None else ("os.fsync",)
            with ExitStack() as refusing:
                for call in calls:
                    refusing.enter_context(patch(call, side_effect=OSError(number, os.strerror(number))))
                act()
            raise AssertionError(f"{name} was not refused")
        else:
            if self.fault == "after":
                act()
            if self.fault == "torn" and path is not None:
                path.write_bytes(data[: len(data) // 2])
            raise Killed(name)


class World:
    """One device on a real folder, with engines and downloads that do what they are told.

    Args:
        folder: of the device.
        disk: that its slots write to.
    """

    rules = Rules(window=10, max_boots=2, max_deaths=2)

    def __init__(self, folder: Path, disk: FaultyDisk | None = None) -> None:
        self.clock = FakeClock()
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.slots = Slots.open(folder / "slots", disk=disk or FaultyDisk())
        self.outbox = Outbox.open(folder / "outbox.db")
        self.agent = Agent(
            device="d1", slots=self.slots, outbox=self.outbox, clock=self.clock, rules=self.rules
        )
        self.serving: Target | None = None
        self.bad: set[Digest] = set()
        self.done: list[str] = []
        self.kill_at: tuple[int, str] | None = None

    def close(self) -> None:
        """Lets go of the files, as a kill does."""
        self.outbox.close()

    def let(self, event: Event) -> None:
        """An event, and all that follows from it."""
        events = [event]
        while events:
            for effect in self.agent.handle(events.pop(0)):
                after = self._perform(effect)
                if after is not None:
                    events.append(after)

    def watch(self, seconds: float = 20) -> None:
        """The active slot serves well for a while."""
        active = self.agent.state.active
        assert active is not None
        self.let(Watched(active, seconds, 10, 0))

    def told(self) -> list[str]:
        """What waits in the outbox, as `release state`."""
        return [f"{one.release} {one.state}" for one in self.outbox.waiting()]

    def _perform(self, effect: Effect) -> Event | None:
        name = type(effect).__name__
        number = len(self.done)
        self.done.append(name)
        if self.kill_at == (number, "before"):
            raise Killed(name)
        event = self._do(effect)
        if self.kill_at == (number, "after"):
            raise Killed(name)
        return event

    def _do(self, effect: Effect) -> Event | None:
        from edgestill.device.installer import Installer

        if isinstance(effect, Serve):
            return self._serve(effect)
        if isinstance(effect, Download | Stage | Probe | Clear | Confirm):
            installer = Installer(self.slots, fetch=self._fetch, probe=lambda *_: None, hardware_class=CLASS)
            return installer.perform(effect)
        if isinstance(effect, Verify):
            from edgestill.device.events import Failed, Verified

            whole = holds(self.slots.archive(effect.slot, effect.target), effect.target)
            return Verified(effect.target.digest) if whole else Failed(effect.target.digest, "damaged")
        raise AssertionError(effect)

    def _serve(self, effect: Serve) -> Event:
        """An engine comes up where the slot holds a whole bundle that is not one of the bad ones."""
        held = self.agent.state.held(effect.slot)
        if held is None or held.digest in self.bad or not holds(self.slots.archive(effect.slot, held), held):
            return EngineDied(effect.slot, "it does not load")
        self.serving = held
        return EngineReady(effect.slot)

    def _fetch(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        """Writes the archive as a download does: a part, then the whole under its name."""
        number = int(target.name.split("/")[1].rpartition(".")[2])
        part = to.with_name(to.name + ".part")
        part.write_bytes(archive_of(number)[:20])
        self.slots.disk.write(to, archive_of(number))
        part.unlink()

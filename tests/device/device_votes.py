"""A device with turns at voting on a real folder, a hub in memory, and a process that says what the test says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from device_bundles import LABELS, batches

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.proxyset import ProxySet
from edgestill.core.release import proxy_name
from edgestill.device.jobs import Job
from edgestill.device.outbox import Outbox
from edgestill.device.quiet import Patience, Quiet
from edgestill.device.voter import Voted
from edgestill.device.voting import Voting
from edgestill.learn.proxysets import pack, question_of
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.device.voter import Answer
    from edgestill.learn.votes import Question

TARGET = proxy_name("tiny", "1.0.0")
SAMPLES = batches(40, 12)
HOUR = 3600.0


def proxy_set(samples: Any = SAMPLES, labels: Sequence[str] = LABELS, version: str = "1.0.0") -> bytes:
    """An archive of these samples."""
    return pack(np.asarray(samples), name="tiny", version=version, labels=labels)


ARCHIVE = proxy_set()


def asked(folder: Path, archive: bytes = ARCHIVE) -> Question:
    """The question about an archive."""
    path = folder / "asked.esp"
    path.write_bytes(archive)
    return question_of(Digest.of(archive), ProxySet.open(path).head)


class Hub:
    """What a hub serves, and how often it is away."""

    def __init__(self) -> None:
        self.archives = {Digest.of(ARCHIVE): ARCHIVE}
        self.fetched = 0
        self.trouble: Exception | None = None
        self.meanwhile: list[Callable[[], None]] = []

    def fetch_archive(self, job: Job, *, to: Path, goes_on: Callable[[], bool]) -> bool:
        """Writes the archive as a download does: a part, then the whole under its name."""
        self.fetched += 1
        if self.trouble is not None:
            raise self.trouble
        part = to.with_name(f"{to.name}.part")
        part.write_bytes(self.archives[job.digest][:700])
        if self.meanwhile:
            self.meanwhile.pop(0)()
        if not goes_on():
            return False
        bundle.replace(to, self.archives[job.digest])
        part.unlink()
        return True


class Process:
    """Answers without a process, at the second look."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._looks = 0
        self.is_stopped = False

    def wait(self, seconds: float) -> bool:
        """Whether it has answered."""
        self._looks += 1
        self._device.clock.advance(max(seconds, self._device.takes))
        if self._device.meanwhile:
            self._device.meanwhile.pop(0)()
        return self._looks > 1

    def stop(self) -> None:
        """It is gone."""
        self.is_stopped = True

    @property
    def answer(self) -> Answer:
        """What the test says."""
        assert self.is_stopped, "it was asked before its end"
        return self._device.answers.pop(0) if self._device.answers else Voted(b"a ballot", 7)


class Device:
    """A device on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.hub, self.clock = Hub(), FakeClock()
        self.serving: Path | None = Path("1.esb")
        self.answers: list[Answer] = []
        self.meanwhile: list[Callable[[], None]] = []
        self.takes = 0.0
        self.started: list[Process] = []
        self.quiet = Quiet(self.clock, Patience(60, 1))
        self.outbox = Outbox.open(folder / "outbox.db")
        self.voting = self._opened()
        self.clock.advance(61)

    def _opened(self, **changes: Any) -> Voting:
        given: dict[str, Any] = {"line": self.hub, "outbox": self.outbox, "quiet": self.quiet}
        given |= {"clock": self.clock, "serving": lambda: self.serving, "start": self._start}
        return Voting(self.folder / "votes", **(given | changes)).open()

    def _start(self, serving: Path, proxy: Path, digest: Digest) -> Process:
        assert serving == self.serving
        assert Digest.of(proxy.read_bytes()) == digest
        self.started.append(Process(self))
        return self.started[-1]

    def opened_again(self, **changes: Any) -> None:
        """The agent starts anew."""
        self.outbox.close()
        self.outbox = Outbox.open(self.folder / "outbox.db")
        self.voting = self._opened(**changes)

    def run(self, most: int = 100) -> float | None:
        """Does what can be done now; how long it would wait then."""
        for _ in range(most):
            if (pause := self.voting.advance()) is None or pause > 0:
                return pause
        raise AssertionError("it does not come to rest")

    def files(self) -> list[str]:
        """What lies in the folder."""
        return sorted(one.name for one in (self.folder / "votes").iterdir())

    def waiting(self) -> list[tuple[int, bytes]]:
        """Ballots in the outbox, which are taken out."""
        found = []
        while (one := self.outbox.ballot()) is not None:
            found.append((one.round, one.body))
            self.outbox.ballot_delivered(one.id)
        return found


def job(place: int = 1, archive: bytes = ARCHIVE, **changes: Any) -> Job:
    """A turn on this archive, that holds for some days."""
    now = FakeClock().now()
    one = Job(
        place=place, target=TARGET, digest=Digest.of(archive), size=len(archive), expires=now + 100 * HOUR
    )
    return replace(one, **changes)

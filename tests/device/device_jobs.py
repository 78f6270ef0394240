"""A device with timing jobs on a real folder, a hub in memory, and a stopwatch that does what the test says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device_bundles import HERE, model
from device_families import TARGET, family

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.device.jobs import Job
from edgestill.device.measuring import Measuring
from edgestill.device.quiet import Patience, Quiet
from edgestill.device.stopwatch import Broken, LeftOut, Round
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.timing import TimingReport

MODELS = 3
ARCHIVE = family(*[model(at) for at in range(MODELS)])
HOUR = 3600.0


class Hub:
    """What a hub serves and hears, and how often it is away."""

    def __init__(self) -> None:
        self.archives = {Digest.of(ARCHIVE): ARCHIVE}
        self.told: dict[str, TimingReport] = {}
        self.heard: list[TimingReport] = []
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

    def tell_timing(self, report: TimingReport) -> None:
        """Takes it, once."""
        if self.trouble is not None:
            raise self.trouble
        self.heard.append(report)
        self.told.setdefault(report.id, report)

    @property
    def states(self) -> list[str]:
        """What was told, each step once."""
        return [one.state for one in self.told.values()]


class Watch:
    """Times without a process: every round takes as long as the test says."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.is_ended = False

    def round_of(self, at: int, *, goes_on: Callable[[], bool]) -> Round | LeftOut | Broken | None:
        """The next round."""
        assert not self.is_ended, "it was asked after its end"
        device = self._device
        device.rounds.append(at)
        device.clock.advance(device.takes)
        if device.meanwhile:
            device.meanwhile.pop(0)()
        if not goes_on():
            return None
        return device.answers.get(at, Round(0.001 * (at + 1), 0.002 * (at + 1)))

    def end(self) -> None:
        """It is gone."""
        self.is_ended = True


class Device:
    """A device on a folder."""

    def __init__(self, folder: Path, hub: Hub | None = None, clock: FakeClock | None = None) -> None:
        self.folder = folder
        self.hub = hub or Hub()
        self.clock = clock or FakeClock()
        self.answers: dict[int, Round | LeftOut | Broken] = {}
        self.rounds: list[int] = []
        self.meanwhile: list[Callable[[], None]] = []
        self.takes = 0.01
        self.watches: list[Watch] = []
        self.quiet = Quiet(self.clock, Patience(60, 1))
        self.measuring = self._opened()
        self.clock.advance(61)

    def _opened(self, **changes: Any) -> Measuring:
        given: dict[str, Any] = {"hardware_class": HERE, "line": self.hub, "quiet": self.quiet}
        given |= {"clock": self.clock, "start": self._start}
        return Measuring(self.folder, **(given | changes)).open()

    def _start(self, archive: Path) -> Watch:
        assert archive.read_bytes() in self.hub.archives.values()
        self.watches.append(Watch(self))
        return self.watches[-1]

    def opened_again(self, **changes: Any) -> None:
        """The agent starts anew."""
        self.measuring = self._opened(**changes)

    def run(self, most: int = 200) -> float | None:
        """Does what can be done now; how long it would wait then."""
        for _ in range(most):
            if (pause := self.measuring.advance()) is None or pause > 0:
                return pause
        raise AssertionError("it does not come to rest")

    def files(self) -> list[str]:
        """What lies in the folder."""
        return sorted(one.name for one in self.folder.iterdir())


def job(place: int = 1, archive: bytes = ARCHIVE, clock: FakeClock | None = None, **changes: Any) -> Job:
    """A job of this archive, that holds for an hour."""
    now = (clock or FakeClock()).now()
    one = Job(
        place=place, target=TARGET, digest=Digest.of(archive), size=len(archive), expires=now + 100 * HOUR
    )
    return replace(one, **changes)

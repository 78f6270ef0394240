"""Whether a device has nothing better to do, as the supervisor tells it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from device_worlds import World, target

from edgestill.core.errors import UnreachableError
from edgestill.core.wire import Health
from edgestill.device import quiet
from edgestill.device.events import Assigned, Booted
from edgestill.device.frames import Frame
from edgestill.device.installer import Installer
from edgestill.device.quiet import CLOSELY, Patience, Quiet
from edgestill.device.supervisor import Pace, Supervisor
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACE = Pace(poll=1, health=15, watch=5)


class Hub:
    """One that is away."""

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """Nothing."""
        raise UnreachableError("offline")

    def forget(self) -> None:
        """Nothing to forget."""

    def deliver(self, outbox: object) -> bool:
        """Nothing."""
        raise UnreachableError("offline")


class Child:
    """An engine child that serves."""

    def __init__(self) -> None:
        self.slot, self.target, self.left_at = "a", target(1), None


class Engines:
    """Children, of which one serves where the test says so."""

    def __init__(self) -> None:
        self.serving: Child | None = Child()
        self.asked: list[float] = []

    def answered(self, _: object) -> float:
        """The seconds that the figures cover."""
        return 5.0

    def tick(self, pause: float) -> None:
        """Remembers how often figures are asked for."""
        self.asked.append(pause)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A device that serves version 1."""
    made = World(tmp_path / "home")
    made.let(Booted())
    made.let(Assigned(1, target(1)))
    made.watch()
    yield made
    made.close()


@pytest.fixture
def calm(world: World) -> Quiet:
    """Quiet for a minute already."""
    made = Quiet(world.clock, Patience(60, 1))
    world.clock.advance(60)
    return made


@pytest.fixture
def supervisor(world: World, calm: Quiet, tmp_path: Path) -> Supervisor:
    """Of the device, which is not running."""
    installer = Installer(
        world.slots, fetch=lambda *_, **__: None, probe=lambda *_: None, hardware_class="any"
    )
    return Supervisor(
        tmp_path / "home",
        agent=world.agent,
        slots=world.slots,
        outbox=world.outbox,
        installer=installer,
        hub=Hub(),
        clock=world.clock,
        quiet=calm,
    )


def test_quiet_comes_some_time_after_the_last_disturbance() -> None:
    """Not from the start on: who knows what was before."""
    clock = FakeClock()
    one = Quiet(clock, Patience(60, 1))
    assert not one.is_quiet
    clock.advance(60)
    assert one.is_quiet
    one.disturb()
    assert not one.may_begin


@pytest.mark.parametrize(
    ("load", "patience", "may"), [(0.4, 0.5, True), (0.6, 0.5, False), (9.0, 1.0, True), (0.0, 0.0, True)]
)
def test_a_busy_machine_lets_nothing_begin(
    monkeypatch: pytest.MonkeyPatch, load: float, patience: float, may: bool
) -> None:
    """But what has begun goes on; a patience of 1 looks at no load."""
    clock = FakeClock()
    one = Quiet(clock, Patience(0, patience))
    monkeypatch.setattr(quiet, "load", lambda: load)
    assert (one.may_begin, one.is_quiet) == (may, True)


def test_a_system_that_tells_no_load_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does, it is that of one processor."""
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert quiet.load() == 0.75

    def untold() -> None:
        raise OSError

    monkeypatch.setattr("os.getloadavg", untold)
    assert quiet.load() == 0


@pytest.mark.parametrize(("figures", "stays"), [({}, True), ({"answers": 1}, False), ({"errors": 1}, False)])
def test_answers_disturb(supervisor: Supervisor, calm: Quiet, figures: dict[str, Any], stays: bool) -> None:
    """Given or failed; figures of none do not."""
    frame = Frame({"op": "collected", "health": asdict(Health(**figures))})
    supervisor._collected(Engines(), Child(), frame)  # type: ignore[arg-type]  # all it looks at
    assert calm.is_quiet == stays


def test_an_engine_that_is_not_up_disturbs(supervisor: Supervisor, calm: Quiet) -> None:
    """It restarts, and has the processor to itself."""
    engines = Engines()
    supervisor._tick(engines, PACE)  # type: ignore[arg-type]  # all it looks at
    assert calm.is_quiet
    engines.serving = None
    supervisor._tick(engines, PACE)  # type: ignore[arg-type]  # as above
    assert not calm.is_quiet


def test_an_installation_disturbs(supervisor: Supervisor, calm: Quiet, world: World) -> None:
    """From its assignment on until its trial is over."""
    world.agent.handle(Assigned(2, target(2)))
    supervisor._tick(Engines(), PACE)  # type: ignore[arg-type]  # as above
    assert (calm.is_installing, calm.is_quiet) == (True, False)


def test_figures_are_asked_for_more_often_while_something_is_timed(
    supervisor: Supervisor, calm: Quiet
) -> None:
    """So that a question is noticed soon; a pace that is faster already stays."""
    engines = Engines()
    for timing in (False, True):
        calm.is_timing = timing
        supervisor._tick(engines, PACE)  # type: ignore[arg-type]  # as above
    supervisor._tick(engines, Pace(poll=1, health=0.5, watch=0.5))  # type: ignore[arg-type]  # as above
    assert engines.asked == [15, CLOSELY, 0.5]

"""A device trains in idle hours only, for no more than its owner allows, and stops when it is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgestill.core.errors import SettingError, UnitError
from edgestill.device.coach import LOOK, MOST_FAILURES, SPELL, Coach
from edgestill.device.effort import Effort
from edgestill.device.quiet import Patience, Quiet
from edgestill.device.sensors import Sensors
from edgestill.testing.clock import FakeClock

ARCHIVE = Path("a.esb")
EFFORT = Effort(seconds_per_day=100.0, idle_seconds=30.0, only_on_mains=False)


@dataclass
class FakeSpell:
    """Works for so many seconds of the fake clock, unless it is stopped."""

    clock: FakeClock
    lasts: float = 1000.0
    failure: str = ""
    cpu_seconds: float = 0.0
    stopped: bool = False

    def wait(self, seconds: float) -> bool:
        """Time passes."""
        self.clock.advance(seconds)
        self.lasts -= seconds
        self.cpu_seconds += seconds / 2
        return self.lasts <= 0

    def stop(self) -> None:
        """It ends."""
        self.stopped = True


@dataclass
class World:
    """A device whose time is told."""

    folder: Path
    effort: Effort = EFFORT
    archive: Path | None = ARCHIVE
    clock: FakeClock = field(default_factory=FakeClock)
    spells: list[FakeSpell] = field(default_factory=list)
    lasts: float = 1000.0
    failure: str = ""

    def __post_init__(self) -> None:
        self.quiet = Quiet(self.clock, Patience(seconds=30))
        self.coach = self.another()

    def another(self) -> Coach:
        """As after a restart of the agent."""
        return Coach(
            self.folder / "training.json",
            effort=self.effort,
            quiet=self.quiet,
            sensors=Sensors(self.clock, root=self.folder, cores=1),
            clock=self.clock,
            archive=lambda: self.archive,
            start=self.start,
        )

    def start(self, archive: Path, seconds: float) -> FakeSpell:
        """A spell begins."""
        assert archive == self.archive
        assert 0 < seconds <= SPELL
        assert self.quiet.is_training
        self.spells.append(FakeSpell(self.clock, self.lasts, self.failure))
        return self.spells[-1]


def test_it_waits_until_the_device_has_been_idle(tmp_path: Path) -> None:
    """And then works for a spell, which it ends itself."""
    world = World(tmp_path)
    world.coach.advance()
    assert not world.spells
    world.clock.advance(31)
    assert world.coach.advance() == LOOK
    (spell,) = world.spells
    assert spell.stopped
    assert spell.cpu_seconds == pytest.approx(SPELL / 2)
    assert not world.quiet.is_training


def test_a_question_ends_a_spell_at_once(tmp_path: Path) -> None:
    """Within the time between two glances."""
    world = World(tmp_path)
    world.clock.advance(31)
    wait = FakeSpell.wait

    def asked(self: FakeSpell, seconds: float) -> bool:
        if self.cpu_seconds > 1:
            world.quiet.disturb()
        return wait(self, seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeSpell, "wait", asked)
        world.coach.advance()
    (spell,) = world.spells
    assert spell.stopped
    assert spell.cpu_seconds < 2


def test_an_installation_or_a_timing_job_comes_first(tmp_path: Path) -> None:
    """Neither is disturbed by training, nor a device on which nothing is confirmed."""
    world = World(tmp_path)
    world.clock.advance(31)
    for name in ("is_installing", "is_timing"):
        setattr(world.quiet, name, True)
        world.coach.advance()
        setattr(world.quiet, name, False)
    world.archive = None
    world.coach.advance()
    assert not world.spells
    world.archive = ARCHIVE
    world.coach.advance()
    assert len(world.spells) == 1


def test_a_timing_job_does_not_begin_while_training_runs(tmp_path: Path) -> None:
    """What it would measure is the training."""
    world = World(tmp_path)
    world.clock.advance(31)
    world.quiet.is_training = True
    assert world.quiet.is_quiet
    assert not world.quiet.may_begin
    assert world.quiet.is_watched


def test_no_more_than_a_day_allows_over_restarts(tmp_path: Path) -> None:
    """What a spell took is written down when it ends; the next day there is more."""
    world = World(tmp_path)
    world.clock.advance(31)
    for _ in range(5):
        world.coach.advance()
        world.coach = world.another()
    assert sum(spell.cpu_seconds for spell in world.spells) * 2 == pytest.approx(100, abs=1)
    assert len(world.spells) == 2
    world.clock.advance(86_400)
    world.coach.advance()
    assert len(world.spells) == 3


def test_a_bundle_that_cannot_be_trained_is_left_alone(tmp_path: Path) -> None:
    """After a few spells that failed; another bundle is tried."""
    world = World(tmp_path, lasts=1.0, failure="no rule for it")
    world.clock.advance(31)
    for _ in range(10):
        world.coach.advance()
    assert len(world.spells) == MOST_FAILURES
    world.archive = Path("b.esb")
    world.coach.advance()
    assert len(world.spells) == MOST_FAILURES + 1


def test_a_damaged_record_costs_no_more_than_a_day(tmp_path: Path) -> None:
    """It counts as nothing spent."""
    (tmp_path / "training.json").write_bytes(b"{")
    world = World(tmp_path)
    world.clock.advance(31)
    world.coach.advance()
    assert len(world.spells) == 1


def test_an_owner_writes_what_training_may_cost() -> None:
    """In words; what is left out is as usual."""
    found = Effort.parse(
        "time=45min, idle=2min, core=25%, mains=no, hours=22-6, celsius=70, battery=40%, load=1.5, joules=900"
    )
    assert found == Effort(
        seconds_per_day=2700.0,
        idle_seconds=120.0,
        core_share=0.25,
        only_on_mains=False,
        hours=(22.0, 6.0),
        highest_celsius=70.0,
        lowest_battery=0.4,
        highest_load=1.5,
        joules_per_day=900.0,
    )
    assert Effort.parse("") == Effort()


@pytest.mark.parametrize(
    "text", ["time", "speed=3", "mains=maybe", "hours=3", "celsius=hot", "core=0%", "celsius=nan"]
)
def test_words_that_mean_nothing_are_refused(text: str) -> None:
    """With those that do."""
    with pytest.raises((SettingError, UnitError)):
        Effort.parse(text)

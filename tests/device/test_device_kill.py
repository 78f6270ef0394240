"""Kill the device anywhere: a slot that serves is always left, and no report is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from device_crashes import (
    GOOD,
    bad_update,
    cases,
    disturbed,
    finish,
    killed_at_effects,
    survive,
    update,
    with_first,
)
from device_worlds import FaultyDisk, World, target

from edgestill.device.events import Assigned, Booted, EngineDied

if TYPE_CHECKING:
    from pathlib import Path

    from device_crashes import Story


@pytest.mark.parametrize("story", [update, bad_update])
def test_a_fault_at_any_disk_operation_leaves_a_slot_that_serves(story: Story, tmp_path: Path) -> None:
    """Power failing before, after or within a write, and a write refused: the next start serves and comes to the end."""
    for at, fault in cases(story, tmp_path):
        folder = tmp_path / f"{at}-{fault}"
        world = disturbed(story, folder, at, fault)
        after = survive(folder, world)
        told = finish(after)
        end = after.agent.state.serving
        if story is update:
            assert end == target(2), (at, fault)
            assert told[-1:] == GOOD[-1:] or "watch/1.0.2 confirmed" in told, (at, fault, told)
        else:
            assert end == target(1), (at, fault)
            assert "watch/1.0.2 fell-back" in told, (at, fault, told)
        assert len(told) == len(set(told)), "a report counts once"


def test_a_kill_at_any_effect_loses_no_report(tmp_path: Path) -> None:
    """Every step of the update is reported exactly once, wherever the process was killed."""
    killed = 0
    for world, where in killed_at_effects(update, tmp_path):
        killed += 1
        assert sorted(finish(survive(world.folder, world))) == sorted(GOOD), where
    assert killed > 10


@pytest.mark.parametrize("at", range(12))
def test_a_disk_that_refuses_everything_from_some_moment_on_stops_no_answers(at: int, tmp_path: Path) -> None:
    """A full disk keeps the device from going forward, never from serving or falling back."""
    with_first(tmp_path / "home")
    world = World(tmp_path / "home", FaultyDisk(at, "ENOSPC", lasting=True))
    bad_update(world)
    assert world.agent.state.serving == target(1)
    assert world.serving == target(1)
    assert survive(tmp_path / "home", world).serving == target(1)


@pytest.mark.parametrize("damage", ["gone", "torn", "nonsense", "other"])
@pytest.mark.parametrize("what", ["state.json", "b/slot.json", "archive"])
def test_damage_to_the_active_slot_leads_to_the_other(what: str, damage: str, tmp_path: Path) -> None:
    """Flash rots: whatever single file is lost, a whole bundle serves."""
    folder = tmp_path / "home"
    with_first(folder)
    world = World(folder)
    update(world)
    assert world.agent.state.active == "b"
    path = world.slots.archive("b", target(2)) if what == "archive" else folder / "slots" / what
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"torn": data[: len(data) // 2], "nonsense": b"\0" * 64, "other": b"{}"}[damage])
    after = survive(folder, world)
    assert after.serving == (target(2) if what == "state.json" else target(1))
    if what != "state.json":
        assert finish(after)
        assert after.agent.state.serving == target(2), "the assignment that still stands heals the device"


def test_losing_both_slots_and_the_state_starts_from_nothing(tmp_path: Path) -> None:
    """With nothing left the device waits for an assignment instead of failing."""
    folder = tmp_path / "home"
    with_first(folder)
    for path in [*folder.glob("slots/*.json"), *folder.glob("slots/*/*")]:
        path.unlink()
    world = World(folder)
    world.let(Booted())
    assert world.agent.state.active is None
    world.let(Assigned(1, target(1)))
    assert world.serving == target(1)
    world.close()


def test_an_engine_that_dies_for_ever_ends_on_the_good_slot(tmp_path: Path) -> None:
    """A confirmed bundle that goes bad later gives way, once, and is not installed again by the same assignment."""
    folder = tmp_path / "home"
    with_first(folder)
    world = World(folder)
    update(world)
    world.bad.add(target(2).digest)
    world.let(EngineDied("b", "bad memory"))
    assert world.serving == target(1)
    world.let(Assigned(2, target(2)))
    assert world.agent.state.serving == target(1)
    world.close()

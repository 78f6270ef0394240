"""Kill the device anywhere: a slot that serves is always left, and no report is lost."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from device_worlds import FaultyDisk, Killed, World, target

from edgestill.device.events import Assigned, Booted, EngineDied, Retried

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = [
    "watch/1.0.2 downloaded",
    "watch/1.0.2 verified",
    "watch/1.0.2 staged",
    "watch/1.0.2 serving",
    "watch/1.0.2 confirmed",
]


def with_first(folder: Path) -> None:
    """A device that serves version 1, confirmed, and has nothing to report."""
    kept = folder.parent / "first"
    if kept.exists():
        shutil.copytree(kept, folder)
        return
    world = World(kept)
    world.let(Booted())
    world.let(Assigned(1, target(1)))
    world.watch()
    world.outbox.delivered(report.id for report in world.outbox.waiting())
    world.close()
    shutil.copytree(kept, folder)


def update(world: World) -> None:
    """Version 2 is assigned, installed and confirmed."""
    world.let(Booted())
    world.let(Assigned(2, target(2)))
    world.watch()


def bad_update(world: World) -> None:
    """Version 2 is assigned, but dies whenever it serves."""
    world.bad.add(target(2).digest)
    world.let(Booted())
    world.let(Assigned(2, target(2)))


def operations(folder: Path, story: Callable[[World], None]) -> tuple[list[str], list[str]]:
    """The disk operations and the effects of a story that nothing disturbs."""
    with_first(folder)
    disk = FaultyDisk()
    world = World(folder, disk)
    story(world)
    world.close()
    return disk.operations, world.done


def survive(folder: Path, world: World) -> World:
    """What a start after the disturbance finds."""
    world.close()
    after = World(folder)
    after.bad = world.bad
    after.let(Booted())
    assert after.serving in {target(1), target(2)}, "no slot serves after the start"
    assert after.serving == after.agent.state.serving
    return after


def finish(world: World) -> list[str]:
    """Lets the hub repeat its assignment until nothing more happens; all that was ever reported."""
    for _ in range(3):
        world.let(Assigned(2, target(2)))
        world.let(Retried())
        if world.agent.state.phase == "watching":
            world.watch()
    told = world.told()
    world.close()
    return told


def cases(story: Callable[[World], None], tmp_path: Path) -> list[tuple[int, str]]:
    """Every disk operation of a story with every fault."""
    done, _ = operations(tmp_path / "undisturbed", story)
    assert len(done) > 5
    return [(at, fault) for at in range(len(done)) for fault in ("before", "after", "torn", "refused")]


@pytest.mark.parametrize("story", [update, bad_update])
def test_a_fault_at_any_disk_operation_leaves_a_slot_that_serves(
    story: Callable[[World], None], tmp_path: Path
) -> None:
    """Power failing before, after or within a write, and a write refused: the next start serves and comes to the end."""
    for at, fault in cases(story, tmp_path):
        folder = tmp_path / f"{at}-{fault}"
        with_first(folder)
        world = World(folder, FaultyDisk(at, fault))
        try:
            story(world)
        except Killed:
            pass
        else:
            assert world.serving is not None, (at, fault)
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_effect_loses_no_report(when: str, tmp_path: Path) -> None:
    """Every step of the update is reported exactly once, wherever the process was killed."""
    _, effects = operations(tmp_path / "undisturbed", update)
    for number in range(len(effects)):
        folder = tmp_path / f"{number}-{when}"
        with_first(folder)
        world = World(folder)
        world.kill_at = (number, when)
        with pytest.raises(Killed):
            update(world)
        assert sorted(finish(survive(folder, world))) == sorted(GOOD), (number, effects[number])


@pytest.mark.parametrize("at", range(12))
def test_a_disk_that_refuses_everything_from_some_moment_on_stops_no_answers(at: int, tmp_path: Path) -> None:
    """A full disk keeps the device from going forward, never from serving or falling back."""
    with_first(tmp_path / "home")
    world = World(tmp_path / "home", FaultyDisk(at, "refused", lasting=True))
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

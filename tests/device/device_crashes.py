"""What an update does to a device's folder, and what may happen to it meanwhile: shared by tests and the benchmark of delivery."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from device_worlds import FaultyDisk, Killed, World, target

from edgestill.device.events import Assigned, Booted, Retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Story = Callable[[World], None]

FAULTS = ("before", "after", "torn", "ENOSPC", "ENOSPC for good", "EIO")
"""Of a disk operation: the power fails before it, after it or within a write; there is no room, once or until the next start; the disk fails."""
KILLING = frozenset(FAULTS[:3])

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


def operations(folder: Path, story: Story) -> tuple[list[str], list[str]]:
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


def cases(story: Story, tmp_path: Path) -> list[tuple[int, str]]:
    """Every disk operation of a story with every fault of `FAULTS`."""
    done, _ = operations(tmp_path / "undisturbed", story)
    assert len(done) > 5
    return [
        (at, fault)
        for at, name in enumerate(done)
        for fault in FAULTS
        if fault != "torn" or name.startswith("write")  # what is removed has no half
    ]


def disturbed(story: Story, folder: Path, at: int, fault: str) -> World:
    """A device whose disk has failed at one operation of a story: it was killed, or has come to the end that it could."""
    with_first(folder)
    disk = FaultyDisk(at, fault.removesuffix(" for good"), lasting=fault.endswith("for good"))
    world, killed = World(folder, disk), False
    try:
        story(world)
    except Killed:
        killed = True
    assert len(disk.operations) > at, "the fault was never met"
    assert killed == (fault in KILLING)
    if not killed:
        assert world.serving is not None, "a disk that refuses to write has stopped the answers"
    return world


def killed_at_effects(story: Story, tmp_path: Path) -> Iterator[tuple[World, str]]:
    """A device that was killed before or after an effect, for every effect of a story, and which."""
    _, effects = operations(tmp_path / "undisturbed", story)
    for number, effect in enumerate(effects):
        for when in ("before", "after"):
            folder = tmp_path / f"{number}-{when}"
            with_first(folder)
            world = World(folder)
            world.kill_at = (number, when)
            try:
                story(world)
            except Killed:
                yield world, f"{when} {effect}"

"""The crash matrix: an update, disturbed at every disk operation of its slots and at every effect, on real folders.

The worlds are those of the device's tests (`tests/device`): the real machine, slots, outbox and installer; engines and downloads do what they are told.
A model is lost where a disk that refuses stops the answers, where the next start serves none, or where the device does not come to the end that it would
have come to undisturbed. Not disturbed here are the outbox and downloads, which have tests of their own.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "device"))
from device_crashes import FAULTS, bad_update, cases, disturbed, finish, killed_at_effects, survive, update
from device_worlds import World, target

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_crashes import Story

_ENDS = {update: target(2), bad_update: target(1)}
"""Of a good update the new version, of one that dies whenever it serves the old one."""


def measured(*, quick: bool) -> dict[str, Any]:
    """Cases by what was done to the device, and those that lost a model."""
    counts: dict[str, int] = dict.fromkeys((*FAULTS, "kill at an effect"), 0)
    lost: list[str] = []
    for story in (update, bad_update):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for at, fault in cases(story, folder)[:: 7 if quick else 1]:
                counts[fault] += 1
                disturb = partial(disturbed, story, folder / f"{at}-{fault}", at, fault)
                lost += _lost(story, disturb, f"{fault} at operation {at}")
        with tempfile.TemporaryDirectory() as name:
            for world, where in killed_at_effects(story, Path(name)):
                counts["kill at an effect"] += 1
                lost += _lost(story, partial(_same, world), f"killed {where}")
    if not all(counts.values()):
        raise AssertionError(counts)
    return {"cases": counts, "lost": lost}


def _same(world: World) -> World:
    return world


def _lost(story: Story, disturb: Callable[[], World], where: str) -> list[str]:
    try:
        world = disturb()
        after = survive(world.folder, world)
        finish(after)
    except AssertionError as error:
        return [f"{story.__name__}, {where}: {error}"]
    end = after.agent.state.serving
    return [] if end == _ENDS[story] else [f"{story.__name__}, {where}: ends with {end}"]

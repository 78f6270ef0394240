"""A hub that is killed with -9 in the midst of what devices send: what it has acknowledged counts once, and it goes on.

- 40 devices send growing sums of 4 windows and 2 backbones, each from a thread of its own; 10 more are dead (`senders`).
- First without kills, by turns with the dead ones and without them: how long an acknowledgement takes.
- Then the hub's process is killed at random moments, every fourth time while it still starts, and started again at once. A restart takes from
  the kill to the first acknowledgement of a message that was sent after it.
- At the end every device delivers what still waits. The hub's sum of each backbone must be that of every device's newest message of each window, to the
  last bit. Then every message that was ever acknowledged is sent once more under its id: the hub must know it, and its sums must not change.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.hub.refusals import KNOWN
from edgestill.learn.statistics import Statistics
from learning.hubs import HubProcess
from learning.senders import BACKBONES, RETRY, Acks, Dead, Living

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgestill.link.operator import OperatorClient

SEED: Final = 0
LONG: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Attributes:
        living: devices that send.
        dead: devices that do not.
        kills: of the hub.
        turns: with and without the dead ones, of `spell` seconds each.
        calm_pause: seconds between two messages of a device meanwhile, on average: so many that the hub is not busy all the time.
        pause: likewise, while the hub is killed.
        longest: seconds from an acknowledgement to the next kill, at most.
    """

    living: int = 40
    dead: int = 10
    kills: int = 24
    turns: int = 3
    spell: float = 5.0
    calm_pause: float = 2.0
    pause: float = 1.0
    longest: float = 2.5


QUICK: Final = Plan(living=5, dead=3, kills=4, turns=1, spell=1.0, calm_pause=0.1, pause=0.1, longest=0.5)


def measured(_data: Path, folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """What was acknowledged and lost, restarts in seconds, and acknowledgements with and without dead devices."""
    plan = QUICK if quick else Plan()
    place = folder / "killed"
    place.mkdir(parents=True)
    acks, began = Acks(), time.monotonic()
    with HubProcess(place) as hub:
        hub.wait()
        homes = hub.devices(plan.living + plan.dead)
        living = [Living(home, acks, seed) for seed, home in enumerate(homes[: plan.living])]
        dead = [
            Dead(home, Dead.KINDS[number % len(Dead.KINDS)])
            for number, home in enumerate(homes[plan.living :])
        ]
        try:
            calm = _calm(plan, living, dead, acks)
            with _alive([*living, *dead], plan.pause):
                restarts = _killed(hub, plan, acks)
            start_cpu = hub.start_cpu_seconds()
            found = _judged(hub.operator(), living, acks)
        finally:
            for one in living:
                one.close()
    return {
        "devices": {"living": plan.living, "dead": plan.dead},
        "kills": plan.kills,
        "retry_s": RETRY,
        "calm": calm,
        "restart_s": restarts,
        "start_cpu_s": start_cpu,
        "seconds": round(time.monotonic() - began, 1),
        "dead_connections": sum(one.connections for one in dead),
    } | found


@contextmanager
def _alive(devices: Sequence[Living | Dead], pause: float) -> Iterator[None]:
    """Lets devices live, each in a thread; at the end none runs any more."""
    ending = threading.Event()
    threads = [threading.Thread(target=one.live, args=(ending, pause)) for one in devices]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _calm(plan: Plan, living: list[Living], dead: list[Dead], acks: Acks) -> dict[str, Any]:
    """Seconds of acknowledgements without the dead devices and with them, by turns."""
    found: dict[str, list[float]] = {"without_dead": [], "with_dead": []}
    for turn in range(2 * plan.turns):
        name = "with_dead" if turn % 2 else "without_dead"
        with _alive([*living, *(dead if turn % 2 else ())], plan.calm_pause):
            time.sleep(plan.spell / 5)  # everybody is connected
            start = time.monotonic()
            time.sleep(plan.spell)
            found[name] += [one.ended - one.began for one in acks.all() if one.began > start]
    return {name: _spread(seconds) for name, seconds in found.items()}


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "messages": len(ordered),
        "median_s": round(statistics.median(ordered), 4),
        "p95_s": round(ordered[int(0.95 * len(ordered))], 4),
        "worst_s": round(ordered[-1], 4),
    }


def _killed(hub: HubProcess, plan: Plan, acks: Acks) -> list[float]:
    """Kills and starts again; seconds from each kill that was not followed by another to the first acknowledgement."""
    rng, restarts, killed = random.Random(SEED), [], time.monotonic()  # noqa: S311  # it chooses moments
    for count in range(1, plan.kills + 1):
        if count % 4:
            restarts.append(_seconds_until_heard(acks, killed))
            time.sleep(rng.uniform(0.1, plan.longest))
        else:  # while it starts, with what the last kill has left
            time.sleep(rng.uniform(0.0, 1.0))
        killed = time.monotonic()
        hub.kill()
        hub.start()
    restarts.append(_seconds_until_heard(acks, killed))
    return [round(one, 3) for one in restarts[1:]]  # the first is of no kill


def _seconds_until_heard(acks: Acks, killed: float) -> float:
    first = acks.first_after(killed, LONG)
    if first is None:
        raise AssertionError(f"nothing was acknowledged within {LONG} s")
    return first.ended - killed


def _judged(operator: OperatorClient, living: list[Living], acks: Acks) -> dict[str, Any]:
    """What the hub has of what it acknowledged."""
    for one in living:
        end = time.monotonic() + LONG
        while not one.deliver():
            if time.monotonic() > end:
                raise AssertionError(f"{one.name} cannot deliver")
            time.sleep(RETRY)
    known = {(ack.device, ack.id) for ack in acks.all()}
    exact = _sums_differ(operator, living)
    with ThreadPoolExecutor(8) as threads:
        unknown = sum(threads.map(lambda one: _unknown(one, known), living))
    again = _sums_differ(operator, living)
    return {
        "acknowledged": len(known),
        "replaced_unacknowledged": sum(len(one.made) for one in living) - len(known),
        "heard_as_known": sum(not ack.changed for ack in acks.all()),
        "failures": sum(one.failures for one in living),
        "refused": len(acks.refused),
        "counting": sum(len(one.newest) for one in living),
        "unknown_ids": unknown,
        "missing_messages": exact["missing"],
        "samples_off": exact["samples"],
        "sums_equal": exact["equal"],
        "sums_equal_when_all_was_sent_again": again["equal"],
    }


def _unknown(one: Living, known: set[tuple[str, str]]) -> int:
    """Acknowledged messages of a device that the hub does not know by their ids."""
    return sum(one.asks_again(id_) != KNOWN for device, id_ in known if device == one.name)


def _sums_differ(operator: OperatorClient, living: list[Living]) -> dict[str, Any]:
    """How the hub's sums differ from those of all newest messages: in messages, in samples, and in any bit."""
    told: Any = operator.evidence()["statistics"]
    found = {"missing": 0, "samples": 0, "equal": True}
    for backbone in BACKBONES:
        bodies = [sent.body for one in living for key, sent in one.newest.items() if key[0] == backbone]
        expected = Statistics.from_bytes(bodies[0])
        for body in bodies[1:]:
            expected = expected + Statistics.from_bytes(body)
        total = Statistics.from_bytes(operator.statistics(backbone), backbone=backbone)
        found["missing"] += abs(len(bodies) - told[str(backbone)]["messages"])
        found["samples"] += abs(total.n - expected.n)
        found["equal"] &= np.array_equal(total.a, expected.a) and np.array_equal(total.b, expected.b)
    found["equal"] &= found["missing"] == found["samples"] == 0
    return found


def lost(part: dict[str, Any]) -> int:
    """Acknowledged messages that the hub does not know, or counts otherwise than once; at most: one of which both holds is two."""
    counted = part["unknown_ids"] + part["missing_messages"]
    is_right = part["sums_equal"] and part["sums_equal_when_all_was_sent_again"]
    return counted if is_right else max(1, counted)


def figures(part: dict[str, Any]) -> dict[str, float]:
    """Messages that were acknowledged and lost, seconds of the slowest restart and of the median, and how many times as long acknowledgements take beside dead devices."""
    calm = part["calm"]
    return {
        "lost_acknowledged": lost(part),
        "restart_s": max(part["restart_s"]),
        "restart_median_s": round(statistics.median(part["restart_s"]), 3),
        "dead_delay_ratio": round(calm["with_dead"]["median_s"] / calm["without_dead"]["median_s"], 2),
    }

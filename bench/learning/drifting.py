"""False alarms in still streams, and how long a change stays unnoticed: every detector on the same streams, in turns.

- A still stream has 10,000 inputs. Every alarm in it is false; the rate is told with its 95 % interval over streams (bootstrap), and where there was none, with the largest
  rate that would still show none in so many streams with a probability of 0.05 (the rule of three). So is the share of streams with an alarm.
- A change comes after 1,000 still inputs and stays for 2,000. The delay is counted in inputs, from the change to the first alarm
  after it; that of a change which was not found in time is 2,000. `all` is whichever of the three signals alarms first, as on a device.
- Time is of the same processor, per value of a signal, in turns with the others: the median over streams.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from learning.detectors import DETECTORS
from learning.streams import SIGNALS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from learning.detectors import Alarms
    from learning.streams import World

STILL: Final = 10_000
BEFORE: Final = 1_000
AFTER: Final = 2_000
STREAMS: Final = 40
ALL: Final = "all"


def measured(world: World, *, quick: bool) -> dict[str, Any]:
    """Detector -> what it did in this world; and, of the world, how far each change moves a signal."""
    streams = 3 if quick else STREAMS
    found: dict[str, Any] = {
        name: {"title": one.title, "place": place, "still": {}, "changes": {}}
        for place, (name, one) in enumerate(DETECTORS.items())
    }
    times: dict[str, list[float]] = {name: [] for name in DETECTORS}
    quiet = [_watched(world, seed, "", times) for seed in range(streams)]
    for name in DETECTORS:
        for signal in (*SIGNALS, ALL):
            found[name]["still"][signal] = _rate([len(one[name][signal]) for one in quiet])
    for change in world.changes:
        moved = [_watched(world, seed, change, times) for seed in range(streams)]
        for name in DETECTORS:
            delays = {signal: _delay([one[name][signal] for one in moved]) for signal in (*SIGNALS, ALL)}
            found[name]["changes"][change] = delays
    for name, each in times.items():
        found[name]["microseconds"] = round(1e6 * float(np.median(each)), 2)
    return {"detectors": found, "moved": {change: _moved(world, change) for change in world.changes}}


def _watched(
    world: World, seed: int, change: str, times: dict[str, list[float]]
) -> dict[str, dict[str, Alarms]]:
    """Detector -> signal -> inputs at which it alarmed."""
    stream = world.stream(seed, BEFORE, AFTER, change) if change else world.stream(seed, STILL)
    signals, found = stream.signals(seed), {}
    names = np.random.default_rng(seed).permutation(list(DETECTORS)).tolist()
    for name in names:
        each = {}
        for signal, (places, values) in signals.items():
            start = time.process_time()
            alarms = DETECTORS[name].alarms(signal, values)
            times[name].append((time.process_time() - start) / max(len(values), 1))
            each[signal] = places[alarms].tolist() if alarms else []
        found[name] = each | {ALL: sorted(place for one in each.values() for place in one)}
    return found


def _rate(counts: list[int]) -> dict[str, Any]:
    """False alarms per 10,000 inputs, and the streams that had one."""
    rng, array = np.random.default_rng(0), np.array(counts)
    means = rng.choice(array, (2_000, len(array))).mean(axis=1) * 10_000 / STILL
    high = float(np.quantile(means, 0.975)) if array.any() else 3 / len(array) * 10_000 / STILL
    return {
        "per_10000": round(float(array.mean()) * 10_000 / STILL, 3),
        "ci95": [round(float(np.quantile(means, 0.025)), 3), round(high, 3)],
        "streams": len(array),
        "with_any": int((array > 0).sum()),
    }


def _delay(alarms: list[Alarms]) -> dict[str, Any]:
    """Of the first alarm after the change."""
    each = [next((place - BEFORE + 1 for place in one if place >= BEFORE), AFTER) for one in alarms]
    low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
    missed = sum(not one or one[-1] < BEFORE for one in alarms)
    return {
        "median": round(float(middle)),
        "quartiles": [round(float(low)), round(float(high))],
        "found": round(1 - missed / len(each), 3),
    }


def _moved(world: World, change: str) -> dict[str, float]:
    """Signal -> by how many of its own standard deviations the change moves its mean."""
    before = world.stream(0, AFTER).signals(0)
    after = world.stream(0, 0, AFTER, change).signals(0)
    return {signal: _apart(before[signal][1], after[signal][1]) for signal in SIGNALS}


def _apart(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    return round(float((after.mean() - before.mean()) / before.std()), 2)

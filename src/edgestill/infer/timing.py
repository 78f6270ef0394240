"""How long an answer takes, so that the figure is the model's and not the machine's at that moment.

- One answer at a time, batch 1, on an engine whose threads are stated; some answers first that do not count.
- Several engines take turns, round after round, so that what disturbs the machine disturbs all of them.
- Each round gives its own median and its own 95th percentile; what is reported is the median of the rounds, with their
  quartiles. A round in which something else ran moves the quartiles, and not the figure.
"""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import SettingError
from edgestill.core.footprint import Latency, Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock, Engine

ROUNDS: Final = 9
RUNS: Final = 100
_WARM: Final = 10


def time_engines(
    engines: Mapping[str, Engine],
    inputs: NDArray[np.generic],
    *,
    clock: Clock,
    threads: int = 1,
    rounds: int = ROUNDS,
    runs: int = RUNS,
) -> dict[str, Latency]:
    """The latency of each engine of one input.

    Args:
        engines: name -> engine.
        inputs: `[N, ...]`, what the sensor gives; each answer is to one of them, in turns.
        clock: whose `monotonic` is read before and after.
        threads: that the engines were made with, for the record.
        rounds: at least 3.
        runs: answers in a round, at least 20.

    Raises:
        SettingError: too few rounds, runs or inputs. EngineError: an engine refused.
    """
    _check(len(inputs), rounds, runs)
    rows = [inputs[at : at + 1] for at in range(len(inputs))]

    calls = {name: answering(engine, rows) for name, engine in engines.items()}
    return time_calls(calls, clock=clock, threads=threads, rounds=rounds, runs=runs)


def answering(engine: Engine, rows: Sequence[NDArray[np.generic]]) -> Callable[[int], object]:
    """What answers the input of a number: an engine of one input, with these in turns."""
    (name,) = engine.inputs
    return lambda at: engine.run({name: rows[at % len(rows)]})


def time_calls(
    calls: Mapping[str, Callable[[int], object]],
    *,
    clock: Clock,
    threads: int = 1,
    rounds: int = ROUNDS,
    runs: int = RUNS,
) -> dict[str, Latency]:
    """As `time_engines`, for anything that answers the input of a number."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(time_round(call, clock=clock, runs=runs))
    return {
        name: Latency(
            p50=spread([half for half, _ in one]),
            p95=spread([most for _, most in one]),
            threads=threads,
            rounds=rounds,
            runs=runs,
        )
        for name, one in found.items()
    }


def time_round(call: Callable[[int], object], *, clock: Clock, runs: int = RUNS) -> tuple[float, float]:
    """Median and 95th percentile of one round, in seconds, after some answers that do not count."""
    for at in range(_WARM):
        call(at)
    times = np.empty(runs)
    for at in range(runs):
        start = clock.monotonic()
        call(at)
        times[at] = clock.monotonic() - start
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(value=middle, low=low, high=high)


def _check(inputs: int, rounds: int, runs: int) -> None:
    for name, value, least in (("inputs", inputs, 1), ("rounds", rounds, 3), ("runs", runs, 20)):
        if value < least:
            raise SettingError(
                "too few to time",
                where=name,
                expected=f"at least {least}",
                got=value,
                fix="leave it out where you are unsure",
            )

"""How fast edgestill distils, against a floor, hand-written loops and other libraries; on one thread.

    python bench/bench_distill.py [--json] [--quick]

Prints a table and, as the last line, `{"bench": "distill", "figures": {...}}`; `--json` leaves the table out. Everything,
spreads included, goes into `bench/results/distill.json`, and `python tools/tables.py` writes the tables of docs/measured.md
from it. `--quick` only shows that it runs: its figures mean nothing, and are not kept.

Before anything is timed, each contestant trains for an epoch from the same weights in the same order, and all must end
with the same weights as the plain loop: whoever is faster is so with the same work.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

import argparse
import json
import math
import os
import platform
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import torch
from speed import loops, ours, rivals
from speed.pair import pairs
from speed.rounds import Contestant, Times, race, summary
from speed.tried import tried

if TYPE_CHECKING:
    from collections.abc import Callable

    from speed.ours import Cache
    from speed.pair import Pair
    from speed.rounds import Clock, Outcome

RESULTS = Path(__file__).resolve().parent / "results" / "distill.json"
CLOCKS: Final[tuple[Clock, ...]] = ("cpu", "wall")
LIBRARIES = ("edgestill", "torch", "torchdistill", "timm", "keras")
# Of the way that the plain loop's weights went in one epoch.
TOLERANCE = 0.01
SECONDS = {"reference": 140, "resnet": 180}


def contestants(pair: Pair, cache: Cache) -> list[Contestant]:
    """All of them, neighbours in the order in which they are compared."""

    def of(run: Callable[..., Outcome], name: str, title: str, **more: int) -> Contestant:
        return Contestant(name, title, partial(run, pair), **more)

    found = [
        of(loops.plain, "plain", "plain loop, NCHW"),
        of(loops.plain_channels_last, "plain_channels_last", "plain loop, channels-last"),
        of(rivals.torchdistill, "torchdistill", f"torchdistill {version('torchdistill')}"),
        of(rivals.timm, "timm", f"timm {version('timm')}, KD task"),
        of(ours.live, "live", "edgestill, teacher asked live"),
        of(
            partial(ours.exported, guide=ours.int8_teacher(pair)),
            "int8",
            "edgestill, teacher asked as int8 ONNX",
        ),
        of(partial(ours.cached, guide=cache.guide), "cached", "edgestill, cached", laps=2, turns=3),
        of(ours.student_only, "student_only", "edgestill without a teacher", laps=2, turns=3),
        of(loops.floor, "floor", "hand-written, without a teacher", laps=2, turns=3),
    ]
    if pair.name == "reference":
        found.insert(4, of(rivals.keras, "keras", f"Keras {version('keras')}, Distiller"))
    return found


def check_work(pair: Pair, entered: list[Contestant]) -> dict[str, float]:
    """How far each one's weights end from those of the loop that does the same, as a share of the way these went.

    Raises:
        RuntimeError: further than `TOLERANCE`.
    """
    ends = {one.name: one.run(1).student for one in entered}
    start = _weights(pair.student())
    far = {}
    for name, student in ends.items():
        same = ends["floor" if name in {"student_only", "floor"} else "plain"]
        if student is None or same is None or name == "int8":  # its answers are rounded on purpose
            continue
        goal = _weights(same)
        far[name] = float((_weights(student) - goal).norm() / (goal - start).norm())
        if far[name] > TOLERANCE:
            raise RuntimeError(f"{pair.name}: {name} does other work than the plain loop: {far[name]:.2g}")
    return far


def measure(pair: Pair, *, quick: bool) -> dict[str, object]:
    """Everything about one pair."""
    with ExitStack() as opened:
        caches = [opened.enter_context(ours.filled(pair)) for _ in range(1 if quick else 3)]
        entered = contestants(pair, caches[0])
        _say(f"{pair.title}: checking that all do the same work")
        far = check_work(pair, entered)
        _say(f"{pair.title}: timing")
        times = Times(pair.samples)
        race(entered, times, rounds=(1, 1) if quick else (3, 9), seconds=SECONDS[pair.name])
    return {
        "title": pair.title,
        "samples": pair.samples,
        "rounds": len(times.rounds),
        "titles": {one.name: one.title for one in entered},
        "microseconds_per_sample": {clock: _each(times, clock) for clock in CLOCKS},
        "over_cached": {
            clock: {
                one.name: summary(times.ratios(one.name, "cached", clock))
                for one in entered
                if one.name != "cached"
            }
            for clock in CLOCKS
        },
        "cached_over": {
            clock: {
                under: summary(times.ratios("cached", under, clock)) for under in ("student_only", "floor")
            }
            for clock in CLOCKS
        },
        "cache": _cache(times, caches),
        "weights_apart": {name: float(f"{value:.2g}") for name, value in far.items()},
    }


def _cache(times: Times, caches: list[Cache]) -> dict[str, object]:
    """What it costs, and from which epoch on it has paid for itself: filling and n epochs take less than n of the other's."""
    build, size = median(one.seconds.cpu for one in caches), caches[0].bytes
    epoch = {
        name: median(times.per_sample(name)) * times.samples
        for name in ("cached", "plain", "plain_channels_last", "torchdistill", "live")
    }
    pays = {name: build / (epoch[name] - epoch["cached"]) for name in epoch if name != "cached"}
    return {
        "build_s": round(build, 3),
        "build_wall_s": round(median(one.seconds.wall for one in caches), 3),
        "build_microseconds_per_sample": round(build / times.samples * 1e6, 1),
        "bytes": size,
        "bytes_per_sample": round(size / times.samples, 1),
        "pays_after_epochs": {name: round(value, 2) for name, value in pays.items()},
        "break_even_epoch": {name: max(1, math.ceil(value)) for name, value in pays.items()},
    }


def figures(reference: dict, resnet: dict) -> dict[str, float]:
    """Ratios of CPU time per sample; medians of those within a round."""

    def of(pair: dict, table: str, name: str) -> float:
        return pair[table]["cpu"][name]["median"]

    return {
        "cached_over_floor": of(reference, "cached_over", "student_only"),
        "naive_over_cached_reference": of(reference, "over_cached", "plain"),
        "torchdistill_over_cached_reference": of(reference, "over_cached", "torchdistill"),
        "naive_over_cached_resnet": of(resnet, "over_cached", "plain"),
        "torchdistill_over_cached_resnet": of(resnet, "over_cached", "torchdistill"),
        "cached_over_floor_resnet": of(resnet, "cached_over", "student_only"),
        "cached_over_handwritten_floor": of(reference, "cached_over", "floor"),
        "cached_over_handwritten_floor_resnet": of(resnet, "cached_over", "floor"),
        "channels_last_plain_over_cached": of(reference, "over_cached", "plain_channels_last"),
        "channels_last_plain_over_cached_resnet": of(resnet, "over_cached", "plain_channels_last"),
        "cache_build_s": reference["cache"]["build_s"],
        "break_even_epoch": reference["cache"]["break_even_epoch"]["plain"],
    }


def table(pair: dict) -> str:
    """For people."""
    lines = [f"\n{pair['title']}: {pair['rounds']} rounds of {pair['samples']} samples"]
    for name, title in pair["titles"].items():
        each = pair["microseconds_per_sample"]["cpu"][name]["median"]
        ratio = pair["over_cached"]["cpu"].get(name, {"median": 1.0})["median"]
        lines.append(f"  {title:<38}{1e6 / each:>8.0f} samples/s   {ratio:>6.2f} x the time of cached")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {pair.name: measure(pair, quick=asked.quick) for pair in pairs(quick=asked.quick)}
    got = figures(found["reference"], found["resnet"])
    if not asked.quick:
        _say("trying bfloat16 and torch.compile")
        report = {
            "figures": got,
            "pairs": found,
            "tried": {pair.name: tried(pair) for pair in pairs(quick=False)},
            "machine": _machine(),
        }
        RESULTS.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    if not asked.json:
        print(*map(table, found.values()), sep="\n")
    print(json.dumps({"bench": "distill", "figures": got}))


def _machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[1], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _each(times: Times, clock: Clock) -> dict[str, object]:
    return {
        name: summary([one * 1e6 for one in times.per_sample(name, clock)], 1) for name in times.rounds[0]
    }


def _weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

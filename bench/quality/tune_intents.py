"""How each way of `quality.intents` is trained: one setting after the other, the best on the validation split is kept.

Every way begins alike, and is tried with the same values of each setting that it has (`settings_of`). A trial is the mean of
the first `SEEDS` seeds' validation accuracy. torchdistill takes the choice of `views`, as do `texts` and `unlabelled`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.lab.score import scores
from quality.intents import EACH, EPOCHS, WAYS, Choice, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEEDS: Final = {20: 2, 100: 1}
BEGIN: Final = {"lr": 1e-2, "weight_decay": 0.1, "std": 0.3, "batch": 128}
SOFT: Final = {"tau": 2.0, "soft_weight": 1.0}
TUNED: Final = ("plain", "plain_views", "distilled", "views")


def settings_of(name: str, each: int) -> dict[str, tuple[float, ...]]:
    """What is tried for a way beside where it begins, in that order."""
    found: dict[str, tuple[float, ...]] = {"weight_decay": (0.05, 0.2)}
    if WAYS[name].shown:
        found["originals"] = (3,)
    if WAYS[name].distils:
        found |= {"tau": (1.0, 1.5), "soft_weight": (0.8,)}
    else:
        found |= {"label_smoothing": (0.1,)}
    return found | {"std": (0.1,), "lr": (2e-2,), "epochs": (EPOCHS[each] // 4, EPOCHS[each])}


def tuned(path: Path) -> dict[str, Any]:
    """Every trial, and the choice of each way by questions an intent."""
    world = World(path)
    best: dict[str, dict[str, Any]] = {f"each_{each}": {} for each in EACH}
    trials = []
    for each in EACH:
        for name in TUNED:
            for trial in _search(world, name, each):
                trials.append({"each": each, "way": name, **trial})
                print(json.dumps(trials[-1]), flush=True)
            own = [one for one in trials if (one["each"], one["way"]) == (each, name)]
            first = max(own, key=lambda one: float(one["validation"]))
            best[f"each_{each}"][name] = {
                key: value for key, value in first.items() if key not in {"each", "way"}
            }
    return {"chosen": best, "seeds": SEEDS, "tried": trials}


def _search(world: World, name: str, each: int) -> Iterator[dict[str, float]]:
    now = BEGIN | {"epochs": EPOCHS[each] // 2} | (SOFT if WAYS[name].distils else {})
    best = _trial(world, name, each, now)
    yield best
    for setting, values in settings_of(name, each).items():
        for value in values:
            trial = _trial(world, name, each, now | {setting: value})
            yield trial
            best = max(best, trial, key=lambda one: one["validation"])
        now = {key: value for key, value in best.items() if key != "validation"}


def _trial(world: World, name: str, each: int, told: dict[str, float]) -> dict[str, float]:
    judge = world.judge("val")
    found = [
        scores(world.learned(name, each, Choice.of(name, each, seed, told)), judge).mean()
        for seed in range(SEEDS[each])
    ]
    return told | {"validation": round(100 * float(np.mean(found)), 3)}

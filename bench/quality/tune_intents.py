"""How each way of `quality.intents` is trained: one setting after the other, the best on the validation split is kept.

Every way begins alike. The first round goes through the common settings; the second begins with the choice of the first, takes
more seeds, and tries longer training, averaged weights, and other
losses: DKD and DIST where a way distils, more and less smoothing of the labels where it does not. In both rounds plain training
is tried with as many settings as distilling, or more. A trial is the mean validation accuracy of the first seeds.

A trial that the results hold already is not run again. `distilled_kd` and `views_kd` are the best trials of those ways with the
plain KD loss, the last step's weights and as many epochs as the way's own choice; torchdistill is given these.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.lab.score import scores
from quality.intents import EACH, EPOCHS, WAYS, Choice, World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

ROUNDS: Final = (1, 2)
AGAIN: Final = (
    100  # questions an intent from which on the second round goes through the common settings again
)
SEEDS: Final = {1: {20: 2, 100: 1}, 2: {20: 3, 100: 4}}
USUAL: Final = {"originals": 1, "label_smoothing": 0.0}
BEGIN: Final = {"lr": 1e-2, "weight_decay": 0.1, "std": 0.3, "batch": 128}
SOFT: Final = {"tau": 2.0, "soft_weight": 1.0}
TUNED: Final = ("plain", "plain_views", "distilled", "views", "linear")
ASKED: Final = tuple((each, name) for each in reversed(EACH) for name in TUNED)
ABOUT: Final = frozenset({"each", "way", "round", "validation", "seeds"})  # of a trial, beside its settings

Settings = dict[str, Any]


def stages_of(name: str, each: int, number: int) -> list[list[Settings]]:
    """What is tried in a round, stage after stage: changes to the best settings so far. `linear` has the first round only."""
    way = WAYS[name]
    if number == 1:
        return [_each(setting, values) for setting, values in _common(name, each).items()]
    again = (
        [] if each < AGAIN else [_each(setting, values) for setting, values in _common(name, each).items()]
    )
    losses = (
        [{"method": "dkd", "dkd_beta": 1.0, "soft_weight": 0.5}, {"method": "dist", "soft_weight": 0.5}]
        if way.distils
        else _each("label_smoothing", (0.05, 0.2))
    )
    return [_each("epochs", (EPOCHS[each],)), *again, _each("average_tail", (0.3,)), losses]


def _common(name: str, each: int) -> dict[str, tuple[float, ...]]:
    if name == "linear":
        return {"lr": (3e-2, 1e-1), "weight_decay": (0.01, 0.03)}
    found: dict[str, tuple[float, ...]] = {"weight_decay": (0.05, 0.1, 0.2)}
    if WAYS[name].shown:
        found["originals"] = (1, 3)
    if WAYS[name].distils:
        found |= {"tau": (1.0, 1.5, 2.0), "soft_weight": (0.8, 1.0)}
    else:  # as many as of the teacher's answers
        found |= {"label_smoothing": (0.0, 0.1), "batch": (64, 128, 256)}
    epochs = tuple(EPOCHS[each] // part for part in (4, 2, 1))
    return found | {"std": (0.1, 0.3), "lr": (1e-2, 2e-2), "epochs": epochs}


def _each(setting: str, values: Iterable[float]) -> list[Settings]:
    return [{setting: value} for value in values]


def searched(path: Path, known: list[dict[str, Any]], name: str, each: int) -> list[dict[str, Any]]:
    """The trials of one way, at so many questions an intent."""
    search = _Search(World(path), known)
    search.run(name, each)
    return search.trials


def told(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The trials, and the choice of each way that they hold."""
    best: dict[str, dict[str, Any]] = {f"each_{each}": {} for each in EACH}
    for each, name in ASKED:
        own = [one for one in trials if (one["each"], one["way"]) == (each, name)]
        last = [one for one in own if one["round"] == max(each["round"] for each in own)]
        if not last:
            continue
        found = best[f"each_{each}"]
        found[name] = _settings(max(last, key=lambda one: float(one["validation"])))
        if WAYS[name].distils:
            found[f"{name}_kd"] = _like_theirs(last, found[name])
    seeds = {f"round_{number}": SEEDS[number] for number in ROUNDS}
    return {"chosen": best, "seeds": seeds, "tried": trials}


def _like_theirs(trials: list[dict[str, Any]], own: Settings) -> Settings:
    """The best trial whose loss and weights torchdistill has too, as long as our own choice."""
    found = [
        one
        for one in trials
        if one["epochs"] == own["epochs"] and not one.keys() & {"method", "average_tail"}
    ]
    return _settings(max(found, key=lambda one: float(one["validation"])))


def _settings(trial: Mapping[str, Any]) -> Settings:
    return {key: value for key, value in trial.items() if key not in ABOUT - {"validation"}}


class _Search:
    def __init__(self, world: World, known: list[dict[str, Any]]) -> None:
        self.world, self.known = world, known
        self.judge = world.judge("val")
        self.trials: list[dict[str, Any]] = []

    def run(self, name: str, each: int) -> None:
        """All rounds of a way."""
        now: Settings = BEGIN | {"epochs": EPOCHS[each] // 2} | (SOFT if WAYS[name].distils else {})
        for number in ROUNDS if name != "linear" else ROUNDS[:1]:
            tried = list(self._round(name, each, number, now))
            best = max(tried, key=lambda one: float(one["validation"]))
            now = {key: value for key, value in best.items() if key not in ABOUT}

    def _round(self, name: str, each: int, number: int, now: Settings) -> Iterator[dict[str, Any]]:
        best = self._trial(name, each, number, now)
        yield best
        for changes in stages_of(name, each, number):
            now = {key: value for key, value in best.items() if key not in ABOUT}
            for change in changes:
                if USUAL | now | change == USUAL | now:
                    continue  # that is where it stands
                trial = self._trial(name, each, number, now | change)
                yield trial
                best = max(best, trial, key=lambda one: float(one["validation"]))

    def _trial(self, name: str, each: int, number: int, told: Settings) -> dict[str, Any]:
        about = {"each": each, "way": name, "round": number} | told
        for one in self.known:
            if USUAL | {key: one[key] for key in one.keys() - {"validation", "seeds"}} == USUAL | about:
                found = one
                break
        else:
            found = about | self._measured(name, each, number, told)
            print(json.dumps(found), flush=True)
        self.trials.append(found)
        return found

    def _measured(self, name: str, each: int, number: int, told: Settings) -> dict[str, Any]:
        found = [
            100
            * float(
                scores(self.world.learned(name, each, Choice.of(name, each, seed, told)), self.judge).mean()
            )
            for seed in range(SEEDS[number][each])
        ]
        return {"validation": round(float(np.mean(found)), 3), "seeds": [round(one, 3) for one in found]}

"""The benchmark of quality: nobody is tuned harder than plain training, and what was chosen is what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SIZES = (20, 100)


@pytest.fixture
def tuning() -> dict[str, Any]:
    """Every trial on validation data, and what was chosen."""
    found: dict[str, Any] = json.loads((RESULTS / "quality_tuning.json").read_text())
    return found


@pytest.fixture
def measured() -> dict[str, Any]:
    """The kept results, by part."""
    found: dict[str, Any] = json.loads((RESULTS / "quality.json").read_text())["parts"]
    return found


@pytest.fixture
def tune_intents(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that tunes, of `bench/`."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("quality.tune_intents")


@pytest.mark.parametrize("each", SIZES)
@pytest.mark.parametrize(("plain", "distilled"), [("plain", "distilled"), ("plain_views", "views")])
def test_plain_training_is_tuned_as_hard_as_distilling(
    tune_intents: ModuleType, each: int, plain: str, distilled: str
) -> None:
    """Whoever sees the same data is offered as many settings, in each round."""
    for number in tune_intents.ROUNDS:
        offered = {
            name: sum(map(len, tune_intents.stages_of(name, each, number))) for name in (plain, distilled)
        }
        assert offered[plain] == offered[distilled] > 0


@pytest.mark.parametrize("each", SIZES)
@pytest.mark.parametrize("name", ["plain", "plain_views", "distilled", "views", "linear"])
def test_the_choice_of_intents_is_the_best_trial_of_the_last_round(
    tuning: dict[str, Any], name: str, each: int
) -> None:
    """Of those measured with the same number of seeds; nothing else went into it."""
    trials = [one for one in tuning["intents"]["tried"] if (one["each"], one["way"]) == (each, name)]
    last = max(one["round"] for one in trials)
    best = max(one["validation"] for one in trials if one["round"] == last)
    assert tuning["intents"]["chosen"][f"each_{each}"][name]["validation"] == best


@pytest.mark.parametrize("each", SIZES)
def test_torchdistill_is_given_the_best_of_what_it_has(tuning: dict[str, Any], each: int) -> None:
    """Its recipe is the best trial with the plain loss and the last weights, and has as many epochs as ours."""
    chosen = tuning["intents"]["chosen"][f"each_{each}"]
    for name in ("distilled", "views"):
        theirs, ours = chosen[f"{name}_kd"], chosen[name]
        assert theirs["epochs"] == ours["epochs"]
        assert not theirs.keys() & {"method", "average_tail"}
        assert theirs["validation"] <= ours["validation"]


def test_each_start_of_the_digits_has_the_best_learning_rate_of_its_own(tuning: dict[str, Any]) -> None:
    """In every course all starts are tried with the same learning rates, and each takes its best."""
    tried: dict[str, dict[str, dict[float, float]]] = {}
    for one in tuning["digits"]["tried"]:
        tried.setdefault(one["course"], {}).setdefault(one["start"], {})[one["lr"]] = one["validation"]
    for course, starts in tried.items():
        assert len({tuple(sorted(rates)) for rates in starts.values()}) == 1
        for start, rates in starts.items():
            chosen = tuning["digits"]["chosen"][course][start]
            assert rates[chosen["lr"]] == chosen["validation"] == max(rates.values())


@pytest.mark.parametrize("each", SIZES)
def test_the_kept_results_were_measured_with_what_was_chosen(
    tuning: dict[str, Any], measured: dict[str, Any], each: int
) -> None:
    """The recipes beside the results hold the tuned values, the number of epochs among them."""
    chosen = tuning["intents"]["chosen"][f"each_{each}"]
    for name, told in measured["intents"][f"each_{each}"]["ways"].items():
        if name not in chosen:
            continue
        for key, value in chosen[name].items():
            if key in told["recipe"]:
                assert told["recipe"][key] == value, (name, key)


def test_the_kept_results_of_the_digits_tell_their_learning_rates(
    tuning: dict[str, Any], measured: dict[str, Any]
) -> None:
    """Every start was measured with its chosen rate, in every course."""
    for name, course in measured["digits"]["courses"].items():
        for start, recipe in course["recipes"].items():
            assert recipe["lr"] == tuning["digits"]["chosen"][name][start]["lr"]

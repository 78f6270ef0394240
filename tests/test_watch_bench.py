"""The benchmark of a watch on the other wrist: nothing that tells was learned from, the device is the real one, and results say what they claim."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "learn.json"
EXERCISES = 7


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of `bench/learning`."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return lambda name: importlib.import_module(f"learning.{name}")


@pytest.fixture
def wrists(bench: Callable[[str], ModuleType]) -> ModuleType:
    """The module that cuts recordings."""
    pytest.importorskip("seglearn")
    return bench("wrists")


@pytest.fixture
def kept() -> dict[str, Any]:
    """The kept results of this part."""
    part: dict[str, Any] = json.loads(RESULTS.read_text())["parts"]["watch"]
    return part


def marked(wrists: ModuleType, number: int) -> Any:
    """A person whose every reading tells its recording and its place in it."""
    one = wrists.Person.of(number)
    recordings = []
    for index, recording in enumerate(one.recordings):
        motion = np.zeros_like(recording.motion)
        motion[:, 0], motion[:, 1] = index, np.arange(len(motion))
        recordings.append(wrists.replace(recording, motion=motion))
    return wrists.Person(number, tuple(recordings))


@pytest.mark.parametrize("number", [3, 8])
@pytest.mark.parametrize("side", [0, 1])
def test_what_tells_begins_a_window_after_the_last_reading_learned_from(
    wrists: ModuleType, number: int, side: int
) -> None:
    """Of every recording, also where all of its early part is learned from; and what tells has all exercises."""
    one = marked(wrists, number)
    early, later = one.early(seconds=None, rounds=2, side=side), one.later(side)
    assert set(later.labels) == set(range(EXERCISES))
    for recording in np.unique(early.inputs[:, :, 0]):
        last = early.inputs[early.inputs[:, 0, 0] == recording, :, 1].max()
        first = later.inputs[later.inputs[:, 0, 0] == recording, :, 1].min()
        assert first - last >= wrists.LENGTH
    assert {one.recordings[int(index)].side for index in np.unique(early.inputs[:, :, 0])} == {side}


@pytest.mark.parametrize(("seconds", "windows"), [(20, 1), (60, 13), (90, 22)])
def test_a_minute_is_the_beginning_of_all_seven_recordings(
    wrists: ModuleType, seconds: int, windows: int
) -> None:
    """As many seconds of each, and no reading more."""
    seen = marked(wrists, 8).early(seconds=seconds, rounds=1)
    assert np.bincount(seen.labels).tolist() == [windows] * EXERCISES
    assert seen.inputs[:, :, 1].max() < wrists.RATE * seconds / EXERCISES


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_exercises_take_turns_as_often_as_is_said_and_time_goes_forward(
    wrists: ModuleType, rounds: int
) -> None:
    """Each comes `rounds` times, the others between; within a recording nothing comes before what was earlier, or twice."""
    seen = marked(wrists, 8).early(seconds=60, rounds=rounds)
    changes = np.flatnonzero(np.diff(seen.labels)) + 1
    stays = seen.labels[np.concatenate([[0], changes])]
    assert np.bincount(stays).tolist() == [rounds] * EXERCISES
    assert len(np.unique(seen.turns)) == rounds * EXERCISES
    np.testing.assert_array_equal(np.flatnonzero(np.diff(seen.turns)) + 1, changes)
    for exercise in range(EXERCISES):
        assert (np.diff(seen.inputs[seen.labels == exercise, 0, 1]) > 0).all()


def test_everyone_is_measured_once_by_students_that_never_saw_them(wrists: ModuleType) -> None:
    """Five folds measure all ten people; of each fold neither teacher nor student has data of the measured."""
    measured = []
    for fold in range(5):
        scenario = wrists.watch(seed=1, fold=fold)
        people = {int(one.before.groups[0]) for one in scenario.streams if not one.shares}
        assert not people & set(scenario.teach.groups.tolist())
        assert not people & set(scenario.limited.groups.tolist())
        measured += sorted(people)
    assert sorted(measured) == list(range(1, 11))


def test_what_was_recovered_is_a_ratio_of_sums(bench: Callable[[str], ModuleType]) -> None:
    """Someone who lost much counts more than someone who lost little; by hand, and within its own interval."""
    found = bench("watch").recovered([0.9, 0.8, 0.8], [0.4, 0.7, 0.7], [0.8, 0.6, 0.9])
    assert found["share"] == pytest.approx((0.4 - 0.1 + 0.2) / 0.7, abs=1e-3)
    assert found["low"] <= found["share"] <= found["high"]
    same = bench("watch").recovered([0.9, 0.8], [0.5, 0.4], [0.5, 0.4])
    assert (same["share"], same["low"], same["high"]) == (0, 0, 0)


def test_our_bet_is_counted_as_the_contest_counts_it(bench: Callable[[str], ModuleType]) -> None:
    """The plain bet is by hand; both need eight wins in a row, and ours fewer after losses."""
    betting = bench("betting")
    wins = np.array([True, False, True])
    by_hand = np.mean([(1 + s) * (1 - s) * (1 + s) for s in (0.1, 0.25, 0.5, 0.75, 0.95)])
    assert betting.BETS["plain"](wins)[-1] == pytest.approx(by_hand)
    for bet in betting.BETS.values():
        assert betting._until(bet(np.ones(20, np.bool_))) == 8
    behind = np.concatenate([np.zeros(50, np.bool_), np.ones(400, np.bool_)])
    ours, plain = (betting._until(betting.BETS[name](behind)) for name in ("ours", "plain"))
    assert ours < plain - 20


@pytest.mark.slow
def test_the_whole_runs_and_tells_its_figures(
    bench: Callable[[str], ModuleType], wrists: ModuleType, tmp_path: Path
) -> None:
    """In the quick form, of one fold's people; a student that was kept is not made again."""
    part = bench("watch")
    found = json.loads(json.dumps(part.measured(tmp_path, tmp_path, quick=True)))
    assert found["people"] == 2
    assert all(np.isfinite(value) for value in part.figures(found).values())
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.esb")}
    assert len(made) == 2 + len(wrists.TRAINED)
    wrists.Student.of(tmp_path, seed=0, fold=0, quick=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.esb")} == made


@pytest.mark.slow
def test_the_device_of_the_bench_learns_keeps_and_answers_alone(
    bench: Callable[[str], ModuleType], wrists: ModuleType, tmp_path: Path
) -> None:
    """After a minute of labels another head serves, still after a restart; the teacher was never asked; from all that is asked a head comes, too."""
    wearing, student = bench("wearing"), wrists.Student.of(tmp_path, seed=0, fold=0, quick=True)
    person = wrists.Person.of(student.people[0])
    seen, later = person.early(seconds=60, rounds=6), person.later(wrists.AWAY)
    told = wearing.Wearer(tmp_path / "told", student.shipped)
    before = told.names(later.inputs)
    told.live(seen.inputs, seen.labels)
    assert (told.heard, told.samples > 0) == (0, True)
    after = told.names(later.inputs)
    assert (after == later.labels).mean() > (before == later.labels).mean()
    told.restarted()
    np.testing.assert_array_equal(told.names(later.inputs), after)
    asked = wearing.Wearer(tmp_path / "asked", student.asking, teacher=student.teacher)
    asked.live(seen.inputs)
    assert asked.heard == len(seen)
    deeper = bench("deeper")
    (tmp_path / "tuned").mkdir()
    found = deeper.judged(student.training("all"), tmp_path / "tuned", seen, later.inputs, seed=0)
    assert (found.adopted, found.asked) == (False, 0)
    assert 0 < found.held < 32  # too few to judge by
    free = deeper.unjudged(student.training("all"), tmp_path / "tuned", seen, later.inputs, seed=0)
    assert (free == later.labels).mean() > (before == later.labels).mean()


def test_the_kept_results_are_of_all_people_and_seeds(kept: dict[str, Any]) -> None:
    """Ten people, three seeds; every share follows from the kept accuracies."""
    assert (kept["people"], kept["seeds"]) == (10, 3)
    cost = np.mean(kept["home"]) - np.mean(kept["away"])
    for row in kept["rows"].values():
        assert len(row["right"]) == 10
        share = (np.mean(row["right"]) - np.mean(kept["away"])) / cost
        assert row["recovered"]["share"] == pytest.approx(share, abs=2e-3)
        assert row["recovered"]["low"] <= row["recovered"]["share"] <= row["recovered"]["high"]


def test_a_minute_by_turns_wins_back_half_of_what_the_other_wrist_costs() -> None:
    """Where things come again and again; where each comes twice it wins back less, as docs/learn.md tells."""
    figures = json.loads(RESULTS.read_text())["figures"]
    assert figures["watch_recovered_share_mixed"] >= 0.5
    assert figures["watch_recovered_share"] >= 0.1
    assert figures["watch_drift_cost_points"] >= 10
    assert figures["contest_sooner_after_losses"] >= 3

"""The figures in the docs are those of `bench/results`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("teacher", "student", "int8", "shifted")


def test_the_tables_of_the_docs_are_what_the_results_say() -> None:
    """`tools/tables.py --check` finds no stale page."""
    command = [sys.executable, str(ROOT / "tools" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("scenario", ["watch", "images"])
def test_the_kept_results_reach_what_was_asked_of_them(scenario: str) -> None:
    """The figures that the docs show keep the bounds set for the demonstration."""
    figures = json.loads((ROOT / "bench" / "results" / f"demo_{scenario}.json").read_text())["figures"]
    for name in NAMED:
        low, high = figures[f"{name}_accuracy_ci95"]
        assert 0 <= low <= figures[f"{name}_accuracy"] <= high <= 1
        assert figures[f"{name}_accuracy_n"] > 0
    assert figures["size_ratio"] >= 5
    assert abs(figures["int8_accuracy"] - figures["student_accuracy"]) <= 0.005
    assert figures["recovered_share"] >= 0.5 > figures["control_recovered_share"]


def test_the_students_keep_up_with_their_teachers() -> None:
    """The images student is within 2 points of its teacher, the watch student at 92 % of it or better."""
    results = {
        scenario: json.loads((ROOT / "bench" / "results" / f"demo_{scenario}.json").read_text())["figures"]
        for scenario in ("watch", "images")
    }
    assert results["images"]["student_accuracy"] >= results["images"]["teacher_accuracy"] - 0.02
    assert results["watch"]["student_accuracy"] >= 0.92 * results["watch"]["teacher_accuracy"]


@pytest.mark.parametrize("name", ["reference", "resnet"])
def test_the_kept_speed_was_measured_on_equal_work(name: str) -> None:
    """Whoever was timed beside the plain loop ended with its weights; Keras and the int8 teacher are said not to."""
    pair = json.loads((ROOT / "bench" / "results" / "distill.json").read_text())["pairs"][name]
    assert max(pair["weights_apart"].values()) <= 0.01
    assert set(pair["titles"]) - set(pair["weights_apart"]) <= {"keras", "int8"}


def test_distilling_is_as_fast_as_was_asked_of_it() -> None:
    """The figures that the docs show keep the bounds set for distilling from a cache."""
    figures = json.loads((ROOT / "bench" / "results" / "distill.json").read_text())["figures"]
    assert figures["cached_over_floor"] <= 1.10
    for peer in ("naive", "torchdistill"):
        assert figures[f"{peer}_over_cached_reference"] >= 3
        assert figures[f"{peer}_over_cached_resnet"] >= 6


def test_no_gain_within_noise_is_called_one() -> None:
    """Every kept gain that is said to help or hurt has both of its intervals on that side of zero."""
    report = json.loads((ROOT / "bench" / "results" / "quality.json").read_text())
    gains = list(gains_in(report["parts"]))
    assert len(gains) > 20
    for gain in gains:
        intervals = (gain["ci95_seeds"], gain["ci95_samples"])
        assert (gain["verdict"] == "helps") == all(low > 0 for low, _high in intervals), gain
        assert (gain["verdict"] == "hurts") == all(high < 0 for _low, high in intervals), gain


def gains_in(part: Any) -> Iterator[dict[str, Any]]:
    """Everything with a verdict."""
    if isinstance(part, dict):
        if "verdict" in part:
            yield part
        for one in part.values():
            yield from gains_in(one)


def test_what_a_device_uses_to_notice_is_what_the_measurements_chose() -> None:
    """In every world it is quieter than the same detectors without blocks, and sooner than ADWIN over the same blocks."""
    parts = json.loads((ROOT / "bench" / "results" / "drift.json").read_text())["parts"]
    assert len(parts) == 5
    for part in parts.values():
        found = part["detectors"]
        own = found["device"]
        for rival in ("adwin", "river_adwin", "river_page_hinkley"):
            assert own["still"]["all"]["per_10000"] <= found[rival]["still"]["all"]["per_10000"]
        for change, delays in own["changes"].items():
            rival = found["adwin_blocks"]["changes"][change]["all"]
            assert delays["all"]["median"] <= rival["median"]
        assert found["adwin"]["still"] == found["river_adwin"]["still"], "the same alarms"
        assert found["adwin"]["changes"] == found["river_adwin"]["changes"]

"""Sums that a hub has acknowledged outlive its being killed with -9 in the midst of them: real processes, TLS, outboxes and couriers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "bench" / "results" / "learn.json"


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that measures it, whose quick form is the test."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("learning.killed")


@pytest.mark.slow
def test_sums_that_were_acknowledged_count_once_however_often_the_hub_is_killed(
    killed: ModuleType, tmp_path: Path
) -> None:
    """Four kills, one of them while it starts, with devices that are silent, stop in the midst of a message, or hang up there."""
    found = json.loads(json.dumps(killed.measured(tmp_path, tmp_path, quick=True)))
    assert killed.lost(found) == 0
    assert (found["unknown_ids"], found["missing_messages"], found["samples_off"]) == (0, 0, 0)
    assert found["sums_equal"] is found["sums_equal_when_all_was_sent_again"] is True
    assert found["refused"] == 0
    assert found["acknowledged"] >= found["counting"] > 0
    assert found["failures"] > 0, "it was killed while devices sent"
    assert found["dead_connections"] >= found["devices"]["dead"]
    assert len(found["restart_s"]) == found["kills"] - 1, "all but the one that was followed by another"


def told(**more: Any) -> dict[str, Any]:
    """What is found where nothing is lost, but for this."""
    right = {"unknown_ids": 0, "missing_messages": 0, "sums_equal": True}
    return right | {"sums_equal_when_all_was_sent_again": True} | more


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 0),
        ({"unknown_ids": 3}, 3),
        ({"missing_messages": 1, "sums_equal": False}, 1),
        ({"sums_equal": False}, 1),
        ({"sums_equal_when_all_was_sent_again": False}, 1),
        ({"unknown_ids": 2, "sums_equal_when_all_was_sent_again": False}, 2),
    ],
)
def test_what_is_unknown_or_counts_otherwise_is_lost(
    killed: ModuleType, more: dict[str, Any], count: int
) -> None:
    """A message that the hub has forgotten, one that it counts not at all, and one that it counts twice."""
    assert killed.lost(told(**more)) == count


def test_the_kept_results_are_of_enough_kills() -> None:
    """Nothing was lost in at least twenty, a part of the devices was dead, and the slowest restart took 5 s at most."""
    kept = json.loads(RESULTS.read_text())
    part = kept["parts"]["killed"]
    assert part["kills"] >= 20
    assert len(part["restart_s"]) >= 15
    assert part["devices"] == {"living": 40, "dead": 10}
    assert part["acknowledged"] > 1_000
    assert kept["figures"]["lost_acknowledged"] == 0
    assert kept["figures"]["restart_s"] <= 5

"""Latencies are the model's: several engines take turns, and a disturbed round moves the spread, not the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.errors import SettingError
from edgestill.infer.timing import spread, time_calls, time_engines
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

INPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)


class Engine:
    """Takes a certain time, notes what it is asked, and who came before."""

    def __init__(self, clock: FakeClock, seconds: float, turns: list[str], name: str) -> None:
        self.clock, self.seconds, self.turns, self.name = clock, seconds, turns, name
        self.asked: list[NDArray[np.generic]] = []

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """One."""
        return {"input": ("FP32", (None, 2))}

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Nothing, slowly."""
        self.asked.append(inputs["input"])
        if self.turns[-1:] != [self.name]:
            self.turns.append(self.name)
        self.clock.advance(self.seconds)
        return {}


def test_engines_take_turns_and_each_answers_one_input_at_a_time() -> None:
    """Round after round, and every input in its turn."""
    clock, turns = FakeClock(), list[str]()
    engines = {"small": Engine(clock, 0.001, turns, "small"), "large": Engine(clock, 0.004, turns, "large")}
    found = time_engines(engines, INPUTS, clock=clock, rounds=3, runs=20)
    assert turns == ["small", "large"] * 3
    assert {name: one.p50.value for name, one in found.items()} == pytest.approx(
        {"small": 0.001, "large": 0.004}
    )
    assert (found["small"].rounds, found["small"].runs, found["small"].threads) == (3, 20, 1)
    assert all(one.shape == (1, 2) for one in engines["small"].asked)
    assert {float(one[0, 0]) for one in engines["small"].asked} == {0.0, 2.0, 4.0}


def test_a_disturbed_round_moves_the_spread_and_not_the_figure() -> None:
    """Something else runs during one of five rounds: ten times as slow there."""
    clock, calls = FakeClock(), 0

    def call(_at: int) -> None:
        nonlocal calls
        calls += 1
        clock.advance(0.01 if 35 < calls <= 70 else 0.001)

    found = time_calls({"one": call}, clock=clock, rounds=5, runs=25)["one"]
    assert found.p50.value == pytest.approx(0.001)
    assert found.p95.value == pytest.approx(0.001)
    assert found.p50.high == pytest.approx(0.001)
    assert spread([1.0, 1.0, 1.0, 9.0]).high == 3.0


def test_the_slowest_answers_are_the_95th_percentile() -> None:
    """One answer in ten takes three times as long."""
    clock = FakeClock()
    found = time_calls(
        {"one": lambda at: clock.advance(0.003 if at % 10 == 0 else 0.001)}, clock=clock, runs=100
    )["one"]
    assert found.p50.value == pytest.approx(0.001)
    assert found.p95.value == pytest.approx(0.003)


@pytest.mark.parametrize(("name", "values"), [("rounds", {"rounds": 2}), ("runs", {"runs": 19})])
def test_too_few_to_tell_is_refused(name: str, values: dict[str, int]) -> None:
    """Quartiles of two rounds, or a 95th percentile of nineteen answers, mean nothing."""
    with pytest.raises(SettingError, match=f"too few to time; at {name}"):
        time_engines({}, INPUTS, clock=FakeClock(), **values)
    with pytest.raises(SettingError, match="too few to time; at inputs"):
        time_engines({}, INPUTS[:0], clock=FakeClock())

"""What surrounds the walk: the process beside it, the interrupts that are put off, and the words for what came of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from demo_worlds import motion, running, tiny_scenario

from edgestill.core.errors import DemoError
from edgestill.demo import route, walk
from edgestill.demo.route import Route
from edgestill.demo.scenario import Stream
from edgestill.demo.view import Silence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def blocked() -> set[int]:
    """Signals that this thread does not see."""
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, set())}


def test_interrupts_are_put_off_and_come_afterwards() -> None:
    """One that arrives meanwhile takes effect at the end; then all is as before."""
    before = blocked()
    came = False

    def put_off() -> None:
        nonlocal came
        with walk._no_interrupts():
            assert signal.SIGINT in blocked()
            os.kill(os.getpid(), signal.SIGINT)
            came = True

    with pytest.raises(KeyboardInterrupt):
        put_off()
    assert came
    assert blocked() == before


def test_interrupts_are_seen_again_after_an_error() -> None:
    """Whatever goes wrong meanwhile."""

    def fails() -> None:
        with walk._no_interrupts():
            raise OSError("no more processes")

    with pytest.raises(OSError, match="no more processes"):
        fails()
    assert signal.SIGINT not in blocked()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DemoError])
def test_the_process_beside_the_walk_ends_with_it(kind: type[BaseException]) -> None:
    """However the walk ends, nobody goes on measuring folds that nobody wants to know of."""

    def breaks_off() -> None:
        with walk._rehearsals([1, 2, 3], 0):
            assert len(multiprocessing.active_children()) == 1
            raise kind("enough")

    with pytest.raises(kind):
        breaks_off()
    assert multiprocessing.active_children() == []


def test_without_folds_there_is_no_process_beside() -> None:
    """Only the scenario that rotates people has other folds."""
    with walk._rehearsals([], 0) as rehearsed:
        assert multiprocessing.active_children() == []
        assert rehearsed() == []


def test_steps_are_timed_and_told_once_they_end(tmp_path: Path) -> None:
    """A step that breaks off is not told as done."""
    told: list[str] = []

    class Listening:
        """A view that remembers notes."""

        def begin(self, step: str) -> None:
            """Remembers."""
            told.append(f"begin {step}")

        def advance(self, done: int, of: int, note: str) -> None:
            """Remembers."""
            told.append(f"{done}/{of} {note}")

        def end(self, note: str) -> None:
            """Remembers."""
            told.append(f"end {note}")

    made = Route(tiny_scenario(), tmp_path / "out", Listening(), about={})
    with made._step("one") as done:
        made._epochs(3, 10, 0.12345)
        done("first")
        done("second")

    def breaks_off() -> None:
        with made._step("two"):
            raise DemoError("enough")

    with pytest.raises(DemoError):
        breaks_off()
    assert told == ["begin one", "3/10 loss 0.123", "end first second", "begin two"]
    assert list(made.steps) == ["one"]
    assert made.steps["one"] >= 0


@pytest.mark.parametrize(
    ("state", "progress"),
    [
        (
            {"stage": 0, "devices": {"a": {"state": "confirmed"}, "b": {"state": "waiting"}}},
            [(1, 3, "stage 0")],
        ),
        ({"stage": 1, "devices": {name: {"state": "confirmed"} for name in "abc"}}, [(3, 3, "stage 1")]),
        ({"stage": 0, "devices": {}}, [(0, 3, "stage 0")]),
        ({"stage": 0, "devices": {"a": None}}, [(0, 3, "stage 0")]),
        ({}, []),
    ],
)
def test_a_rollout_is_shown_by_who_has_confirmed(
    tmp_path: Path, state: Any, progress: list[tuple[int, int, str]]
) -> None:
    """Out of the whole fleet; an answer that says nothing of devices shows nothing."""
    shown: list[tuple[int, int, str]] = []

    class Bar:
        """A view that remembers how far it is."""

        def begin(self, step: str) -> None:
            """Nothing."""

        def advance(self, done: int, of: int, note: str) -> None:
            """Remembers."""
            shown.append((done, of, note))

        def end(self, note: str) -> None:
            """Nothing."""

    Route(tiny_scenario(), tmp_path, Bar(), about={})._rollout(state)
    assert shown == progress


def test_the_folder_is_made_with_its_logs_and_may_be_there_already(tmp_path: Path) -> None:
    """A second walk goes into the same folder; nothing that lies there is touched."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("old")
    for _ in range(2):
        Route(tiny_scenario(), tmp_path / "out", Silence(), about={})
    assert (tmp_path / "out" / "logs").is_dir()
    assert (tmp_path / "out" / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("status", "has"),
    [
        ({"engine": {"learned": {"n": 5}}}, True),
        ({"engine": {"learned": None}}, False),
        ({"engine": {}}, False),
        ({"engine": None}, False),
        ({}, False),
    ],
)
def test_a_device_has_learned_where_its_engine_says_so(status: Any, has: bool) -> None:
    """A device whose engine was not heard has learned nothing that anybody could tell."""
    assert route._has_overlay(status) is has
    part = motion(6, 1)
    streams = [Stream(device=name, shares=True, before=part, after=part) for name in ("one", "two")]
    said = route._learned({"one": status, "two": {}, "quiet": {}}, {}, streams, never)
    assert said == f"{int(has)} of 2 sharing devices adopted a head of their own"


class Never:
    """An engine that is not asked."""

    inputs: ClassVar[dict[str, Any]] = {}

    def run(self, inputs: object) -> dict[str, NDArray[Any]]:
        """Nobody may."""
        raise AssertionError(inputs)


never = Never()


def test_nothing_of_this_runs_any_more(tmp_path: Path) -> None:
    """The tests above leave no process either."""
    look: Callable[[str], list[str]] = running
    assert look(str(tmp_path)) == []

"""A timing job that is killed at any moment, and whatever else may happen to one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from device_jobs import MODELS, Device, job
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import UnreachableError
from edgestill.core.timing import TimingReport
from edgestill.device.depot import STATE
from edgestill.device.measuring import ROUNDS, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from edgestill.device.jobs import Job


class Killed(BaseException):
    """The power failed: nothing of ours may catch it."""


class Trap:
    """Kills before or after the operation of a number: writes, removals, downloads, reports and rounds."""

    def __init__(self, at: int | None, when: str) -> None:
        self.at, self.when, self.done = at, when, list[str]()

    def act(self, name: str, act: Callable[[], Any]) -> Any:
        """Does it, unless the power fails."""
        number = len(self.done)
        self.done.append(name)
        if (number, "before") == (self.at, self.when):
            raise Killed(name)
        found = act()
        if (number, "after") == (self.at, self.when):
            raise Killed(name)
        return found


def disturbed(folder: Path, trap: Trap) -> Device:
    """A job from its beginning to its end, or to a kill."""
    device = Device(folder)
    hub, write, unlink = device.hub, os.replace, os.unlink
    fetch, tell = hub.fetch_archive, hub.tell_timing

    def counted(job: Job, *, to: Path, goes_on: Callable[[], bool]) -> bool:
        return bool(trap.act("fetch", lambda: fetch(job, to=to, goes_on=goes_on)))

    hub.fetch_archive = counted  # type: ignore[method-assign]  # counted
    hub.tell_timing = lambda report: trap.act("tell", lambda: tell(report))  # type: ignore[method-assign]  # counted
    device.meanwhile = [lambda: trap.act("round", lambda: None)] * (ROUNDS * MODELS)
    with (
        patch("os.replace", lambda *names: trap.act("replace", lambda: write(*names))),
        patch("os.unlink", lambda *names, **more: trap.act("unlink", lambda: unlink(*names, **more))),
    ):
        device.measuring.offer(job())
        try:
            device.run()
        except Killed:
            assert trap.at is not None
    hub.fetch_archive, hub.tell_timing = fetch, tell  # type: ignore[method-assign]  # as before
    device.meanwhile = []
    return device


def test_a_kill_at_any_moment_costs_nothing_but_time(tmp_path: Path) -> None:
    """Before and after every write, removal, download, report and round: the next run ends the job, told once, with nothing left."""
    plain = Trap(None, "")
    disturbed(tmp_path / "plain", plain)
    assert {"fetch", "tell", "replace", "unlink", "round"} <= set(plain.done)
    for at, name in enumerate(plain.done):
        for when in ("before", "after"):
            device = disturbed(tmp_path / f"{at}-{when}", Trap(at, when))
            device.opened_again()
            device.measuring.offer(job())
            device.clock.advance(61)
            assert device.run() is None, (name, when)
            assert device.hub.states == ["downloaded", "measured"], (name, when)
            assert device.files() == [STATE], (name, when)
            assert device.measuring.seen == 1


# Whatever happens

WORDS = st.sampled_from(
    ["offer", "offer", "next", "withdraw", "disturb", "wait", "wait", "restart", "offline", "online", "work"]
)


@given(words=st.lists(WORDS, max_size=40))
@settings(max_examples=80)
def test_whatever_happens_only_what_is_named_now_is_timed(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    """Each job has one last word at most, and once a job is offered for long enough on a quiet device that is online, nothing is left of it."""
    device = Device(tmp_path_factory.mktemp("whatever") / "timing")
    named: int | None = None
    place = 1
    for word in words:
        before = len(device.rounds)
        match word:
            case "offer" | "next":
                place += word == "next"
                named = place
                device.measuring.offer(job(place))
            case "withdraw":
                named = None
                device.measuring.offer(None)
            case "disturb":
                device.quiet.disturb()
            case "wait":
                device.clock.advance(61)
            case "restart":
                named = None
                device.opened_again()
            case "offline":
                device.hub.trouble = UnreachableError("offline")
            case "online":
                device.hub.trouble = None
        if word != "restart":
            device.run()
        assert named is not None or len(device.rounds) == before
        last = [one.counter for one in device.hub.told.values() if one.state != "downloaded"]
        assert len(last) == len(set(last))
    device.hub.trouble = None
    device.measuring.offer(job(place))
    device.clock.advance(61)
    device.run()
    device.clock.advance(61)
    assert device.run() is None
    assert device.files() == [STATE]
    assert (place, "measured") in {(one.counter, one.state) for one in device.hub.told.values()}


@given(
    untold=st.lists(
        st.builds(
            TimingReport,
            counter=st.integers(1, 100),
            archive=st.just(Digest.of(b"x")),
            state=st.sampled_from(["downloaded", "refused"]),
            reason=st.text("abc ", max_size=300),
        ),
        max_size=3,
    ),
    seen=st.integers(0, 2**53 - 1),
)
def test_a_record_is_read_as_it_was_written(untold: list[TimingReport], seen: int) -> None:
    """Whatever it holds."""
    record = Record(seen=seen, ended=seen // 2, untold=tuple(untold))
    assert Record.from_bytes(record.to_bytes()) == record

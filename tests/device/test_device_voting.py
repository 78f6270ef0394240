"""A turn at voting on a device: when it answers, what it does to the disk, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from device_votes import ARCHIVE, HOUR, Device, Process, job, proxy_set

from edgestill.core.digest import Digest
from edgestill.core.errors import EngineError, TrustError, UnreachableError
from edgestill.core.release import MAX_COUNTER
from edgestill.device.depot import STATE
from edgestill.device.voter import Broken, NotYet, Refused, Voted
from edgestill.device.voting import (
    LATER,
    LONGEST_PAUSE,
    LOOK,
    MOST_BUNDLES,
    MOST_HINDERED,
    MOST_SECONDS,
    Record,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = f"{Digest.of(ARCHIVE).hex}.esp"
BALLOT = b"a ballot"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device that is quiet."""
    return Device(tmp_path)


def test_a_set_is_brought_answered_and_gone(device: Device) -> None:
    """The ballot waits in the outbox, under the round's number."""
    device.voting.offer(job(MAX_COUNTER + 1 + 5))
    assert device.run() == LONGEST_PAUSE
    assert device.waiting() == [(5, BALLOT)]
    assert device.files() == [STATE]
    assert [one.is_stopped for one in device.started] == [True]
    assert not device.quiet.is_voting


def test_it_votes_once_in_a_round(device: Device) -> None:
    """The hub names the round until it closes; nor does a restart vote again, and the next round is another."""
    for _ in range(2):
        device.voting.offer(job())
        device.run()
    device.opened_again()
    device.voting.offer(job())
    assert device.run() == LONGEST_PAUSE
    assert (device.hub.fetched, device.waiting()) == (1, [(1, BALLOT)])
    device.voting.offer(job(2))
    device.run()
    assert device.waiting() == [(2, BALLOT)]


def test_another_bundle_votes_again_within_bounds(device: Device) -> None:
    """What serves now is asked; in one round so many times at most."""
    for number in range(MOST_BUNDLES + 2):
        device.serving = Path(f"{number}.esb")
        device.answers = [Voted(b"%d" % number, 1)]
        device.voting.offer(job())
        device.run()
    assert len(device.started) == MOST_BUNDLES
    assert device.waiting() == [(1, b"%d" % (MOST_BUNDLES - 1))]


def test_it_waits_until_the_device_is_quiet(device: Device) -> None:
    """The samples are there already; they are answered a minute after the last answer."""
    device.quiet.disturb()
    device.voting.offer(job())
    assert device.run() == LOOK
    assert (device.hub.fetched, device.started) == (1, [])
    device.clock.advance(60)
    device.run()
    assert device.waiting() == [(1, BALLOT)]


@pytest.mark.parametrize("other", ["is_timing", "is_training"])
def test_nothing_else_runs_beside_it(device: Device, other: str) -> None:
    """Neither a timing nor training; and while it votes, they wait."""
    setattr(device.quiet, other, True)
    device.voting.offer(job())
    assert device.run() == LOOK
    assert device.started == []
    setattr(device.quiet, other, False)
    seen: list[tuple[bool, bool]] = []
    device.meanwhile = [lambda: seen.append((device.quiet.may_begin, device.quiet.is_watched))]
    device.run()
    assert seen == [(False, True)]


def test_nothing_is_fetched_while_a_release_is_installed(device: Device) -> None:
    """The line belongs to the release."""
    device.quiet.is_installing = True
    device.voting.offer(job())
    assert device.run() == LOOK
    assert device.hub.fetched == 0


def test_a_device_that_serves_nothing_does_not_vote(device: Device) -> None:
    """Nor does one whose bundle is on trial."""
    device.serving = None
    device.voting.offer(job())
    assert device.run() == LOOK
    assert device.hub.fetched == 0


def test_a_question_in_between_ends_the_process(device: Device) -> None:
    """It begins anew in the next quiet minute."""
    device.meanwhile = [device.quiet.disturb]
    device.voting.offer(job())
    assert device.run() == LOOK
    assert ([one.is_stopped for one in device.started], device.waiting()) == ([True], [])
    assert not device.quiet.is_voting
    device.clock.advance(60)
    device.run()
    assert device.waiting() == [(1, BALLOT)]


@pytest.mark.parametrize("why", ["withdrawn", "replaced", "a release", "its time is over", "the end"])
@pytest.mark.parametrize("when", ["fetching", "answering"])
def test_what_is_not_wanted_now_is_let_go(device: Device, when: str, why: str) -> None:
    """In the middle of the download, or of the answers: no ballot of it."""
    happens: dict[str, Callable[[], object]] = {
        "withdrawn": lambda: device.voting.offer(None),
        "replaced": lambda: device.voting.offer(job(2)),
        "a release": lambda: setattr(device.quiet, "is_installing", True),
        "its time is over": lambda: device.clock.advance(101 * HOUR),
        "the end": lambda: device.voting.stop(0),
    }

    def meanwhile() -> None:
        happens[why]()

    if when == "fetching":
        device.hub.meanwhile = [meanwhile]
    else:
        device.meanwhile = [meanwhile]
    device.voting.offer(job())
    while device.voting.advance() == 0.0:
        pass
    assert device.waiting() == []
    if why == "withdrawn":
        assert device.run() is None
        assert device.files() == [STATE]


def test_few_samples_of_its_own_are_looked_at_later(device: Device) -> None:
    """The set stays, and words of the hub in between do not hurry it."""
    device.answers = [NotYet("3 samples of its own, of 16 that it needs")]
    device.voting.offer(job())
    assert device.run() == LATER
    device.voting.offer(job())
    device.clock.advance(LATER - 1)
    assert device.run() == 1
    assert (len(device.started), device.files()) == (1, [FILE, STATE])
    device.clock.advance(61)
    device.run()
    assert (device.hub.fetched, device.waiting()) == (1, [(1, BALLOT)])


def test_what_must_not_vote_does_not(device: Device) -> None:
    """It is not asked again in this round with this bundle, and no ballot leaves."""
    device.answers = [Refused("votes may not leave this device")]
    device.voting.offer(job())
    assert device.run() == LONGEST_PAUSE
    device.opened_again()
    device.voting.offer(job())
    device.run()
    assert (len(device.started), device.waiting(), device.files()) == (1, [], [STATE])
    device.serving = Path("2.esb")
    device.run()
    assert device.waiting() == [(1, BALLOT)]


def test_a_process_that_breaks_again_and_again_is_given_up(device: Device) -> None:
    """With growing pauses, so many times."""
    device.answers = [Broken("it ended without a word")] * (MOST_HINDERED + 1)
    device.voting.offer(job())
    pauses = []
    while (pause := device.run()) != LONGEST_PAUSE:
        assert pause is not None
        pauses.append(pause)
        device.clock.advance(pause)
    assert pauses == [2.0**n for n in range(1, MOST_HINDERED + 1)]
    assert (len(device.started), device.waiting(), device.files()) == (MOST_HINDERED + 1, [], [STATE])


def test_a_machine_without_room_for_a_process_is_asked_again(device: Device) -> None:
    """Nothing is given up at once."""

    def full(*_: object) -> Process:
        raise EngineError("voting_child cannot be started", where="x", expected="room", got="none")

    device.opened_again(start=full)
    device.voting.offer(job())
    assert device.run() == 2.0
    assert not device.quiet.is_voting
    for _ in range(2 * MOST_HINDERED):  # longer than a process would be given
        pause = device.run()
        assert pause is not None
        assert pause <= LATER
        device.clock.advance(pause)
    assert STATE not in device.files() or not device.waiting()
    device.opened_again()
    device.voting.offer(job())
    device.run()
    assert device.waiting() == [(1, BALLOT)]


def test_a_process_that_takes_too_long_is_given_up(device: Device) -> None:
    """An hour for a set is enough."""
    device.takes = MOST_SECONDS + 1
    device.voting.offer(job())
    device.run()
    assert (len(device.started), device.waiting(), device.files()) == (1, [], [STATE])


def test_a_hub_that_is_away_is_asked_again(device: Device) -> None:
    """After a pause that grows; nothing is given up for it."""
    device.hub.trouble = UnreachableError("away", where="hub", expected="an answer", got="none")
    device.voting.offer(job())
    for _ in range(10):
        pause = device.run()
        assert pause is not None
        device.clock.advance(pause)
    device.hub.trouble = None
    device.run()
    assert device.waiting() == [(1, BALLOT)]


def test_an_archive_that_gave_way_to_a_release_is_fetched_again(device: Device) -> None:
    """It lay there, and was needed for room."""
    device.quiet.disturb()
    device.voting.offer(job())
    device.run()
    (device.folder / "votes" / FILE).unlink()
    device.clock.advance(61)
    device.run()
    assert (device.hub.fetched, device.waiting()) == (2, [(1, BALLOT)])


def test_attack_a_set_that_lies_on_the_disk_is_checked_before_it_is_answered(device: Device) -> None:
    """Attack: other bytes under the right name are thrown away and fetched again."""
    (device.folder / "votes" / FILE).write_bytes(proxy_set(version="2.0.0"))
    device.voting.offer(job())
    pause = device.run()
    assert pause == 2.0
    assert device.started == []
    device.clock.advance(2)
    device.run()
    assert (device.hub.fetched, device.waiting()) == (1, [(1, BALLOT)])


def test_attack_nothing_on_the_disk_is_answered_without_a_word(device: Device) -> None:
    """Attack: what somebody has put there is no turn, and goes with the first word."""
    (device.folder / "votes" / FILE).write_bytes(ARCHIVE)
    assert device.run() is None
    assert device.started == []
    device.voting.offer(None)
    assert device.run() is None
    assert device.files() == []


def test_attack_a_set_under_another_name_is_not_answered(device: Device) -> None:
    """Attack: a hub that lists a set as another of its kind."""
    other = proxy_set(version="2.0.0")
    device.hub.archives[Digest.of(other)] = other
    device.voting.offer(job(archive=other))
    assert device.run() == LONGEST_PAUSE
    assert (device.started, device.waiting()) == ([], [])


def test_attack_other_bytes_than_were_listed_are_fetched_again_and_then_given_up(device: Device) -> None:
    """Attack: a mirror's fault, perhaps; it ends."""
    device.hub.trouble = TrustError("the bytes are not the file", where="x", expected="a", got="b")
    device.voting.offer(job())
    for _ in range(MOST_HINDERED + 1):
        pause = device.run()
        assert pause is not None
        device.clock.advance(pause)
    assert (device.hub.fetched, device.waiting()) == (MOST_HINDERED + 1, [])
    assert device.run() == LONGEST_PAUSE


def test_attack_a_set_that_is_no_such_file_is_not_answered(device: Device) -> None:
    """Attack: what a publisher signed by mistake, or whose head lies."""
    wrong = ARCHIVE[:1000] + b"x" + ARCHIVE[1001:]
    device.hub.archives[Digest.of(wrong)] = wrong
    device.voting.offer(job(archive=wrong))
    assert device.run() == LONGEST_PAUSE
    assert device.started == []


def test_a_set_that_is_larger_than_half_a_days_budget_is_not_fetched(device: Device) -> None:
    """The day is for other things, too."""
    device.opened_again(most_bytes=len(ARCHIVE) - 1)
    device.voting.offer(job())
    assert device.run() == LONGEST_PAUSE
    assert device.hub.fetched == 0


def test_a_device_without_room_does_not_fetch(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free stays free."""
    usage = type("Usage", (), {"free": 2 * len(ARCHIVE) - 1})
    monkeypatch.setattr("edgestill.device.depot.shutil.disk_usage", lambda _: usage)
    device.voting.offer(job())
    assert device.run() == 2.0
    assert device.hub.fetched == 0


def test_what_was_seen_outlives_a_restart(device: Device) -> None:
    """So that a turn of before stays a replay; a damaged record begins anew."""
    device.voting.offer(job(7))
    device.run()
    device.opened_again()
    assert device.voting.seen == 7
    (device.folder / "votes" / STATE).write_bytes(b"{")
    device.opened_again()
    assert device.voting.seen == 0


def test_a_record_comes_back_as_it_was() -> None:
    """And is bounded when it is read."""
    one = Record(seen=9, answered=8, bundles=("a.esb", "b.esb"))
    assert Record.from_bytes(one.to_bytes()) == one
    assert one.has_answered(8, "a.esb")
    assert not one.has_answered(9, "a.esb")
    assert one.with_answer(9, "c.esb") == Record(seen=9, answered=9, bundles=("c.esb",))


# Kills


class Killed(BaseException):
    """The power failed: nothing of ours may catch it."""


class Trap:
    """Kills before or after the operation of a number: writes, removals, downloads, answers and ballots."""

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
    """A turn from its beginning to its end, or to a kill."""
    device = Device(folder)
    write, unlink, fetch, put = os.replace, os.unlink, device.hub.fetch_archive, device.outbox.put_ballot
    device.hub.fetch_archive = lambda *a, **k: trap.act("fetch", lambda: fetch(*a, **k))  # type: ignore[method-assign]  # counted
    device.outbox.put_ballot = lambda *a, **k: trap.act("put", lambda: put(*a, **k))  # type: ignore[method-assign]  # counted
    device.meanwhile = [lambda: trap.act("answer", lambda: None)]
    with (
        patch("os.replace", lambda *names: trap.act("replace", lambda: write(*names))),
        patch("os.unlink", lambda *names, **more: trap.act("unlink", lambda: unlink(*names, **more))),
    ):
        device.voting.offer(job())
        try:
            device.run()
        except Killed:
            assert trap.at is not None
    device.hub.fetch_archive = fetch  # type: ignore[method-assign]  # as before
    device.meanwhile = []
    return device


def test_a_kill_at_any_moment_costs_nothing_but_time(tmp_path: Path) -> None:
    """Before and after every write, removal, download, answer and ballot: after the next run one ballot waits, and nothing is left."""
    plain = Trap(None, "")
    disturbed(tmp_path / "plain", plain)
    assert {"fetch", "put", "replace", "unlink", "answer"} <= set(plain.done)
    for at, name in enumerate(plain.done):
        for when in ("before", "after"):
            device = disturbed(tmp_path / f"{at}-{when}", Trap(at, when))
            device.opened_again()
            device.voting.offer(job())
            device.clock.advance(61)
            assert device.run() == LONGEST_PAUSE, (name, when)
            assert device.waiting() == [(1, BALLOT)], (name, when)
            assert device.files() == [STATE], (name, when)
            assert device.voting.seen == 1

"""A timing job on a device: when it runs, what it does to the disk, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from device_families import family
from device_jobs import ARCHIVE, HOUR, MODELS, Device, job

from edgestill.core.digest import Digest
from edgestill.core.errors import EngineError, RefusedError, TrustError, UnreachableError
from edgestill.core.timing import ModelTime
from edgestill.device import measuring, quiet
from edgestill.device.depot import STATE
from edgestill.device.measuring import LOOK, MOST_HINDERED, MOST_SECONDS, ROUNDS, Record
from edgestill.device.quiet import Patience, Quiet
from edgestill.device.stopwatch import Broken, LeftOut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device that is quiet."""
    return Device(tmp_path / "timing")


def test_a_job_is_brought_timed_and_told_and_nothing_is_left(device: Device) -> None:
    """Five rounds in which the models take turns; the median of the rounds is told."""
    device.measuring.offer(job())
    assert device.run() is None
    assert device.rounds == [*range(MODELS)] * ROUNDS
    assert device.hub.states == ["downloaded", "measured"]
    assert device.hub.heard[-1].models == tuple(
        ModelTime(
            at=at,
            p50=0.001 * (at + 1),
            p95=0.002 * (at + 1),
            low=0.002 * (at + 1),
            high=0.002 * (at + 1),
        )
        for at in range(MODELS)
    )
    assert device.files() == [STATE]
    assert [one.is_ended for one in device.watches] == [True]
    assert not device.quiet.is_timing


def test_a_job_that_is_done_is_not_done_again(device: Device) -> None:
    """The hub names it until it has heard; nor after a restart, and the next one is another."""
    device.measuring.offer(job())
    device.run()
    device.measuring.offer(job())
    device.run()
    device.opened_again()
    device.measuring.offer(job())
    assert device.run() is None
    assert device.hub.fetched == 1
    device.measuring.offer(job(2))
    device.run()
    assert device.hub.states == ["downloaded", "measured"] * 2


def test_it_waits_until_the_device_is_quiet(device: Device) -> None:
    """The archive is there already; the first round comes a minute after the last answer."""
    device.quiet.disturb()
    device.measuring.offer(job())
    assert device.run() == LOOK
    assert (device.hub.states, device.watches) == (["downloaded"], [])
    device.clock.advance(59)
    assert device.run() == LOOK
    device.clock.advance(1)
    assert device.run() is None
    assert device.hub.states == ["downloaded", "measured"]


def test_nothing_is_fetched_while_a_release_is_installed(device: Device) -> None:
    """The line belongs to the release."""
    device.quiet.is_installing = True
    device.measuring.offer(job())
    assert device.run() == LOOK
    assert device.hub.fetched == 0
    device.quiet.is_installing = False
    assert device.run() is None


@pytest.mark.parametrize("why", ["withdrawn", "replaced", "a release", "its time is over", "the end"])
def test_a_download_is_let_go_when_it_is_not_wanted_now(device: Device, why: str) -> None:
    """In the middle of it; what arrived stays where the job does."""
    happens: dict[str, Callable[[], object]] = {
        "withdrawn": lambda: device.measuring.offer(None),
        "replaced": lambda: device.measuring.offer(job(2)),
        "a release": lambda: setattr(device.quiet, "is_installing", True),
        "its time is over": lambda: device.clock.advance(101 * HOUR),
        "the end": lambda: device.measuring.stop(0),
    }

    def meanwhile() -> None:
        happens[why]()

    device.hub.meanwhile = [meanwhile]
    device.measuring.offer(job())
    assert device.measuring.advance() == LOOK
    assert device.rounds == []
    part = f"{Digest.of(ARCHIVE).hex}.est.part"
    assert device.files() == [part, STATE]
    if why == "a release":
        assert device.run() == LOOK
        assert device.files() == [part, STATE]
        device.quiet.is_installing = False
    elif why == "withdrawn":
        assert device.run() is None
        assert (device.files(), device.hub.fetched) == ([STATE], 1)
        return
    elif why in {"its time is over", "the end"}:
        return
    device.run()
    assert device.hub.fetched == 2
    assert device.hub.states == ["downloaded", "measured"]


def test_an_archive_that_gave_way_to_a_release_is_fetched_again(device: Device) -> None:
    """Rounds that are done count on."""

    def installed() -> None:
        device.quiet.disturb()
        (device.folder / f"{Digest.of(ARCHIVE).hex}.est").unlink()

    device.meanwhile = [lambda: None, installed]
    device.measuring.offer(job())
    device.run()
    device.clock.advance(60)
    assert device.run() is None
    assert device.hub.fetched == 2
    assert device.rounds == [0, 1, 1, 2, *([*range(MODELS)] * (ROUNDS - 1))]
    assert device.hub.states == ["downloaded", "measured"]


def test_a_busy_machine_begins_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's work counts, before a timing begins and never after."""
    device.quiet = Quiet(device.clock, Patience(60, 0.5))
    device.opened_again()
    device.clock.advance(61)
    monkeypatch.setattr(quiet, "load", lambda: 0.6)
    device.measuring.offer(job())
    assert device.run() == LOOK
    monkeypatch.setattr(quiet, "load", lambda: 0.5)
    device.meanwhile = [lambda: monkeypatch.setattr(quiet, "load", lambda: 5.0)]
    assert device.run() is None


def test_a_question_in_between_ends_the_process_and_keeps_the_rounds(device: Device) -> None:
    """What was measured counts on, the round that was cut off is done again, in a new process."""
    device.meanwhile = [lambda: None] * 4 + [device.quiet.disturb]
    device.measuring.offer(job())
    assert device.run() == LOOK
    assert [one.is_ended for one in device.watches] == [True]
    assert not device.quiet.is_timing
    device.clock.advance(60)
    assert device.run() is None
    assert device.rounds == [0, 1, 2, 0, 1, *([*range(MODELS)] * ROUNDS)[4:]]
    assert len(device.watches) == 2


@pytest.mark.parametrize("word", [None, 2])
def test_a_job_that_is_withdrawn_in_between_is_gone_at_once(device: Device, word: int | None) -> None:
    """Cancelled, or replaced by another; nothing more is told of it."""
    after = None if word is None else job(word)
    device.meanwhile = [lambda: device.measuring.offer(after)]
    device.measuring.offer(job())
    device.run()
    device.clock.advance(60)
    device.run()
    assert device.watches[0].is_ended
    assert device.files() == [STATE]
    expected = ["downloaded"] if word is None else ["downloaded", "downloaded", "measured"]
    assert device.hub.states == expected


def test_a_model_that_the_engine_refuses_is_left_out_and_named(device: Device) -> None:
    """Whenever that comes; the others are told."""
    device.answers = {1: LeftOut("no such operator")}
    device.measuring.offer(job())
    device.run()
    assert [one.at for one in device.hub.heard[-1].models] == [0, 2]
    assert device.hub.heard[-1].reason == "1.onnx was left out: no such operator"
    assert device.rounds.count(1) == 1


def test_where_no_model_runs_the_job_is_refused(device: Device) -> None:
    """With the reason of each."""
    device.answers = dict.fromkeys(range(MODELS), LeftOut("no such operator"))
    device.measuring.offer(job())
    device.run()
    assert device.hub.states == ["downloaded", "refused"]
    assert "no model runs here: 0.onnx was left out: no such operator" in device.hub.heard[-1].reason


def test_a_model_that_takes_its_process_down_is_named_and_ends_the_job(device: Device) -> None:
    """It would do so again; a restart does not try it again either."""
    device.answers = {2: Broken("its process was killed by signal 11")}
    device.measuring.offer(job())
    assert device.run() is None
    assert device.hub.states == ["downloaded", "refused"]
    assert device.hub.heard[-1].reason == ("2.onnx cannot be timed here: its process was killed by signal 11")
    assert device.files() == [STATE]
    device.opened_again()
    device.measuring.offer(job())
    assert device.run() is None
    assert device.rounds == [0, 1, 2]


def test_a_job_that_takes_too_long_ends(device: Device) -> None:
    """Counted over all processes that it needs."""
    device.takes = MOST_SECONDS / 4
    device.measuring.offer(job())
    device.run()
    assert device.hub.states == ["downloaded", "refused"]
    assert "took longer than" in device.hub.heard[-1].reason


def test_nothing_is_timed_after_its_time_until_it_is_said_again(device: Device) -> None:
    """A hub that cannot be reached cannot withdraw a job either."""
    device.quiet.disturb()
    device.measuring.offer(job(clock=device.clock, expires=device.clock.now() + 30))
    device.run()
    device.clock.advance(61)
    device.run()
    assert device.rounds == []
    device.measuring.offer(job(clock=device.clock))
    assert device.run() is None
    assert device.hub.states == ["downloaded", "measured"]


def test_nothing_on_the_disk_is_timed_until_the_hub_names_it_again(device: Device) -> None:
    """After a restart; the archive is not fetched a second time."""
    device.quiet.disturb()
    device.measuring.offer(job())
    device.run()
    device.clock.advance(61)
    device.opened_again()
    assert device.run() is None
    assert device.rounds == []
    device.measuring.offer(job())
    device.run()
    assert (device.hub.fetched, len(device.rounds)) == (1, ROUNDS * MODELS)


def test_attack_an_archive_that_was_changed_on_the_disk_is_not_timed(device: Device) -> None:
    """It is fetched again."""
    device.quiet.disturb()
    device.measuring.offer(job())
    device.run()
    (archive,) = [one for one in device.folder.iterdir() if one.name != STATE]
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    device.clock.advance(61)
    device.opened_again()
    device.measuring.offer(job())
    assert device.run() == 2
    assert device.run() is None
    assert device.hub.fetched == 2
    assert device.hub.states == ["downloaded", "measured"]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (family(version="1.0.1"), "under another name"),
        (family(hardware_class="riscv64-base-onnxruntime"), "under another name"),
        (b"not an archive" * 100, "not a family of models"),
        (ARCHIVE[:-512], "ends too early"),
        (ARCHIVE + bytes(512), "after the archive's end"),
    ],
)
def test_attack_an_archive_that_is_not_what_its_name_says_is_refused(
    device: Device, archive: bytes, reason: str
) -> None:
    """Signed or not: it never reaches an engine."""
    device.hub.archives = {Digest.of(archive): archive}
    device.measuring.offer(job(archive=archive))
    assert device.run() is None
    assert (device.hub.states, device.rounds) == (["refused"], [])
    assert reason in device.hub.heard[-1].reason
    assert device.files() == [STATE]


def test_attack_a_family_for_another_class_is_refused(device: Device) -> None:
    """Also where name and archive agree."""
    other = "riscv64-base-onnxruntime"
    archive = family(hardware_class=other)
    device.hub.archives = {Digest.of(archive): archive}
    device.measuring.offer(job(archive=archive, target=f"timing/tiny/1.0.0/{other}.est"))
    device.run()
    assert (device.hub.states, device.rounds) == (["refused"], [])


def test_attack_an_archive_that_is_too_large_is_not_begun(device: Device) -> None:
    """Over the format's bound, or over half of what the device may receive in a day."""
    device.measuring.offer(job(size=2**40))
    device.run()
    assert "too large for this device" in device.hub.heard[-1].reason
    device.opened_again(most_bytes=len(ARCHIVE) - 1)
    device.measuring.offer(job(2))
    device.run()
    assert device.hub.states == ["refused", "refused"]
    assert device.hub.fetched == 0


def test_a_full_disk_hinders_and_then_refuses(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much again stays free; it may be made room for, but not waited for for ever."""
    usage = type("Usage", (), {"free": 2 * len(ARCHIVE) - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    device.measuring.offer(job())
    pauses = [device.run() for _ in range(MOST_HINDERED)]
    assert pauses == [2.0**turn for turn in range(1, MOST_HINDERED + 1)]
    assert device.run() is None
    assert "no room for timing/" in device.hub.heard[-1].reason


def test_other_bytes_than_were_listed_hinder_and_then_refuse(device: Device) -> None:
    """Once may be an accident."""
    fetch = device.hub.fetch_archive
    device.hub.fetch_archive = _raising(TrustError("the bytes are not the file"))  # type: ignore[method-assign]  # a hub that serves other bytes
    device.measuring.offer(job())
    assert device.run() == 2
    device.hub.fetch_archive = fetch  # type: ignore[method-assign]  # and then the right ones
    assert device.run() is None
    assert device.hub.states == ["downloaded", "measured"]


def _raising(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_hub_that_is_away_is_waited_for_with_growing_pauses(device: Device) -> None:
    """Not for less than a second, and not for more than five minutes."""
    device.hub.trouble = UnreachableError("offline")
    device.measuring.offer(job())
    pauses = [device.run() for _ in range(12)]
    assert pauses == [min(2.0**turn, 300.0) for turn in range(1, 13)]
    device.hub.trouble = None
    assert device.run() is None
    assert device.hub.states == ["downloaded", "measured"]


def test_what_cannot_be_told_now_is_told_later_and_holds_no_timing_up(device: Device) -> None:
    """Also in the next run of the agent, where nobody has named a job yet."""
    device.quiet.disturb()
    device.measuring.offer(job())
    device.run()
    device.clock.advance(61)
    device.hub.trouble = UnreachableError("offline")
    assert device.run() == measuring.TELL_PAUSE
    assert device.files() == [STATE]
    device.hub.trouble = None
    device.opened_again()
    assert device.run() is None
    assert device.hub.states == ["downloaded", "measured"]
    assert Record.from_bytes((device.folder / STATE).read_bytes()).untold == ()


@pytest.mark.parametrize(
    ("status", "kept"), [(422, False), (409, False), (404, False), (503, True), (429, True)]
)
def test_what_the_hub_will_never_take_is_dropped(device: Device, status: int, kept: bool) -> None:
    """And what it may take later is kept."""
    device.quiet.disturb()
    device.measuring.offer(job())
    device.hub.tell_timing = _raising(RefusedError("no", got=f"HTTP {status}"))  # type: ignore[method-assign]  # a hub that says no
    device.run()
    left = Record.from_bytes((device.folder / STATE).read_bytes()).untold
    assert len(left) == int(kept)


def test_an_engine_process_that_cannot_be_started_ends_the_job(device: Device) -> None:
    """With the reason."""
    device.opened_again(start=_raising(EngineError("the process cannot be started")))
    device.measuring.offer(job())
    assert device.run() is None
    assert "cannot be started" in device.hub.heard[-1].reason


def test_a_damaged_record_is_begun_anew(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """A job is worth less than an agent that starts."""
    device.measuring.offer(job(5))
    device.run()
    (device.folder / STATE).write_bytes(b"{")
    device.opened_again()
    assert device.measuring.seen == 0
    assert STATE in caplog.text


def test_the_largest_place_is_known_before_anything_comes_of_it(device: Device) -> None:
    """A replay must be refused also right after a kill."""
    device.measuring.offer(job(7))
    assert device.measuring.seen == 7
    device.hub.trouble = UnreachableError("offline")
    device.run()
    device.opened_again()
    assert device.measuring.seen == 7

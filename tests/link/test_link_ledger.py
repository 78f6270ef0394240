"""The data budget on disk: shared by processes, never forgotten by a kill, and never given twice."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.bundle import replace
from edgestill.core.errors import MessageError, PathError, SpentError
from edgestill.core.protocols import Request
from edgestill.link import ledger as module
from edgestill.link.allowance import SECONDS_PER_DAY, Allowance, Held
from edgestill.link.ledger import MOST_AHEAD, SHARES, Account, Ledger
from edgestill.link.metered import Metered
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 6_400
SHARE = DAY // SHARES


@pytest.fixture
def clock() -> FakeClock:
    """The time of everybody."""
    return FakeClock()


def opened(folder: Path, clock: FakeClock, bytes_per_day: int | None = DAY) -> Ledger:
    """As a process opens it."""
    return Ledger(folder / "budget.json", bytes_per_day=bytes_per_day, clock=clock)


def counted(folder: Path, clock: FakeClock) -> int:
    """What the file says was spent, whoever asks."""
    return opened(folder, clock).account().allowance.spent


def test_what_one_process_spends_another_knows(tmp_path: Path, clock: FakeClock) -> None:
    """And both after a restart; a little is counted ahead, and given back by who ends in order."""
    one, other = opened(tmp_path, clock), opened(tmp_path, clock)
    one.charge(1_000)
    assert one.left() == DAY - 1_000
    assert other.left() == DAY - 1_000 - SHARE
    other.charge(500)
    one.settle()
    other.settle()
    again = opened(tmp_path, clock)
    assert (again.left(), again.account().allowance.spent) == (DAY - 1_500, 1_500)
    with pytest.raises(
        SpentError, match=r"used up; at budget.json; expected at most 4.9 kB of 6.4 kB; got 4.9 kB"
    ):
        again.require(DAY - 1_499)
    again.require(DAY - 1_500)


def test_small_things_are_counted_ahead_together(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash wears out: a day of polls is some hundred writes at most, and without a budget a write for each 64 kB."""
    writes: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        writes.append(path)
        replace(path, data)

    monkeypatch.setattr(module, "write_whole", write)
    ledger = opened(tmp_path, clock)
    for _ in range(DAY // 10):
        ledger.charge(10)
    assert len(writes) <= SHARES
    writes.clear()
    unlimited = opened(tmp_path, clock, None)
    for _ in range(10_000):
        unlimited.charge(400)
    assert len(writes) <= 10_000 * 400 // MOST_AHEAD + 1
    assert unlimited.left() is None


def test_polls_beyond_a_budget_wear_out_no_flash(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted a share at a time when nothing is left, too; nothing may be spent of what is counted so, and it is given back."""
    writes: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        writes.append(path)
        replace(path, data)

    ledger = opened(tmp_path, clock)
    ledger.charge(DAY)
    monkeypatch.setattr(module, "write_whole", write)
    for number in range(1, 101):
        ledger.charge(10)
        assert ledger.left() == 0
        assert counted(tmp_path, clock) >= DAY + 10 * number
        with pytest.raises(SpentError):
            ledger.reserve(1)
    assert len(writes) <= 100 * 10 // SHARE + 1
    ledger.settle()
    assert counted(tmp_path, clock) == DAY + 1_000


def test_a_new_day_gives_a_new_budget_once(tmp_path: Path, clock: FakeClock) -> None:
    """To all processes together, whoever looks first; what one had ahead was of yesterday."""
    one, other = opened(tmp_path, clock), opened(tmp_path, clock)
    one.ahead(DAY)
    assert (one.left(), other.left()) == (DAY, 0)
    clock.advance(SECONDS_PER_DAY)
    other.charge(100)
    assert one.left() == DAY - 100 - SHARE
    one.charge(50)
    other.settle()
    one.settle()
    assert counted(tmp_path, clock) == 150


@pytest.mark.parametrize("back", [60, SECONDS_PER_DAY, 400 * SECONDS_PER_DAY])
def test_attack_a_clock_set_back_over_a_restart_gives_nothing(
    tmp_path: Path, clock: FakeClock, back: float
) -> None:
    """A flat battery, or somebody who wants more: what was spent stays spent, also on the way forward to the same day."""
    opened(tmp_path, clock).charge(DAY)
    for _ in range(3):
        clock.jump(-back)
        assert opened(tmp_path, clock).left() == 0
        clock.jump(back)
        assert opened(tmp_path, clock).left() == 0


def test_after_a_clock_that_was_wrong_a_budget_comes_with_each_day_of_running(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Counted by the clock that cannot be set, over restarts."""
    clock.jump(5_000 * SECONDS_PER_DAY)
    opened(tmp_path, clock).charge(DAY)
    clock.jump(-5_000 * SECONDS_PER_DAY)
    for hours in (13, 10.5):
        ledger = opened(tmp_path, clock)
        clock.advance(hours * 3600)
        assert ledger.left() == 0
    ledger = opened(tmp_path, clock)
    clock.advance(3600)
    assert ledger.left() == DAY
    ledger.charge(DAY)
    assert opened(tmp_path, clock).left() == 0


def test_attack_many_processes_do_not_make_a_day_of_running_shorter(tmp_path: Path, clock: FakeClock) -> None:
    """After a clock that was wrong a budget comes with 24 hours of running, counted once: by the one that keeps the time."""
    clock.jump(5_000 * SECONDS_PER_DAY)
    keeper = opened(tmp_path, clock)
    others = [
        Ledger(tmp_path / "budget.json", bytes_per_day=DAY, clock=clock, keeps_time=False) for _ in range(3)
    ]
    keeper.charge(DAY)
    clock.jump(-5_000 * SECONDS_PER_DAY)
    for _ in range(23):
        clock.advance(3_600)
        assert [one.left() for one in (keeper, *others)] == [0, 0, 0, 0]
    clock.advance(3_600)
    assert [one.left() for one in (keeper, *others)] == [DAY] * 4


class Killed(BaseException):
    """The process ends here."""


_steps = st.lists(
    st.tuples(st.sampled_from(["charge", "spend", "settle", "tomorrow", "back"]), st.integers(0, 900)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(_steps, st.integers(0, 12), st.booleans(), st.integers(0, 2))
def test_a_kill_at_any_write_forgets_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, at: int, after: bool, others: int
) -> None:
    """Whatever was spent of what was ahead is in the file, before or after the write at which the power fails; the budget is not overrun."""
    folder, clock = tmp_path_factory.mktemp("ledger"), FakeClock()
    spent, left = 0, at

    def write(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0 and not after:
            raise Killed
        replace(path, data)
        if left < 0:
            raise Killed

    ledgers = [opened(folder, clock) for _ in range(others + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_whole", write)
        with suppress(Killed):
            for number, (step, count) in enumerate(steps):
                ledger = ledgers[number % len(ledgers)]
                if step == "settle":
                    ledger.settle()
                elif step == "tomorrow":
                    clock.advance(SECONDS_PER_DAY)
                    spent = 0
                elif step == "back":
                    clock.jump(-count * 1e4)
                    clock.jump(count * 1e4)
                else:
                    with suppress(SpentError):
                        ledger.require(count)
                        ledger.ahead(count)
                        spent += count
                        ledger.charge(count)
    assert counted(folder, clock) >= spent
    assert spent <= DAY


def _spend(path: Any, times: int) -> int:
    """In a process of its own: as much as it may."""
    ledger, done = Ledger(path, bytes_per_day=DAY, clock=FakeClock()), 0
    for _ in range(times):
        with suppress(SpentError):
            ledger.ahead(10)
            if (ledger.left() or 0) >= 10:
                ledger.charge(10)
                done += 10
    ledger.settle()
    return done


def test_processes_and_threads_do_not_overrun_it_together(tmp_path: Path, clock: FakeClock) -> None:
    """Four processes and eight threads that spend all they may."""
    path = tmp_path / "budget.json"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        done = sum(pool.starmap(_spend, [(path, 100)] * 4))
    assert done == counted(tmp_path, clock) == 4_000
    with ThreadPoolExecutor(8) as threads:
        done += sum(threads.map(lambda _: _spend(path, 100), range(8)))
    assert done <= DAY
    assert counted(tmp_path, clock) == done


def test_attack_many_questions_at_once_do_not_overrun_it(tmp_path: Path, clock: FakeClock) -> None:
    """Eight ask for what only one may have; a kill while it is under way forgets nothing, and what was not spent comes back."""
    ledger, begun = opened(tmp_path, clock), Barrier(8)

    def ask(_: int) -> Held | None:
        begun.wait()
        try:
            return ledger.reserve(DAY - 10)
        except SpentError:
            return None

    with ThreadPoolExecutor(8) as threads:
        (held,) = [one for one in threads.map(ask, range(8)) if one is not None]
    assert counted(tmp_path, clock) >= DAY - 10
    assert ledger.left() == 10
    ledger.charge(1_000, held)
    ledger.release(held)
    assert ledger.left() == DAY - 1_000
    assert counted(tmp_path, clock) == 1_000
    ledger.release(held)
    assert ledger.left() == DAY - 1_000


def test_what_is_held_for_one_is_not_spent_by_another(tmp_path: Path, clock: FakeClock) -> None:
    """Each settles its own; and what was held of yesterday gives nothing back today."""
    ledger = opened(tmp_path, clock)
    one, other = ledger.reserve(2_000), ledger.reserve(3_000)
    ledger.charge(2_500, one)
    ledger.release(one)
    assert ledger.left() == DAY - 5_500
    clock.advance(SECONDS_PER_DAY)
    assert ledger.left() == DAY
    ledger.charge(300, other)
    ledger.release(other)
    assert ledger.left() == DAY - 300


@pytest.mark.parametrize("damage", [b"", b"{}", b"nonsense", b'{"allowance": {"day": -1}}'])
def test_a_damaged_count_leaves_nothing_for_today(tmp_path: Path, clock: FakeClock, damage: bytes) -> None:
    """Rather fail than spend; tomorrow is another day. Without a budget it hinders nobody."""
    (tmp_path / "budget.json").write_bytes(damage)
    assert opened(tmp_path, clock).account().allowance.spent == DAY
    assert opened(tmp_path, clock).left() == 0
    with pytest.raises(SpentError):
        opened(tmp_path, clock).require(1)
    clock.advance(SECONDS_PER_DAY)
    assert opened(tmp_path, clock).left() == DAY
    opened(tmp_path, clock, None).charge(7)
    assert opened(tmp_path, clock, None).left() is None


def test_what_is_no_file_of_ours_spends_nothing(tmp_path: Path, clock: FakeClock) -> None:
    """Too long, or a folder: not read, and not counted upon."""
    (tmp_path / "budget.json").write_bytes(b"x" * 20_000)
    with pytest.raises(SpentError, match="the data budget cannot be counted"):
        opened(tmp_path, clock).require(1)
    (tmp_path / "budget.json").unlink()
    (tmp_path / "budget.json").mkdir()
    with pytest.raises(SpentError, match="the data budget cannot be counted"):
        opened(tmp_path, clock).require(1)
    opened(tmp_path, clock, None).charge(7)


def test_a_disk_that_refuses_spends_nothing(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be counted is not spent; and what was spent all the same is counted when the disk is well again."""
    ledger = opened(tmp_path, clock)
    ledger.charge(10)

    def full(path: Path, data: bytes) -> None:
        del data
        raise PathError("cannot write", where=path, got="No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", full)
        with pytest.raises(SpentError, match="the data budget cannot be counted"):
            ledger.ahead(DAY // 2)
        ledger.charge(1_000)
        assert ledger.left() == DAY - 1_010
        opened(tmp_path, clock, None).charge(10**6)
    ledger.charge(0)
    ledger.settle()
    assert counted(tmp_path, clock) == 1_010


def test_another_budget_counts_from_what_was_spent(tmp_path: Path, clock: FakeClock) -> None:
    """The owner may change it; today's bytes stay spent."""
    ledger = opened(tmp_path, clock)
    ledger.charge(3_000)
    ledger.settle()
    assert opened(tmp_path, clock, 4_000).left() == 1_000
    assert opened(tmp_path, clock, 2_000).left() == 0
    assert opened(tmp_path, clock, None).left() is None


def test_what_waits_is_told_until_it_does_not(tmp_path: Path, clock: FakeClock) -> None:
    """To whoever looks at the file."""
    ledger = opened(tmp_path, clock)
    ledger.wait_for("watch/1.1.0", 9_000)
    assert (ledger.account().waiting, ledger.account().needs) == ("watch/1.1.0", 9_000)
    ledger.wait_for("", 0)
    assert (ledger.account().waiting, ledger.account().needs) == ("", 0)


@given(
    st.builds(
        Account,
        st.builds(Allowance, spent=st.integers(0, 10**9)),
        st.text(max_size=300),
        st.integers(0, 10**9),
    )
)
def test_an_account_is_read_as_it_was_written(account: Account) -> None:
    """Whatever its numbers."""
    assert Account.from_bytes(account.to_bytes()) == account


@given(st.binary(max_size=200))
def test_attack_bytes_that_are_no_account(data: bytes) -> None:
    """Told as a message that is none, whatever they are."""
    with suppress(MessageError):
        Account.from_bytes(data)


class _Answer:
    """An answer of three pieces."""

    status = 200
    headers: ClassVar = {"etag": '"x"', "content-length": "9"}

    def chunks(self) -> Iterator[bytes]:
        """Its body."""
        yield from (b"abc", b"def", b"ghi")

    def close(self) -> None:
        """There is nothing to close."""


class _Line:
    """A transport that answers."""

    def send(self, request: Request, *, timeout: float) -> _Answer:
        """Answers."""
        del request, timeout
        return _Answer()


def test_a_metered_transport_counts_heads_and_bodies(tmp_path: Path, clock: FakeClock) -> None:
    """Of what goes and of what comes, a little more than an hour of polls shows; and it refuses nothing when the budget is spent."""
    ledger = opened(tmp_path, clock)
    line = Metered(_Line(), ledger)
    request = Request("POST", "http://hub/v1/poll", {"authorization": "Bearer x"}, b"body")
    for number in range(1, 4):
        response = line.send(request, timeout=1)
        assert b"".join(response.chunks()) == b"abcdefghi"
        response.close()
        ledger.settle()
        once = 20 + 18 + 4 + 13 + 8 + 4 + 20 + (4 + 3 + 4) + (14 + 1 + 4) + 9
        assert counted(tmp_path, clock) == number * once
    ledger.charge(DAY)
    assert ledger.left() == 0
    assert line.send(request, timeout=1).status == 200

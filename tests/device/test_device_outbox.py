"""The outbox: durable, bounded, and each report once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.errors import PathError
from edgestill.core.wire import MAX_SEQUENCE, Health, Report
from edgestill.device import outbox as outboxes
from edgestill.device.outbox import Outbox, Statistics, waiting_in

if TYPE_CHECKING:
    from collections.abc import Iterator

BUNDLE = "sha256:" + "0" * 64


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty one."""
    box = Outbox.open(tmp_path / "outbox.db")
    yield box
    box.close()


def step(id_: str) -> Report:
    """A report of a step."""
    return Report(id=id_, at=1.0, bundle=BUNDLE, release="watch/1.0.0", state="staged")


def figures(id_: str) -> Report:
    """A health report."""
    return Report(id=id_, at=1.0, bundle=BUNDLE, release="watch/1.0.0", health=Health(answers=1))


def test_reports_wait_in_their_order_until_delivered(outbox: Outbox) -> None:
    """And are forgotten then."""
    outbox.add([step("b"), figures("a"), step("c")])
    assert outbox.waiting() == [step("b"), figures("a"), step("c")]
    assert outbox.waiting(at_most=1) == [step("b")]
    outbox.delivered(["b", "a"])
    assert (outbox.waiting(), outbox.count()) == ([step("c")], 1)


def test_a_report_told_twice_waits_once(outbox: Outbox) -> None:
    """Before its delivery, and after."""
    outbox.add([step("a"), step("a")])
    outbox.add([step("a")])
    assert outbox.count() == 1
    outbox.delivered(["a"])
    outbox.add([step("a")])
    assert outbox.count() == 0


def test_reports_outlive_the_process(tmp_path: Path) -> None:
    """A child that is killed right after writing has lost nothing."""
    code = (
        "import os, sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from test_device_outbox import *\n"
        "box = Outbox.open(pathlib.Path(sys.argv[1])); box.add([step('a')]); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "outbox.db"
    done = subprocess.run([sys.executable, "-c", code, str(path), str(Path(__file__).parent)], check=False)
    assert done.returncode == -9
    box = Outbox.open(path)
    assert box.waiting() == [step("a")]
    box.close()


def test_a_full_box_gives_up_figures_before_steps(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest figures go first; what happened to an update is kept."""
    monkeypatch.setattr(outboxes, "MAX_WAITING", 3)
    outbox.add([step("s1"), figures("h1"), figures("h2"), step("s2"), figures("h3")])
    assert [one.id for one in outbox.waiting()] == ["s1", "s2", "h3"]
    outbox.add([step("s3"), step("s4")])
    assert [one.id for one in outbox.waiting()] == ["s2", "s3", "s4"]


def test_the_memory_of_what_was_told_is_bounded(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of updates do not fill the disk."""
    monkeypatch.setattr(outboxes, "MAX_WAITING", 2)
    for number in range(6):
        outbox.add([step(f"s{number}")])
        outbox.delivered([f"s{number}"])
    outbox.add([step("s5"), step("s0")])
    assert [one.id for one in outbox.waiting()] == ["s0"]


def test_statistics_of_a_window_replace_older_ones(outbox: Outbox) -> None:
    """Only the newest sum is sent; delivering an old one does not forget a newer."""
    old = outbox.put_statistics("w1", b"1", at=1.0)
    other = outbox.put_statistics("w2", b"2", at=1.0)
    new = outbox.put_statistics("w1", b"3", at=1.0)
    assert outbox.statistics() == other
    outbox.statistics_delivered(other.id)
    outbox.statistics_delivered(old.id)
    assert outbox.statistics() == new
    outbox.statistics_delivered(new.id)
    assert outbox.statistics() is None


def test_attack_evidence_that_waits_is_dropped_where_it_may_not_leave_any_more(outbox: Outbox) -> None:
    """Attack on the owner's word: sums and ballots made before it go; reports, which say nothing of inputs, stay."""
    outbox.put_statistics("w", b"1", at=1.0)
    outbox.put_ballot(1, b"ballot", at=1.0)
    outbox.add([step("s1")])
    outbox.drop_evidence()
    assert (outbox.statistics(), outbox.ballot()) == (None, None)
    assert [one.id for one in outbox.waiting()] == ["s1"]
    assert outbox.put_statistics("w", b"2", at=1.0).sequence > 2


def test_a_sum_that_is_told_again_is_another_message(outbox: Outbox) -> None:
    """A window begun anew may come to the same bytes: the hub must not take that for a repetition of the first."""
    first = outbox.put_statistics("w", b"same", at=1.0)
    outbox.statistics_delivered(first.id)
    outbox.put_statistics("w", b"between", at=1.0)
    again = outbox.put_statistics("w", b"same", at=1.0)
    assert again.id != first.id
    assert again.sequence > first.sequence
    assert outbox.statistics() == again


def test_statistics_that_wait_are_bounded(outbox: Outbox) -> None:
    """The oldest windows go first, however far apart their numbers are."""
    for number in range(outboxes.MAX_STATISTICS + 4):
        outbox.put_statistics(f"w{number}", b"%d" % number, at=100.0 * number)
    waiting = []
    while (first := outbox.statistics()) is not None:
        waiting.append(int(first.body))
        outbox.statistics_delivered(first.id)
    assert waiting == list(range(4, outboxes.MAX_STATISTICS + 4))


turns = st.lists(
    st.tuples(
        st.sampled_from(["put", "deliver", "restart", "lose"]),
        st.integers(0, 2),
        st.floats(0, 4e9),
    ),
    max_size=15,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns)
def test_the_numbers_of_statistics_only_grow(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, int, float]]
) -> None:
    """Over deliveries, restarts and a clock that jumps; and where the file is lost, as long as time went on."""
    path = tmp_path_factory.mktemp("device") / "outbox.db"
    box, last, now = Outbox.open(path), 0, 0.0
    for turn, window, at in turns:
        if turn == "put":
            made = box.put_statistics(f"w{window}", b"x", at=at)
            assert made.sequence > last
            last, now = made.sequence, max(now, at)
        elif turn == "deliver" and (first := box.statistics()) is not None:
            box.statistics_delivered(first.id)
        elif turn == "restart":
            box.close()
            box = Outbox.open(path)
        elif turn == "lose":
            box.close()
            for one in path.parent.iterdir():
                one.unlink()
            box = Outbox.open(path)
            now += 100.0
            made = box.put_statistics("w0", b"x", at=now)
            assert made.sequence > last
            last = made.sequence
    box.close()


def test_a_box_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its sums had small numbers and other ids: they are still sent, in their order, and later ones count as later."""
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE statistics"
            " (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL)"
        )
        rows = [("w1", 7, "of-old-1", b"1"), ("w2", 8, "of-old-2", b"2")]
        connection.executemany("INSERT INTO statistics VALUES (?, ?, ?, ?)", rows)
    box = Outbox.open(path)
    assert box.statistics() == Statistics("of-old-1", b"1", 7)
    new = box.put_statistics("w1", b"3", at=0.0)
    assert new.sequence == 9
    assert box.statistics() == Statistics("of-old-2", b"2", 8)
    box.close()


def test_attack_a_clock_gone_wild_leaves_room_above(outbox: Outbox) -> None:
    """In the year 300,000,000 numbers are bounded, and still grow when the clock is mended."""
    wild = outbox.put_statistics("w", b"x", at=1e16)
    after = outbox.put_statistics("w", b"y", at=1_700_000_000.0)
    assert wild.sequence < after.sequence <= MAX_SEQUENCE


@pytest.mark.parametrize("damage", [b"not a database, but long enough to be read as one" * 9, b""])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: bytes) -> None:
    """Serving matters more than reports; what is left of them can still be looked at."""
    path = tmp_path / "outbox.db"
    path.write_bytes(damage)
    box = Outbox.open(path)
    box.add([step("a")])
    assert box.count() == 1
    box.close()
    assert (tmp_path / "damaged-outbox.db").exists() == bool(damage)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """The error says where."""
    with pytest.raises(PathError, match=r"cannot open the outbox; at .*outbox\.db"):
        Outbox.open(tmp_path / "missing" / "outbox.db")


def test_a_refused_write_is_an_error_of_ours(outbox: Outbox) -> None:
    """So that the agent can decide what to do without the disk."""
    outbox._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(PathError, match="cannot use the outbox"):
        outbox.add([step("a")])
    outbox._connection.execute("PRAGMA query_only = OFF")
    assert outbox.count() == 0


def test_reports_this_version_cannot_read_are_passed_over(outbox: Outbox) -> None:
    """What an older version wrote otherwise blocks nothing."""
    outbox.add([step("a"), step("b")])
    outbox._connection.execute("UPDATE reports SET body = X'78' WHERE id = 'a'")
    outbox._connection.commit()
    assert outbox.waiting() == [step("b")]
    assert outbox.count() == 1


def test_threads_share_a_box(outbox: Outbox) -> None:
    """The loop writes while the courier reads."""
    threads = [threading.Thread(target=lambda n=n: outbox.add([step(f"t{n}")])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.count() == 8


def test_damage_within_the_file_is_found_when_it_is_opened(tmp_path: Path) -> None:
    """Flash rots in the middle: a file that opens but cannot be read would hold up every report for ever."""
    path = tmp_path / "outbox.db"
    box = Outbox.open(path)
    box.add([step(f"s{number}") for number in range(200)])
    box.close()
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    box = Outbox.open(path)
    assert box.count() == 0
    box.add([step("after")])
    assert box.waiting() == [step("after")]
    box.close()
    assert (tmp_path / "damaged-outbox.db").exists()


def test_looking_into_a_box_changes_nothing(tmp_path: Path) -> None:
    """Whoever asks how a device stands neither makes a box, nor puts a damaged one aside under a running agent."""
    path = tmp_path / "outbox.db"
    assert waiting_in(path) == 0
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"not a database, but long enough to be read as one" * 9)
    assert waiting_in(path) == 0
    assert path.read_bytes().startswith(b"not a database")
    path.unlink()
    box = Outbox.open(path)
    box.add([step("a"), figures("b")])
    assert waiting_in(path) == 2
    box.delivered(["a"])
    assert waiting_in(path) == 1
    box.close()
    assert waiting_in(path) == 1


def test_two_processes_may_share_a_box(tmp_path: Path) -> None:
    """A second agent is kept out by the lock of the home; should one write all the same, no number is given twice."""
    boxes = [Outbox.open(tmp_path / "outbox.db") for _ in range(2)]
    made: list[Statistics] = []

    def put(box: Outbox, n: int) -> None:
        made.extend(box.put_statistics(f"w{n}", b"x", at=1.0) for _ in range(10))

    threads = [threading.Thread(target=put, args=(box, n)) for n in range(4) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.sequence for one in made}) == 4 * 2 * 10
    one, other = boxes
    left = []
    while (first := one.statistics()) is not None:
        left.append(first.sequence)
        other.statistics_delivered(first.id)
    assert len(left) == 4
    assert left == sorted(left)
    one.close()
    other.close()

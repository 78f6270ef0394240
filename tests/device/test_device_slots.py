"""The slots on disk, the state's file, and what `settle` makes of contradictions between them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from device_worlds import CLASS, archive_of, target
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, PathError
from edgestill.device.slots import Slots, SyncedDisk, digest_of, holds, read_state
from edgestill.device.state import SLOTS, Failure, Record, State, Target, contradiction, settle

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.state import SlotName

FULL = State(
    phase="probing",
    active="a",
    a=target(1),
    b=target(2),
    wanted=target(2),
    seen=7,
    counter=6,
    failure=Failure(counter=5, target=target(3), reason="too slow"),
    boots=2,
    hindered=1,
)


def filled(folder: Path, *, confirmed: bool = True) -> Slots:
    """Slots with version 1 in A (counter 1) and version 2 in B (counter 2)."""
    slots = Slots.open(folder)
    names: tuple[SlotName, SlotName] = ("a", "b")
    for number, name in enumerate(names, 1):
        slots.archive(name, target(number)).write_bytes(archive_of(number))
        slots.stage(name, target(number), number)
        if confirmed:
            slots.confirm(name)
    return slots


def test_a_state_is_read_as_it_was_written() -> None:
    """Nothing that must outlive a restart is lost."""
    assert State.from_bytes(FULL.to_bytes()) == FULL


def test_counts_of_the_running_process_are_not_written() -> None:
    """Watching a trial must not wear out the flash."""
    assert State(deaths=1, watched=3.0, answers=5, errors=1).to_bytes() == State().to_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema"),
        ({"phase": "flying"}, "phase"),
        ({"active": "c"}, "active"),
        ({"counter": -1}, "counter"),
        ({"a": None}, "the active slot is empty"),
        ({"wanted": None}, "an installation without a target"),
        ({"phase": "idle"}, "an installation without a target"),
        ({"phase": "staging"}, "the slot being written counts as whole"),
        ({"b": target(3).as_json()}, "holds something else"),
        ({"counter": 9}, "never seen"),
        ({"a": {"name": "../etc/passwd", "digest": str(target(1).digest), "size": 1}}, "name"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(change: dict[str, object], reason: str) -> None:
    """A file that somebody or something has changed is not believed."""
    value = json.loads(FULL.to_bytes()) | change
    with pytest.raises(MessageError, match=reason):
        State.from_bytes(json.dumps(value).encode())


def test_watching_needs_something_that_serves() -> None:
    """The contradiction is named."""
    assert contradiction(State(phase="watching")) == "watching nothing"


@given(st.binary(max_size=200))
def test_random_bytes_are_no_state(data: bytes) -> None:
    """Whatever a torn sector holds, the reader refuses it in its own way."""
    with pytest.raises(MessageError):
        State.from_bytes(data)


def test_a_target_knows_its_release_and_class() -> None:
    """Both are parts of its name."""
    assert target(3).release == "watch/1.0.3"
    assert target(3).hardware_class == CLASS


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """With whole slots the state is the one that was written."""
    slots = filled(tmp_path)
    state = State(active="b", a=target(1), b=target(2), seen=2, counter=2)
    slots.save(state)
    assert Slots.open(tmp_path).load() == state


def test_new_slots_hold_nothing(tmp_path: Path) -> None:
    """A fresh device has no bundle, and that is no error."""
    assert Slots.open(tmp_path / "new").load() == State()


def test_a_record_without_its_archive_counts_as_empty(tmp_path: Path) -> None:
    """A record alone proves nothing."""
    slots = filled(tmp_path)
    slots.archive("b", target(2)).unlink()
    assert slots.record("b") is None
    assert slots.record("a") == Record(target=target(1), counter=1, confirmed=True)


def test_an_altered_archive_counts_as_empty(tmp_path: Path) -> None:
    """A single flipped bit is found by the digest."""
    slots = filled(tmp_path)
    path = slots.archive("b", target(2))
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert slots.record("b") is None


def test_without_a_state_the_newest_confirmed_slot_serves(tmp_path: Path) -> None:
    """The slots' own records are enough to go on."""
    state = filled(tmp_path).load()
    assert (state.active, state.counter, state.seen) == ("b", 2, 2)
    assert state.a == target(1)


def test_without_a_state_a_confirmed_slot_goes_before_a_newer_trial(tmp_path: Path) -> None:
    """What has proved itself is preferred to what has not."""
    slots = filled(tmp_path, confirmed=False)
    slots.confirm("a")
    assert slots.load().active == "a"
    assert slots.load().seen == 2


def test_settling_a_trial_whose_bundle_is_lost_serves_the_old_one() -> None:
    """The trial is over; the assignment that still stands will bring the bundle again."""
    state = State(phase="watching", active="b", a=target(1), b=target(2), seen=2, counter=2, boots=1)
    after = settle(state, {"a": Record(target=target(1), counter=1, confirmed=True), "b": None})
    assert (after.active, after.phase, after.b, after.failure) == ("a", "idle", None, None)


def test_settling_a_probe_whose_archive_is_lost_downloads_again() -> None:
    """The installation begins anew; what serves is not touched."""
    after = settle(FULL, {"a": Record(target=target(1), counter=1, confirmed=True), "b": None})
    assert (after.active, after.phase, after.wanted, after.b) == ("a", "downloading", target(2), None)


def test_settling_without_any_bundle_keeps_what_was_seen() -> None:
    """Replays stay refused even when both slots are lost."""
    after = settle(FULL, {"a": None, "b": None})
    assert (after.active, after.seen, after.failure, after.phase) == (None, 7, FULL.failure, "idle")


def test_leftovers_of_killed_writes_are_swept_up(tmp_path: Path) -> None:
    """Temporary files of a kill do not pile up, and parts of downloads stay for their resumption."""
    (tmp_path / "a").mkdir(parents=True)
    (tmp_path / "a" / ".slot.json.x7").write_bytes(b"half")
    (tmp_path / ".state.json.x8").write_bytes(b"half")
    (tmp_path / "a" / "x.esb.part").write_bytes(b"half")
    Slots.open(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x.esb.part"]


def test_clearing_removes_the_record_first(tmp_path: Path) -> None:
    """A kill in between leaves an archive without a record, never a record without an archive."""
    removed: list[str] = []

    class Watching:
        def write(self, path: Path, data: bytes) -> None:
            raise AssertionError(path)

        def remove(self, path: Path) -> None:
            removed.append(path.suffix)
            SyncedDisk().remove(path)

    filled(tmp_path)
    Slots.open(tmp_path, disk=Watching()).clear("b")
    assert removed == [".json", ".esb"]
    assert list((tmp_path / "b").iterdir()) == []


def test_confirming_an_empty_slot_is_no_error(tmp_path: Path) -> None:
    """The chore may come after the slot was cleared."""
    slots = Slots.open(tmp_path)
    slots.confirm("a")
    assert slots.record("a") is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A home on a file is an error that says where."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PathError, match=r"cannot prepare the slots; at .*file"):
        Slots.open(tmp_path / "file")


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    """The reason of the system is passed on."""
    with pytest.raises(PathError, match=r"cannot remove; at .*missing"):
        SyncedDisk().remove(tmp_path / "missing" / "file")


def test_digests_of_files(tmp_path: Path) -> None:
    """A file is the target only with its size and digest."""
    path = tmp_path / "x.esb"
    path.write_bytes(archive_of(1))
    assert digest_of(path) == target(1).digest
    assert holds(path, target(1))
    assert not holds(path, target(2))
    assert not holds(tmp_path / "missing", target(1))
    assert not holds(path, Target(name=target(1).name, digest=target(1).digest, size=3))


def test_a_state_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """Reading is bounded."""
    (tmp_path / "state.json").write_bytes(b" " * 100_000 + FULL.to_bytes())
    assert read_state(tmp_path) is None
    os.truncate(tmp_path / "state.json", 0)
    assert read_state(tmp_path) is None


targets = st.sampled_from([target(1), target(2), target(3)])
maybe = st.none() | targets
records = st.none() | st.builds(Record, target=targets, counter=st.integers(1, 9), confirmed=st.booleans())
states = st.builds(
    State,
    phase=st.sampled_from(["idle", "downloading", "verifying", "staging", "probing", "watching"]),
    active=st.sampled_from([None, "a", "b"]),
    a=maybe,
    b=maybe,
    wanted=maybe,
    seen=st.integers(5, 9),
    counter=st.integers(0, 5),
    failure=st.none()
    | st.builds(Failure, counter=st.integers(0, 5), target=targets, reason=st.just("broken")),
    boots=st.integers(0, 3),
).filter(lambda state: contradiction(state) == "")


@given(state=st.none() | states, a=records, b=records)
def test_whatever_was_lost_the_settled_state_makes_sense_and_serves_what_there_is(
    state: State | None, a: Record | None, b: Record | None
) -> None:
    """Any state beside any slots: no contradiction, only whole slots count, and if one is whole, something serves.

    Except on a device that served nothing before: what it was just installing must be probed first.
    """
    found: dict[SlotName, Record | None] = {"a": a, "b": b}
    settled = settle(state, found)
    assert contradiction(settled) == ""
    for slot in SLOTS:
        held, record = settled.held(slot), found[slot]
        assert held is None or (record is not None and record.target.digest == held.digest)
    if settled.active is None and state is not None and state.active is not None:
        assert a is None
        assert b is None
    assert settle(settled, found) == settled, "settling twice is settling once"
    if state is not None:
        assert settled.seen >= state.seen
        assert settled.failure == state.failure


@given(state=states)
def test_with_whole_slots_nothing_is_settled(state: State) -> None:
    """What was written is what is true."""
    found: dict[SlotName, Record | None] = {
        slot: None if (held := state.held(slot)) is None else Record(target=held, counter=1, confirmed=True)
        for slot in SLOTS
    }
    assert settle(state, found) == state


@given(state=states)
def test_any_state_is_read_as_it_was_written(state: State) -> None:
    """Whatever it is doing."""
    assert State.from_bytes(state.to_bytes()) == replace(state, deaths=0, watched=0.0, answers=0, errors=0)


@given(state=states, at=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_is_another_state_or_none(state: State, at: int, bit: int) -> None:
    """Never a crash, and never a state that contradicts itself."""
    data = bytearray(state.to_bytes())
    data[at % len(data)] ^= 1 << bit
    try:
        read = State.from_bytes(bytes(data))
    except MessageError:
        return
    assert contradiction(read) == ""

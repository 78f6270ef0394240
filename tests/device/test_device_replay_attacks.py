"""Files of strangers, damaged heads, moved records: refused with a code, or left out; nothing of them is believed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_worlds import HOLDING, KEY, PLAN, kept, numbers, offer, on_disk, target

from edgestill.core.errors import AccessError, DataError, EdgestillError, PathError
from edgestill.device import replay_format as form
from edgestill.device.replay import Replay
from edgestill.device.replay_format import About, Head, Layout, Sample, Tally
from edgestill.device.replay_head import HEAD_BYTES, PROOF_BYTES, Parts, said_of
from edgestill.device.replay_samples import Samples
from edgestill.device.sealing import Checked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

keys = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])


def filled(folder: Path, key: bytes | None = None, name: str = "replay", coin: int = 1) -> Path:
    """A buffer that is full."""
    path = folder / name
    with Replay.open(path, PLAN, random=Random(coin), key=key) as replay:
        for number in range(600):
            offer(replay, number)
    return path


def layout_of(key: bytes | None) -> Layout:
    """Where everything is."""
    return Layout(plan=PLAN, overhead=form.overhead_of(key))


def change(path: Path, offset: int, data: bytes) -> None:
    """Writes into a file, as anybody can who has it."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def refused(path: Path, key: bytes | None = None) -> EdgestillError:
    """The error that whoever opens it gets, reading or writing, and which leaves the file as it is."""
    before = path.read_bytes()
    with pytest.raises(EdgestillError) as reading:
        Samples.open(path, PLAN, key=key)
    with pytest.raises(EdgestillError) as writing:
        Replay.open(path, PLAN, random=Random(0), key=key)
    assert type(reading.value) is type(writing.value)
    assert path.read_bytes() == before
    assert str(path) in str(writing.value)
    with Replay.create(path, PLAN, random=Random(0), key=key) as anew:
        assert kept(anew) == set(), "it can be begun anew"
    return writing.value


@pytest.mark.parametrize(
    "data", [b"", b"x", b"ESTREPL1", bytes(10_000), os.urandom(10_000), b"ESTREPL1" * 1_000]
)
@keys
def test_attack_a_foreign_file_is_refused(tmp_path: Path, data: bytes, key: bytes | None) -> None:
    """Whatever is in it."""
    path = tmp_path / "replay"
    path.write_bytes(data)
    error = refused(path, key)
    assert isinstance(error, DataError)
    assert "a replay buffer that cannot be used" in str(error)
    assert "begin it anew with Replay.create" in str(error)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"shape": (3,)}, "shape=(3,)"),
        ({"classes": 4}, "classes=4"),
        ({"size": 9_000}, "size=9000"),
        ({"holding": replace(HOLDING, every=5)}, "every=5"),
    ],
)
@keys
def test_a_buffer_of_another_plan_is_refused(
    tmp_path: Path, key: bytes | None, other: dict[str, object], text: str
) -> None:
    """Shape, dtype, classes, size or what is held back: its samples would be misread, or train a net on what judges it."""
    plan = replace(PLAN, **other)  # type: ignore[arg-type]  # fields by name
    Replay.create(tmp_path / "replay", plan, random=Random(0), key=key).close()
    error = refused(tmp_path / "replay", key)
    assert isinstance(error, DataError)
    assert text in str(error.got)


@pytest.mark.parametrize(
    ("made", "opened", "got"),
    [
        (KEY, KEY[::-1], "got another key"),
        (KEY, None, "got a sealed buffer, and no key"),
        (None, KEY, "got a key, and a buffer that is not sealed"),
    ],
)
def test_attack_the_wrong_key_is_an_error_and_no_garbage(
    tmp_path: Path, made: bytes | None, opened: bytes | None, got: str
) -> None:
    """Also where a plain file is put in the place of a sealed one."""
    error = refused(filled(tmp_path, made), opened)
    assert isinstance(error, AccessError)
    assert got in str(error)
    assert KEY.hex() not in str(error)


@keys
@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 1 << 60},
        {"size": 10**400},
        {"classes": 1 << 40},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": [1] * 100},
        {"shape": [-1]},
        {"shape": "no"},
        {"dtype": "object"},
        {"dtype": "S1000000000"},
        {"schema": 2},
        {"holding": {"stretch": 0, "every": 4, "gap": 0}},
        {"holding": None},
        {"seed": "00"},
        {"identity": "../../../etc/passwd"},
        {"sealed": "yes"},
    ],
)
def test_attack_counts_in_a_head_are_bounded_before_anything_is_made(
    tmp_path: Path, wrong: dict[str, object], key: bytes | None
) -> None:
    """A head with a right digest, and numbers that nobody can have meant: refused, whether there is a key or not."""
    path = filled(tmp_path, key)
    head = Head.from_bytes(path.read_bytes()[:HEAD_BYTES], plan=PLAN, key=key)
    text = json.dumps(head._as_json() | wrong).encode()
    change(path, 0, Parts(said_of(text), bytes(PROOF_BYTES)).to_bytes())
    assert isinstance(refused(path, key), DataError)


def test_attack_a_head_that_says_it_is_longer_than_it_is(tmp_path: Path) -> None:
    """The length of its text is that of another page."""
    path = filled(tmp_path)
    said = bytearray(said_of(b"{" * 4_000))
    said[8:12] = b"\xff" * 4
    change(path, 0, Parts(bytes(said), bytes(PROOF_BYTES)).to_bytes())
    assert isinstance(refused(path), DataError)


def test_attack_the_settings_of_a_sealed_head_cannot_be_changed(tmp_path: Path) -> None:
    """Another seed would put what was held back among what is trained on: the proof in the head does not fit it."""
    path = filled(tmp_path, KEY)
    data = path.read_bytes()[:HEAD_BYTES]
    head = Head.from_bytes(data, plan=PLAN, key=KEY)
    text = json.dumps(head._as_json() | {"seed": "00" * 16}).encode()
    parts = Parts.of(data)
    assert parts is not None
    change(path, 0, Parts(said_of(text), parts.proof).to_bytes())
    assert isinstance(refused(path, KEY), AccessError)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes | None, bytes]:
    """A full buffer as bytes, plain and sealed."""
    return {key: filled(tmp_path_factory.mktemp("full"), key).read_bytes() for key in (None, KEY)}


@given(at=st.integers(0, HEAD_BYTES - 1), bit=st.integers(0, 7))
def test_a_damaged_head_is_refused(full: dict[bytes | None, bytes], at: int, bit: int) -> None:
    """Whichever bit it is."""
    data = bytearray(full[None][:HEAD_BYTES])
    data[at] ^= 1 << bit
    with pytest.raises(DataError):
        Head.from_bytes(bytes(data), plan=PLAN, key=None)


@keys
@pytest.mark.parametrize("length", [HEAD_BYTES, HEAD_BYTES + 100, -1, +1])
def test_attack_a_file_of_another_length_is_refused(tmp_path: Path, length: int, key: bytes | None) -> None:
    """Cut short, or with something after its end."""
    path = filled(tmp_path, key)
    size = path.stat().st_size
    os.truncate(path, length if length > 1 else size + length)
    error = refused(path, key)
    assert isinstance(error, DataError)
    assert f"expected {size} bytes (its head)" in str(error)


@keys
def test_attack_swapped_and_copied_records_are_left_out(tmp_path: Path, key: bytes | None) -> None:
    """A record opens only in its own slot: none can be moved or doubled, and the others are read as before."""
    path, layout = filled(tmp_path, key), layout_of(key)
    before, data = on_disk(path, key), path.read_bytes()
    slots = [slot for slot in range(layout.slots) if any(data[layout.offset(slot) :][:12])]
    first, second, third = (data[layout.offset(slot) :][: layout.stride] for slot in slots[:3])
    change(path, layout.offset(slots[0]), second)
    change(path, layout.offset(slots[1]), first)
    change(path, layout.offset(slots[3]), third)
    left = on_disk(path, key)
    assert left < before
    assert len(left) == len(before) - 3


@keys
def test_attack_records_of_another_buffer_are_left_out(tmp_path: Path, key: bytes | None) -> None:
    """With the same key and plan, into the same slots."""
    path, other, layout = filled(tmp_path, key), filled(tmp_path, key, "other", 2), layout_of(key)
    change(path, layout.offset(0), other.read_bytes()[layout.offset(0) :])
    assert on_disk(path, key) == set()
    with Replay.open(path, PLAN, random=Random(0), key=key) as replay:
        assert sum(offer(replay, number) for number in range(600, 640)) > 10


@given(junk=st.binary(min_size=1, max_size=2_000), at=st.floats(0, 1), sealed=st.booleans())
@settings(max_examples=40)
def test_whatever_is_written_over_the_slots_only_whole_samples_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    full: dict[bytes | None, bytes],
    junk: bytes,
    at: float,
    sealed: bool,
) -> None:
    """And the buffer takes new ones, is never too full, and forgets."""
    key = KEY if sealed else None
    path = tmp_path_factory.mktemp("junk") / "replay"
    path.write_bytes(full[key])
    before, layout = on_disk(path, key), layout_of(key)
    start = HEAD_BYTES + int(at * (layout.bytes - HEAD_BYTES - len(junk)))
    change(path, start, junk)
    assert on_disk(path, key) <= before
    with Replay.open(path, PLAN, random=Random(0), key=key) as replay:
        assert kept(replay) <= before
        for number in range(600, 700):
            offer(replay, number)
        counts = replay.counts()
        assert sum(counts.train) <= counts.train_room
        assert sum(counts.held) <= counts.held_room
        assert all(seen >= one for seen, one in zip(counts.train_seen, counts.train, strict=True))
        there = kept(replay)
    assert on_disk(path, key) == there


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one._replace(about=one.about._replace(at=float("nan"))),
        lambda one: one._replace(about=one.about._replace(at=-1.0)),
        lambda one: one._replace(about=one.about._replace(weight=float("inf"))),
        lambda one: one._replace(about=one.about._replace(weight=0.0)),
        lambda one: one._replace(about=one.about._replace(label=3)),
        lambda one: one._replace(about=one.about._replace(label=1)),
        lambda one: one._replace(target=one.target * np.float32("nan")),
        lambda one: one._replace(target=one.target * 0),
        lambda one: one._replace(target=one.target - 0.5),
    ],
)
def test_attack_a_record_with_a_right_digest_must_still_make_sense(
    tmp_path: Path, spoil: Callable[[Sample], Sample]
) -> None:
    """In a plain file whoever can write can make records; NaN, other classes and weights do not get through."""
    path, layout = filled(tmp_path), layout_of(None)
    head = Head.from_bytes(path.read_bytes()[:HEAD_BYTES], plan=PLAN, key=None)
    good = Sample(About(1.0, 1.0, 0, "label"), target(0)[0], np.array([1, -1]))
    assert form.decode(PLAN, form.encode(PLAN, good)) is not None
    body = form.encode(PLAN, spoil(good))
    change(path, layout.offset(0), Checked(head.identity).close(form.slot_place(0), body))
    before = on_disk(path)
    change(path, layout.offset(0), bytes(layout.stride))
    assert on_disk(path) == before


@keys
def test_attack_a_tally_that_nobody_can_have_counted_is_passed_over(
    tmp_path: Path, key: bytes | None
) -> None:
    """Then what is kept counts as what came; the buffer goes on."""
    path, layout = filled(tmp_path, key), layout_of(key)
    head = Head.from_bytes(path.read_bytes()[:HEAD_BYTES], plan=PLAN, key=key)
    for page in (0, 1):
        tally = Tally(2**63, (2**64 - 1,) * 3, (0,) * 3)
        change(
            path, layout.tally_offset(page), head.seal(key).close(form.tally_place(page), tally.to_bytes())
        )
    with Replay.open(path, PLAN, random=Random(0), key=key) as replay:
        counts = replay.counts()
        assert (counts.train_seen, counts.held_seen) == (counts.train, counts.held)
        assert sum(offer(replay, number) for number in range(600, 700)) > 10


@keys
def test_attack_a_link_is_not_written_through(tmp_path: Path, key: bytes | None) -> None:
    """Where somebody put a link to another file, that file stays as it is; beginning anew takes the link's place."""
    elsewhere = filled(tmp_path, key, "elsewhere")
    before = elsewhere.read_bytes()
    path = tmp_path / "replay"
    path.symlink_to(elsewhere)
    with pytest.raises(PathError):
        Replay.open(path, PLAN, random=Random(0), key=key)
    with Replay.create(path, PLAN, random=Random(0), key=key) as replay:
        offer(replay, 1)
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == before


def test_what_is_sealed_tells_nothing(tmp_path: Path) -> None:
    """No input, time, target or count lies open in the file, and the same samples make another file each time."""
    one, other = filled(tmp_path, KEY, "one"), filled(tmp_path, KEY, "other")
    data = one.read_bytes()[HEAD_BYTES:]
    assert on_disk(one, KEY) == on_disk(other, KEY)
    assert all(np.array([number, -number]).tobytes() not in data for number in range(1, 600))
    assert all(np.float64(7 * number).tobytes() not in data for number in range(1, 600))
    layout, rest = layout_of(KEY), other.read_bytes()[HEAD_BYTES:]
    same = sum(a == b and a > 0 for a, b in zip(data, rest, strict=True))
    assert same < 0.02 * layout.bytes


def test_attack_a_record_put_back_into_its_own_slot_is_not_noticed(tmp_path: Path) -> None:
    """The limit that the page names: a whole record of earlier, at its own place, is read; what was forgotten can be put back by who kept a copy."""
    path = filled(tmp_path, KEY)
    copy = path.read_bytes()
    with Replay.open(path, PLAN, random=Random(0), key=KEY) as replay:
        replay.clear()
    change(path, 0, copy)
    samples = Samples.open(path, PLAN, key=KEY)
    assert numbers(samples)
    samples.close()

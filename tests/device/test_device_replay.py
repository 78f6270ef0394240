"""A replay buffer: what goes in comes out, bounded, balanced, held back by time, and gone when it is forgotten."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from replay_worlds import HOLDING, KEY, PLAN, kept, numbers, offer, on_disk, target

from edgestill.core.errors import (
    ClassCountError,
    ConflictError,
    DtypeError,
    EdgestillError,
    EvidenceError,
    NotFiniteError,
    PathError,
    SettingError,
    ShapeError,
)
from edgestill.device import replay_format as form
from edgestill.device.replay import Replay
from edgestill.device.replay_format import DTYPES, About, Layout, Plan, Sample, Tally
from edgestill.device.replay_samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

keys = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
IMAGES = Plan(dtype="uint8", shape=(8, 8, 3), classes=4, size=200_000)


def opened(folder: Path, key: bytes | None = None, plan: Plan = PLAN, coin: int = 1) -> Replay:
    """As the writing process opens it."""
    return Replay.open(folder / "replay", plan, random=Random(coin), key=key)


def role_of(replay: Replay, at: float) -> str:
    """What a time is for."""
    return replay._layout.plan.holding.role(float(at), replay._samples._seed)


@keys
def test_what_was_added_is_there_after_a_restart(tmp_path: Path, key: bytes | None) -> None:
    """Inputs bit by bit, targets to what float16 holds, weights, times and sources."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    targets = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    weights = np.arange(1, 7, dtype=np.float32)
    with opened(tmp_path, key, IMAGES) as replay:
        at = next(one for one in range(0, 10**6, 100) if role_of(replay, one) == "train")
        assert replay.add(inputs, targets, source="audit", at=float(at), weights=weights) == 6
    with opened(tmp_path, key, IMAGES) as again:
        batch = again.draw(60, Random(0))
        assert again.counts().train_seen == tuple(np.bincount(targets.argmax(1), minlength=4).tolist())
    assert (set(batch.sources), set(batch.at)) == ({"audit"}, {float(at)})
    assert set(batch.weights) == set(weights)
    for one, soft, weight in zip(batch.inputs, batch.targets, batch.weights, strict=True):
        assert (one == inputs[int(weight) - 1]).all()
        assert np.abs(soft - targets[int(weight) - 1]).max() < 1e-3
        assert soft.sum() == pytest.approx(1, abs=1e-6)


@given(
    data=st.data(), dtype=st.sampled_from(DTYPES), shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
)
def test_a_record_is_read_as_it_was_written(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    """For every dtype and shape."""
    plan = Plan(dtype=dtype, shape=shape, classes=3, size=100_000)
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    values = data.draw(hnp.arrays(dtype, shape, elements=elements))
    at, weight = data.draw(st.floats(0, form.MAX_TIME)), data.draw(st.floats(2**-20, 1e6, width=32))
    label = data.draw(st.integers(0, 2))
    sample = Sample(About(at, weight, label, "label"), target(label)[0], values)
    body = form.encode(plan, sample)
    assert len(body) == plan.body_bytes
    back = form.decode(plan, body)
    assert back is not None
    assert back.about == sample.about
    assert (back.target == sample.target).all()
    assert back.input.dtype == values.dtype
    assert back.input.tobytes() == values.tobytes()


@given(
    plan=st.sampled_from([PLAN, IMAGES, replace(PLAN, dtype="bool"), replace(PLAN, dtype="float16")]),
    data=st.data(),
)
def test_any_bytes_are_a_sane_sample_or_none(plan: Plan, data: st.DataObject) -> None:
    """Whoever can write a plain file can make records with a right digest: no NaN, class or weight of theirs gets through."""
    body = data.draw(st.binary(min_size=plan.body_bytes, max_size=plan.body_bytes))
    sample = form.decode(plan, body)
    if sample is None:
        return
    assert sample.target.sum() == pytest.approx(1, abs=1e-3)
    assert (
        sample.target.argmax() == sample.about.label
        or sample.target[sample.about.label] == sample.target.max()
    )
    assert sample.about.weight > 0
    assert 0 <= sample.about.at <= form.MAX_TIME
    assert np.isfinite(sample.input).all()


@given(
    number=st.integers(0, 2**62 - 1),
    counts=st.lists(st.integers(0, 2**62 - 1), min_size=6, max_size=6),
    huge=st.integers(2**62, 2**64 - 1),
)
def test_a_tally_is_read_as_it_was_written(number: int, counts: list[int], huge: int) -> None:
    """And one that nobody can have counted is none."""
    tally = Tally(number, tuple(counts[:3]), tuple(counts[3:]))
    assert Tally.from_bytes(tally.to_bytes(), 3) == tally
    assert Tally.from_bytes(Tally(huge, tally.train, tally.held).to_bytes(), 3) is None


@keys
def test_the_file_has_the_length_of_its_plan_from_the_beginning(tmp_path: Path, key: bytes | None) -> None:
    """And takes its room on the disk then; nothing that is added makes it longer."""
    path = tmp_path / "replay"
    with opened(tmp_path, key) as replay:
        before = path.stat()
        for number in range(500):
            offer(replay, number)
        counts = replay.counts()
    after = path.stat()
    assert before.st_size == after.st_size <= PLAN.size
    assert PLAN.size - after.st_size < Layout(plan=PLAN, overhead=form.overhead_of(key)).stride
    assert before.st_blocks * 512 >= before.st_size
    assert after.st_mode & 0o777 == 0o600
    assert sum(counts.train) == counts.train_room
    assert sum(counts.held) == counts.held_room
    assert [one.name for one in tmp_path.iterdir()] == ["replay"]


def test_classes_are_balanced_under_skew(tmp_path: Path) -> None:
    """98 of 100 are of class 0; what is kept and what is drawn is even, and what is counted tells the world as it is."""
    with opened(tmp_path) as replay:
        for number in range(6_000):
            offer(replay, number, label=1 + number % 2 if number % 50 == 0 or number % 101 == 0 else 0)
        counts = replay.counts()
        assert max(counts.train) - min(counts.train) <= 1
        assert counts.train_seen[0] > 20 * counts.train_seen[1] > 0
        for n in (1, 2, 3, 10, 64, 200):
            drawn = np.bincount(replay.draw(n, Random(n)).targets.argmax(1), minlength=3)
            assert drawn.sum() == n
            assert drawn.max() - drawn.min() <= 1


def test_a_draw_repeats_none_before_all_have_come(tmp_path: Path) -> None:
    """Within a class, that is; the coin decides, and the same coin draws the same."""
    with opened(tmp_path) as replay:
        for number in range(200):
            offer(replay, number)
        each = replay.counts().train
        batch = replay.draw(3 * min(each), Random(1))
        assert len({int(one[0]) for one in batch.inputs}) == len(batch) == 3 * min(each)
        assert (replay.draw(9, Random(5)).inputs == replay.draw(9, Random(5)).inputs).all()
        assert len(replay.draw(0, Random(1))) == 0


def test_an_empty_buffer_gives_empty_batches(tmp_path: Path) -> None:
    """Of the right shapes: nothing to train on is no error."""
    with opened(tmp_path) as replay:
        batch = replay.draw(8, Random(0))
        assert (batch.inputs.shape, batch.targets.shape, len(batch)) == ((0, 2), (0, 3), 0)
        assert batch.inputs.dtype == np.int64
        assert list(replay.held()) == []
        assert replay.clear() == 0


def test_what_is_held_back_is_never_drawn_and_comes_in_the_order_of_time(tmp_path: Path) -> None:
    """And what lies in a gap is in neither."""
    with opened(tmp_path, plan=replace(PLAN, size=60_000)) as replay:
        roles = {number: role_of(replay, 7.0 * number) for number in range(300)}
        taken = {number for number in range(300) if offer(replay, number)}
        batches = list(replay.held(10))
        held = [int(one[0]) for batch in batches for one in batch.inputs]
        drawn = {int(one[0]) for one in replay.draw(2_000, Random(0)).inputs}
    assert set(roles.values()) == {"train", "held", "gap"}
    assert held == sorted(one for one, role in roles.items() if role == "held")
    assert drawn == {one for one, role in roles.items() if role == "train"}
    assert taken == set(held) | drawn
    assert {len(batch) for batch in batches[:-1]} == {10}
    assert all(abs(7 * (one - other)) >= HOLDING.gap for one in held for other in drawn)


def test_the_same_coin_and_stream_keep_the_same_samples(tmp_path: Path) -> None:
    """Nothing else decides, sealed or not."""
    found = []
    for name, coin in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        with opened(tmp_path / name, coin=coin) as replay:
            for number in range(600):
                offer(replay, number)
            found.append(kept(replay))
    assert found[0] == found[1] != found[2]


@keys
def test_a_restart_in_the_midst_changes_nothing_of_the_shares(tmp_path: Path, key: bytes | None) -> None:
    """Counts go on over restarts, also of samples that were refused."""
    for start in range(0, 2_000, 100):
        with opened(tmp_path, key, coin=start) as replay:
            for number in range(start, start + 100):
                offer(replay, number)
            counts = replay.counts()
            roles = [role_of(replay, 7.0 * number) for number in range(2_000)]
    assert sum(counts.train_seen) == roles.count("train")
    assert sum(counts.held_seen) == roles.count("held")


@keys
def test_what_is_forgotten_is_gone_from_the_file(tmp_path: Path, key: bytes | None) -> None:
    """Everything older than a time, what was replaced before included: its slots hold zeros, and a reader finds none."""
    path = tmp_path / "replay"
    with opened(tmp_path, key) as replay:
        for number in range(1_000):
            offer(replay, number)
        all_there = kept(replay)
        old = {one for one in all_there if one < 900}
        assert len(old) > 10
        assert replay.forget(7.0 * 900) == len(old)
        assert kept(replay) == all_there - old == on_disk(path, key)
        data = path.read_bytes()
        if key is None:
            assert [one for one in range(1, 900) if np.array([one, -one]).tobytes() in data] == []
        layout = replay._layout
        full = {*replay._samples.train.slots(), *replay._samples.held_back.slots()}
        for slot in set(range(layout.slots)) - full:
            assert data[layout.offset(slot) :][: layout.stride] == bytes(layout.stride)
        assert replay.forget(7.0 * 900) == 0


@keys
def test_a_buffer_that_was_cleared_begins_anew(tmp_path: Path, key: bytes | None) -> None:
    """Nothing is left in its slots or its counts; it goes on taking samples."""
    path = tmp_path / "replay"
    with opened(tmp_path, key) as replay:
        for number in range(500):
            offer(replay, number)
        there = kept(replay)
        assert replay.clear() == len(there) > 10
        assert kept(replay) == on_disk(path, key) == set()
        assert replay.counts().train_seen == replay.counts().held_seen == (0, 0, 0)
        slots = path.read_bytes()[replay._layout.offset(0) :]
        assert slots == bytes(len(slots))
        assert sum(offer(replay, number) for number in range(500, 520)) > 5
        there = kept(replay)
    assert on_disk(path, key) == there


@keys
def test_others_read_while_one_writes(tmp_path: Path, key: bytes | None) -> None:
    """A reader draws what was there when it opened the file; what was replaced since it leaves out, and mixes nothing."""
    path = tmp_path / "replay"
    with opened(tmp_path, key) as replay:
        for number in range(300):
            offer(replay, number)
        replay.flush()
        reader = Samples.open(path, PLAN, key=key)
        before = numbers(reader)
        assert before == kept(replay)
        for number in range(300, 4_000):
            offer(replay, number)
        replay.flush()
        drawn = {int(one[0]) for one in reader.draw(500, Random(0)).inputs}
        held = {int(one[0]) for batch in reader.held() for one in batch.inputs}
        assert drawn | held <= before & kept(replay)
        assert reader.lost
        reader.close()


def test_only_one_process_writes(tmp_path: Path) -> None:
    """A second is refused, whether it opens or begins anew; when the first ends the next may."""
    with opened(tmp_path):
        for begin in (Replay.open, Replay.create):
            with pytest.raises(ConflictError, match=r"another process writes this buffer; at .*replay"):
                begin(tmp_path / "replay", PLAN, random=Random(0))
    opened(tmp_path).close()


def test_beginning_anew_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    """A buffer of another plan, with another key, or something that is no buffer."""
    path = tmp_path / "replay"
    path.write_bytes(b"something else")
    with Replay.create(path, PLAN, random=Random(0), key=KEY) as replay:
        offer(replay, 1)
    with Replay.create(path, IMAGES, random=Random(0)) as replay:
        assert sum(replay.counts().train) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["replay"]


@pytest.mark.parametrize(
    ("inputs", "targets", "more", "kind", "text"),
    [
        (
            np.zeros((1, 2), np.int32),
            target(0),
            {},
            DtypeError,
            r"at inputs; expected int64 \(the plan\); got int32",
        ),
        (np.zeros((1, 3), np.int64), target(0), {}, ShapeError, r"expected \['N', 2\]; got \[1, 3\]"),
        (np.zeros(2, np.int64), target(0), {}, ShapeError, "another shape"),
        (np.zeros((1, 2), np.int64), np.eye(4)[[0]], {}, ClassCountError, r"expected \[1, 3\]; got \[1, 4\]"),
        (np.zeros((2, 2), np.int64), target(0), {}, ClassCountError, r"expected \[2, 3\]; got \[1, 3\]"),
        (np.zeros((1, 2), np.int64), target(0) * 2, {}, EvidenceError, "no probabilities"),
        (np.zeros((1, 2), np.int64), target(0) * math.nan, {}, EvidenceError, "no probabilities"),
        (np.zeros((1, 2), np.int64), np.array([[1.5, -0.5, 0]]), {}, EvidenceError, "no probabilities"),
        (
            np.zeros((1, 2), np.int64),
            target(0),
            {"weights": np.zeros(1)},
            EvidenceError,
            "weights out of range",
        ),
        (
            np.zeros((1, 2), np.int64),
            target(0),
            {"weights": np.full(1, math.nan)},
            EvidenceError,
            "weights out",
        ),
        (np.zeros((1, 2), np.int64), target(0), {"weights": np.ones(2)}, EvidenceError, r"\[1\], above 0"),
        (np.zeros((1, 2), np.int64), target(0), {"at": math.nan}, EvidenceError, "a time out of range"),
        (np.zeros((1, 2), np.int64), target(0), {"at": -1.0}, EvidenceError, "a time out of range"),
        (np.zeros((1, 2), np.int64), target(0), {"at": 1e300}, EvidenceError, "a time out of range"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    tmp_path: Path,
    *,
    inputs: NDArray[np.generic],
    targets: NDArray[np.floating],
    more: dict[str, object],
    kind: type[EdgestillError],
    text: str,
) -> None:
    """With what is wrong; none is taken."""
    with opened(tmp_path) as replay:
        with pytest.raises(kind, match=text):
            replay.add(inputs, targets, source="label", **({"at": 1.0} | more))  # type: ignore[arg-type]  # wrong on purpose
        assert sum(replay.counts().train_seen) == 0


def test_inputs_must_be_numbers(tmp_path: Path) -> None:
    """A NaN of a sensor would spoil a net for good."""
    plan = Plan(dtype="float32", shape=(2,), classes=3, size=10_000)
    with (
        opened(tmp_path, plan=plan) as replay,
        pytest.raises(NotFiniteError, match="inputs that are no numbers"),
    ):
        replay.add(np.array([[1, math.inf]], np.float32), target(0), source="label", at=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "object"},
        {"dtype": "complex64"},
        {"shape": (0,)},
        {"shape": (-1, -1)},
        {"shape": (10**9, 10**9)},
        {"shape": (1,) * 9},
        {"classes": 1},
        {"classes": 10**6},
        {"size": 0},
        {"size": 1 << 50},
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    """Before any room is taken."""
    with pytest.raises(SettingError, match="a buffer that cannot be; at replay plan"):
        replace(PLAN, **wrong)  # type: ignore[arg-type]  # wrong on purpose


@given(classes=st.integers(2, 50), every=st.integers(2, 30), values=st.integers(1, 300))
def test_a_plan_that_is_too_small_says_what_would_do(classes: int, every: int, values: int) -> None:
    """And with that it does."""
    holding = replace(HOLDING, every=every)
    plan = Plan(dtype="float32", shape=(values,), classes=classes, size=4_100, holding=holding)
    with pytest.raises(SettingError, match="too small for a sample of each class") as caught:
        Layout(plan=plan, overhead=16)
    enough = int(str(caught.value.expected).split()[2])
    layout = Layout(plan=replace(plan, size=enough), overhead=16)
    assert layout.train_room >= classes
    assert layout.held_room >= 1
    assert layout.train_room + layout.held_room + layout.spare == layout.slots
    assert layout.bytes <= enough
    with pytest.raises(SettingError):
        Layout(plan=replace(plan, size=enough - 1), overhead=16)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As an error of ours, for readers and writers."""
    with pytest.raises(PathError, match=r"cannot use the replay buffer; at .*replay"):
        opened(tmp_path / "missing")
    with pytest.raises(PathError, match="cannot use the replay buffer"):
        Samples.open(tmp_path / "replay", PLAN)
    (tmp_path / "replay").mkdir()
    with pytest.raises(PathError, match="a folder"):
        opened(tmp_path)


def test_nothing_is_written_where_nothing_has_changed(tmp_path: Path) -> None:
    """A device that rests does not wear out its flash: flushing and closing touch nothing."""
    with opened(tmp_path) as replay:
        offer(replay, 1)
    before = (tmp_path / "replay").stat().st_mtime_ns
    os.utime(tmp_path / "replay", ns=(before, before))
    with opened(tmp_path) as replay:
        replay.flush()
        replay.draw(4, Random(0))
    assert (tmp_path / "replay").stat().st_mtime_ns == before


def test_the_library_that_seals_is_loaded_only_where_there_is_a_key(tmp_path: Path) -> None:
    """A plain buffer needs no cryptography, and none loads torch or an engine."""
    program = (
        "import sys; from pathlib import Path; from random import Random\n"
        "from edgestill.device.replay import Replay; from edgestill.device.replay_format import Plan\n"
        "plan = Plan(dtype='uint8', shape=(4,), classes=2, size=20_000)\n"
        "for key in (None, bytes(32)):\n"
        "    Replay.create(Path(sys.argv[1]), plan, random=Random(0), key=key).close()\n"
        "    print(*sorted({'cryptography', 'torch', 'onnxruntime'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "replay")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["", "cryptography"]

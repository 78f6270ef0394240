"""The watch data and its scenario: nothing runs that should not, nobody is in two roles, everyone is measured once."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError, MissingExtraError
from edgestill.demo import watchdata
from edgestill.demo.watch import FOLDS, LENGTH, _samples, in_bouts, watch
from edgestill.demo.watchdata import LABELS, LEFT, RIGHT, Recording, load_recordings, windows
from edgestill.lab.data.samples import Samples

if TYPE_CHECKING:
    from edgestill.demo.scenario import Scenario

PEOPLE = set(range(1, 11))


@cache
def fold(number: int, seed: int = 0) -> Scenario:
    """The scenario of a fold, made once."""
    return watch(seed=seed, fold=number)


def people(scenario: Scenario) -> dict[str, set[int]]:
    """Role -> who is in it."""
    return {
        "teach": set(scenario.teach.groups.tolist()),
        "heldout": set(scenario.heldout.groups.tolist()),
        "fleet": {int(one.after.groups[0]) for one in scenario.streams if one.shares},
        "measured": {int(one.after.groups[0]) for one in scenario.streams if not one.shares},
    }


def test_all_recordings_are_read() -> None:
    """140 recordings: each of ten people did each of seven exercises once on either wrist."""
    recordings = load_recordings()
    assert len(recordings) == 140
    assert Counter((one.person, one.exercise, one.side) for one in recordings) == Counter(
        (person, exercise, side)
        for person in PEOPLE
        for exercise in range(len(LABELS))
        for side in (LEFT, RIGHT)
    )
    assert {(one.motion.dtype, one.motion.shape[1]) for one in recordings} == {(np.dtype(np.float32), 6)}
    assert all(np.isfinite(one.motion).all() and len(one.motion) >= LENGTH for one in recordings)


def test_attack_an_altered_file_is_refused_before_it_is_unpickled() -> None:
    """One changed byte is another digest, and nothing of the file is looked at."""
    data = bytearray(watchdata._path().read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match="not the known file") as caught:
        watchdata._fields(bytes(data))
    assert caught.value.fix == "install seglearn==1.2.5"


class Command:
    """Unpickled by anybody else, this runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo edgestill-was-here > /tmp/edgestill-was-here",)


def test_attack_a_pickle_that_runs_a_command_is_refused() -> None:
    """Even if the digest were right, only the names that plain arrays need are resolved."""
    with pytest.raises(
        DataError,
        match=r"asks for more than arrays; at watch_dataset\.npy; expected .*; got (posix|nt)\.system",
    ):
        watchdata._ArraysOnly(io.BytesIO(pickle.dumps(Command()))).load()


def test_arrays_within_a_pickle_are_read() -> None:
    """What the file really holds: an array of objects with arrays in it."""
    given = np.array({"X": np.arange(3.0)}, dtype=object)
    read = watchdata._ArraysOnly(io.BytesIO(pickle.dumps(given, protocol=2)), encoding="latin1").load()
    assert read.item()["X"].tolist() == [0, 1, 2]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed less is told what to install."""

    def missing(name: str) -> None:
        raise watchdata.importlib.metadata.PackageNotFoundError(name)  # type: ignore[attr-defined]  # the module's own import

    monkeypatch.setattr(watchdata.importlib.metadata, "distribution", missing)  # type: ignore[attr-defined]  # as above
    with pytest.raises(MissingExtraError, match=r"\[extra-missing\] seglearn .* pip install"):
        load_recordings()


def test_windows_begin_every_hop_and_are_whole() -> None:
    """A recording of 10 samples has three windows of 6 that begin at 0, 2 and 4."""
    motion = np.arange(60, dtype=np.float32).reshape(10, 6)
    found = windows(Recording(motion, 0, 1, RIGHT), length=6, hop=2)
    assert found.shape == (3, 6, 6)
    for index, start in enumerate((0, 2, 4)):
        assert np.array_equal(found[index], motion[start : start + 6])


def test_a_recording_shorter_than_a_window_has_none() -> None:
    """It is left out, not stacked."""
    assert windows(Recording(np.ones((5, 6), np.float32), 0, 1, RIGHT), length=6, hop=2).shape == (0, 6, 6)


@pytest.mark.parametrize("number", range(FOLDS))
@pytest.mark.parametrize("seed", [0, 5])
def test_nobody_is_in_two_roles(number: int, seed: int) -> None:
    """Four teach, one fits the policy, three are the fleet, two are measured: ten different people."""
    roles = people(fold(number, seed))
    assert {name: len(who) for name, who in roles.items()} == {
        "teach": 4,
        "heldout": 1,
        "fleet": 3,
        "measured": 2,
    }
    assert set.union(*roles.values()) == PEOPLE


def test_everybody_is_measured_exactly_once_over_the_folds() -> None:
    """So that intervals are over ten people, none of whom counts twice."""
    measured = [person for number in range(FOLDS) for person in people(fold(number))["measured"]]
    assert sorted(measured) == sorted(PEOPLE)


def test_the_student_and_its_policy_see_the_right_wrist_only() -> None:
    """Training and held-out data hold no window of a left wrist, and the student's people are among the teacher's."""
    scenario = fold(0)
    seen = {
        side: {
            window.tobytes()
            for one in load_recordings()
            if one.side == side
            for window in windows(one, length=LENGTH, hop=32)
        }
        for side in (LEFT, RIGHT)
    }
    for part in (scenario.limited, scenario.heldout):
        found = {window.tobytes() for window in part.inputs}
        assert found <= seen[RIGHT]
        assert not found & seen[LEFT]
    assert set(scenario.limited.groups.tolist()) < people(scenario)["teach"]
    teach = {window.tobytes() for window in scenario.teach.inputs}
    assert teach & seen[LEFT]
    assert teach & seen[RIGHT]


def test_each_stream_is_one_person_before_on_the_right_and_after_on_the_left() -> None:
    """Devices that share have a later part too; the measured ones are scored on all of their left wrist."""
    recordings = load_recordings()
    for stream in fold(0).streams:
        person = int(stream.device.removeprefix("person-"))
        for part in (stream.before, stream.after, stream.later):
            assert part is None or set(part.groups.tolist()) == {person}
        assert np.array_equal(stream.before.inputs, in_bouts(_samples(recordings, [person], RIGHT)).inputs)
        whole = in_bouts(_samples(recordings, [person], LEFT))
        if stream.shares:
            assert stream.later is not None
            early = {window.tobytes() for window in stream.after.inputs}
            assert not early & {window.tobytes() for window in stream.later.inputs}
        else:
            assert stream.later is None
            assert np.array_equal(stream.after.inputs, whole.inputs)


def test_what_is_learned_from_and_what_is_scored_later_share_no_sample() -> None:
    """Between the earlier and the later part of a recording lies a window's length, whatever the recording's."""
    for length in (640, 711, 1000):
        motion = np.repeat(np.arange(length, dtype=np.float32)[:, None], 6, axis=1)
        recordings = [Recording(motion, exercise, 1, LEFT) for exercise in (0, 1)]
        early = _samples(recordings, [1], LEFT, until=0.6).inputs
        later = _samples(recordings, [1], LEFT, since=0.6).inputs
        assert later.min() - early.max() >= LENGTH


def test_the_seed_orders_people() -> None:
    """The same seed gives the same roles, another one others."""
    assert people(watch(seed=0)) == people(fold(0))
    assert people(watch(seed=1)) != people(fold(0))


def test_networks_begin_from_the_seed() -> None:
    """Making them twice gives the same weights, so that a walk can be repeated."""
    one, two = fold(0).make_student(), fold(0).make_student()
    for key, value in one.state_dict().items():
        assert value.equal(two.state_dict()[key]), key


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(1, 9))
def test_bouts_take_turns_and_lose_nothing(labels: list[int], size: int) -> None:
    """Every sample is there once, each label's in their order, and no label stays longer than a bout while others wait."""
    samples = Samples(
        np.arange(len(labels), dtype=np.float32)[:, None], np.array(labels), np.array(labels) + 7, classes=5
    )
    found = in_bouts(samples, size=size)
    order = found.inputs[:, 0].astype(int)
    assert sorted(order) == list(range(len(labels)))
    assert (found.labels == samples.labels[order]).all()
    assert (found.groups == found.labels + 7).all()
    for label in set(labels):
        mine = order[found.labels == label]
        assert (np.diff(mine) > 0).all()
        rounds: dict[int, list[int]] = {}
        for place in np.flatnonzero(found.labels == label):
            rounds.setdefault(int(np.sum(found.labels[:place] == label)) // size, []).append(int(place))
        assert all(places[-1] - places[0] == len(places) - 1 for places in rounds.values())

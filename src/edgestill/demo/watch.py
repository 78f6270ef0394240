"""Scenario `watch`: each person is a device; then the watch moves to the other wrist.

Ten people take turns in four roles that never overlap: the teacher's (both wrists), one held-out person who fits the
policy, the fleet's, and two who are only ever measured. The student sees the right wrist alone. Five folds rotate the
roles, so that every person is measured once; the live route walks the first fold.

A recording holds one exercise from beginning to end. People change what they do, so a device's stream is cut into bouts
of about ten seconds, and the exercises take turns; the windows and what is in them stay as they were recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from edgestill.demo.scenario import Scenario, Stream
from edgestill.demo.watchdata import LABELS, LEFT, RIGHT, Recording, load_recordings, windows
from edgestill.infer.policy import Policy
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.data.samples import Samples
from edgestill.lab.networks import MotionNet
from edgestill.lab.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDS: Final = 5
LENGTH: Final = 128
_HOP: Final = 32
_BOUT: Final = 16
_CLOSER_HOP: Final = 24
_EARLY: Final = 0.6
_PEOPLE: Final = tuple(range(1, 11))


def watch(*, seed: int = 0, fold: int = 0) -> Scenario:
    """The scenario.

    Args:
        seed: of the order of people and of all training.
        fold: 0 to 4; which two people are measured.
    """
    recordings = load_recordings()
    order = np.roll(np.random.default_rng(seed).permutation(_PEOPLE), -2 * fold).tolist()
    measured, fleet, tuning, teaching = order[:2], order[2:5], order[5:6], order[6:]
    teach = _samples(recordings, teaching)
    return Scenario(
        name="watch",
        model="watch",
        story="7 exercises from a watch's motion sensor; every person is a device",
        change="the watch moves from the right wrist to the left",
        unit=("person", "people"),
        teach=teach,
        limited=_samples(recordings, teaching[:3], RIGHT),
        heldout=_samples(recordings, tuning, RIGHT),
        streams=tuple(
            [_stream(recordings, person, shares=True) for person in fleet]
            + [_stream(recordings, person, shares=False) for person in measured]
        ),
        make_teacher=lambda: _network(teach, (48, 96, 128), seed),
        make_student=lambda: _network(teach, (12, 16, 16), seed),
        teacher_recipe=Recipe(
            epochs=6, batch=64, lr=3e-3, weight_decay=1e-3, label_smoothing=0.05, seed=seed
        ),
        student_recipe=_student(seed, epochs=24),
        next_recipe=_student(seed + 1, epochs=14),
        augment=MotionJitter(),
        policy=Policy(labels=LABELS, escalation_share=0.25, audit_share=0.05),
    )


def _student(seed: int, *, epochs: int) -> Recipe:
    return Recipe(epochs=epochs, batch=64, lr=6e-3, weight_decay=1e-3, soft_weight=0.7, views=3, seed=seed)


def _network(teach: Samples, widths: tuple[int, int, int], seed: int) -> MotionNet:
    torch.manual_seed(seed)
    network = MotionNet(*widths, classes=len(LABELS))
    network.standardise.fit_(teach.inputs)
    return network


def _stream(recordings: list[Recording], person: int, *, shares: bool) -> Stream:
    return Stream(
        device=f"person-{person}",
        shares=shares,
        before=in_bouts(_samples(recordings, [person], RIGHT)),
        after=in_bouts(_samples(recordings, [person], LEFT, until=_EARLY, hop=_CLOSER_HOP))
        if shares
        else in_bouts(_samples(recordings, [person], LEFT)),
        later=in_bouts(_samples(recordings, [person], LEFT, since=_EARLY)) if shares else None,
    )


def in_bouts(samples: Samples, *, size: int = _BOUT) -> Samples:
    """The same samples, so that their labels take turns: `size` of the first label met, of the second, and so on."""
    rounds: list[tuple[int, int, int]] = []
    met: dict[int, int] = {}
    turns: dict[int, int] = {}
    for index, label in enumerate(samples.labels.tolist()):
        turn = turns.setdefault(label, len(turns))
        rounds.append((met.get(label, 0) // size, turn, index))
        met[label] = met.get(label, 0) + 1
    order = [index for _, _, index in sorted(rounds)]
    return Samples(samples.inputs[order], samples.labels[order], samples.groups[order], samples.classes)


def _samples(
    recordings: list[Recording],
    people: Iterable[int],
    side: int | None = None,
    *,
    since: float = 0.0,
    until: float = 1.0,
    hop: int = _HOP,
) -> Samples:
    """Windows of these people; `since` leaves a gap of one window, so that no sample is on both sides of a cut."""
    inputs, labels, groups = [], [], []
    for one in recordings:
        if one.person not in set(people) or side not in {None, one.side}:
            continue
        start = round(len(one.motion) * since) + (LENGTH if since else 0)
        part = Recording(
            one.motion[start : round(len(one.motion) * until)], one.exercise, one.person, one.side
        )
        found = windows(part, length=LENGTH, hop=hop)
        inputs.append(found)
        labels.append(np.full(len(found), one.exercise))
        groups.append(np.full(len(found), one.person))
    return Samples.of(
        np.concatenate(inputs), np.concatenate(labels), classes=len(LABELS), groups=np.concatenate(groups)
    )

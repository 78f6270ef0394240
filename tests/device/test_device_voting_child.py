"""The process that answers a proxy set: what it votes, from what it abstains, and why it may not vote at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import (
    CLASSES,
    FEATURES,
    HERE,
    INPUTS,
    batches,
    features_of,
    logits_of,
    model,
    policy_of,
    tiny_bundle,
)
from device_votes import ARCHIVE, SAMPLES, asked, proxy_set

from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, EvidenceError, SettingError, ShapeError
from edgestill.core.oip import Tensor
from edgestill.core.proxyset import ProxySet
from edgestill.core.sharing import Noise, Sharing
from edgestill.device.frames import Bounds, Frame, send
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.memory import Memory
from edgestill.device.oneword import OneWord
from edgestill.device.privacy import Permissions
from edgestill.device.voter import MAX_BALLOT, Answer, Broken, NotYet, Refused, Voted, Voter
from edgestill.device.voting_child import _NotYetError, ballot_of
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head, Statistics
from edgestill.learn.votes import ABSTAIN, LIMIT, MAX_BYTES, Ballot, domain
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLOCK = FakeClock()
TODAY = int(CLOCK.now() // 86_400)
NARROW = np.array([2.0, 0.1, 0.1, 0.1], np.float32)
"""The world of a device sees mostly the first of the inputs."""


class World:
    """A device with a bundle, and samples of its own."""

    def __init__(self, folder: Path, *, leaves: str = "raw", own: int = 200, **bundle: Any) -> None:
        self.folder = folder
        self.home = Home.create(
            folder / "home",
            identity=Identity(
                device="d1", credential="c", hub="http://127.0.0.1:9", hardware_class=HERE, interval=60
            ),
            settings=Settings(leaves=leaves, labels={}),
            root=b"{}",
        )
        self.archive = folder / "tiny.esb"
        self.archive.write_bytes(tiny_bundle(**bundle))
        self.bundle = Bundle.open(self.archive)
        self.memory = Memory(self.home.learned, self.bundle.manifest.digest)
        self.own = sums(own)
        self.memory.keep_statistics([self.own.to_bytes()] if own else [])

    def ballot(self, archive: bytes = ARCHIVE, **more: Any) -> Ballot:
        """What it votes."""
        path = self.folder / "set.esp"
        path.write_bytes(archive)
        given: dict[str, Any] = {"clock": CLOCK} | more
        return ballot_of(self.home, self.archive, ProxySet.open(path), Digest.of(archive), **given)

    def said(self, archive: bytes = ARCHIVE) -> Answer:
        """What the process says."""
        path = self.folder / "set.esp"
        path.write_bytes(archive)
        return answer_of(Voter.start(self.home.path, self.archive, path, Digest.of(archive)))


def answer_of(voter: Voter) -> Answer:
    """What it says at its end."""
    while not voter.wait(0.2):
        pass
    voter.stop()
    return voter.answer


def sums(n: int, *, window: int = TODAY) -> Statistics:
    """Of so many samples of its own world."""
    seen = batches(n, 3) * NARROW
    empty = Statistics.empty(backbone=Digest.of(model(1)), window=window, classes=CLASSES, features=FEATURES)
    return empty.add(features_of(1, seen), np.eye(CLASSES)[logits_of(1, seen).argmax(axis=1)]) if n else empty


def expected(labels: NDArray[np.intp], known: Statistics) -> list[int]:
    """These votes, but for what is not of its domain."""
    one = domain(known)
    at_home = one.of(features_of(1, SAMPLES)) <= LIMIT * one.typical
    return [int(label) if mine else ABSTAIN for label, mine in zip(labels, at_home, strict=True)]


def test_it_votes_with_its_student_on_what_it_knows(tmp_path: Path) -> None:
    """And abstains elsewhere: by its own sums, not by the bundle's."""
    there = World(tmp_path)
    found = there.ballot()
    assert found.labels.tolist() == expected(logits_of(1, SAMPLES).argmax(axis=1), there.own)
    assert 0 < found.votes < len(SAMPLES)
    assert found.question == asked(tmp_path)
    assert found.student == there.bundle.manifest.digest.hex[:16]


def test_it_votes_with_the_head_that_it_has_learned(tmp_path: Path) -> None:
    """And under that head's name."""
    there = World(tmp_path)
    head = Head(weight=np.zeros((FEATURES, CLASSES), np.float32), bias=np.array([0, 0, 1], np.float32))
    overlay = Overlay(
        bundle=there.bundle.manifest.digest,
        head=head,
        temperature=1.0,
        n=20,
        created=1.0,
        agreement_before=0.5,
        agreement_after=0.6,
    )
    there.memory.keep_overlay(overlay)
    found = there.ballot()
    assert set(found.labels.tolist()) == {2, ABSTAIN}
    assert found.student == Digest.of(overlay.to_bytes()).hex[:16]


def test_samples_of_another_domain_are_abstained_from(tmp_path: Path) -> None:
    """All of them, where all are."""
    far = (SAMPLES + 50).astype(np.float32)
    assert World(tmp_path).ballot(proxy_set(far)).votes == 0


def test_few_samples_of_its_own_are_too_few(tmp_path: Path) -> None:
    """As many as its policy asks for before sums are sent; windows that are too old do not count."""
    with pytest.raises(_NotYetError, match="0 samples of its own, of 16"):
        World(tmp_path / "none", own=0).ballot()
    with pytest.raises(_NotYetError, match="15 samples"):
        World(tmp_path / "few", own=15).ballot()
    assert World(tmp_path / "enough", own=16).ballot().votes > 0
    old = World(tmp_path / "old", own=0)
    old.memory.keep_statistics([sums(200, window=TODAY - 8).to_bytes()])
    with pytest.raises(_NotYetError):
        old.ballot()


def test_sums_of_another_backbone_do_not_count(tmp_path: Path) -> None:
    """The device had another bundle before."""
    there = World(tmp_path, own=0)
    other = Statistics.empty(backbone=Digest.of(b"x"), window=TODAY, classes=CLASSES, features=FEATURES)
    seen = batches(100, 3)
    there.memory.keep_statistics(
        [other.add(features_of(2, seen), np.eye(CLASSES)[np.zeros(100, int)]).to_bytes()]
    )
    with pytest.raises(_NotYetError):
        there.ballot()


NOISE = Noise(unit="sample", norm=1.0, epsilon=1.0, delta=1e-5, messages=4)


@pytest.mark.parametrize(
    ("leaves", "policy"),
    [
        ("nothing", policy_of()),
        ("raw", policy_of(leaves="nothing")),
        ("raw", policy_of(statistics=Sharing(encoding="float32", noise=NOISE))),
    ],
)
def test_attack_votes_leave_no_device_that_lets_no_sums_out(tmp_path: Path, leaves: str, policy: Any) -> None:
    """Attack: by its owner's word, by its bundle's, or where that asks for noise, which a ballot has not."""
    assert not Permissions.of(leaves, policy).votes
    with pytest.raises(SettingError, match="votes may not leave this device"):
        World(tmp_path, leaves=leaves, policy=policy).ballot()


@pytest.mark.parametrize("labels", [("low", "high", "middle"), ("low", "middle"), ("a", "b", "c")])
def test_attack_a_set_of_other_classes_is_not_voted_on(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """Attack: a vote for class 1 would mean something else; their order counts."""
    with pytest.raises(EvidenceError, match="a proxy set of other classes"):
        World(tmp_path).ballot(proxy_set(labels=labels))


@pytest.mark.parametrize(
    "samples", [np.zeros((4, INPUTS + 1), np.float32), np.zeros((4, 2, 2), np.float32), np.zeros((4, 4))]
)
def test_attack_samples_that_the_model_does_not_take_are_not_voted_on(tmp_path: Path, samples: Any) -> None:
    """Attack: of another shape, or of other numbers."""
    with pytest.raises(EdgestillError) as caught:
        World(tmp_path).ballot(proxy_set(samples))
    assert isinstance(caught.value, ShapeError) or "element type" in caught.value.what


def test_a_bundle_beside_which_nothing_is_learned_does_not_vote(tmp_path: Path) -> None:
    """It cannot tell what it knows."""
    with pytest.raises(EvidenceError, match="nothing is learned"):
        World(tmp_path, blobs={"reference.stats": None}).ballot()


def test_it_ends_between_two_batches_when_it_is_told_to(tmp_path: Path) -> None:
    """The first of them was answered."""
    left = iter([True, False])
    with pytest.raises(_NotYetError, match="told to end"):
        World(tmp_path).ballot(goes_on=lambda: next(left))
    assert list(left) == []


# The process


def test_the_process_hands_over_a_ballot(tmp_path: Path) -> None:
    """Which a hub can read."""
    there = World(tmp_path, own=0)
    assert isinstance(there.said(), NotYet)
    today = int(tmp_path.stat().st_mtime // 86_400)
    there.memory.keep_statistics([sums(200, window=today).to_bytes()])
    found = there.said()
    assert isinstance(found, Voted), found
    read = Ballot.from_bytes(found.ballot, asked(tmp_path))
    assert read.votes == found.votes > 0
    assert len(found.ballot) < MAX_BALLOT == MAX_BYTES


def test_the_process_says_why_it_does_not_vote(tmp_path: Path) -> None:
    """In one line, which the agent logs."""
    found = World(tmp_path, leaves="nothing").said()
    assert isinstance(found, Refused)
    assert "may not leave" in found.reason


def test_attack_a_file_that_is_no_set_ends_in_a_refusal(tmp_path: Path) -> None:
    """Attack: damaged bytes, or a head that claims more than there is."""
    there = World(tmp_path)
    for data in (b"", b"PK" * 600, ARCHIVE[:-600], ARCHIVE[:1600] + b"\0" + ARCHIVE[1601:]):
        found = there.said(data)
        assert isinstance(found, Refused), found


def test_a_process_that_is_killed_is_known_to_have_broken(tmp_path: Path) -> None:
    """It said nothing."""
    there = World(tmp_path)
    (tmp_path / "set.esp").write_bytes(ARCHIVE)
    voter = Voter.start(there.home.path, there.archive, tmp_path / "set.esp", Digest.of(ARCHIVE))
    os.kill(voter.pid, signal.SIGKILL)
    assert answer_of(voter) == Broken("it ended without a word")


def test_what_only_hinders_is_no_refusal() -> None:
    """A disk that cannot be read for a moment is told as such, and tried again by whoever asked."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    theirs.settimeout(5)
    send(theirs, Frame({"op": "broken", "reason": "the archive cannot be read"}))
    theirs.close()
    voter = Voter(OneWord(process, ours, within=Bounds(header=64_000, body=MAX_BALLOT)))
    assert answer_of(voter) == Broken("the archive cannot be read")


@pytest.mark.parametrize(
    "frame",
    [
        Frame({"op": "voted", "votes": 1}),
        Frame({"op": "voted"}, (Tensor("ballot", "UINT8", (1,), b"x"),)),
        Frame({"op": "voted", "votes": 1}, (Tensor("ballot", "FP32", (1,), b"abcd"),)),
        Frame(
            {"op": "voted", "votes": 1},
            (Tensor("ballot", "UINT8", (MAX_BALLOT + 1,), bytes(MAX_BALLOT + 1)),),
        ),
        Frame({"op": "refused"}),
        Frame({"op": "something"}),
        Frame({}),
    ],
)
def test_attack_a_process_that_was_taken_over_says_nothing_that_is_believed(frame: Frame) -> None:
    """Attack: what it says is bounded, and read field by field."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    theirs.settimeout(5)
    send(theirs, frame)
    theirs.close()
    voter = Voter(OneWord(process, ours, within=Bounds(header=64_000, body=MAX_BALLOT)))
    assert isinstance(answer_of(voter), Broken)


def test_the_supervisor_side_loads_no_numpy() -> None:
    """What the agent's own process imports to vote stays small, and is not loaded before the first turn."""
    code = (
        "import sys, edgestill.device.life\n"
        "print(*(name in sys.modules for name in ('numpy', 'edgestill.device.voting', 'edgestill.core.proxyset')))\n"
        "import edgestill.device.voting, edgestill.device.voter\n"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4

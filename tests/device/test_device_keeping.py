"""What a device keeps to train on: the teacher's answers and told labels, in the room that it was given, and never the student's."""

from __future__ import annotations

import sys
import threading
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.answer import Answer
from edgestill.device.keeping import MAX_WEIGHT, Keeping, plan_of
from edgestill.device.replay import Replay
from edgestill.infer.cascade import Escalation
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.infer.decision import Decision

CLASSES, TAKES = 3, ("FP32", (None, 2))
PLAN = plan_of(TAKES, CLASSES, 200_000)


def keeping_in(folder: Path, *, audit_share: float = 0.1) -> Keeping:
    """One that keeps in this folder."""
    made = Keeping.open(
        folder / "samples", PLAN, clock=FakeClock(), random=Random(0), audit_share=audit_share
    )
    assert made is not None
    return made


def told(*decisions: Decision, heard: tuple[bool, ...], confidence: float = 0.9) -> Escalation:
    """A batch of which some inputs were escalated or audited, and some of these answered by the teacher, who names class 2."""
    n = len(decisions)
    teacher: NDArray[np.float32] = np.full((n, CLASSES), np.nan, np.float32)
    teacher[list(heard)] = [0.0, 0.25, 0.75]
    shares = np.full((n, CLASSES), 1 / CLASSES, np.float32)
    return Escalation(
        batch=np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        answer=Answer(
            probabilities=shares,
            confidence=np.full(n, confidence, np.float32),
            decided_by=("student",) * n,
            teacher=teacher,
            student=shares,
        ),
        decisions=decisions,
        confidence=np.full(n, confidence, np.float32),
    )


def kept(folder: Path, keeping: Keeping) -> list[tuple[list[float], list[float], float, str]]:
    """All that is there: input, target, weight, source; sorted by the input."""
    keeping.close()
    again = keeping_in(folder)
    batches = [again._replay.draw(50, Random(1)), *again._replay.held()]  # what the trainer reads
    again.close()
    found = {
        tuple(one.tolist()): (one.tolist(), target.tolist(), float(weight), source)
        for batch in batches
        for one, target, weight, source in zip(
            batch.inputs, batch.targets, batch.weights, batch.sources, strict=True
        )
    }
    return [found[key] for key in sorted(found)]


def test_what_the_teacher_answered_is_kept_with_its_probabilities(tmp_path: Path) -> None:
    """And what it was asked for says where it came from; inputs that nobody else answered are not kept."""
    keeping = keeping_in(tmp_path)
    keeping.observe(told("escalate", "alone", "escalate", heard=(True, False, False)), threshold=0.5)
    assert kept(tmp_path, keeping) == [([0.0, 1.0], [0.0, 0.25, 0.75], 1.0, "teacher")]


def test_an_audit_of_a_sure_input_stands_for_many(tmp_path: Path) -> None:
    """For as many as its chance says, but no more than the bound; one that would have been escalated anyway stands for itself."""
    for share, confidence, weight in ((0.1, 0.9, 10.0), (0.001, 0.9, MAX_WEIGHT), (0.1, 0.2, 1.0)):
        folder = tmp_path / f"{share}-{confidence}"
        folder.mkdir()
        keeping = keeping_in(folder, audit_share=share)
        keeping.observe(told("audit", heard=(True,), confidence=confidence), threshold=0.5)
        ((_, _, found, source),) = kept(folder, keeping)
        assert found == pytest.approx(weight)
        assert source == "audit"


def test_labels_that_were_told_are_kept(tmp_path: Path) -> None:
    """As one class each; labels that are no classes are left to whoever refuses them."""
    keeping = keeping_in(tmp_path)
    keeping.teach(np.array([[5, 6], [7, 8]], np.float32), np.array([1, 0]), CLASSES)
    keeping.teach(np.array([[9, 9]], np.float32), np.array([3]), CLASSES)
    keeping.teach(np.array([[9, 9]], np.float32), np.array([-1]), CLASSES)
    found = kept(tmp_path, keeping)
    assert [(one[1], one[3]) for one in found] == [([0, 1, 0], "label"), ([1, 0, 0], "label")]


def test_a_bundle_with_other_inputs_begins_the_buffer_anew(tmp_path: Path) -> None:
    """What was kept for the one before could not be asked."""
    keeping = keeping_in(tmp_path)
    keeping.teach(np.array([[5, 6]], np.float32), np.array([1]), CLASSES)
    keeping.close()
    other = plan_of(("UINT8", (None, 4)), CLASSES, 200_000)
    again = Keeping.open(tmp_path / "samples", other, clock=FakeClock(), random=Random(0), audit_share=0.1)
    assert again is not None
    assert again.told()["to_train"] == 0
    again.teach(np.zeros((1, 4), np.uint8), np.array([2]), CLASSES)
    again.close()


def test_a_second_engine_keeps_nothing_while_the_first_does(tmp_path: Path) -> None:
    """One takes over from another: there is one writer at a time, and the next one may try again."""
    first = keeping_in(tmp_path)
    assert (
        Keeping.open(tmp_path / "samples", PLAN, clock=FakeClock(), random=Random(0), audit_share=0.1) is None
    )
    first.close()
    keeping_in(tmp_path).close()


def test_inputs_of_no_fixed_size_are_not_kept() -> None:
    """Nor those of a type that no buffer has; and without a plan there is no buffer."""
    assert plan_of(("INT64", (None, None)), CLASSES, 200_000) is None
    assert plan_of(TAKES, CLASSES, 10) is not None  # too small: found when it is opened
    assert plan_of(TAKES, 1, 200_000) is None


def test_a_folder_that_is_not_there_costs_samples_and_no_answer(tmp_path: Path) -> None:
    """It is told in the log."""
    gone = tmp_path / "gone" / "samples"
    assert Keeping.open(gone, PLAN, clock=FakeClock(), random=Random(0), audit_share=0.1) is None
    assert Keeping.open(gone, None, clock=FakeClock(), random=Random(0), audit_share=0.1) is None


def test_several_threads_keep_one_after_the_other(tmp_path: Path) -> None:
    """As an engine's do that answers many applications: the buffer never holds more than it has room for, nor a sample that is damaged."""
    small = plan_of(TAKES, CLASSES, 6_000)
    assert small is not None
    path = tmp_path / "samples"
    keeping = Keeping.open(path, small, clock=FakeClock(), random=Random(0), audit_share=0.1)
    assert keeping is not None
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take over from each other wherever they can

    def work(number: int) -> None:
        for step in range(60):
            inputs = np.full((3, 2), number * 100 + step, np.float32)
            keeping.teach(inputs, np.array([0, 1, 2]), CLASSES)
            keeping.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(usual)
    kept_now = keeping.told()["to_train"]
    keeping.close()
    with Replay.open(path, small, random=Random(0)) as again:
        counts = again.counts()
        assert sum(counts.train) == kept_now
        assert sum(counts.train) <= counts.train_room
        assert sum(counts.train_seen) == 8 * 60 * 3
        assert again.samples.lost == set()


def test_inputs_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """A batch of another shape breaks nothing."""
    keeping = keeping_in(tmp_path)
    keeping.teach(np.zeros((1, 9), np.float32), np.array([0]), CLASSES)
    keeping.flush()
    assert keeping.told()["to_train"] == 0
    keeping.close()


# Sealed


KEY = bytes(range(32))
SEEN = np.array([[1.25e10, -7.75e-20], [3.5e15, 2.5e-7]], np.float32)


def sealed_in(folder: Path, key: bytes | None) -> Keeping:
    """One that keeps with this key."""
    made = Keeping.open(
        folder / "samples", PLAN, clock=FakeClock(), random=Random(0), audit_share=0.1, key=key
    )
    assert made is not None
    return made


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_sealed_samples_cannot_be_read_off_the_disk(tmp_path: Path, key: bytes | None) -> None:
    """No input's bytes are in the file; in the clear each is."""
    keeping = sealed_in(tmp_path, key)
    keeping.teach(SEEN, np.array([0, 2]), CLASSES)
    assert keeping.told()["sealed"] is (key is not None)
    keeping.close()
    data = (tmp_path / "samples").read_bytes()
    assert [one.tobytes() in data for one in SEEN] == [key is None] * 2


def test_with_its_key_a_buffer_goes_on(tmp_path: Path) -> None:
    """What was kept is there after a restart, and nothing is said to be gone."""
    keeping = sealed_in(tmp_path, KEY)
    keeping.teach(SEEN, np.array([0, 2]), CLASSES)
    keeping.close()
    again = sealed_in(tmp_path, KEY)
    told = again.told()
    assert (told["to_train"], told["held_back"], told["begun_anew"]) in {(2, 0, None), (0, 2, None)}
    again.close()


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [(KEY, KEY[::-1], "another key"), (None, KEY, "not sealed"), (KEY, None, "a sealed buffer, and no key")],
)
def test_another_key_begins_anew_and_says_so(
    tmp_path: Path, before: bytes | None, after: bytes | None, why: str
) -> None:
    """Also where there was none, or is none any more; what comes then is kept as it should be, and the word is gone after a restart."""
    keeping = sealed_in(tmp_path, before)
    keeping.teach(SEEN, np.array([0, 2]), CLASSES)
    keeping.close()
    again = sealed_in(tmp_path, after)
    told = again.told()
    assert (told["to_train"], told["held_back"], told["sealed"]) == (0, 0, after is not None)
    assert why in str(told["begun_anew"])
    again.teach(SEEN[:1], np.array([1]), CLASSES)
    again.close()
    last = sealed_in(tmp_path, after)
    assert last.told()["begun_anew"] is None
    batches = [last._replay.draw(1, Random(1)), *last._replay.held()]  # what the trainer reads
    assert [one.argmax() for batch in batches for one in batch.targets] == [1]
    last.close()
    assert (SEEN[0].tobytes() in (tmp_path / "samples").read_bytes()) == (after is None)

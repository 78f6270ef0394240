"""The next student from the fleet's evidence, its control, and a teacher that takes up what was learned."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_worlds import CLASSES, HELDOUT, TRAIN, motions, run, same_weights, teacher

from edgestill.core.errors import DataError, EvidenceError
from edgestill.lab.absorb import ALPHAS, absorb
from edgestill.lab.data.samples import Samples
from edgestill.lab.forward import answers
from edgestill.lab.recipe import Recipe
from edgestill.lab.redistil import Evidence, redistil
from edgestill.lab.training.train import Lesson, train_

SEEN = motions(24, seed=9)
NEXT = Recipe(epochs=2, batch=32, lr=5e-3, soft_weight=0.5, seed=4)


def evidence(n: int = 24) -> Evidence:
    """What two devices escalated, with the teacher's answers."""
    inputs = SEEN.inputs[:n]
    return Evidence(
        inputs=inputs,
        teacher=np.eye(CLASSES, dtype=np.float32)[(SEEN.labels[:n] + 1) % CLASSES],
        audit=np.zeros(n, dtype=bool),
        devices=tuple("ba"[index % 2] for index in range(n)),
    )


def test_evidence_is_labelled_with_the_teachers_answers() -> None:
    """Labels are the teacher's classes, and each device is a group of its own beside the old ones."""
    found = evidence().labelled(TRAIN)
    assert found.labels.tolist() == ((SEEN.labels + 1) % CLASSES).tolist()
    first = int(TRAIN.groups.max()) + 1
    assert found.groups.tolist() == [first + 1, first] * 12
    assert found.classes == CLASSES


def test_the_next_student_is_trained_on_old_and_new_data_and_the_parent_stays() -> None:
    """Training goes on from the parent's weights, on a copy; the run's data is replay and evidence."""
    before = copy.deepcopy(run().student)
    found = redistil(run(), evidence(), NEXT)
    assert same_weights(run().student, before)
    assert not same_weights(found.student, before)
    assert isinstance(found.train, Samples)
    assert len(found.train) == len(TRAIN) + 24
    assert np.array_equal(found.train.inputs[: len(TRAIN)], TRAIN.inputs)
    assert found.validation is HELDOUT
    assert found.recipe == NEXT


def test_it_begins_where_the_parent_is() -> None:
    """With a learning rate of almost nothing the next student is the parent, not a fresh heir of the teacher."""
    still = replace(NEXT, lr=1e-30, schedule="constant", epochs=1)
    found = redistil(run(), evidence(), still).student
    for one, other in zip(found.parameters(), run().student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_control_is_the_same_training_without_evidence() -> None:
    """It leaves the parent unchanged, sees the old data only, is repeatable, and differs from the informed one."""
    before = copy.deepcopy(run().student)
    control = redistil(run(), None, NEXT)
    assert same_weights(run().student, before)
    assert control.train is run().train
    assert same_weights(control.student, redistil(run(), None, NEXT).student)
    assert not same_weights(control.student, redistil(run(), evidence(), NEXT).student)


def test_no_evidence_at_all_is_refused() -> None:
    """Nothing escalated yet is not the control, which is asked for by None."""
    with pytest.raises(EvidenceError, match=r"\[evidence-refused\] no evidence yet; .*got 0"):
        redistil(run(), evidence(0), NEXT)


def test_evidence_of_another_shape_or_type_is_refused() -> None:
    """Another window length, or float64 of a float32 sensor, does not join the old data."""
    one = evidence()
    with pytest.raises(
        EvidenceError,
        match=r"evidence of another input; at evidence: input; expected float32 \[16, 6\]; got float32 \[15, 6\]",
    ):
        redistil(run(), replace(one, inputs=one.inputs[:, 1:]), NEXT)
    with pytest.raises(EvidenceError, match=r"evidence of another input; .*float64"):
        redistil(run(), replace(one, inputs=one.inputs.astype(np.float64)), NEXT)


def test_evidence_of_other_classes_is_refused() -> None:
    """A teacher of another lineage answered it."""
    one = evidence()
    with pytest.raises(
        EvidenceError, match="evidence of other classes; at evidence: teacher; expected 3; got 2"
    ):
        redistil(run(), replace(one, teacher=one.teacher[:, :2]), NEXT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_evidence_that_is_not_finite_is_refused(bad: float) -> None:
    """NaN from a device, as an answer or as an input, is named before it can reach any training."""
    one = evidence()
    logits, inputs = one.teacher.copy(), one.inputs.copy()
    logits[3, 0] = inputs[3, 0, 0] = bad
    with pytest.raises(EvidenceError, match="answers that are not finite; at teacher"):
        replace(one, teacher=logits)
    with pytest.raises(
        EvidenceError, match=r"inputs that are not finite; at sample 3 of a; .*; got 1 of 24 samples"
    ):
        replace(one, inputs=inputs)


def test_evidence_whose_parts_differ_in_length_is_refused() -> None:
    """Each input has one answer, one coin and one device."""
    one = evidence()
    with pytest.raises(EvidenceError, match="parts do not belong together; at evidence; expected 24 of each"):
        replace(one, devices=one.devices[1:])
    with pytest.raises(
        EvidenceError,
        match=r"answers that are no logits; at evidence: teacher; expected \[N, C\]; got \[24\]",
    ):
        replace(one, teacher=one.teacher[:, 0])
    assert len(one) == 24


def test_a_teacher_absorbs_only_what_helps() -> None:
    """The alpha with the least held-out loss is kept; the old teacher and the student stay as they are."""
    before, student = copy.deepcopy(teacher()), copy.deepcopy(run().student)
    found = absorb(run(), HELDOUT)
    assert tuple(found.losses) == ALPHAS
    assert found.losses[found.alpha] == min(found.losses.values()) <= found.losses[0.0]
    assert same_weights(teacher(), before)
    assert same_weights(run().student, student)
    said = answers(found.teacher, torch.from_numpy(HELDOUT.inputs))
    loss = torch.nn.functional.cross_entropy(said, torch.from_numpy(HELDOUT.labels))
    assert float(loss) == pytest.approx(found.losses[found.alpha])


def test_a_student_that_learned_nonsense_is_not_absorbed() -> None:
    """Where every share of the student hurts, alpha is 0 and the new teacher equals the old one."""
    spoiled = copy.deepcopy(run().student)
    with torch.no_grad():
        for parameter in spoiled.parameters():
            parameter.mul_(-30)
    found = absorb(replace(run(), student=spoiled), HELDOUT)
    assert found.alpha == 0
    assert same_weights(found.teacher, teacher())


def test_a_teacher_absorbs_what_its_student_learned_at_the_edge() -> None:
    """On a changed world the student that was taught from evidence there makes its teacher better there."""
    turned = Samples.of(SEEN.inputs, (SEEN.labels + 1) % CLASSES)
    recipe = Recipe(epochs=25, batch=16, lr=2e-2, soft_weight=0.1)
    taught = redistil(run(), evidence(), recipe)
    plain = replace(recipe, soft_weight=0.0)
    taught = replace(taught, student=train_(taught.student, Lesson.of(turned), plain))
    found = absorb(taught, turned)
    assert found.alpha > 0
    assert found.losses[found.alpha] < found.losses[0.0]


def test_a_student_that_was_not_inherited_cannot_be_absorbed() -> None:
    """Without a map nobody knows where its weights belong."""
    with pytest.raises(
        DataError, match=r"no index map; at run\.index_map; expected a student that was inherited"
    ):
        absorb(replace(run(), index_map=None), HELDOUT)

"""The fitted policy promises what the data allows, and says why where it promises nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgestill.core.errors import ClassCountError, DataError
from edgestill.infer.confidence import confidence_of, softmax
from edgestill.infer.fusion import weights
from edgestill.infer.policy import Policy
from edgestill.lab.packing.calibrate import (
    DELTA,
    EPSILON,
    Heldout,
    _thirds,
    calibrate,
    kept_budget,
    promise_text,
)

WANTED = Policy(
    labels=("a", "b", "c"), escalation_share=0.3, audit_share=0.02, measure="margin", leaves="raw"
)


def heldout(
    n: int, *, student: float = 1.5, teacher: float = 5.0, per_group: int = 1, seed: int = 0
) -> Heldout:
    """Logits of two voices, each right as often as its strength lets it beat unit noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    right = np.eye(3)[labels]
    return Heldout(
        student=(student * right + random.normal(size=(n, 3))).astype(np.float32),
        teacher=(teacher * right + random.normal(size=(n, 3))).astype(np.float32),
        labels=labels,
        groups=np.arange(n) // per_group,
    )


def report(policy: Policy) -> dict[str, Any]:
    """What the third part said."""
    found = policy.evidence["report"]
    assert isinstance(found, dict)
    return found


def test_independent_samples_give_a_promise() -> None:
    """With 900 samples and a good teacher the threshold carries its promise with n, epsilon, delta and losses."""
    policy = calibrate(heldout(900), WANTED)
    evidence = policy.evidence
    assert policy.promised
    assert (evidence["n"], evidence["epsilon"], evidence["delta"]) == (300, EPSILON, DELTA)
    assert evidence["threshold"] == policy.threshold
    assert evidence["why"] == ""


def test_grouped_samples_give_none_and_the_reason() -> None:
    """Windows of one person are not independent: the threshold keeps the budget, and the policy says why."""
    policy = calibrate(heldout(900, per_group=10), WANTED)
    assert policy.evidence["promised"] is False
    why = policy.evidence["why"]
    assert isinstance(why, str)
    assert why.startswith("300 samples of 30 groups are ")
    assert "not independent; the threshold keeps the budget only" in why
    assert 0 < policy.threshold < 1


def test_few_groups_promise_nothing_whatever_the_split() -> None:
    """Pairs, and two people whose samples fall into all three parts, do not become independent by that."""
    for seed in range(20):
        for per_group in (2, 15):
            evidence = calibrate(heldout(30, per_group=per_group), WANTED, seed=seed).evidence
            assert evidence["promised"] is False
            assert "groups are not independent" in str(evidence["why"])


def test_a_person_is_in_one_part_only() -> None:
    """What was fitted on a person is not reported on that person."""
    for part in (one := _thirds(heldout(90, per_group=9), 3)):
        others = [other.groups for other in one if other is not part]
        assert not np.isin(part.groups, np.concatenate(others)).any()
    assert sum(len(part.labels) for part in one) == 90


def test_one_person_moves_the_policy_little() -> None:
    """A hundred windows of one person are one sample: the teacher is believed, and no temperature runs away."""
    one = heldout(300, student=9.0, teacher=9.0)
    shy = (one.student / 5).astype(np.float32)  # always right, never sure: the likeliest temperature is 0
    alone = Heldout(student=shy, teacher=shy, labels=one.labels, groups=np.zeros(300, np.int64))
    policy = calibrate(alone, WANTED)
    assert 0.5 < policy.temperature < 1
    assert 0.5 < policy.teacher_temperature < 1
    assert policy.alpha == pytest.approx(0.9, abs=0.02)
    many = calibrate(Heldout(student=shy, teacher=shy, labels=one.labels, groups=one.groups), WANTED)
    assert many.temperature < 0.4, "three hundred people who are as clear are believed"


def test_too_few_independent_samples_promise_nothing_and_say_how_many_would() -> None:
    """Thirty samples leave ten to choose by: the reason names the least number."""
    policy = calibrate(heldout(30), WANTED)
    assert not policy.promised
    assert "10 samples are too few: epsilon=0.05 and delta=0.1 need at least 45" in str(
        policy.evidence["why"]
    )


@pytest.mark.parametrize("n", [0, 29])
def test_too_little_data_is_refused(n: int) -> None:
    """Below thirty samples nothing is fitted."""
    with pytest.raises(DataError, match=rf"too little held-out data .*at least 30 samples; got {n}"):
        calibrate(heldout(n), WANTED)


def test_voices_of_different_classes_are_refused() -> None:
    """Teacher and student must answer the same question."""
    one = heldout(30)
    assert one.teacher is not None
    with pytest.raises(ClassCountError, match=r"expected \[30, 2\]; got \[30, 3\]"):
        Heldout(student=one.student, teacher=one.teacher[:, :2], labels=one.labels, groups=one.groups)


def test_alpha_leans_to_the_better_voice() -> None:
    """Near 1 for a teacher that knows and a student that guesses, near 0 the other way, in the mean a half for equals."""
    teacher = calibrate(heldout(600, student=0.0, teacher=6.0), WANTED).alpha
    student = calibrate(heldout(600, student=6.0, teacher=0.0), WANTED).alpha
    data = heldout(6000, student=2.0, teacher=2.0)
    equals = calibrate(data, WANTED)
    sure = confidence_of(softmax(data.student, equals.temperature), equals.measure)
    assert teacher > 0.95
    assert student < 0.05
    assert 0.3 < weights(equals, sure).mean() < 0.7
    assert equals.alpha_at(0.1) > 0.9


def test_temperatures_undo_overconfidence() -> None:
    """Logits that were multiplied by four get four times the temperature, each voice its own."""
    one = heldout(600)
    loud = Heldout(student=one.student * 4, teacher=one.teacher, labels=one.labels, groups=one.groups)
    before, after = calibrate(one, WANTED), calibrate(loud, WANTED)
    assert after.temperature == pytest.approx(4 * before.temperature, rel=0.03)
    assert after.teacher_temperature == before.teacher_temperature
    assert report(after)["student"]["ece"] < 0.12


def test_the_report_is_of_a_part_nothing_was_fitted_on() -> None:
    """The last third reports accuracy, NLL and ECE of both voices and of the fused one."""
    found = report(calibrate(heldout(601), WANTED))
    assert found["n"] == 200
    assert {"student", "teacher", "fused"} <= found.keys()
    assert found["fused"]["nll"] <= found["student"]["nll"]
    assert found["teacher"]["accuracy"] > 0.95 > found["student"]["accuracy"]


def test_what_was_wanted_is_kept_and_the_seed_decides_the_split() -> None:
    """Labels, measure, budgets and what may leave are the caller's; the same seed fits the same policy."""
    policy = calibrate(heldout(300), WANTED, seed=4)
    for name in ("labels", "measure", "escalation_share", "audit_share", "leaves", "bytes_per_day"):
        assert getattr(policy, name) == getattr(WANTED, name)
    assert calibrate(heldout(300), WANTED, seed=4).to_bytes() == policy.to_bytes()
    assert calibrate(heldout(300), WANTED, seed=5).to_bytes() != policy.to_bytes()
    assert Policy.from_bytes(policy.to_bytes()) == policy


PROMISED = {"promised": True, "delta": 0.05, "epsilon": 0.1, "n": 240, "escalated": 0.2}


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (
            PROMISED,
            (
                "of at most 10% of inputs the answer is wrong although the teacher knows better; "
                "true with probability 0.95, shown on 240 samples"
            ),
        ),
        (
            PROMISED | {"escalated": 0.34},
            "none within the budget: it would take asking about 34% of the inputs, and 25% are allowed",
        ),
        ({"promised": False, "why": "too few samples"}, "none, since too few samples"),
        ({}, "none, since nothing was calibrated"),
    ],
)
def test_a_promise_is_told_with_its_figures_or_not_at_all(evidence: Any, said: str) -> None:
    """Probability, bound and n; where the budget forbids what it needs, that; where there is none, why not."""
    assert promise_text(replace(WANTED, escalation_share=0.25, evidence=evidence)) == said


def test_without_a_teacher_the_student_is_calibrated_all_the_same() -> None:
    """Its temperature is the one it has beside a teacher; alpha stays as wanted, and nothing is promised."""
    both = heldout(600)
    alone = calibrate(replace(both, teacher=None), WANTED)
    assert alone.temperature == calibrate(both, WANTED).temperature
    assert (alone.alpha, alone.teacher_temperature) == (WANTED.alpha, WANTED.teacher_temperature)
    assert not alone.promised
    assert promise_text(alone) == "none, since nobody asked a teacher; the threshold keeps the budget only"
    assert set(report(alone)) == {"student", "n"}


def test_the_threshold_keeps_the_budget_where_nothing_was_fitted() -> None:
    """The share of these answers below it is the wanted one."""
    data = heldout(600)
    policy = kept_budget(data, replace(WANTED, escalation_share=0.3), "why not")
    assert np.mean(confidence_of(softmax(data.student), "margin") < policy.threshold) == pytest.approx(
        0.3, abs=0.01
    )
    assert policy.evidence == {"promised": False, "n": 600, "why": "why not"}


def test_the_measure_that_finds_more_is_taken_and_what_was_compared_is_told() -> None:
    """Where the features show which inputs the student gets wrong, and its probabilities do not, leverage is chosen."""
    data = heldout(1_500, student=1.0, teacher=9.0)
    wrong = data.student.argmax(1) != data.labels
    known = replace(data, leverage=np.where(wrong, 3.0, 0.5) + np.random.default_rng(1).random(1_500))
    policy = calibrate(known, replace(WANTED, measure="max_probability"))
    assert policy.measure == "leverage"
    compared = policy.evidence["measures"]
    assert isinstance(compared, dict)
    assert set(compared) == {"max_probability", "margin", "entropy", "leverage"}
    assert 0 < policy.threshold < 1


def test_a_measure_that_finds_no_more_is_not_taken() -> None:
    """Leverages that know nothing of the errors leave the measure as it was."""
    data = heldout(1_500, student=1.0, teacher=9.0)
    noise = replace(data, leverage=np.random.default_rng(1).random(1_500))
    assert calibrate(noise, replace(WANTED, measure="max_probability")).measure != "leverage"


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_a_policy_of_few_people_can_be_written(groups: int) -> None:
    """Where no error can be told, because everything hangs together, the policy says null and survives its bytes."""
    data = replace(heldout(900), groups=np.arange(900) % groups)
    policy = calibrate(data, WANTED)
    assert Policy.from_bytes(policy.to_bytes()) == policy
    assert policy.bands == ()


def test_a_measure_that_was_asked_for_stays() -> None:
    """Who names one gets it, whatever the comparison says."""
    data = heldout(1_500, student=1.0, teacher=9.0)
    wrong = data.student.argmax(1) != data.labels
    known = replace(data, leverage=np.where(wrong, 3.0, 0.5))
    assert calibrate(known, replace(WANTED, measure="entropy")).measure == "entropy"

"""`policy.json`: it survives its bytes, and what is out of range is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.sharing import Noise
from edgestill.infer.decision import PolicyState
from edgestill.infer.policy import ALWAYS, Band, Leaves, Measure, Policy
from edgestill.infer.reaction import Action, Reaction

NOISE: dict[str, Any] = asdict(Noise())
LABELS = ("still", "walk", "run")
POLICY = Policy(labels=LABELS, threshold=0.8, escalation_share=0.2, audit_share=0.02)


# Formats


policies = st.builds(
    lambda shares, values: Policy(audit_share=shares[0], escalation_share=shares[1], **values),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.fixed_dictionaries(
        {
            "labels": st.lists(st.text(max_size=20), min_size=1, max_size=9, unique=True).map(tuple),
            "temperature": st.floats(1e-3, 1e3),
            "teacher_temperature": st.floats(1e-3, 1e3),
            "alpha": st.floats(0, 1),
            "bands": st.lists(st.floats(0, ALWAYS), max_size=5, unique=True).map(
                lambda borders: tuple(Band(below=border, alpha=border / 2) for border in sorted(borders))
            ),
            "threshold": st.floats(0, ALWAYS),
            "measure": st.sampled_from(get_args(Measure)),
            "bytes_per_day": st.none() | st.integers(0, 2**53 - 1),
            "leaves": st.sampled_from(get_args(Leaves)),
            "on_drift": st.builds(
                Reaction,
                do=st.lists(st.sampled_from(get_args(Action)), unique=True).map(tuple),
                audit_factor=st.floats(1, 1000),
                audit_inputs=st.integers(1, 1_000_000),
            ),
            "evidence": st.just({"n": 3}),
            "unknown": st.just({"later": [1, "two"]}),
        }
    ),
)


@given(policies)
def test_writing_and_reading_give_the_same_policy(policy: Policy) -> None:
    """A policy survives its bytes."""
    assert Policy.from_bytes(policy.to_bytes()) == policy


def test_fields_left_out_have_their_defaults() -> None:
    """Schema and labels are enough."""
    assert Policy.from_bytes(b'{"schema":1,"labels":["a","b"]}') == Policy(labels=("a", "b"))


def test_the_order_of_labels_is_part_of_their_digest() -> None:
    """The same names in another order are other labels."""
    digest = POLICY.label_digest
    assert digest == Policy(labels=LABELS).label_digest
    assert digest != Policy(labels=LABELS[::-1]).label_digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": 1.5}, "policy: alpha"),
        ({"bands": [{"below": 0.5, "alpha": 2}]}, "policy: bands: alpha"),
        ({"bands": [{"below": 3, "alpha": 0.5}]}, "policy: bands: below"),
        ({"bands": [{"below": 0.5, "alpha": 0.1}, {"below": 0.5, "alpha": 0.2}]}, "policy: bands"),
        ({"bands": [{"below": 0.5}]}, "alpha"),
        ({"bands": [{"below": 0.1, "alpha": 0.1}] * 40}, "bands"),
        ({"temperature": 0}, "policy: temperature"),
        ({"threshold": -0.1}, "policy: threshold"),
        ({"audit_share": 0.5, "escalation_share": 0.2}, "policy: audit_share"),
        ({"bytes_per_day": -1}, "bytes_per_day"),
        ({"measure": "gut"}, "policy: measure"),
        ({"leaves": "all"}, "policy: leaves"),
        ({"labels": []}, "policy: labels"),
        ({"labels": ["a", "a"]}, "policy: labels"),
        ({"labels": [1]}, "policy.json: labels"),
        ({"schema": 3}, "policy.json"),
        ({"evidence": 3}, "policy.json: evidence"),
        ({"temperature": "warm"}, "temperature"),
        ({"on_drift": "learn"}, "policy.json: on_drift"),
        ({"on_drift": {"do": ["panic"]}}, "policy: on_drift: do"),
        ({"on_drift": {"do": ["learn", "learn"]}}, "policy: on_drift: do"),
        ({"on_drift": {"do": [1]}}, "policy.json: on_drift: do"),
        ({"on_drift": {"do": ["learn"] * 9}}, "policy.json: on_drift: do"),
        ({"on_drift": {"audit_factor": 0.5}}, "policy: on_drift: audit_factor"),
        ({"on_drift": {"audit_factor": 1e9}}, "policy: on_drift: audit_factor"),
        ({"on_drift": {"audit_inputs": 0}}, "policy: on_drift: audit_inputs"),
        ({"on_drift": {"audit_inputs": 10**7}}, "policy: on_drift: audit_inputs"),
        ({"on_drift": {"audit_inputs": 1.5}}, "policy.json: on_drift: audit_inputs"),
    ],
)
def test_a_value_out_of_range_is_named(change: dict[str, object], named: str) -> None:
    """The error names the field that is wrong."""
    data = json.dumps({"schema": 1, "labels": ["a", "b"]} | change).encode()
    with pytest.raises((SettingError, MessageError)) as caught:
        Policy.from_bytes(data)
    assert named in str(caught.value)


def test_a_policy_without_bands_is_written_as_before_there_were_any() -> None:
    """Older readers find nothing that they do not know."""
    assert b"bands" not in POLICY.to_bytes()


def test_a_policy_that_answers_a_change_as_ever_is_written_as_ever() -> None:
    """`on_drift` is there where it says something; what it leaves out has its default."""
    assert b"on_drift" not in POLICY.to_bytes()
    quiet = replace(POLICY, on_drift=Reaction(do=()))
    assert json.loads(quiet.to_bytes())["on_drift"] == {
        "do": [],
        "audit_factor": Reaction().audit_factor,
        "audit_inputs": Reaction().audit_inputs,
    }
    told = Policy.from_bytes(b'{"schema":1,"labels":["a"],"on_drift":{"do":["audit"]}}').on_drift
    assert told == Reaction(do=("audit",))
    assert Policy.from_bytes(b'{"schema":1,"labels":["a"],"on_drift":{}}').on_drift == Reaction()


def test_the_weight_is_that_of_the_band_the_confidence_lies_in() -> None:
    """Below a border its band counts, at the last border and above it alpha."""
    policy = Policy(labels=LABELS, alpha=0.3, bands=(Band(below=0.5, alpha=0.9), Band(below=0.8, alpha=0.6)))
    assert [policy.alpha_at(sure) for sure in (0.0, 0.49, 0.5, 0.79, 0.8, 1.0)] == [
        0.9,
        0.9,
        0.6,
        0.6,
        0.3,
        0.3,
    ]
    assert POLICY.alpha_at(0.1) == POLICY.alpha


@given(st.binary(max_size=200))
def test_garbage_is_no_policy_and_no_state(data: bytes) -> None:
    """Bytes from anywhere are refused with a message, never with anything else."""
    with pytest.raises((MessageError, SettingError)):
        Policy.from_bytes(data)
    with pytest.raises(MessageError):
        PolicyState.from_bytes(data)


def test_the_policy_is_standard_library_only() -> None:
    """A supervisor may read a policy without loading numpy or an engine."""
    code = (
        'import sys, edgestill.infer.decision, edgestill.infer.policy as p; p.Policy.from_bytes(b\'{"schema":1,"labels":["a"]}\');'
        "print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("statistics", "where"),
    [
        ({"kept": 5_000}, "policy: statistics: kept"),
        ({"encoding": "int4"}, "policy: statistics: encoding"),
        ({"noise": NOISE}, "policy: statistics: noise"),
        ({"encoding": "float32", "noise": NOISE | {"epsilon": 0}}, "policy: statistics: noise: epsilon"),
    ],
)
def test_how_sums_are_sent_is_refused_by_its_whole_way(statistics: dict[str, Any], where: str) -> None:
    """Out of its range, or noise on what takes none."""
    with pytest.raises(SettingError) as error:
        Policy.from_bytes(json.dumps({"schema": 2, "labels": ["a"], "statistics": statistics}).encode())
    assert str(error.value.where) == where

"""Releases, rollouts, assignments: what can be named, counted and staged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.release import MAX_COUNTER, MAX_EPOCH, Assignment, Gates, Rollout, Stage, target_name

ASSIGNMENTS = st.builds(
    Assignment,
    device=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    counter=st.integers(min_value=1, max_value=MAX_COUNTER),
    target=st.just("watch/1.0.0/any.esb"),
    expires=st.integers(min_value=0, max_value=2**53 - 1),
    epoch=st.integers(min_value=0, max_value=MAX_EPOCH),
)
FIELDS: dict[str, Any] = {"device": "d", "counter": 1, "target": "watch/1.0.0/any.esb", "expires": 10}


def test_a_target_is_named_by_model_version_and_class() -> None:
    """The path of a bundle in the publisher's list."""
    assert target_name("watch", "1.0.0", "any") == "watch/1.0.0/any.esb"


def test_every_hardware_class_can_be_part_of_a_target() -> None:
    """The class of a machine is allowed in a target's name."""
    assert target_name("watch", "1.0.0", str(HardwareClass.here())).endswith("-onnxruntime.esb")


@pytest.mark.parametrize(
    ("name", "version", "hardware_class"),
    [
        ("..", "1.0.0", "any"),
        ("watch/../x", "1.0.0", "any"),
        ("Watch", "1.0.0", "any"),
        ("", "1.0.0", "any"),
        ("watch", "1.0", "any"),
        ("watch", "latest", "any"),
        ("watch", "1.0.0", "../any"),
        ("watch", "1.0.0", ""),
        ("watch", "1.0.0", "any\n"),
        ("watch", "1.0.0", "a" * 61),
    ],
)
def test_attack_a_target_name_cannot_leave_its_place(name: str, version: str, hardware_class: str) -> None:
    """Parts with slashes, dots, line ends or capitals do not make a target."""
    with pytest.raises(SettingError, match=r"not a target name; at target; expected NAME/1\.2\.3/CLASS\.esb"):
        target_name(name, version, hardware_class)


@given(ASSIGNMENTS)
def test_an_assignment_survives_its_json(assignment: Assignment) -> None:
    """What is signed is what is read."""
    value = parse_object(canonical(assignment.as_json()), where="test")
    assert Assignment.from_fields(Fields(value, "test")) == assignment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": None}, "assignment: device"),
        ({"device": "d" * 65}, "assignment: device"),
        ({"counter": 0}, "assignment: counter; expected a whole number from 1"),
        ({"counter": 1.0}, "assignment: counter"),
        ({"counter": MAX_COUNTER + 1}, "assignment: counter"),
        ({"target": "../../etc/passwd"}, "assignment: target"),
        ({"target": "watch/1.0.0/any.esb/.."}, "assignment: target"),
        ({"target": "watch/1.0.0/any.zip"}, "assignment: target"),
        ({"expires": -1}, "assignment: expires"),
        ({"expires": "never"}, "assignment: expires"),
        ({"force": True}, "unknown field; at assignment; .*got force"),
    ],
)
def test_attack_a_crooked_assignment_is_refused(change: dict[str, Any], message: str) -> None:
    """Every field has its range, and a signed part with a field nobody knows is refused, not half understood."""
    with pytest.raises(MessageError, match=message):
        Assignment.from_fields(Fields(FIELDS | change, "assignment"))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_stage_is_a_share_of_the_fleet(share: float) -> None:
    """A stage has more than none and at most all of the fleet."""
    with pytest.raises(SettingError, match="a stage's share is out of range"):
        Stage(share=share)


@pytest.mark.parametrize(
    "gate",
    [
        {"max_failed": -0.1},
        {"max_failed": 1.0},
        {"max_failed": math.nan},
        {"min_agreement": 1.1},
        {"min_agreement": -0.1},
        {"min_agreement": math.nan},
        {"min_audits": 0},
        {"silent_after": 0.0},
        {"silent_after": -1.0},
        {"silent_after": math.nan},
    ],
)
def test_a_gate_that_could_never_or_always_break_is_refused(gate: dict[str, Any]) -> None:
    """Each gate has its range, and NaN, which no comparison would ever break, lies in none."""
    with pytest.raises(SettingError, match="a gate is out of range"):
        Gates(**gate)


def test_gates_have_careful_defaults() -> None:
    """Without another word no device may fail, and agreement is not asked for."""
    gates = Gates()
    assert (gates.max_failed, gates.min_agreement, gates.min_audits, gates.silent_after) == (
        0.0,
        None,
        20,
        3600.0,
    )


def test_a_rollout_grows_to_the_whole_fleet() -> None:
    """Stages grow and end with all devices."""
    rollout = Rollout(release="watch/1.0.0", stages=(Stage(share=0.2), Stage(share=1)), gates=Gates())
    assert [stage.share for stage in rollout.stages] == [0.2, 1]


@pytest.mark.parametrize("shares", [[], [0.5], [1, 1], [0.5, 0.2, 1], [1, 0.5], [0.2, 0.2, 1]])
def test_stages_that_do_not_grow_to_the_whole_fleet_are_refused(shares: list[float]) -> None:
    """No stages, shrinking or repeated ones, and those that stop short are no rollout."""
    with pytest.raises(SettingError, match="growing shares that end with 1"):
        Rollout(release="watch/1.0.0", stages=tuple(Stage(share=share) for share in shares), gates=Gates())

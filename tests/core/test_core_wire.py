"""The control plane's messages: the same on both ends, bounded, kind to newer writers, deaf to contradictions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import plain
from edgestill.core.wire import (
    MAX_MESSAGE_BYTES,
    MAX_REASON,
    MAX_REPORTS,
    DeviceState,
    Enrol,
    Enrolled,
    Health,
    Poll,
    Report,
    reports_from_bytes,
    reports_to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = WHOLE_TEXT.map(plain)
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
ENROLS = st.builds(
    Enrol,
    join_token=WHOLE_TEXT,
    device=IDS,
    hardware_class=st.just("x86_64-vnni-onnxruntime"),
    labels=st.dictionaries(PLAIN, PLAIN, max_size=4),
)
ENROLLEDS = st.builds(
    Enrolled,
    device=IDS,
    credential=WHOLE_TEXT,
    root=WHOLE_TEXT.map(str.encode),
    interval=st.floats(min_value=0.01, max_value=86_400),
)
COUNTS = st.lists(st.integers(min_value=0, max_value=2**53 - 1), min_size=4, max_size=4).map(sorted)
FIGURES = st.floats(min_value=0, max_value=1e6)
HEALTHS = st.builds(
    lambda counts, **rest: Health(
        agreed=counts[0], audits=counts[1], escalated=counts[2], answers=counts[3], **rest
    ),
    COUNTS,
    audits_lost=st.integers(min_value=0, max_value=10**9),
    errors=st.integers(min_value=0, max_value=10**9),
    bytes_up=st.integers(min_value=0, max_value=10**12),
    latency_p50=FIGURES,
    latency_p95=FIGURES,
    drift=st.sampled_from(["none", "suspected", "confirmed"]),
    confidence=st.floats(min_value=0, max_value=1),
    leverage=FIGURES,
)
TOLD = st.sampled_from(get_args(DeviceState)).map(lambda state: {"state": state}) | HEALTHS.map(
    lambda health: {"health": health}
)
REPORTS = st.builds(
    lambda told, **rest: Report(**rest, **told),
    TOLD,
    id=IDS,
    at=st.floats(min_value=0, max_value=1e11),
    bundle=st.binary().map(lambda data: str(Digest.of(data))),
    release=st.just("watch/1.0.0"),
    reason=PLAIN,
)
REPORT = Report(id="r1", at=1.0, bundle=str(Digest.of(b"")), release="watch/1.0.0", state="serving")


def change(message: bytes, **changes: Any) -> bytes:
    """A message with fields changed, and those set to None taken out."""
    value = json.loads(message) | changes
    return json.dumps({name: one for name, one in value.items() if one is not None}).encode()


# Round trips


@given(ENROLS)
def test_enrol_survives(message: Enrol) -> None:
    """What a device says of itself arrives as it was sent."""
    assert Enrol.from_bytes(message.to_bytes()) == message


@given(ENROLLEDS)
def test_enrolled_survives(message: Enrolled) -> None:
    """Root metadata, credential and interval arrive byte for byte, because the root's digest is pinned."""
    assert Enrolled.from_bytes(message.to_bytes()) == message


@given(
    st.none() | st.dictionaries(WHOLE_TEXT, WHOLE_TEXT | st.integers(), max_size=3),
    st.floats(min_value=0.01, max_value=86_400),
)
def test_poll_survives(assignment: dict[str, Any] | None, interval: float) -> None:
    """An assignment is passed on as it is: its signature is checked elsewhere."""
    message = Poll(assignment=assignment, interval=interval)
    assert Poll.from_bytes(message.to_bytes()) == message


@given(st.lists(REPORTS, max_size=5))
def test_reports_survive(reports: list[Report]) -> None:
    """A batch of state and health reports arrives as it was sent."""
    assert reports_from_bytes(reports_to_bytes(reports)) == reports


def test_the_spelling_of_a_report_is_fixed() -> None:
    """A report is spelt the same today and in every later version."""
    assert json.loads(reports_to_bytes([REPORT])) == [
        {
            "id": "r1",
            "at": 1.0,
            "bundle": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "release": "watch/1.0.0",
            "state": "serving",
            "reason": "",
            "health": None,
        }
    ]


# Newer writers


def test_fields_of_a_newer_writer_are_ignored() -> None:
    """An old hub serves a new device, and the other way round."""
    enrol = Enrol(join_token="t", device="d", hardware_class="any-base-onnxruntime")
    assert Enrol.from_bytes(change(enrol.to_bytes(), colour="red")) == enrol
    poll = Poll(assignment=None, interval=1.0)
    assert Poll.from_bytes(change(poll.to_bytes(), colour="red")) == poll
    newer = json.loads(reports_to_bytes([replace(REPORT, state=None, health=Health())]))
    newer[0]["colour"] = newer[0]["health"]["colour"] = "red"
    assert reports_from_bytes(json.dumps(newer).encode())[0].health == Health()


def test_fields_an_older_writer_left_out_have_a_default() -> None:
    """Labels and reasons may be missing."""
    enrol = Enrol(join_token="t", device="d", hardware_class="any-base-onnxruntime")
    assert Enrol.from_bytes(change(enrol.to_bytes(), labels=None)).labels == {}
    old = json.loads(reports_to_bytes([REPORT]))
    del old[0]["reason"], old[0]["health"]
    assert reports_from_bytes(json.dumps(old).encode()) == [REPORT]


# Refusals


ENROL = Enrol(join_token="t", device="d", hardware_class="any-base-onnxruntime", labels={}).to_bytes()
ENROLLED = Enrolled(device="d", credential="c", root=b"{}", interval=1.0).to_bytes()
POLL = Poll(assignment=None, interval=1.0).to_bytes()


@pytest.mark.parametrize(
    ("read", "message", "changes", "field"),
    [
        (Enrol.from_bytes, ENROL, {"join_token": None}, "enrol: join_token"),
        (Enrol.from_bytes, ENROL, {"join_token": "t" * 201}, "enrol: join_token"),
        (Enrol.from_bytes, ENROL, {"device": ""}, "enrol: device"),
        (Enrol.from_bytes, ENROL, {"device": "../hub.db"}, "enrol: device"),
        (Enrol.from_bytes, ENROL, {"device": "a\n"}, "enrol: device"),
        (Enrol.from_bytes, ENROL, {"device": "d" * 65}, "enrol: device"),
        (Enrol.from_bytes, ENROL, {"hardware_class": "any"}, "enrol: hardware_class"),
        (Enrol.from_bytes, ENROL, {"labels": ["a"]}, "enrol: labels"),
        (Enrol.from_bytes, ENROL, {"labels": {"a": 1}}, "enrol: labels: a"),
        (Enrol.from_bytes, ENROL, {"labels": {"site\0": "north"}}, "enrol: labels"),
        (Enrol.from_bytes, ENROL, {"labels": {"site": "north\u202e"}}, "enrol: labels: site"),
        (Enrol.from_bytes, ENROL, {"labels": {str(i): "x" for i in range(17)}}, "enrol: labels"),
        (Enrolled.from_bytes, ENROLLED, {"device": "a b"}, "enrolled: device"),
        (Enrolled.from_bytes, ENROLLED, {"credential": 3}, "enrolled: credential"),
        (Enrolled.from_bytes, ENROLLED, {"root": None}, "enrolled: root"),
        (Enrolled.from_bytes, ENROLLED, {"interval": 0}, "enrolled: interval"),
        (Enrolled.from_bytes, ENROLLED, {"interval": 1e9}, "enrolled: interval"),
        (Poll.from_bytes, POLL, {"interval": 0.0}, "poll: interval"),
        (Poll.from_bytes, POLL, {"interval": -1}, "poll: interval"),
        (Poll.from_bytes, POLL, {"interval": None}, "poll: interval"),
        (Poll.from_bytes, POLL, {"assignment": "watch"}, "poll: assignment"),
        (Poll.from_bytes, POLL, {"assignment": []}, "poll: assignment"),
    ],
)
def test_a_known_field_with_a_wrong_value_is_refused_by_name(
    read: Callable[[bytes], object], message: bytes, changes: dict[str, Any], field: str
) -> None:
    """Types, patterns and ranges are checked, and the refusal names message and field."""
    with pytest.raises(MessageError) as caught:
        read(change(message, **changes))
    assert str(caught.value.where) == field


@pytest.mark.parametrize("read", [Enrol.from_bytes, Enrolled.from_bytes, Poll.from_bytes, reports_from_bytes])
@pytest.mark.parametrize("data", [b"", b"{", b"null", b"3", b"\xff", b"[" * 99, b'{"a":NaN}', b"[[]]"])
def test_bytes_that_are_no_message_are_refused(read: Callable[[bytes], object], data: bytes) -> None:
    """Damaged JSON and other values are refused by every reader."""
    with pytest.raises(MessageError):
        read(data)


@pytest.mark.parametrize("read", [Enrol.from_bytes, Enrolled.from_bytes, Poll.from_bytes, reports_from_bytes])
def test_attack_a_message_over_a_megabyte_is_refused_unread(read: Callable[[bytes], object]) -> None:
    """Length is checked first."""
    with pytest.raises(MessageError, match="too long"):
        read(b" " * (MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"state": None}, "a report tells one thing"),
        ({"health": {}}, "a report tells one thing"),
        ({"state": "exploded"}, "unknown state; .* expected .*fell-back.*; got exploded"),
        ({"id": "a/b"}, r"reports\[0\]: id"),
        ({"id": ""}, r"reports\[0\]: id"),
        ({"at": -1}, r"reports\[0\]: at"),
        ({"at": 1e12}, r"reports\[0\]: at"),
        ({"at": "now"}, r"reports\[0\]: at"),
        ({"bundle": "watch"}, r"reports\[0\]: bundle"),
        ({"release": "r" * 101}, r"reports\[0\]: release"),
        ({"release": "watch/1.0.0\0"}, r"reports\[0\]: release; expected a string without control"),
        ({"reason": "r" * (MAX_REASON + 1)}, r"reports\[0\]: reason"),
        ({"reason": 7}, r"reports\[0\]: reason"),
    ],
)
def test_a_wrong_report_is_refused(changes: dict[str, Any], text: str) -> None:
    """One malformed report refuses the batch and is named by its place."""
    report = json.loads(reports_to_bytes([REPORT]))[0] | changes
    with pytest.raises(MessageError, match=text):
        reports_from_bytes(json.dumps([report]).encode())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answers": -1}, "health: answers"),
        ({"answers": 1.5}, "health: answers"),
        ({"answers": None}, "health: answers"),
        ({"escalated": 11}, "figures that contradict each other.*agreed <= audits <= escalated <= answers"),
        ({"audits": 6}, "figures that contradict each other"),
        ({"agreed": 4}, "figures that contradict each other"),
        ({"latency_p95": -0.1}, "health: latency_p95"),
        ({"latency_p50": 1e7}, "health: latency_p50"),
        ({"drift": "perhaps"}, "health: drift"),
        ({"confidence": 1.01}, "health: confidence"),
        ({"leverage": "0"}, "health: leverage"),
    ],
)
def test_attack_health_figures_that_cannot_be_are_refused(changes: dict[str, Any], text: str) -> None:
    """Figures out of range, or that contradict each other, do not reach the gates of a rollout."""
    health = Health(answers=10, escalated=5, audits=3, agreed=2)
    report = replace(REPORT, state=None, health=health).as_json()
    assert isinstance(report["health"], dict)
    report["health"] |= changes
    with pytest.raises(MessageError, match=text):
        reports_from_bytes(json.dumps([report]).encode())


def test_attack_too_many_reports_are_refused() -> None:
    """A batch has at most 200 reports."""
    assert len(reports_from_bytes(reports_to_bytes([REPORT] * MAX_REPORTS))) == MAX_REPORTS
    with pytest.raises(MessageError, match="a list of at most 200 items"):
        reports_from_bytes(reports_to_bytes([REPORT] * (MAX_REPORTS + 1)))


def test_a_reason_too_long_for_the_wire_is_cut_and_not_refused() -> None:
    """A device whose error text is long does not send the same refused batch for ever."""
    long = replace(REPORT, state="fell-back", reason="x" * 10_000)
    assert reports_from_bytes(reports_to_bytes([long]))[0].reason == "x" * MAX_REASON


@given(WHOLE_TEXT)
def test_attack_a_reason_holds_no_control_characters_whoever_wrote_it(text: str) -> None:
    """Our writer sends none, and our reader takes none from another: the report counts, and its reason is plain."""
    foreign = json.dumps([REPORT.as_json() | {"reason": text}]).encode()
    assert reports_from_bytes(foreign)[0].reason == plain(text)
    assert json.loads(reports_to_bytes([replace(REPORT, reason=text)]))[0]["reason"] == plain(text)


def test_the_longest_batch_of_reports_fits_the_bound() -> None:
    """A full batch of reports with the most expensive reasons there are is accepted by the reader."""
    longest = replace(
        REPORT,
        id="r" * 64,
        release="r" * 100,
        state="fell-back",
        reason="\U0001f525" * MAX_REASON,
        at=99999999999.123,
    )
    assert len(reports_from_bytes(reports_to_bytes([longest] * MAX_REPORTS))) == MAX_REPORTS
    longest = replace(longest, reason="\\" * MAX_REASON)
    assert len(reports_from_bytes(reports_to_bytes([longest] * MAX_REPORTS))) == MAX_REPORTS

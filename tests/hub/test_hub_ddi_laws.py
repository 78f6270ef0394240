"""What a device is told by hawkBit's interface and what its words mean, as laws over any sequence of orders and words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgestill.core.errors import MessageError
from edgestill.core.wire import MAX_REASON
from edgestill.hub import ddi
from edgestill.hub.ddi import CLOSED, Action, Cancel, Feedback, Install

TARGETS = [f"watch/{version}.0.0/any.esb" for version in range(1, 4)]
EXECUTIONS = [
    "closed",
    "proceeding",
    "canceled",
    "scheduled",
    "rejected",
    "resumed",
    "download",
    "downloaded",
]


def message(execution: str = "closed", finished: str = "success", **rest: Any) -> dict[str, Any]:
    """A feedback as a client writes it."""
    result = {"finished": finished} | ({"progress": rest.pop("progress")} if "progress" in rest else {})
    return {"status": {"execution": execution, "result": result} | rest}


def read(told: Any, action: int = 7) -> Feedback:
    """What the hub makes of it."""
    return Feedback.from_bytes(json.dumps(told).encode(), action=action)


def said(execution: str = "closed", finished: str = "success", **rest: Any) -> Feedback:
    """Likewise."""
    return read(message(execution, finished, **rest))


OPEN = Action(id=7, target=TARGETS[0], outcome="open")


# What is due


def test_an_assignment_is_an_action_of_its_counter() -> None:
    """Nothing before the first; then the one that is assigned, until it is closed."""
    assert ddi.due(Action(), counter=0, target=None) is None
    assert ddi.due(Action(), counter=7, target=TARGETS[0]) == Install(7, TARGETS[0])
    assert ddi.due(OPEN, counter=7, target=TARGETS[0]) == Install(7, TARGETS[0])
    for outcome in CLOSED:
        assert ddi.due(Action(id=7, target=TARGETS[0], outcome=outcome), counter=7, target=TARGETS[0]) is None


def test_an_action_under_way_is_called_off_before_the_next() -> None:
    """Also where there is none to follow."""
    assert ddi.due(OPEN, counter=8, target=TARGETS[1]) == Cancel(7)
    assert ddi.due(OPEN, counter=8, target=None) == Cancel(7)


def test_a_device_that_will_not_stop_goes_on_and_the_next_waits() -> None:
    """It is offered what it has, and the next once it has closed that."""
    bound = ddi.hear_of_cancelling(OPEN, said("rejected", "none"), counter=8)
    assert bound is not None
    assert bound.outcome == "bound"
    assert ddi.due(bound, counter=8, target=TARGETS[1]) == Install(7, TARGETS[0])
    heard = ddi.hear(bound, said())
    assert heard is not None
    assert heard.state == "confirmed"
    assert ddi.due(heard.action, counter=8, target=TARGETS[1]) == Install(8, TARGETS[1])


def test_an_action_that_nothing_could_close_is_closed_where_its_image_is_gone() -> None:
    """Only one that the device would not have called off: any other is called off, or begins again with another image."""
    bound = Action(id=7, target=TARGETS[0], outcome="bound", note="ERROR : x")
    closed = ddi.without_image(bound)
    assert (closed.outcome, closed.note) == ("cancelled", "the release was retired; ERROR : x")
    assert ddi.due(closed, counter=8, target=TARGETS[1]) == Install(8, TARGETS[1])
    for other in (OPEN, Action(), closed, Action(id=7, target=TARGETS[0], outcome="missing")):
        assert ddi.without_image(other) == other


def test_after_it_was_staged_only_the_last_word_shows_that_a_device_lives() -> None:
    """Whatever it says in between is heard, and its errors are kept."""
    staged = ddi.hear(OPEN, said("proceeding", "none", progress={"cnt": 1, "of": 1}))
    assert staged is not None
    assert (staged.state, staged.lives, staged.action.is_staged) == ("staged", True, True)
    for execution in EXECUTIONS:
        for finished in ("success", "none"):
            if (execution, finished) == ("closed", "none"):
                continue
            heard = ddi.hear(staged.action, said(execution, finished, details=["ERROR : y"]))
            assert heard is not None
            assert heard.lives == (execution in {"closed", "canceled"})
            assert heard.lives or (heard.state is None and heard.action.is_staged)


def test_an_action_without_an_image_is_due_again_once_there_is_one() -> None:
    """To have said that it is missing closes nothing."""
    missing = Action(id=7, target=TARGETS[0], outcome="missing")
    assert ddi.due(missing, counter=7, target=TARGETS[0]) == Install(7, TARGETS[0])
    assert ddi.due(missing, counter=8, target=None) is None


# What words mean


@pytest.mark.parametrize(
    ("feedback", "state", "outcome"),
    [
        (said("closed", "success"), "confirmed", "success"),
        (said("closed", "failure"), "fell-back", "failure"),
        (said("canceled", "none"), "fell-back", "failure"),
        (said("canceled", "success"), "fell-back", "failure"),
        (said("downloaded", "none"), "downloaded", "open"),
        (said("proceeding", "none"), None, "open"),
        (said("proceeding", "success"), None, "open"),
        (said("proceeding", "none", progress={"cnt": 0, "of": 1}), None, "open"),
        (said("proceeding", "none", progress={"cnt": 0, "of": 0}), None, "open"),
        (said("proceeding", "none", progress={"cnt": 1, "of": 1}), "staged", "open"),
        (said("proceeding", "none", progress={}), None, "open"),
        (said("download", "none", progress={"cnt": 1, "of": 1}), None, "open"),
        (said("scheduled", "none"), None, "open"),
        (said("resumed", "none"), None, "open"),
        (said("rejected", "none"), None, "open"),
    ],
)
def test_what_each_word_means(feedback: Feedback, state: str | None, outcome: str) -> None:
    """Only what closes an action decides; an image that is written is no model that works."""
    heard = ddi.hear(OPEN, feedback)
    assert heard is not None
    assert (heard.state, heard.action.outcome) == (state, outcome)
    assert heard.lives == (feedback.execution != "rejected")


def test_the_reason_is_what_the_device_said_then_and_before() -> None:
    """SWUpdate closes with less than it said on the way: its errors are kept, each once, on one line."""
    way = ddi.hear(
        OPEN,
        said(
            "proceeding", "none", details=["all is well", "ERROR : HASH\nmismatch", "ERROR : HASH mismatch"]
        ),
    )
    assert way is not None
    assert way.action.note == "ERROR : HASH mismatch"
    end = ddi.hear(
        way.action, said("closed", "failure", details=["No suitable image", "ERROR : HASH mismatch"])
    )
    assert end is not None
    assert end.reason == "ERROR : HASH mismatch; No suitable image"


def test_a_failure_without_words_has_a_reason_too() -> None:
    """So that nobody looks for one in vain."""
    for feedback, why in (
        (said("closed", "failure"), "says no more"),
        (said("canceled", "none"), "cancelled"),
    ):
        heard = ddi.hear(OPEN, feedback)
        assert heard is not None
        assert why in heard.reason


@given(st.lists(st.text() | st.integers() | st.none() | st.lists(st.text(), max_size=1), max_size=60))
def test_attack_details_that_would_move_a_cursor_or_fill_the_disk(details: list[object]) -> None:
    """Control characters become spaces, and no reason is longer than a report's."""
    heard = ddi.hear(OPEN, said("closed", "failure", details=[*details, "x" * 5000]))
    assert heard is not None
    assert 0 < len(heard.reason) <= MAX_REASON
    assert heard.reason.isprintable() or not any(char < " " or char == "\x7f" for char in heard.reason)


@pytest.mark.parametrize("outcome", CLOSED)
def test_the_last_word_may_be_repeated_and_nothing_else(outcome: ddi.Outcome) -> None:
    """An answer that got lost costs nothing; a device cannot take back what it said."""
    closed = Action(id=7, target=TARGETS[0], outcome=outcome)
    for feedback in (said("closed", "success"), said("closed", "failure"), said("proceeding", "none")):
        heard = ddi.hear(closed, feedback)
        if feedback.closes == outcome:
            assert heard == ddi.Heard(closed, lives=False)
        else:
            assert heard is None


# What is no feedback


@pytest.mark.parametrize(
    "told",
    [
        [],
        {},
        {"status": {}},
        {"status": {"execution": "closed"}},
        {"status": {"execution": "closed", "result": {}}},
        {"status": {"execution": "closed", "result": {"finished": "none"}}},
        {"status": {"execution": "CLOSED", "result": {"finished": "success"}}},
        {"status": {"execution": "closed", "result": {"finished": "maybe"}}},
        {"status": {"execution": ["closed"], "result": {"finished": "success"}}},
        {"status": {"execution": "closed", "result": "success"}},
        message(details="text"),
        message(details=[""] * 1001),
        message(progress={"cnt": -1, "of": 1}),
        message(progress={"cnt": 1.5, "of": 1}),
        message(progress=[1, 1]),
        message() | {"id": 8},
        message() | {"id": "8"},
        message() | {"id": "7; DROP TABLE"},
        message() | {"id": [7]},
        message() | {"id": True},
    ],
)
def test_attack_words_that_are_none(told: Any) -> None:
    """Each is refused as a message, whatever it is."""
    with pytest.raises(MessageError):
        read(told)


@pytest.mark.parametrize(
    "told", [{"id": 7}, {"id": "7"}, {"id": ""}, {"time": "20261130T120000"}, {"more": [{}]}, {}]
)
def test_clients_write_it_in_several_ways(told: dict[str, Any]) -> None:
    """The id as a number, as text, empty or not at all; and what is not known is left alone."""
    assert read(message() | told).closes == "success"


@given(st.binary(max_size=200))
def test_attack_bytes_that_are_no_json(data: bytes) -> None:
    """One error for all."""
    with pytest.raises(MessageError):
        Feedback.from_bytes(data, action=7)


# What a device says of itself


def test_attributes_merge_replace_and_go() -> None:
    """As the interface has it; without a mode they merge."""
    known = {"a": "1", "b": "2"}
    for mode, expected in (
        ({}, {"a": "1", "b": "3", "c": "4"}),
        ({"mode": "merge"}, {"a": "1", "b": "3", "c": "4"}),
        ({"mode": "replace"}, {"b": "3", "c": "4"}),
        ({"mode": "remove"}, {"a": "1"}),
    ):
        data = json.dumps({"data": {"b": "3", "c": "4"}} | mode).encode()
        assert ddi.attributes(data, known) == expected
    assert ddi.attributes(b'{"data": {}}', None) == {}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"data": []},
        {"data": {"a": 1}},
        {"data": {"a": "x" * 129}},
        {"data": {"x" * 129: "a"}},
        {"data": {"a": "\x1b[2J"}},
        {"data": {"a\n": "b"}},
        {"data": {str(number): "" for number in range(101)}},
        {"data": {}, "mode": "forget"},
    ],
)
def test_attack_attributes_that_are_too_much(told: Any) -> None:
    """Long, many, of another kind, or with control characters."""
    with pytest.raises(MessageError):
        ddi.attributes(json.dumps(told).encode(), None)


def test_attack_attributes_that_grow_with_every_message() -> None:
    """A device cannot fill the disk by merging new names for ever."""
    known: dict[str, str] = {}
    for number in range(100):
        known = ddi.attributes(json.dumps({"data": {f"n{number}": "x"}}).encode(), known)
    with pytest.raises(MessageError, match="too much to keep"):
        ddi.attributes(b'{"data": {"another": "x"}}', known)


@pytest.mark.parametrize(
    ("seconds", "spelt"),
    [(30, "00:00:30"), (0.01, "00:00:01"), (61.4, "00:01:01"), (43_200, "12:00:00"), (10**6, "23:59:59")],
)
def test_an_interval_is_a_time_of_day(seconds: float, spelt: str) -> None:
    """Never none, never more than the interface can say."""
    assert ddi.root_message("b", None, interval=seconds, wants_attributes=False) == {
        "config": {"polling": {"sleep": spelt}},
        "_links": {},
    }


# Any order of orders and words


class Conversation(RuleBasedStateMachine):
    """A hub that assigns and withdraws, and a device that says anything at any time, and now and then asks."""

    def __init__(self) -> None:
        super().__init__()
        self.counter, self.target = 0, ""
        self.last = Action()
        self.given: dict[int, str] = {}
        self.ends: dict[int, str] = {}

    @rule(wanted=st.sampled_from(["", *TARGETS]))
    def assign(self, wanted: str) -> None:
        """As `registry.assign` does."""
        self.counter += 1
        self.target = wanted

    @property
    def todo(self) -> Install | Cancel | None:
        """What the device would be told."""
        return ddi.due(self.last, counter=self.counter, target=self.target or None)

    @rule()
    def fetch(self) -> None:
        """The device asks for what it is told of."""
        if isinstance(self.todo, Install) and self.todo.action != self.last.id:
            self.last = Action(id=self.todo.action, target=self.todo.target, outcome="open")
            self.given[self.last.id] = self.last.target

    @precondition(lambda self: self.last.id)
    @rule(execution=st.sampled_from(EXECUTIONS), finished=st.sampled_from(["success", "failure", "none"]))
    def speak(self, execution: str, finished: str) -> None:
        """About the action that it was given last."""
        if (execution, finished) == ("closed", "none"):
            return
        heard = ddi.hear(self.last, said(execution, finished))
        if heard is None:
            assert not self.last.is_under_way
            return
        if heard.state in {"confirmed", "fell-back"}:
            assert self.last.id not in self.ends, "an action ends once"
            self.ends[self.last.id] = heard.state
        self.last = heard.action

    @precondition(lambda self: self.last.id)
    @rule(execution=st.sampled_from(EXECUTIONS), finished=st.sampled_from(["success", "failure"]))
    def answer_cancelling(self, execution: str, finished: str) -> None:
        """About being called off, whether it was or not."""
        was = self.todo
        now = ddi.hear_of_cancelling(self.last, said(execution, finished), counter=self.counter)
        if now is not None and now != self.last:
            assert was == Cancel(self.last.id), "nobody calls off what is not to be called off"
            assert self.last.id not in self.ends
            if now.outcome == "cancelled":
                self.ends[self.last.id] = now.outcome
        self.last = now or self.last

    @invariant()
    def one_thing_at_a_time(self) -> None:
        """What is under way is what is spoken of: gone on with, or called off; what has ended is not told again."""
        todo = self.todo
        if self.last.is_under_way:
            assert todo is not None
            assert todo.action == self.last.id
        elif todo is not None:
            assert todo == Install(self.counter, self.target)
            assert self.counter not in self.ends

    @invariant()
    def what_was_given_stays_what_it_was(self) -> None:
        """An action never changes its target."""
        if self.last.id in self.given:
            assert self.last.target == self.given[self.last.id]


TestConversation = Conversation.TestCase

"""What a device is told that asks by hawkBit's Direct Device Integration API (v1), and what its answers mean: pure functions.

- An action is an assignment: its id is the assignment's counter, so that every new assignment is a new action, and none needs a number
  of its own.
- A device is given one action at a time. One that it was given and has not closed is called off before the next one; where it refuses
  that, the next waits until it is closed.
- One whose image is gone meanwhile, because the release was retired, is closed by the hub where the device would not be called off: nothing could close it
  otherwise, and the next would wait for ever.
- What counts is what the device says when it closes the action: `success` is *confirmed*, `failure` is *fell back*. A rollout looks at these
  as at those of any other device. Anything before is a step on the way at most: an image that is written is *staged*.
- A device that has staged is told of the action still, because SWUpdate asks for its number before it closes it; but there is nothing more in it to
  install, and no word but the closing one shows that the device is at it.
- A closed action stays closed. The word that closed it may be said again and changes nothing; another is too late.
- What is not known as a word of the interface is refused, and nothing changes.

Source: Eclipse hawkBit, "Direct Device Integration API", and what SWUpdate's suricatta asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, parse_object, plain
from edgestill.core.wire import MAX_REASON

if TYPE_CHECKING:
    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.wire import DeviceState

TENANT: Final = "default"
MAX_FEEDBACK_BYTES: Final = 256_000
MAX_DETAILS: Final = 1000
MAX_ATTRIBUTES: Final = 100
MAX_ATTRIBUTE: Final = 128

Outcome = Literal["", "missing", "open", "bound", "success", "failure", "cancelled"]
"""Of an action: none; no image for it; given; given, and the device will not be called off; closed in one of three ways."""

CLOSED: Final = ("success", "failure", "cancelled")
_UNDER_WAY: Final = ("open", "bound")
_EXECUTIONS: Final = "closed|proceeding|canceled|scheduled|rejected|resumed|download|downloaded"
_CANCELLED: Final = "the device has cancelled it"
_ERROR: Final = "ERROR"
"""How SWUpdate begins a line that tells one; what closes an action often says less."""
_BETWEEN: Final = "; "
_WITHDRAWN: Final = "the release was retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """The last action of a device.

    Attributes:
        id: counter of the assignment; 0 before the first.
        target: TUF path of what it is to install.
        outcome: where it stands.
        is_staged: whether the device has said that the image is written.
        note: what went wrong on the way, as the device said; at most `MAX_REASON` characters.
    """

    id: int = 0
    target: str = ""
    outcome: Outcome = ""
    is_staged: bool = False
    note: str = ""

    @property
    def is_under_way(self) -> bool:
        """Whether the device was given it and has not closed it."""
        return self.outcome in _UNDER_WAY


@dataclass(frozen=True, slots=True)
class Install:
    """The device shall carry out this action."""

    action: int
    target: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The device shall stop carrying out this action."""

    action: int


def due(last: Action, *, counter: int, target: str | None) -> Install | Cancel | None:
    """What the device shall do now.

    Args:
        last: the action that it was given last.
        counter: of its present assignment.
        target: of that; None where nothing is assigned.
    """
    if last.is_under_way:
        if last.id == counter or last.outcome == "bound":
            return Install(last.id, last.target)
        return Cancel(last.id)
    if target is None or (last.id == counter and last.outcome in CLOSED):
        return None
    return Install(counter, target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a device says of an action.

    Attributes:
        execution: how far it is.
        finished: with what result, so far.
        is_complete: whether it counts all parts as done.
        details: its lines, without control characters.
    """

    execution: str
    finished: str
    is_complete: bool = False
    details: tuple[str, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes, *, action: int) -> Self:
        """Reads the message.

        Args:
            data: as it came.
            action: that it was sent to; where the message names one, it is the same.

        Raises:
            MessageError: no feedback, or of another action.
        """
        fields = Fields(parse_object(data, where="feedback", max_bytes=MAX_FEEDBACK_BYTES), "feedback")
        _check_id(fields, action)
        status = fields.inner("status")
        result = status.inner("result")
        execution = status.text("execution", pattern=_EXECUTIONS)
        finished = result.text("finished", pattern="success|failure|none")
        if execution == "closed" and finished == "none":
            raise MessageError(
                "an action is closed without a result",
                where="feedback: status: result: finished",
                expected="success or failure",
                got=finished,
            )
        return cls(
            execution=execution,
            finished=finished,
            is_complete=_is_complete(result),
            details=_details(status),
        )

    @property
    def closes(self) -> Outcome | None:
        """The outcome, where this is the device's last word."""
        if self.execution == "closed":
            return "success" if self.finished == "success" else "failure"
        return "failure" if self.execution == "canceled" else None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a feedback means.

    Attributes:
        action: the action afterwards.
        state: the step that it is; None where it is none.
        reason: why the device fell back; otherwise empty.
        lives: whether it shows that the device is at it.
    """

    action: Action
    state: DeviceState | None = None
    reason: str = ""
    lives: bool = True


def hear(last: Action, said: Feedback) -> Heard | None:
    """What this feedback about the last action means; None where the action was closed otherwise before.

    Args:
        last: the device's last action, which the feedback is about.
        said: what it says.
    """
    closes = said.closes
    if not last.is_under_way:
        return Heard(last, lives=False) if closes is not None and closes == last.outcome else None
    if closes == "success":
        return Heard(replace(last, outcome=closes), "confirmed")
    if closes is not None:
        why = _joined(last.note, *said.details)
        why = why or (_CANCELLED if said.execution == "canceled" else "the device says no more")
        return Heard(replace(last, outcome=closes), "fell-back", why)
    if said.execution == "rejected":
        return Heard(last, lives=False)
    now = replace(last, note=_joined(last.note, *(one for one in said.details if one.startswith(_ERROR))))
    if last.is_staged:
        return Heard(now, lives=False)
    if said.execution == "downloaded":
        return Heard(now, "downloaded")
    if said.execution == "proceeding" and said.is_complete:
        return Heard(replace(now, is_staged=True), "staged")
    return Heard(now)


def hear_of_cancelling(last: Action, said: Feedback, *, counter: int) -> Action | None:
    """The last action after a feedback on calling it off; None where there is nothing to be called off.

    A device that was told to stop, and says that it cannot or will not, goes on and is heard.
    """
    if last.outcome == "cancelled":
        return last
    if due(last, counter=counter, target=None) != Cancel(last.id):
        return None
    if said.closes == "success" or said.execution == "canceled":
        return replace(last, outcome="cancelled")
    if said.closes == "failure" or said.execution == "rejected":
        return replace(last, outcome="bound")
    return last


def without_image(last: Action) -> Action:
    """The last action where there is no image of it any more: closed, where the device was told to stop and would not."""
    if last.outcome != "bound":
        return last
    return replace(last, outcome="cancelled", note=_joined(_WITHDRAWN, last.note))


def attributes(data: bytes, known: dict[str, str] | None) -> dict[str, str]:
    """What a device says of itself after a `configData` message.

    Args:
        data: as it came: `{"mode": "merge" | "replace" | "remove", "data": {...}}`; without a mode it merges.
        known: what it said before; None for nothing.

    Raises:
        MessageError: no such message, too many attributes, or one too long.
    """
    fields = Fields(parse_object(data, where="configData", max_bytes=MAX_FEEDBACK_BYTES), "configData")
    mode = fields.text("mode", pattern="merge|replace|remove") if fields.has("mode") else "merge"
    told = fields.texts("data", at_most=MAX_ATTRIBUTES, plain=True)
    if mode == "remove":
        return {name: value for name, value in (known or {}).items() if name not in told}
    found = told if mode == "replace" else (known or {}) | told
    longest = max((len(one) for pair in found.items() for one in pair), default=0)
    if len(found) > MAX_ATTRIBUTES or longest > MAX_ATTRIBUTE:
        raise MessageError(
            "too much to keep of one device",
            where="configData: data",
            expected=f"at most {MAX_ATTRIBUTES} attributes of {MAX_ATTRIBUTE} characters",
            got=f"{len(found)}, the longest of {longest}",
        )
    return found


def root_message(
    base: str, todo: Install | Cancel | None, *, interval: float, wants_attributes: bool
) -> JsonObject:
    """The answer to a poll.

    Args:
        base: address of the controller resource.
        todo: what the device shall do.
        interval: seconds until the next poll.
        wants_attributes: whether the device has not yet said what it is.
    """
    links: dict[str, Json] = {}
    if isinstance(todo, Cancel):
        links["cancelAction"] = {"href": f"{base}/cancelAction/{todo.action}"}
    elif todo is not None:
        links["deploymentBase"] = {"href": f"{base}/deploymentBase/{todo.action}"}
    if wants_attributes:
        links["configData"] = {"href": f"{base}/configData"}
    return {"config": {"polling": {"sleep": _clock_time(interval)}}, "_links": links}


def cancel_message(action: int) -> JsonObject:
    """What calls an action off."""
    return {"id": str(action), "cancelAction": {"stopId": str(action)}}


def _clock_time(seconds: float) -> str:
    """`HH:MM:SS`, at least a second and less than a day: all that the interface can say."""
    whole = min(max(1, round(seconds)), 86_399)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _check_id(fields: Fields, action: int) -> None:
    """Clients write it as a number or as text, or leave it out."""
    if not fields.has("id"):
        return
    try:
        said = str(fields.integer("id"))
    except MessageError:
        said = fields.text("id", at_most=20)
    if said not in {str(action), ""}:
        raise MessageError(
            "feedback on another action", where="feedback: id", expected=str(action), got=repr(said)
        )


def _is_complete(result: Fields) -> bool:
    if not result.has("progress"):
        return False
    progress = result.inner("progress")
    if not progress.has("cnt") or not progress.has("of"):
        return False
    return 0 < progress.integer("of") <= progress.integer("cnt")


def _details(status: Fields) -> tuple[str, ...]:
    if not status.has("details"):
        return ()
    lines = status.items("details", at_most=MAX_DETAILS)
    return tuple(re.sub(r"\s+", " ", plain(line)).strip() for line in lines if isinstance(line, str))


def _joined(known: str, *lines: str) -> str:
    """Each line once, in its order; of what is too long the beginning."""
    found = dict.fromkeys([*known.split(_BETWEEN), *lines])
    return _BETWEEN.join(filter(None, found))[:MAX_REASON]

"""How a process on the same device talks to the engine child: one frame there, one frame back.

An engine that gives way to its successor says so, and the question is put to that; nothing was lost and nothing is done
twice. An engine that is simply gone may have died of the question. Standard library only, so that `edgestill-agent status` needs no more. An error comes back as its JSON and is raised
again as what it was.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import DeadlineError, EdgestillError, MessageError, UnreachableError, codes
from edgestill.core.jsonio import Fields
from edgestill.device.frames import MAX_HEADER_BYTES, Frame, receive, send

if TYPE_CHECKING:
    from pathlib import Path


def connect(path: Path, *, timeout: float) -> socket.socket:
    """A connection to the engine child's socket.

    Raises:
        UnreachableError: nobody listens there.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout)
    try:
        stream.connect(str(path))
    except OSError as error:
        stream.close()
        raise UnreachableError(
            "the agent does not answer",
            where=path,
            got=error,
            fix="run: edgestill-agent run --home DIR",
            expected="an agent that listens",
        ) from error
    return stream


MOVED: Final = Frame({"moved": True})
"""What an engine says on a connection that it gives up: the question was not looked at, its successor answers."""


def ask(stream: socket.socket, frame: Frame, *, timeout: float) -> Frame | None:
    """Asks, and waits for the answer; None where the engine has given way to its successor: connect anew and ask that.

    Raises:
        UnreachableError: the engine hung up before it answered.
        DeadlineError: no answer in time.
        EdgestillError: what the engine answered, as the class it has there.
    """
    stream.settimeout(timeout)
    try:
        # where the other end has hung up, what it said before is still to be read
        with suppress(UnreachableError):
            send(stream, frame)
        answer = receive(stream)
    except TimeoutError as error:
        raise DeadlineError(
            "no answer in time", where="engine", expected=f"within {timeout:g} s", got="none"
        ) from error
    except MessageError as error:
        raise UnreachableError(
            "the engine hung up within an answer",
            where="socket",
            got=error,
            expected="the rest of the answer",
        ) from error
    if answer is None:
        raise UnreachableError(
            "the engine hung up",
            where="socket",
            fix="ask again",
            expected="an answer",
            got="the end of the connection",
        )
    if answer.header == MOVED.header:
        return None
    if "error" in answer.header:
        raise error_from(answer)
    return answer


def error_from(frame: Frame) -> EdgestillError:
    """The error that a frame carries; its texts are as long as a frame's header lets them be."""
    fields = Fields(frame.header, "engine").inner("error")
    parts = {
        name: fields.text(name, at_most=MAX_HEADER_BYTES) if fields.has(name) else None
        for name in ("where", "expected", "got", "fix")
    }
    kind = codes().get(fields.text("code", at_most=64), MessageError)
    return kind(
        fields.text("what", at_most=MAX_HEADER_BYTES),
        where=parts["where"],
        expected=parts["expected"],
        got=parts["got"],
        fix=parts["fix"],
    )

"""One request and its whole answer, bounded; and what an answer that says no becomes.

- A body longer than was asked for is refused: by its `content-length` before a byte is read, else at the first byte
  too many.
- Redirects are refused: an answer must come from where it was asked for. So is a compressed body: none was asked for.
- 401 and 403 are `AccessError`. A status that the caller documents (such as 404) is what the caller says it is.
  Everything else from 400 on is `RefusedError`. All carry what the peer said, cut to a sensible length.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import (
    AccessError,
    ConflictError,
    EdgestillError,
    MessageError,
    NotFoundError,
    RefusedError,
)
from edgestill.core.jsonio import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Request, Response, Transport

MAX_PROBLEM_BYTES: Final = 16_384
MAX_TEXT: Final = 300

ABSENT: Final[Mapping[int, type[EdgestillError]]] = {HTTPStatus.NOT_FOUND: NotFoundError}
CONFLICTING: Final[Mapping[int, type[EdgestillError]]] = {**ABSENT, HTTPStatus.CONFLICT: ConflictError}

TOO_LONG: Final = "an answer that is too long"
"""What a `RefusedError` says of one, be it by its head or by its body."""

_WHAT: Final = (
    "what",
    "error",
    "detail",
    "title",
    "message",
)  # ours, the Open Inference Protocol's, RFC 9457's


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: its status, its header fields in lower case, and its body, of a refusal at most 16 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_refusal(self) -> bool:
        """Whether the peer said no."""
        return self.status >= HTTPStatus.BAD_REQUEST


def exchange(transport: Transport, request: Request, *, timeout: float, max_bytes: int) -> Reply:
    """Sends a request and reads the whole answer, whatever it says.

    Args:
        transport: carries it.
        request: what to send.
        timeout: seconds for everything.
        max_bytes: of the body, where the peer does not refuse.

    Raises:
        UnreachableError, DeadlineError: from the transport.
        RefusedError: a redirect, a compressed body, or one that is too long.
    """
    response = transport.send(request, timeout=timeout)
    try:
        check_head(response, request)
        if response.status >= HTTPStatus.BAD_REQUEST:
            return Reply(response.status, response.headers, read_problem(response))
        return Reply(response.status, response.headers, _read(response, max_bytes, request))
    finally:
        response.close()


def accepted(
    reply: Reply, request: Request, *, documented: Mapping[int, type[EdgestillError]] | None = None
) -> Reply:
    """The same answer, if it is no refusal.

    Raises:
        AccessError: 401 or 403.
        EdgestillError: the class that `documented` names for the status.
        RefusedError: any other status from 400 on.
    """
    if reply.is_refusal:
        raise refusal(reply.status, reply.body, request, documented=documented)
    return reply


def check_head(response: Response, request: Request) -> None:
    """Refuses a redirect, and a body in a coding that nobody asked for.

    Raises:
        RefusedError: either.
    """
    if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES and (
        response.status < HTTPStatus.BAD_REQUEST and response.status != HTTPStatus.NOT_MODIFIED
    ):
        raise RefusedError(
            "an answer that sends elsewhere",
            where=_where(request),
            expected="the answer itself",
            got=f"HTTP {response.status} {response.headers.get('location', '')[:MAX_TEXT]}".strip(),
            fix="give the address that answers",
        )
    coding = response.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise RefusedError(
            "a compressed answer", where=_where(request), expected="identity", got=coding[:MAX_TEXT]
        )


def read_problem(response: Response) -> bytes:
    """The beginning of what a peer says when it refuses."""
    body = bytearray()
    for chunk in response.chunks():
        body += chunk
        if len(body) >= MAX_PROBLEM_BYTES:
            break
    return bytes(body[:MAX_PROBLEM_BYTES])


def refusal(
    status: int,
    body: bytes,
    request: Request,
    *,
    documented: Mapping[int, type[EdgestillError]] | None = None,
) -> EdgestillError:
    """The error that a refusal becomes."""
    problem = _problem(body)
    known: dict[int, type[EdgestillError]] = {
        HTTPStatus.UNAUTHORIZED: AccessError,
        HTTPStatus.FORBIDDEN: AccessError,
    }
    kind = (known | dict(documented or {})).get(status, RefusedError)
    what = next((text for name in _WHAT if (text := _text(problem, name))), "the peer refuses")
    got = [f"HTTP {status}", _text(problem, "code"), _text(problem, "got")]
    return kind(
        what,
        where=_where(request),
        expected=_text(problem, "expected"),
        got=" ".join(part for part in got if part),
        fix=_text(problem, "fix"),
    )


def _read(response: Response, max_bytes: int, request: Request) -> bytes:
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and (len(stated) > len(str(max_bytes)) or int(stated) > max_bytes):
        raise _too_long(max_bytes, request, stated[:MAX_TEXT])
    body = bytearray()
    for chunk in response.chunks():
        body += chunk
        if len(body) > max_bytes:
            raise _too_long(max_bytes, request, "more")
    return bytes(body)


def _too_long(max_bytes: int, request: Request, got: str) -> RefusedError:
    return RefusedError(TOO_LONG, where=_where(request), expected=f"at most {max_bytes} bytes", got=got)


def _problem(body: bytes) -> JsonObject:
    try:
        return parse_object(body, where="problem")
    except MessageError:
        return {}


def _text(problem: JsonObject, name: str) -> str | None:
    value = problem.get(name)
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _where(request: Request) -> str:
    return f"{request.method} {request.url}"

"""Answers and refusals as HTTP has them, whatever carries them.

- An error of ours becomes `{"error": "[code] text"}` with the status of its class, as the protocol has it.
- What is the server's own fault tells code and statement only; the rest is for its log.
- Who must wait is told for how long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from edgestill.core import errors
from edgestill.core.jsonio import canonical
from edgestill.core.oip import HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.core.jsonio import Json

UNKNOWN: Final = HTTPStatus.UNAUTHORIZED.value
INTERNAL: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
STATUS: Final[dict[type[errors.EdgestillError], int]] = {
    errors.AccessError: 401,
    errors.ExpiredError: 401,
    errors.NotFoundError: 404,
    errors.MessageError: 400,
    errors.SettingError: 400,
    errors.ShapeError: 400,
    errors.DtypeError: 400,
    errors.NotFiniteError: 400,
    errors.TooLongError: 413,
    errors.AnswerNotFiniteError: 422,
    errors.RateError: 429,
    errors.RefusedError: 502,
    errors.DeadlineError: 503,
    errors.UnreachableError: 503,
}
"""Of errors that are not the server's fault, or pass by themselves."""
HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        status: of HTTP.
        body: all of it.
        kind: its media type.
        headers: besides length and type.
    """

    status: int
    body: bytes
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=lambda: dict(HEADERS))


def told(value: Json, status: int = 200) -> Reply:
    """A JSON answer that nobody keeps."""
    return Reply(status, canonical(value))


def inferred(body: bytes, json_length: int | None) -> Reply:
    """An inference response: JSON, or JSON and raw tensors."""
    if json_length is None:
        return Reply(200, body)
    return Reply(200, body, "application/octet-stream", HEADERS | {HEADER: str(json_length)})


def status_of(error: errors.EdgestillError) -> int:
    """The status that tells this error."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)


def retry_after(error: errors.EdgestillError) -> dict[str, str]:
    """When to come back, where that helps."""
    if isinstance(error, errors.RateError):
        return {"retry-after": str(math.ceil(error.seconds))}
    if isinstance(error, errors.DeadlineError | errors.UnreachableError):
        return {"retry-after": "1"}
    return {}


def refused(error: errors.EdgestillError) -> Reply:
    """The answer that tells an error."""
    status = status_of(error)
    text = f"[{error.code}] {error.what}" if status == INTERNAL else str(error)
    more = {"www-authenticate": "Bearer"} if status == UNKNOWN else {}
    return Reply(status, canonical({"error": text}), headers=HEADERS | more | retry_after(error))


def failed() -> Reply:
    """The answer where something went wrong that should not have: nothing of it leaves."""
    return Reply(INTERNAL, canonical({"error": "[internal] the server failed"}))


def not_allowed(methods: tuple[str, ...]) -> Reply:
    """The answer to a method that a path does not have."""
    told_text = f"[message-invalid] the method is not one of {', '.join(methods)}"
    return Reply(405, canonical({"error": told_text}), headers=HEADERS | {"allow": ", ".join(methods)})

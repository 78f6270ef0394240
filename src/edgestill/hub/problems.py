"""Errors on the wire.

- An `EdgestillError` becomes a problem (RFC 9457): `{"code", "what", "where", "expected", "got", "fix"}`, beside `type`,
  `title` and `status`. Its class decides the status.
- Under `/v2` the same becomes `{"error": "..."}`, as the Open Inference Protocol has it.
- Under `/TENANT/controller/v1` it becomes `{"errorCode", "message"}`, as hawkBit has it.
- What is refused is told to the log, with who asked and why; at most `MOST_A_MINUTE`, so that asking fills no disk.
- What is the hub's own fault tells code and statement only: paths and values of the hub's inside stay in its log.
  Anything that is not an `EdgestillError` is a bug: the trace goes to the log, and no part of it to the caller.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgestill.core import errors
from edgestill.core.jsonio import canonical
from edgestill.infer.serving.replies import STATUS, retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock

log: Final = logging.getLogger(__name__)

INTERNAL: Final = 500
MOST_A_MINUTE: Final = 60

_STATUS: Final[dict[type[errors.EdgestillError], int]] = {
    kind: status
    for kind, status in STATUS.items()
    if kind not in {errors.RefusedError, errors.UnreachableError}
} | {
    errors.ConflictError: 409,
    errors.ReplayError: 409,
    errors.UnitError: 400,
    errors.BundleError: 422,
    errors.BundleTruncatedError: 422,
    errors.BundleAlteredError: 422,
    errors.TrustError: 422,
    errors.ExpiredError: 422,
    errors.EvidenceError: 422,
}
_CODES: Final = {401: "access-denied", 404: "not-found", 410: "state-conflict", 413: "message-invalid"}
_OIP: Final = "/v2"
_DDI: Final = re.compile(r"/[^/]*/controller/v1(?:/|$)")
_MAY_BE_THERE: Final = ("/metadata/", "/patches/")
"""Every device asks for the root after the one it knows (TUF 5.3), and for a patch before the whole file."""


class Refusals:
    """Tells the log what was refused.

    Args:
        clock: for the minute.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._told = self._silent = 0

    def tell(self, scope: Scope, why: object) -> None:
        """Writes one line, or counts it where there were too many; a question for what may be there is no refusal."""
        if isinstance(why, errors.NotFoundError) and scope["path"].startswith(_MAY_BE_THERE):
            log.debug("has no %s", ascii(scope["path"])[:200])
            return
        now = self._clock.monotonic()
        if now - self._since >= 60:
            if self._silent:
                log.warning("refused %d more exchanges in the minute of those before", self._silent)
            self._since, self._told, self._silent = now, 0, 0
        if self._told >= MOST_A_MINUTE:
            self._silent += 1
            return
        self._told += 1
        address = (scope.get("client") or ("an unknown address",))[0]
        who = scope.get("state", {}).get("caller") or "a stranger"
        log.warning(
            "refused %s %s by %s at %s: %s", scope["method"], ascii(scope["path"])[:200], who, address, why
        )


class Problems:
    """The outermost layer: whatever goes wrong inside, the caller gets a problem, and the server lives on.

    Args:
        app: what it protects.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except errors.EdgestillError as error:
            response = problem(error, scope["path"])
            if response.status_code != INTERNAL:
                scope["app"].state.refusals.tell(scope, error)
        except HTTPException as error:
            scope["app"].state.refusals.tell(scope, f"{error.status_code} {error.detail}")
            response = refusal(error, scope["path"])
        except Exception:
            log.exception("unexpected failure at %s %s", scope["method"], ascii(scope["path"]))
            response = _problem(INTERNAL, {"code": "internal", "what": "the hub failed"}, scope["path"])
        else:
            return
        if has_started:
            log.warning("a response broke off at %s %s", scope["method"], ascii(scope["path"]))
            return
        await response(scope, receive, send)


def problem(error: errors.EdgestillError, path: str) -> Response:
    """The response that tells this error."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), INTERNAL)
    if status == INTERNAL:
        log.error("%s", error)
        return _problem(status, {"code": error.code, "what": error.what}, path)
    told: JsonObject = {name: value for name, value in error.as_json().items() if value is not None}
    headers = retry_after(error)
    if isinstance(error, errors.AccessError):
        headers["www-authenticate"] = "Bearer"
    return _problem(status, told, path, text=str(error), headers=headers)


def refusal(error: HTTPException, path: str) -> Response:
    """The response for what the server layer refuses: no such path, no such method, a body too long."""
    code = _CODES.get(error.status_code, "message-invalid")
    return _problem(error.status_code, {"code": code, "what": error.detail}, path, headers=error.headers)


async def on_refusal(request: Request, error: Exception) -> Response:
    """As `refusal`, in the form Starlette asks for."""
    assert isinstance(error, HTTPException)
    request.app.state.refusals.tell(request.scope, f"{error.status_code} {error.detail}")
    return refusal(error, request.url.path)


def _problem(
    status: int,
    told: JsonObject,
    path: str,
    *,
    text: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    kept = {"cache-control": "no-store", "x-content-type-options": "nosniff"} | dict(headers or {})
    if path == _OIP or path.startswith(f"{_OIP}/"):
        body: JsonObject = {"error": text or f"[{told['code']}] {told['what']}"}
        return Response(canonical(body), status, kept, "application/json")
    if _DDI.match(path):
        body = {"errorCode": f"edgestill.error.{told['code']}", "message": text or told["what"]}
        return Response(canonical(body), status, kept, "application/json")
    head: JsonObject = {
        "type": f"urn:edgestill:error:{told['code']}",
        "title": told["what"],
        "status": status,
    }
    return Response(canonical(head | told), status, kept, "application/problem+json")

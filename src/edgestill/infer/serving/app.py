"""An endpoint as an ASGI application, without a framework: every path under `/v2`.

- Health, metadata and the OpenAPI document are open to anybody. To infer, the caller is let in by a `Gate`, then counted
  against its rate, and only then its body is read: within a bound, and within `BODY_SECONDS`.
- A body of some length is read in a thread of its own, JSON, payload or raw: one large question does not hold up the others.
- Errors are raised, so that whoever is around it tells them as it tells its own (`replies.refused`).

Source: the ASGI specification, HTTP connection scope.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from edgestill.core.errors import MessageError, NotFoundError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.infer.serving import bodies, replies
from edgestill.infer.serving.places import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.oip import InferRequest
    from edgestill.infer.serving.endpoint import Endpoint, Question
    from edgestill.infer.serving.limits import RateLimit
    from edgestill.infer.serving.places import Place
    from edgestill.infer.serving.replies import Reply
    from edgestill.infer.serving.served import Rows, Served

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY: Final = 2**25
MAX_SMALL_BODY: Final = 64_000
BODY_SECONDS: Final = 60.0
READ_APART: Final = 64_000
"""Bytes of a body that are read on the event loop; more are read in a thread."""


class Visit(Protocol):
    """Somebody who was let in."""

    @property
    def caller(self) -> str:
        """Whom the rate is counted against."""
        ...

    def check(self, request: InferRequest) -> None:
        """Looks at what only this place understands.

        Raises:
            MessageError: it does not.
        """
        ...

    async def answered(self, question: Question, rows: Rows) -> JsonObject:
        """Is told of every answer before it is sent; what goes into its parameters."""
        ...


class Gate(Protocol):
    """Who may infer."""

    async def admit(self, scope: Scope) -> Visit:
        """Lets the caller in.

        Raises:
            AccessError: it may not.
        """
        ...


@final
class App:
    """Every path under `/v2`.

    Args:
        endpoint: what is served.
        gate: who may infer.
        limit: how often; None does not count.
        max_body: bytes of a question, uncompressed.
        body_seconds: within which a body must be there.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        gate: Gate,
        limit: RateLimit | None = None,
        max_body: int = MAX_BODY,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._gate = gate
        self._limit = limit
        self._max_body = max_body
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request.

        Raises:
            EdgestillError: what is wrong with it; nothing was sent then.
        """
        await respond(send, await self._reply(scope, receive))

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        place = parse(scope["path"])
        if place is None:
            raise NotFoundError(
                "no such path",
                where=ascii(scope["path"])[:200],
                expected="a path of the Open Inference Protocol v2",
                got="another",
                fix="ask /v2/openapi.json for the paths there are",
            )
        if scope["method"] not in place.methods:
            return replies.not_allowed(place.methods)
        if place.kind == "infer":
            return await self._infer(place, scope, receive)
        if place.kind == "index":
            _check_index(await self._body(scope, receive, MAX_SMALL_BODY))
        status, value = self._endpoint.tell(place)
        return replies.told(value, status)

    async def _infer(self, place: Place, scope: Scope, receive: Receive) -> Reply:
        visit = await self._gate.admit(scope)
        if self._limit is not None:
            self._limit.require(visit.caller)
        served = self._endpoint.model(place.model, place.version)
        headers = headers_of(scope)
        body = await self._body(scope, receive, self._max_body)
        question = await self._read(served, body, bodies.json_length(headers))
        visit.check(question.request)
        rows = await asyncio.wrap_future(self._endpoint.submit(question))
        more = await visit.answered(question, rows)
        return replies.inferred(*self._endpoint.answer(question, rows, more))

    async def _read(self, served: Served, body: bytes, json_length: int | None) -> Question:
        if len(body) <= READ_APART:
            return self._endpoint.question(served, body, json_length)
        return await asyncio.to_thread(self._endpoint.question, served, body, json_length)

    async def _body(self, scope: Scope, receive: Receive, at_most: int) -> bytes:
        headers = headers_of(scope)
        encoding = bodies.encoding_of(headers)
        bodies.check_length(headers.get("content-length"), at_most)
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await _received(receive, at_most)
        except TimeoutError as error:
            raise _broken(f"within {self._body_seconds:g} s") from error
        return (
            bytes(body) if encoding == "identity" else await asyncio.to_thread(bodies.inflated, body, at_most)
        )


def headers_of(scope: Scope) -> dict[str, str]:
    """Header fields, names in lower case; of repeated ones the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def respond(send: Send, reply: Reply) -> None:
    """Sends a whole answer."""
    headers = dict(reply.headers) | {"content-type": reply.kind, "content-length": str(len(reply.body))}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
    await send({"type": "http.response.body", "body": reply.body})


async def _received(receive: Receive, at_most: int) -> bytearray:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _broken("all of it")
        body += message.get("body", b"")
        if len(body) > at_most:
            bodies.refuse(at_most)
        more = message.get("more_body", False)
    return body


def _broken(expected: str) -> MessageError:
    return MessageError(
        "the body broke off", where="body", expected=expected, fix="send it again", got="a part"
    )


def _check_index(body: bytes) -> None:
    if body:
        fields = Fields(parse_object(body, where="body", max_bytes=MAX_SMALL_BODY), "body")
        if "ready" in fields.names():
            fields.boolean("ready")

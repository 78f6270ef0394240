"""Request bodies, bounded before they are read, and answers in JSON.

A body that says it is too long is refused unread; one that turns out to be is refused when the bound is reached. That
holds for compressed bodies too: the bound is on what comes out.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edgestill.core.errors import MessageError, TooLongError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.infer.serving import bodies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request

    from edgestill.core.jsonio import JsonObject

MAX_ADMIN_BYTES: Final = 64_000

_BUFFER: Final = 2**20


async def read(request: Request, *, at_most: int, compressed: bool = False) -> bytes:
    """The whole body.

    Args:
        request: not read yet.
        at_most: bytes, after uncompressing.
        compressed: whether gzip and deflate are understood.

    Raises:
        HTTPException: 413, longer than that.
        MessageError: an encoding that is not understood, or damaged; or a caller who hung up.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in (bodies.ENCODINGS if compressed else {"identity"}):
        raise MessageError(
            "an encoding that is not spoken here",
            where="content-encoding",
            got=encoding[:40],
            expected="zstd, gzip, or none",
        )
    _check_length(request, at_most)
    parts = bytearray()
    async for chunk in _chunks(request):
        parts += chunk
        if len(parts) > at_most:
            _refuse(at_most)
    return bytes(parts) if encoding == "identity" else _inflated(parts, at_most)


async def read_object(request: Request, *, where: str) -> Fields:
    """A small JSON object; errors as `read` and `core.jsonio.parse_object`."""
    data = await read(request, at_most=MAX_ADMIN_BYTES)
    return Fields(parse_object(data, where=where, max_bytes=MAX_ADMIN_BYTES), where)


async def save(
    request: Request,
    write: Callable[[bytes], object],
    *,
    at_most: int,
    in_thread: Callable[[Callable[[], object]], Awaitable[object]],
) -> None:
    """Writes the body out as it comes, a megabyte in memory at most; what is over the bound is never written.

    Raises:
        HTTPException: 413, longer than that.
        MessageError: the caller hung up.
    """
    _check_length(request, at_most)
    came, buffer = 0, bytearray()
    async for chunk in _chunks(request):
        buffer += chunk
        came += len(chunk)
        if came > at_most:
            _refuse(at_most)
        if len(buffer) >= _BUFFER:
            await in_thread(partial(write, bytes(buffer)))
            buffer.clear()
    await in_thread(partial(write, bytes(buffer)))


def answer(value: JsonObject, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer that nobody keeps."""
    return Response(
        canonical(value),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"} | (headers or {}),
    )


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; a caller who is gone is no failure of ours."""
    try:
        async for chunk in request.stream():
            yield chunk
        if (once_read := getattr(request.state, "once_read", None)) is not None:
            await once_read()
    except ClientDisconnect as error:
        raise MessageError(
            "the body broke off", where="body", expected="all of it", fix="send it again", got="a part"
        ) from error


def _check_length(request: Request, at_most: int) -> None:
    try:
        bodies.check_length(request.headers.get("content-length"), at_most)
    except TooLongError:
        _refuse(at_most)


def _inflated(data: bytearray, at_most: int) -> bytes:
    try:
        return bodies.inflated(data, at_most)
    except TooLongError:
        _refuse(at_most)


def _refuse(at_most: int) -> NoReturn:
    raise HTTPException(413, f"a body is longer than {at_most} bytes")

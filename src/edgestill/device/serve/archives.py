"""The bundles of a device's slots for other devices nearby, under the paths that the hub has.

- `GET` and `HEAD targets/NAME/VERSION/DIGEST.CLASS.esb`, whole or from a byte on (`Range: bytes=N-`), for which `link.download` asks; no other
  range is understood, and the whole is the answer then, as RFC 9110 (section 14.2) allows.
- Only a bundle that a slot says it holds is handed out. Who gets it believes nothing: it has size and digest from the publisher.
- Four may fetch at once, two from one address; others are told to come later, and go elsewhere.
- Who does not read is hung up on: after `STALL` seconds without a step, or when the whole takes longer than at `MINIMUM_SPEED`. Until then the
  archive is open, and keeps its room on the disk should its slot be emptied.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO, Final, final

from edgestill.core.errors import MessageError
from edgestill.device.slots import SLOT_RECORD
from edgestill.device.state import MAX_STATE_BYTES, SLOTS, Record
from edgestill.trust.client import target_path

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.serve.app import Asgi
    from edgestill.infer.serving.app import Receive, Scope, Send

log = logging.getLogger(__name__)

PREFIX: Final = "/targets/"
AT_ONCE: Final = 4
OF_ONE: Final = 2
CHUNK: Final = 65_536
STALL: Final = 10.0
MINIMUM_SPEED: Final = 16_384.0
"""Bytes a second."""
_FROM: Final = re.compile(rb"bytes=([0-9]{1,18})-")


@final
class Archives:
    """An ASGI application before another one.

    Args:
        folder: of the slots.
        app: everything else is its.
    """

    def __init__(self, folder: Path, app: Asgi) -> None:
        self._folder = folder
        self._app = app
        self._fetching: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
        elif scope["method"] not in {"GET", "HEAD"}:
            await _say(send, 405, [(b"allow", b"GET, HEAD")])
        else:
            host = (scope.get("client") or ("",))[0]
            if self._fetching.total() >= AT_ONCE or self._fetching[host] >= OF_ONE:
                await _say(send, 503, [(b"retry-after", b"10")])
                return
            self._fetching[host] += 1
            gone = asyncio.ensure_future(_gone(receive))
            try:
                await self._answer(scope, send, gone)
            except TimeoutError:
                log.info("hung up on %s, who does not read", host)
            finally:
                gone.cancel()
                self._fetching[host] -= 1
                self._fetching += Counter()  # which forgets who has none

    async def _answer(self, scope: Scope, send: Send, gone: asyncio.Future[None]) -> None:
        file = await asyncio.to_thread(self._opened, scope["path"][1:])
        if file is None:
            await _say(send, 404, [])
            return
        with file:
            size = file.seek(0, 2)
            ranges = [value for name, value in scope["headers"] if name == b"range"]
            match = _FROM.fullmatch(ranges[0]) if len(ranges) == 1 else None
            start = 0 if match is None else int(match[1])
            if start >= size:
                await _say(send, 416, [(b"content-range", b"bytes */%d" % size)])
                return
            headers = [(b"content-type", b"application/octet-stream"), (b"accept-ranges", b"bytes")]
            if match is not None:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (start, size - 1, size)))
            length = (b"content-length", b"%d" % (size - start))
            status = 200 if match is None else 206
            await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
            file.seek(start if scope["method"] == "GET" else size)
            async with asyncio.timeout(STALL + (size - start) / MINIMUM_SPEED):
                while not gone.done() and (chunk := await asyncio.to_thread(file.read, CHUNK)):
                    async with asyncio.timeout(STALL):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if not gone.done():
                    await send({"type": "http.response.body", "body": b""})

    def _opened(self, path: str) -> BinaryIO | None:
        """The archive with this path, if a slot has it now."""
        for slot in SLOTS:
            try:
                with (self._folder / slot / SLOT_RECORD).open("rb") as file:
                    target = Record.from_bytes(file.read(MAX_STATE_BYTES + 1)).target
                if target_path(target.name, target.digest) == path:
                    return (self._folder / slot / f"{target.digest.hex}.esb").open("rb")
            except (OSError, MessageError):
                continue
        return None


async def _gone(receive: Receive) -> None:
    """Ends when who asked has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _say(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})

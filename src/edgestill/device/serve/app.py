"""The outermost layer: whatever goes wrong inside, the caller gets an error of the protocol, and the server lives on.

- What is refused is told to the log at DEBUG, so that asking fills no disk; what is the server's own fault at ERROR.
- No trace and no value of the inside is ever part of an answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, final

from edgestill.core.errors import EdgestillError
from edgestill.infer.serving import replies
from edgestill.infer.serving.app import respond

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from edgestill.infer.serving.app import Receive, Scope, Send

    Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

log: Final = logging.getLogger(__name__)


@final
class Outermost:
    """An ASGI application that never raises.

    Args:
        app: what it protects.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; other scopes than HTTP are not spoken."""
        if scope["type"] != "http":
            msg = f"no {scope['type']} here"
            raise RuntimeError(msg)
        place = f"{scope['method']} {ascii(scope['path'])[:200]}"
        has_started = False

        async def watch(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except EdgestillError as error:
            reply = replies.refused(error)
            level = logging.ERROR if reply.status == replies.INTERNAL else logging.DEBUG
            log.log(level, "refused %s: %s", place, error)
        except Exception:
            log.exception("unexpected failure at %s", place)
            reply = replies.failed()
        else:
            return
        if not has_started:
            await respond(send, reply)

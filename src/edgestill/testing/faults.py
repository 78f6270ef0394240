"""A transport that fails on purpose, around one that works.

    faulty = FaultyTransport(inner, [Fault(drop=True), Fault(break_after=1000), None], clock=clock)

The first request is dropped, the second breaks within its body, the third and all later ones pass. Time passes only on
the fake clock, and a deadline that it passes is kept: `DeadlineError`, as from a real transport.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import DeadlineError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from edgestill.core.protocols import Request, Response, Transport
    from edgestill.testing.clock import FakeClock

ENDLESS_CHUNK: Final = b"\0" * 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one exchange; several may at once.

    Attributes:
        drop: no connection; the inner transport never sees the request.
        lose_answer: the inner transport answers, and the answer is lost.
        delay: seconds until the head of the answer.
        chunk: bytes per piece of the body; 0 leaves the pieces as they are.
        chunk_delay: seconds before each piece.
        break_after: bytes of the body after which the connection breaks.
        end_after: bytes after which the body ends as if it were whole.
        alter_at: offset of a byte of the body that has all its bits flipped.
        endless: zeros follow the body for ever.
        status: replaces the answer's, if not 0.
        headers: replace or add to the answer's; names in lower case.
        without: header fields that the answer loses.
    """

    drop: bool = False
    lose_answer: bool = False
    delay: float = 0.0
    chunk: int = 0
    chunk_delay: float = 0.0
    break_after: int | None = None
    end_after: int | None = None
    alter_at: int | None = None
    endless: bool = False
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()


NO_FAULT: Final = Fault()


@final
class FaultyTransport:
    """A `core.protocols.Transport` that fails as it is told.

    Args:
        inner: carries what is not dropped.
        faults: for each request in turn, None for none, and none after the last; or a function that decides.
        clock: is advanced by the delays.

    Attributes:
        requests: all that were sent, dropped ones included.
    """

    def __init__(
        self,
        inner: Transport,
        faults: Iterable[Fault | None] | Callable[[Request], Fault | None],
        *,
        clock: FakeClock,
    ) -> None:
        self.requests: list[Request] = []
        self._inner = inner
        self._decide = faults if callable(faults) else _in_turn(faults)
        self._clock = clock

    def send(self, request: Request, *, timeout: float) -> Response:
        """Sends the request, unless it is dropped; see `core.protocols.Transport`."""
        self.requests.append(request)
        fault = self._decide(request) or NO_FAULT
        where = f"{request.method} {request.url}"
        if fault.drop:
            raise UnreachableError(
                "no connection, or it broke", where=where, got="a fault", expected="a connection that holds"
            )
        waiting = _Waiting(self._clock, self._clock.monotonic() + timeout, where)
        waiting.let_pass(fault.delay)
        response = self._inner.send(request, timeout=timeout)
        if fault.lose_answer:
            response.close()
            raise UnreachableError(
                "no connection, or it broke",
                where=where,
                got="a lost answer",
                expected="a connection that holds",
            )
        return _FaultyResponse(response, fault, waiting)


@dataclass(frozen=True, slots=True)
class _Waiting:
    clock: FakeClock
    until: float
    where: str

    def let_pass(self, seconds: float) -> None:
        left = self.until - self.clock.monotonic()
        self.clock.advance(min(seconds, max(left, 0.0)))
        if seconds > left:
            raise DeadlineError(
                "no answer in time", where=self.where, got="a fault", expected="an answer before the deadline"
            )


@final
class _FaultyResponse:
    def __init__(self, inner: Response, fault: Fault, waiting: _Waiting) -> None:
        self._inner = inner
        self._fault = fault
        self._waiting = waiting
        kept = {name: value for name, value in inner.headers.items() if name not in fault.without}
        self._headers = kept | dict(fault.headers)

    @property
    def status(self) -> int:
        return self._fault.status or self._inner.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    def chunks(self) -> Iterator[bytes]:
        offset = 0
        for piece in self._pieces():
            self._waiting.let_pass(self._fault.chunk_delay)
            for limit in (self._fault.break_after, self._fault.end_after):
                if limit is not None and offset + len(piece) >= limit:
                    yield from filter(None, (self._altered(piece, offset)[: limit - offset],))
                    if limit == self._fault.break_after:
                        raise UnreachableError(
                            "no connection, or it broke",
                            where=self._waiting.where,
                            got="a fault",
                            expected="a connection that holds",
                        )
                    return
            yield self._altered(piece, offset)
            offset += len(piece)

    def close(self) -> None:
        self._inner.close()

    def _pieces(self) -> Iterator[bytes]:
        for chunk in self._inner.chunks():
            size = self._fault.chunk or len(chunk) or 1
            for start in range(0, len(chunk), size):
                yield chunk[start : start + size]
        while self._fault.endless:
            yield ENDLESS_CHUNK

    def _altered(self, piece: bytes, offset: int) -> bytes:
        at = self._fault.alter_at
        if at is None or not offset <= at < offset + len(piece):
            return piece
        at -= offset
        return piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]


def _in_turn(faults: Iterable[Fault | None]) -> Callable[[Request], Fault | None]:
    left = iter(faults)
    return lambda _: next(left, None)

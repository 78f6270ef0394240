"""A transport that counts what passes, heads included, and hinders nothing: for calls that must not wait for a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgestill.core.protocols import Request, Response, Transport
    from edgestill.link.allowance import Budget

LINE: Final = 20
"""Bytes of a request line or a status line, its address not counted."""
AROUND: Final = 4
"""Bytes around a header field: a colon, a space and the end of its line."""


@final
class Metered:
    """Counts requests before they go and answers as they come. What TLS, TCP and IP add comes on top.

    Args:
        inner: carries the requests.
        budget: counts.
    """

    def __init__(self, inner: Transport, budget: Budget) -> None:
        self._inner = inner
        self._budget = budget

    def send(self, request: Request, *, timeout: float) -> Response:
        """Sends the request; see `core.protocols.Transport`."""
        self._budget.charge(LINE + len(request.url) + _size(request.headers) + len(request.body))
        response = self._inner.send(request, timeout=timeout)
        self._budget.charge(LINE + _size(response.headers))
        return _Counted(response, self._budget)


@final
class _Counted:
    def __init__(self, inner: Response, budget: Budget) -> None:
        self._inner = inner
        self._budget = budget

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._inner.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields."""
        return self._inner.headers

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces, each counted."""
        for chunk in self._inner.chunks():
            self._budget.charge(len(chunk))
            yield chunk

    def close(self) -> None:
        """Ends the exchange."""
        self._inner.close()


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) + AROUND for name, value in headers.items())

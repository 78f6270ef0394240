"""What the rooms ask of each other. Each protocol has two real implementations and a law suite, or is a function.

numpy appears in signatures only; importing this module loads nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.digest import Digest


class Clock(Protocol):
    """The two times there are."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC. May jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment. Never goes back; for deadlines and latencies."""
        ...


class Engine(Protocol):
    """Runs one model."""

    @property
    def inputs(self) -> Mapping[str, tuple[str, tuple[int | None, ...]]]:
        """Name -> (Open Inference Protocol datatype, shape with None where free)."""
        ...

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """All outputs by name.

        Raises:
            EngineError: the runtime refused.
        """
        ...


class Predict(Protocol):
    """A student, a remote teacher, a cascade of both, a cascade of cascades."""

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """Answers a batch.

        Args:
            batch: `[N, ...]`, what the sensor gives.
            deadline: monotonic time by which the caller needs the answer; None waits.

        Raises:
            ShapeError, DtypeError, NotFiniteError: the batch is not what the model takes.
            UnreachableError, DeadlineError, RefusedError: from a remote one.
        """
        ...


class BlobStore(Protocol):
    """Bytes kept under their digest."""

    def put(self, data: bytes) -> Digest:
        """Keeps the bytes; keeping them twice is keeping them once."""
        ...

    def get(self, digest: Digest) -> bytes:
        """The bytes, checked against their digest.

        Raises:
            StoreError: not there, or damaged.
        """
        ...

    def has(self, digest: Digest) -> bool:
        """Whether the bytes are there."""
        ...

    def delete(self, digest: Digest) -> None:
        """Forgets the bytes; forgetting what is not there is no error."""
        ...

    def list(self) -> Iterator[Digest]:
        """Every digest kept, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, whatever carries it.

    Attributes:
        method: `GET`, `POST`, ...
        url: absolute.
        headers: names in lower case.
        body: the whole body; control messages and escalations are small.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Response(Protocol):
    """The answer's head, and its body as it arrives."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, names in lower case."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces.

        Raises:
            UnreachableError: the connection broke.
            DeadlineError: the rest did not come in time.
        """
        ...

    def close(self) -> None:
        """Gives the connection back; safe to call twice."""
        ...


class Transport(Protocol):
    """Carries requests: over sockets in `link`, over an in-memory ASGI application in `testing`."""

    def send(self, request: Request, *, timeout: float) -> Response:
        """Sends the request and returns when the head of the answer is there.

        Args:
            request: what to send.
            timeout: seconds for the whole exchange, body included.

        Raises:
            UnreachableError: no connection, or it broke.
            DeadlineError: not in time.
        """
        ...

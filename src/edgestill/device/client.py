"""What an application embeds to get answers from the agent on its device.

- A connection is a Unix socket; while one bundle takes over from another the question waits, and none is refused.
- A question that was cut off because the engine died is asked once more, and not oftener: it may be the reason.
- One client per thread: questions on one connection are asked one after the other.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import DeadlineError, NotFoundError, UnreachableError
from edgestill.device import asking
from edgestill.device.arrays import answer_from_frame, as_labels, to_tensor
from edgestill.device.frames import Frame
from edgestill.device.home import Home, find_socket
from edgestill.device.status import read_status

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock

TIMEOUT: Final = 30.0


@final
class LocalClient:
    """A `Predict` that is answered by the agent of this device.

    Args:
        home: the device's folder.
        clock: for deadlines.
        timeout: seconds to wait for an answer where no deadline is given.
    """

    def __init__(self, home: Path, *, clock: Clock, timeout: float = TIMEOUT) -> None:
        self._home = home
        self._clock = clock
        self._timeout = timeout
        self._stream: socket.socket | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, home: Path | str, *, timeout: float = TIMEOUT) -> Self:
        """Connects to the agent.

        Raises:
            NotFoundError: no device lives there, or its agent has never run.
            UnreachableError: the agent does not run.
        """
        client = cls(Home.open(Path(home)).path, clock=SystemClock(), timeout=timeout)
        client._connect()  # its own
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """Answers a batch `[N, ...]` of what the sensor gives.

        Raises:
            ShapeError, DtypeError, NotFiniteError: the batch is not what the model takes.
            EngineError: the engine failed.
            NotFoundError: nothing is installed yet.
            DeadlineError: no answer in time.
            UnreachableError: the agent ended.
        """
        return answer_from_frame(self._ask(Frame({"op": "predict"}, (to_tensor("input", batch),)), deadline))

    def teach(self, batch: NDArray[np.generic], labels: NDArray[np.integer]) -> None:
        """Tells the true classes `[N]` of a batch; the device may learn from them, and nothing leaves it raw.

        Raises:
            as `predict`; ClassCountError where a label is no class, DtypeError where it is no whole number.
        """
        tensors = (to_tensor("input", batch), to_tensor("labels", as_labels(labels)))
        self._ask(Frame({"op": "teach"}, tensors), None)

    def status(self) -> JsonObject:
        """Where the device stands, as `edgestill-agent status --json`; under `engine` what the engine says."""
        return read_status(self._home)

    def close(self) -> None:
        """Hangs up; safe to call twice."""
        with self._lock:
            self._hang_up()

    def _ask(self, frame: Frame, deadline: float | None) -> Frame:
        until = self._clock.monotonic() + self._timeout if deadline is None else deadline
        with self._lock:
            try:
                return self._ask_until(frame, until)
            except UnreachableError:
                return self._ask_until(frame, until)

    def _ask_until(self, frame: Frame, until: float) -> Frame:
        """Asks whoever serves; follows it to its successor as often as it moves."""
        while (answer := self._ask_once(frame, until)) is None:
            self._hang_up()
        return answer

    def _ask_once(self, frame: Frame, until: float) -> Frame | None:
        left = until - self._clock.monotonic()
        if left <= 0:
            raise DeadlineError(
                "no answer in time", where="engine", expected="an answer before the deadline", got="none"
            )
        stream = self._stream or self._connect()
        try:
            timed = Frame(frame.header | {"until": until}, frame.tensors)
            return asking.ask(stream, timed, timeout=left)
        except UnreachableError:
            self._hang_up()
            raise
        except DeadlineError:
            self._hang_up()
            if read_status(self._home, ask_engine=False)["release"] is None:
                raise NotFoundError(
                    "nothing is installed yet",
                    where=self._home,
                    fix="run: edgestill-agent status --home DIR",
                    expected="a bundle in a slot",
                    got="none",
                ) from None
            raise

    def _connect(self) -> socket.socket:
        self._stream = asking.connect(find_socket(self._home), timeout=self._timeout)
        return self._stream

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

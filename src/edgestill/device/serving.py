"""The application socket: accepts connections and answers frames, a thread for each connection.

- The number of connections is bounded; more wait in the kernel's queue.
- Every error of ours goes back as its JSON, so that the asker can raise it again; anything else is a bug, is logged,
  and goes back as an engine error.
- A connection may be silent for as long as it likes; a question that has begun must be whole soon, or its place is freed.
- Stopping is gentle: what has been asked is answered, and whoever is idle is told to turn to the successor.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import EdgestillError, EngineError
from edgestill.device.asking import MOVED
from edgestill.device.frames import Frame, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import Clock

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
SEND_SECONDS: Final = 30.0
WITHIN_SECONDS: Final = 30.0
_LOOK: Final = 0.1


@final
class Server:
    """Answers frames on a listening socket.

    Args:
        listener: bound and listening; other processes may accept from it too.
        answer: gives the answer to a frame, or raises an EdgestillError; called from many threads.
        clock: for patience.
    """

    def __init__(self, listener: socket.socket, answer: Callable[[Frame], Frame], *, clock: Clock) -> None:
        self._listener = listener
        self._answer = answer
        self._clock = clock
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._idle: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name="acceptor", daemon=True)

    def start(self) -> None:
        """Begins to accept."""
        self._listener.settimeout(_LOOK)
        self._acceptor.start()

    def stop(self, *, seconds: float) -> None:
        """Accepts no more, hangs up on the idle, and waits so long for all of the busy together."""
        until = self._clock.monotonic() + seconds
        self._stopping.set()
        self._acceptor.join(seconds)
        with self._lock:
            for stream in self._idle:
                _send_away(stream)
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, until - self._clock.monotonic()))

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if not self._free.acquire(timeout=_LOOK):
                continue
            try:
                stream, _ = self._listener.accept()
            except OSError:  # a timeout, mostly
                self._free.release()
                continue
            self._begin(stream)

    def _begin(self, stream: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(stream,), name="asker", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # no room for one more, perhaps for a moment only
            log.warning("a connection is given up: %s", error)
            with self._lock:
                self._threads.discard(thread)
            stream.close()
            self._free.release()

    def _serve(self, stream: socket.socket) -> None:
        try:
            with stream:
                while not self._stopping.is_set():
                    if not self._exchange(stream):
                        return
                _send_away(stream)
        except EdgestillError as error:
            log.debug("%s", error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
            self._free.release()

    def _exchange(self, stream: socket.socket) -> bool:
        """One question and its answer; whether there may be more."""
        with self._lock:
            self._idle.add(stream)
        try:
            question = self._heard(stream)
        finally:
            with self._lock:
                self._idle.discard(stream)
        if question is None:
            return False
        stream.settimeout(SEND_SECONDS)
        send(stream, self._safely(question))
        return True

    def _heard(self, stream: socket.socket) -> Frame | None:
        """The next question; None where there is none, or it does not come to its end."""
        stream.settimeout(None)
        try:
            stream.recv(1, socket.MSG_PEEK)
        except OSError:
            return None
        until = self._clock.monotonic() + WITHIN_SECONDS
        try:
            return receive(stream, left=lambda: until - self._clock.monotonic())
        except TimeoutError:
            log.debug("a question did not come to its end")
            return None

    def _safely(self, question: Frame) -> Frame:
        try:
            return self._answer(question)
        except EdgestillError as error:
            return Frame({"error": dict(error.as_json())})
        except Exception:
            log.exception("a question could not be answered")
            return Frame(
                {
                    "error": dict(
                        EngineError(
                            "the engine failed",
                            fix="see the log",
                            where="engine",
                            expected="an answer",
                            got="an unexpected failure",
                        ).as_json()
                    )
                }
            )


def _send_away(stream: socket.socket) -> None:
    """Says that somebody else answers from now on, and ends the wait for a question."""
    try:
        stream.settimeout(_LOOK)
        send(stream, MOVED)
        stream.shutdown(socket.SHUT_RDWR)
    except (EdgestillError, OSError):
        log.debug("a connection was closed already")

"""The application socket: accepts connections and answers frames, a thread for each connection.

- The number of connections is bounded; more wait in the kernel's queue.
- Every error of ours goes back as its JSON, so that the asker can raise it again; anything else is a bug, is logged,
  and goes back as an engine error.
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

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
SEND_SECONDS: Final = 30.0
_LOOK: Final = 0.1


@final
class Server:
    """Answers frames on a listening socket.

    Args:
        listener: bound and listening; other processes may accept from it too.
        answer: gives the answer to a frame, or raises an EdgestillError; called from many threads.
    """

    def __init__(self, listener: socket.socket, answer: Callable[[Frame], Frame]) -> None:
        self._listener = listener
        self._answer = answer
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
        """Accepts no more, hangs up on the idle, and waits for the busy."""
        self._stopping.set()
        self._acceptor.join(seconds)
        with self._lock:
            for stream in self._idle:
                _send_away(stream)
            threads = list(self._threads)
        for thread in threads:
            thread.join(seconds)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if not self._free.acquire(timeout=_LOOK):
                continue
            try:
                stream, _ = self._listener.accept()
            except OSError:  # a timeout, mostly
                self._free.release()
                continue
            thread = threading.Thread(target=self._serve, args=(stream,), daemon=True)
            with self._lock:
                self._threads.add(thread)
            thread.start()

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
            stream.settimeout(None)
            question = receive(stream)
        finally:
            with self._lock:
                self._idle.discard(stream)
        if question is None:
            return False
        stream.settimeout(SEND_SECONDS)
        send(stream, self._safely(question))
        return True

    def _safely(self, question: Frame) -> Frame:
        try:
            return self._answer(question)
        except EdgestillError as error:
            return Frame({"error": dict(error.as_json())})
        except Exception:
            log.exception("a question could not be answered")
            return Frame({"error": dict(EngineError("the engine failed", fix="see the log").as_json())})


def _send_away(stream: socket.socket) -> None:
    """Says that somebody else answers from now on, and ends the wait for a question."""
    try:
        stream.settimeout(_LOOK)
        send(stream, MOVED)
        stream.shutdown(socket.SHUT_RDWR)
    except (EdgestillError, OSError):
        log.debug("a connection was closed already")

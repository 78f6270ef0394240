"""The application socket and those who ask on it, without a model."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from edgestill.core.errors import (
    ClassCountError,
    DeadlineError,
    EdgestillError,
    EngineError,
    MessageError,
    UnreachableError,
)
from edgestill.device import asking, serving
from edgestill.device.frames import Frame, encode, receive
from edgestill.device.processes import listening
from edgestill.device.serving import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket."""
    with listening(tmp_path / "s") as one:
        yield one


@pytest.fixture
def start(listener: socket.socket) -> Iterator[Callable[[Callable[[Frame], Frame]], Server]]:
    """Starts servers on the socket, and stops them at the end."""
    servers: list[Server] = []

    def begin(answer: Callable[[Frame], Frame]) -> Server:
        server = Server(listener, answer)
        server.start()
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.stop(seconds=5)


def echo(frame: Frame) -> Frame:
    """Answers with what was asked."""
    return Frame({"asked": frame.header.get("op")})


def path_of(listener: socket.socket) -> Path:
    """Where it listens."""
    from pathlib import Path

    return Path(listener.getsockname())


def test_questions_on_one_connection_are_answered_in_turn(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server]
) -> None:
    """And several connections at once."""
    start(echo)
    with (
        asking.connect(path_of(listener), timeout=5) as one,
        asking.connect(path_of(listener), timeout=5) as two,
    ):
        for stream in (one, two, one):
            answer = asking.ask(stream, Frame({"op": "x"}), timeout=5)
            assert answer is not None
            assert answer.header == {"asked": "x"}


def test_the_socket_is_for_its_owner_alone(listener: socket.socket) -> None:
    """Whoever may ask may also learn what the model sees."""
    assert path_of(listener).stat().st_mode & 0o777 == 0o600


def test_errors_come_back_as_what_they_were(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server]
) -> None:
    """Class, code and all parts of the text."""
    error = ClassCountError("labels differ", where="labels", expected="3", got=4, fix="fix them")

    def answer(_: Frame) -> Frame:
        raise error

    start(answer)
    with asking.connect(path_of(listener), timeout=5) as stream:
        with pytest.raises(ClassCountError) as caught:
            asking.ask(stream, Frame({"op": "x"}), timeout=5)
        assert str(caught.value) == str(error)


def test_a_bug_is_an_engine_error_and_the_server_lives(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says what it was; the asker does not see our insides."""

    def answer(frame: Frame) -> Frame:
        if frame.header.get("op") == "bug":
            raise ZeroDivisionError
        return echo(frame)

    start(answer)
    with asking.connect(path_of(listener), timeout=5) as stream:
        with pytest.raises(EngineError, match="the engine failed; see the log"):
            asking.ask(stream, Frame({"op": "bug"}), timeout=5)
        assert asking.ask(stream, Frame({"op": "x"}), timeout=5) is not None
    assert "ZeroDivisionError" in caplog.text


def test_an_error_of_an_unknown_code_is_a_message_error() -> None:
    """A newer engine may know more."""
    frame = Frame({"error": {"code": "from-the-future", "what": "something"}})
    assert isinstance(asking.error_from(frame), MessageError)


def test_an_answer_that_does_not_come_is_a_deadline(listener: socket.socket) -> None:
    """Nobody accepts: the question waits in the queue until the asker gives up."""
    with (
        asking.connect(path_of(listener), timeout=5) as stream,
        pytest.raises(DeadlineError, match=r"within 0\.05 s"),
    ):
        asking.ask(stream, Frame({"op": "x"}), timeout=0.05)


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    """With the way to start the agent."""
    with pytest.raises(UnreachableError, match=r"the agent does not answer.*edgestill-agent run"):
        asking.connect(tmp_path / "s", timeout=1)


@pytest.mark.parametrize("cut", [0, 3, 12])
def test_an_engine_that_dies_while_answering_is_unreachable(cut: int) -> None:
    """Before its answer, or within it."""
    ours, theirs = socket.socketpair()

    def die() -> None:
        receive(theirs)
        theirs.sendall(encode(Frame({"op": "x"}))[:cut])
        theirs.close()

    thread = threading.Thread(target=die)
    thread.start()
    with ours, pytest.raises(UnreachableError, match="the engine hung up"):
        asking.ask(ours, Frame({"op": "x"}), timeout=5)
    thread.join()


def test_a_stopping_server_answers_what_was_asked_and_sends_the_idle_away(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server]
) -> None:
    """Nothing is lost: who waits for an answer gets it, and who asks later is told to ask the successor."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(frame: Frame) -> Frame:
        asked.set()
        assert go_on.wait(5)
        return echo(frame)

    server = start(slow)
    answers: list[Frame | None] = []
    with (
        asking.connect(path_of(listener), timeout=5) as idle,
        asking.connect(path_of(listener), timeout=5) as busy,
    ):
        thread = threading.Thread(
            target=lambda: answers.append(asking.ask(busy, Frame({"op": "slow"}), timeout=5))
        )
        thread.start()
        assert asked.wait(5)
        stopping = threading.Thread(target=lambda: server.stop(seconds=5))
        stopping.start()
        assert receive(idle) == asking.MOVED
        go_on.set()
        stopping.join()
        thread.join()
        assert [answer and answer.header for answer in answers] == [{"asked": "slow"}]
        start(echo)
        with asking.connect(path_of(listener), timeout=5) as after:
            assert asking.ask(after, Frame({"op": "x"}), timeout=5) is not None


def test_connections_beyond_the_bound_wait_their_turn(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are not refused, and they do not take the process down."""
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 1)
    start(echo)
    with asking.connect(path_of(listener), timeout=5) as first:
        assert asking.ask(first, Frame({"op": "x"}), timeout=5) is not None
        second = asking.connect(path_of(listener), timeout=5)
        with pytest.raises(DeadlineError):
            asking.ask(second, Frame({"op": "x"}), timeout=0.05)
    with second:
        second.settimeout(5)
        answer = receive(second)
        assert answer is not None
        assert answer.header == {"asked": "x"}


def test_attack_garbage_ends_the_connection_and_nothing_else(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server]
) -> None:
    """A process that does not speak our frames is hung up on."""
    start(echo)
    with asking.connect(path_of(listener), timeout=5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        said = b""
        with suppress(ConnectionResetError):
            said = stranger.recv(100)
        assert said == b""
    with asking.connect(path_of(listener), timeout=5) as stream:
        assert asking.ask(stream, Frame({"op": "x"}), timeout=5) is not None


def test_a_socket_that_cannot_be_made_is_an_engine_error(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(EdgestillError, match="the application socket cannot be made"):
        listening(tmp_path / "missing" / "s")

"""The application socket and those who ask on it, without a model."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    ClassCountError,
    DeadlineError,
    EdgestillError,
    EngineError,
    MessageError,
    UnreachableError,
)
from edgestill.core.oip import Tensor
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
        server = Server(listener, answer, clock=SystemClock())
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
        with pytest.raises(EngineError, match=r"the engine failed; .*; see the log"):
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


def test_attack_half_a_question_does_not_hold_a_place_for_ever(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application that stops within a frame is hung up on; one that has asked nothing yet may take its time."""
    monkeypatch.setattr(serving, "WITHIN_SECONDS", 0.1)
    start(echo)
    whole = encode(Frame({"op": "x"}))
    with asking.connect(path_of(listener), timeout=5) as idle:
        for cut in (1, 7, 8, len(whole) - 1):
            with asking.connect(path_of(listener), timeout=5) as slow:
                slow.sendall(whole[:cut])
                assert slow.recv(1) == b""
        assert asking.ask(idle, Frame({"op": "x"}), timeout=5) is not None


def test_attack_a_question_that_trickles_in_is_given_up(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte now and then is no question: it is the whole frame that must come in time."""
    monkeypatch.setattr(serving, "WITHIN_SECONDS", 0.15)
    start(echo)
    whole = encode(Frame({"op": "x", "filler": "y" * 2000}))
    with asking.connect(path_of(listener), timeout=5) as slow:
        assert len(sent_slowly(slow, whole)) < len(whole)


def sent_slowly(stream: socket.socket, data: bytes) -> bytes:
    """Sends a byte every hundredth of a second until nobody takes them any more; what was sent."""
    for number in range(len(data)):
        try:
            stream.sendall(data[number : number + 1])
        except OSError:
            return data[:number]
        threading.Event().wait(0.01)
    return data


def test_an_asker_that_does_not_read_its_answer_is_given_up(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its place is free again for others, however large the answer is that nobody takes."""
    monkeypatch.setattr(serving, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 1)
    large = Frame({}, (Tensor("x", "UINT8", (20_000_000,), bytes(20_000_000)),))
    start(lambda frame: large if frame.header.get("op") == "large" else echo(frame))
    with asking.connect(path_of(listener), timeout=5) as deaf:
        deaf.sendall(encode(Frame({"op": "large"})))
        with asking.connect(path_of(listener), timeout=5) as other:
            assert asking.ask(other, Frame({"op": "x"}), timeout=5) is not None


def test_stopping_takes_no_longer_for_many_who_are_stuck_than_for_one(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server]
) -> None:
    """The supervisor waits for a child to leave, and kills it where that takes too long: others' answers would be lost."""
    go_on, busy = threading.Event(), threading.Semaphore(0)

    def stuck(frame: Frame) -> Frame:
        busy.release()
        assert go_on.wait(20)
        return echo(frame)

    server = start(stuck)
    streams = [asking.connect(path_of(listener), timeout=5) for _ in range(12)]
    for stream in streams:
        stream.sendall(encode(Frame({"op": "x"})))
    for _ in streams:
        assert busy.acquire(timeout=5)
    clock = SystemClock()
    before = clock.monotonic()
    server.stop(seconds=0.3)
    took = clock.monotonic() - before
    go_on.set()
    for stream in streams:
        stream.close()
    assert took < 2.0  # one after the other would be 3.6 s


def test_a_thread_that_cannot_be_started_costs_one_connection(
    listener: socket.socket,
    start: Callable[[Callable[[Frame], Frame]], Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a moment there is no room for one more: the asker is hung up on, and the next one is served."""
    begin = threading.Thread.start
    full = [True]

    def refused(self: threading.Thread) -> None:
        if full and self.name.startswith("asker"):
            full.clear()
            raise RuntimeError("can't start new thread")
        begin(self)

    start(echo)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with asking.connect(path_of(listener), timeout=5) as unlucky:
        assert unlucky.recv(1) == b""
    with asking.connect(path_of(listener), timeout=5) as stream:
        assert asking.ask(stream, Frame({"op": "x"}), timeout=5) is not None
    assert "can't start new thread" in caplog.text


@pytest.mark.parametrize("part", ["what", "where", "expected", "got", "fix"])
def test_an_error_with_much_to_say_comes_back_as_what_it_was(
    listener: socket.socket, start: Callable[[Callable[[Frame], Frame]], Server], part: str
) -> None:
    """A long list of shapes, a path without end: its class and code arrive, not a complaint about its length."""
    texts = {"what": "labels differ"} | {part: "shape [3, 4], " * 2000}

    def answer(_: Frame) -> Frame:
        what = texts.pop("what") if "what" in texts else "labels differ"
        raise ClassCountError(what, **texts)

    start(answer)
    with (
        asking.connect(path_of(listener), timeout=5) as stream,
        pytest.raises(ClassCountError, match=r"shape \[3, 4\], "),
    ):
        asking.ask(stream, Frame({"op": "x"}), timeout=5)


frames = st.builds(
    Frame,
    st.dictionaries(
        st.sampled_from(["moved", "error", "op", "decided_by", "latency"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["code", "what", "where", "fix"]), inner, max_size=4)
            ),
            max_leaves=6,
        ),
        max_size=3,
    ),
)


@given(said=frames)
def test_attack_whatever_an_engine_answers_is_an_answer_or_an_error_of_ours(said: Frame) -> None:
    """An error without its parts, of the wrong types, or no error at all: the asker never fails in another way."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(encode(said))
        with suppress(EdgestillError):
            answer = asking.ask(ours, Frame({"op": "x"}), timeout=5)
            assert answer is None or "error" not in answer.header

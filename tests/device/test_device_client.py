"""The client that an application embeds, against an engine that may move, die, lie or be late; without a model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from device_worlds import CLASS, target
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.answer import Answer
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    ClassCountError,
    DeadlineError,
    DtypeError,
    EdgestillError,
    EngineError,
    MessageError,
    NotFoundError,
    ShapeError,
    UnreachableError,
)
from edgestill.device import asking
from edgestill.device.arrays import answer_from_frame, answer_to_frame, to_tensor
from edgestill.device.client import LocalClient
from edgestill.device.frames import Frame, encode, receive, send
from edgestill.device.home import Home, Identity, Settings, choose_socket
from edgestill.device.outbox import Outbox
from edgestill.device.processes import listening
from edgestill.device.serving import Server
from edgestill.device.slots import Slots
from edgestill.device.state import State
from edgestill.device.status import read_status

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.oip import Tensor

BATCH = np.zeros((2, 4), np.float32)
ANSWER = Answer(
    probabilities=np.full((2, 4), 0.25, np.float32),
    confidence=np.full(2, 0.25, np.float32),
    decided_by=("student", "student"),
)


class Device:
    """A home, its application socket, and whoever answers there."""

    def __init__(self, path: Path) -> None:
        identity = Identity(
            device="d1", credential="c", hub="http://127.0.0.1:9", hardware_class=CLASS, interval=1.0
        )
        self.home = Home.create(
            path, identity=identity, settings=Settings(leaves="nothing", labels={}), root=b"{}"
        )
        self.slots = Slots.open(self.home.slots)
        self.socket = choose_socket(path)
        self.listener = listening(self.socket)
        self.asked: list[Frame] = []
        self._servers: list[Server] = []

    def install(self) -> None:
        """Something is installed."""
        self.slots.save(State(active="a", a=target(1), seen=1, counter=1))

    def serve(self, *answers: Frame | EdgestillError | None) -> Server:
        """Answers with these in turn, then with `ANSWER`; None is a kill while answering."""
        left = list(answers)

        def answer(frame: Frame) -> Frame:
            self.asked.append(frame)
            said = left.pop(0) if left else answer_to_frame(ANSWER)
            if isinstance(said, EdgestillError):
                raise said
            assert said is not None
            return said

        server = Server(self.listener, answer, clock=SystemClock())
        server.start()
        self._servers.append(server)
        return server

    def play(self, *turns: Callable[[socket.socket], None]) -> threading.Thread:
        """Accepts a connection for each of these, and lets it do as it likes."""

        def run() -> None:
            for turn in turns:
                stream, _ = self.listener.accept()
                with stream:
                    stream.settimeout(10)
                    turn(stream)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Ends whoever answers."""
        for server in self._servers:
            server.stop(seconds=5)
        self.listener.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device whose agent runs, and whose engine does what the test says."""
    made = Device(tmp_path / "home")
    yield made
    made.close()


def dies(stream: socket.socket) -> None:
    """Takes a question with it."""
    receive(stream)


def dies_within(stream: socket.socket) -> None:
    """Dies while it answers."""
    receive(stream)
    stream.sendall(encode(answer_to_frame(ANSWER))[:-5])


def moves(stream: socket.socket) -> None:
    """Gives way without looking at the question."""
    receive(stream)
    send(stream, asking.MOVED)


def moves_unasked(stream: socket.socket) -> None:
    """Gives way before anything was asked, and hangs up."""
    send(stream, asking.MOVED)


def answers(stream: socket.socket) -> None:
    """Answers whatever is asked."""
    while receive(stream) is not None:
        send(stream, answer_to_frame(ANSWER))


def test_a_question_is_answered_on_one_connection(device: Device) -> None:
    """However many there are, and with the time until which the asker waits."""
    device.serve()
    with LocalClient.open(device.home.path) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.predict(BATCH).probabilities, ANSWER.probabilities)
    assert [frame.header["op"] for frame in device.asked] == ["predict"] * 3
    assert all(isinstance(frame.header["until"], float) for frame in device.asked)


def test_a_question_that_was_cut_off_is_asked_once_more(device: Device) -> None:
    """The engine died of something; its successor answers."""
    player = device.play(dies, answers)
    with LocalClient.open(device.home.path) as client:
        assert len(client.predict(BATCH)) == 2
    player.join(10)


def test_a_question_that_kills_is_not_asked_for_ever(device: Device) -> None:
    """It may be the reason: after the second death its asker is told."""
    player = device.play(dies, dies_within)
    client = LocalClient.open(device.home.path)
    with pytest.raises(UnreachableError, match="the engine hung up within an answer"):
        client.predict(BATCH)
    player.join(10)
    client.close()


def test_a_question_follows_the_engine_as_often_as_it_moves(device: Device) -> None:
    """Five bundles in a row take over: the question goes along, and none of the moves counts as a death."""
    player = device.play(moves, moves_unasked, moves, moves_unasked, moves, dies, answers)
    with LocalClient.open(device.home.path) as client:
        assert len(client.predict(BATCH)) == 2
    player.join(10)


def test_moving_for_ever_ends_with_the_deadline(device: Device) -> None:
    """Whoever always sends on does not keep the asker beyond its time."""
    over = threading.Event()

    def sends_on() -> None:
        while not over.is_set():
            try:
                stream, _ = device.listener.accept()
            except OSError:
                continue
            with stream, suppress(UnreachableError):  # who asked has given up
                moves(stream)

    device.install()
    device.listener.settimeout(0.05)
    thread = threading.Thread(target=sends_on, daemon=True)
    thread.start()
    client = LocalClient.open(device.home.path, timeout=0.2)
    with pytest.raises((DeadlineError, UnreachableError)):
        client.predict(BATCH)
    over.set()
    client.close()
    thread.join(10)


def test_an_engine_that_says_nothing_is_a_deadline(device: Device) -> None:
    """Something is installed, and it hangs."""
    device.install()
    client = LocalClient.open(device.home.path, timeout=0.1)
    with pytest.raises(DeadlineError, match="no answer in time"):
        client.predict(BATCH)
    client.close()


def test_nothing_installed_yet_is_told_as_such(device: Device) -> None:
    """After the time to wait, with the way to find out."""
    client = LocalClient.open(device.home.path, timeout=0.1)
    with pytest.raises(NotFoundError, match=r"nothing is installed yet.*edgestill-agent status"):
        client.predict(BATCH)
    client.close()


def test_a_deadline_that_has_passed_asks_nobody(device: Device) -> None:
    """Neither the engine nor the socket."""
    device.serve()
    with LocalClient.open(device.home.path) as client:
        with pytest.raises(DeadlineError, match="no answer in time"):
            client.predict(BATCH, deadline=SystemClock().monotonic() - 1)
        assert device.asked == []
        assert len(client.predict(BATCH)) == 2


def test_an_answer_that_came_too_late_is_not_taken_for_the_next(device: Device) -> None:
    """The connection on which somebody gave up waiting is not used again."""
    go_on = threading.Event()

    def late(stream: socket.socket) -> None:
        receive(stream)
        assert go_on.wait(10)
        wrong = replace(ANSWER, probabilities=np.ones((2, 4), np.float32))
        try:
            send(stream, answer_to_frame(wrong))
        except UnreachableError:
            return

    device.install()
    player = device.play(late, answers)
    client = LocalClient.open(device.home.path, timeout=10)
    with pytest.raises(DeadlineError):
        client.predict(BATCH, deadline=SystemClock().monotonic() + 0.1)
    go_on.set()
    np.testing.assert_array_equal(client.predict(BATCH).probabilities, ANSWER.probabilities)
    client.close()
    player.join(10)


@pytest.mark.parametrize(
    "error",
    [ShapeError("another shape", expected="[N, 4]"), DtypeError("another type"), EngineError("it failed")],
)
def test_errors_are_raised_as_what_they_are_and_the_connection_stays(
    device: Device, error: EdgestillError
) -> None:
    """An application's mistake costs it nothing but the answer; nothing is asked twice."""
    device.serve(error)
    with LocalClient.open(device.home.path) as client:
        with pytest.raises(type(error), match=error.what):
            client.predict(BATCH)
        assert len(client.predict(BATCH)) == 2
    assert len(device.asked) == 2


def test_threads_that_share_a_client_each_get_their_own_answer(device: Device) -> None:
    """They wait for each other: answers are not mixed up."""

    def mirror(frame: Frame) -> Frame:
        tensor = frame.tensor("input")
        assert tensor is not None
        first = np.frombuffer(tensor.data, np.float32)[0]
        return answer_to_frame(replace(ANSWER, confidence=np.full(2, first, np.float32)))

    server = Server(device.listener, mirror, clock=SystemClock())
    server.start()
    with LocalClient.open(device.home.path) as client, ThreadPoolExecutor(8) as pool:

        def asks(value: float) -> float:
            return float(client.predict(np.full((2, 4), value, np.float32)).confidence[0])

        values = [float(number) for number in range(64)]
        assert list(pool.map(asks, values)) == values
    server.stop(seconds=5)


@pytest.mark.parametrize("labels", [np.array([0.9, 1.0]), np.array([np.nan, 1]), np.array([True, False])])
def test_labels_that_are_no_whole_numbers_are_not_rounded(
    device: Device, labels: NDArray[np.integer]
) -> None:
    """A score taken for a class would teach the device nonsense: it is refused before anything is sent."""
    device.serve()
    with (
        LocalClient.open(device.home.path) as client,
        pytest.raises(DtypeError, match="at labels; expected whole numbers"),
    ):
        client.teach(BATCH, labels)
    assert device.asked == []


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "int64"])
def test_labels_of_every_whole_kind_are_sent(device: Device, dtype: str) -> None:
    """As the engine takes them."""
    device.serve(Frame({"ok": True}))
    with LocalClient.open(device.home.path) as client:
        client.teach(BATCH, np.array([0, 3], dtype))
    (asked,) = device.asked
    tensor = asked.tensor("labels")
    assert tensor is not None
    assert np.frombuffer(tensor.data, "<i8").tolist() == [0, 3]


def test_closing_twice_is_closing_once_and_asking_connects_anew(device: Device) -> None:
    """A client may be kept for as long as the application lives."""
    device.serve()
    client = LocalClient.open(device.home.path)
    client.predict(BATCH)
    client.close()
    client.close()
    assert len(client.predict(BATCH)) == 2
    client.close()


def test_an_agent_that_starts_elsewhere_is_found_again(device: Device, tmp_path: Path) -> None:
    """The home says where the socket is now: a client outlives an agent whose socket has moved."""
    server = device.serve()
    with LocalClient.open(device.home.path) as client:
        client.predict(BATCH)
        server.stop(seconds=5)
        device.listener.close()
        device.socket.unlink()
        elsewhere = tmp_path / "elsewhere.sock"
        device.listener = listening(elsewhere)
        (device.home.path / "socket").write_bytes(str(elsewhere).encode())
        device.serve()
        assert len(client.predict(BATCH)) == 2


def test_no_device_and_no_agent_are_two_errors(tmp_path: Path, device: Device) -> None:
    """Each says what to run."""
    with pytest.raises(NotFoundError, match=r"no device lives here.*join"):
        LocalClient.open(tmp_path / "nothing")
    device.listener.close()
    with pytest.raises(UnreachableError, match=r"the agent does not answer.*run"):
        LocalClient.open(device.home.path)
    (device.home.path / "socket").unlink()
    with pytest.raises(NotFoundError, match=r"no agent has run here.*run"):
        LocalClient.open(device.home.path)


# What an engine may claim


def tensor(name: str, *shape: int, datatype: str = "float32") -> Tensor:
    """Zeros."""
    return to_tensor(name, np.zeros(shape, datatype))


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (tensor("probabilities", 2, 4),),
        (tensor("probabilities", 8), tensor("confidence", 2)),
        (tensor("probabilities"), tensor("confidence")),
        (tensor("probabilities", 2, 4), tensor("confidence")),
        (tensor("probabilities", 2, 4), tensor("confidence", 2, 1)),
        (tensor("probabilities", 3, 4), tensor("confidence", 2)),
        (tensor("probabilities", 2, 4, datatype="float64"), tensor("confidence", 2)),
        (tensor("probabilities", 2, 4), tensor("confidence", 2), tensor("student", 1, 4)),
        (tensor("probabilities", 2, 4), tensor("confidence", 2), tensor("alpha", 2, 2)),
        (tensor("probabilities", 2, 4), tensor("confidence", 2), tensor("features")),
        (tensor("probabilities", 2, 4), tensor("confidence", 2), tensor("teacher", 2, 5)),
    ],
)
def test_attack_an_answer_whose_parts_do_not_fit_is_none(device: Device, tensors: tuple[Tensor, ...]) -> None:
    """Whatever is missing, or has another shape than an answer has: refused, before the application computes with it."""
    device.serve(Frame({"decided_by": ["student", "student"], "latency": 0.0}, tensors))
    with LocalClient.open(device.home.path) as client, pytest.raises(MessageError, match="answer"):
        client.predict(BATCH)


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
parts = st.dictionaries(
    st.sampled_from(["probabilities", "confidence", "features", "alpha", "student", "teacher"]), shapes
)


@given(found=parts, decided=st.lists(st.sampled_from(["student", "fused"]), max_size=3))
def test_attack_any_parts_make_an_answer_or_a_refusal(
    found: dict[str, tuple[int, ...]], decided: list[str]
) -> None:
    """An answer that passes has one row for each input in all of its parts, and one class for each column."""
    frame = Frame(
        {"decided_by": list(decided), "latency": 0.0},
        tuple(tensor(name, *shape) for name, shape in found.items()),
    )
    try:
        answer = answer_from_frame(frame)
    except MessageError:
        return
    n, classes = answer.probabilities.shape
    assert answer.confidence.shape == (n,) == (len(answer),)
    for part in (answer.student, answer.teacher):
        assert part is None or part.shape == (n, classes)
    assert answer.alpha is None or answer.alpha.shape == (n,)
    assert answer.features is None or (answer.features.ndim, len(answer.features)) == (2, n)


# Where a device stands


def test_the_status_counts_what_waits_and_asks_nobody_when_nothing_serves(device: Device) -> None:
    """The outbox of a running agent is looked at, not opened for writing."""
    status = read_status(device.home.path)
    assert (status["release"], status["reports"], status["engine"]) == (None, 0, None)
    assert not device.home.outbox.exists()
    Outbox.open(device.home.outbox).close()
    assert read_status(device.home.path)["reports"] == 0


@pytest.mark.parametrize(
    "said",
    [Frame({"error": {"code": "engine-failed", "what": "x"}}), Frame({"error": 3}), asking.MOVED],
)
def test_an_engine_that_cannot_say_leaves_a_gap_in_the_status(device: Device, said: Frame) -> None:
    """Everything else is told all the same."""
    device.install()
    device.serve(said)
    status = read_status(device.home.path)
    assert (status["engine"], status["release"]) == (None, target(1).release)


def test_the_status_of_a_device_whose_files_rotted_is_still_one(device: Device) -> None:
    """State, outbox and socket record: what cannot be read is shown as not there."""
    device.install()
    (device.home.slots / "state.json").write_bytes(b"\xff" * 50)
    device.home.outbox.write_bytes(b"\xff" * 5000)
    (device.home.path / "socket").write_bytes(b"\0")
    status = read_status(device.home.path)
    assert (status["device"], status["release"], status["reports"]) == ("d1", None, 0)
    assert device.home.outbox.read_bytes() == b"\xff" * 5000


def test_a_label_that_is_no_class_is_told_to_who_said_it(device: Device) -> None:
    """As its own error, and the connection goes on."""
    device.serve(ClassCountError("labels that are no classes", where="labels"), Frame({"ok": True}))
    with LocalClient.open(device.home.path) as client:
        with pytest.raises(ClassCountError, match="labels that are no classes"):
            client.teach(BATCH, np.array([0, 9]))
        client.teach(BATCH, np.array([0, 1]))

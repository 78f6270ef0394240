"""A remote model: asked within bounds, and believed only where its answer is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from edgestill.core.errors import (
    AccessError,
    DeadlineError,
    DtypeError,
    NotFiniteError,
    NotFoundError,
    RefusedError,
    SettingError,
    ShapeError,
    SpentError,
    UnreachableError,
)
from edgestill.core.oip import DATATYPE_OF, HEADER, NUMPY_NAMES, InferRequest, InferResponse, Tensor
from edgestill.link.allowance import Allowance, Meter
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.inference import RemoteModel
from edgestill.link.ledger import Ledger
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from starlette.requests import Request as WebRequest

    from edgestill.core import protocols
    from edgestill.core.jsonio import Json
    from edgestill.core.protocols import Transport

URL = "http://teacher.test"
BATCH = np.arange(12, dtype=np.float32).reshape(3, 4)
WEIGHT = np.array([[1, 0, -1], [0, 1, 0], [2, 0, 0], [0, 0, 1]], dtype=np.float32) / 4


class _Server:
    """An Open Inference Protocol server with one linear model."""

    def __init__(self) -> None:
        self.speaks_binary = True
        self.refusal = 422
        self.name = "logits"
        self.asked: list[tuple[InferRequest, bool, dict[str, str]]] = []
        self.answer: Response | None = None
        self.logits: NDArray[np.generic] | None = None
        self.asgi = Starlette(routes=[Route("/v2/models/{model}/infer", self.infer, methods=["POST"])])

    async def infer(self, request: WebRequest) -> Response:
        body, length = await request.body(), request.headers.get(HEADER)
        if request.path_params["model"] != "teacher":
            return Response(b'{"error": "no such model"}', 404)
        if length is not None and not self.speaks_binary:
            return Response(b'{"detail": "not the JSON I expect"}', self.refusal)
        asked = InferRequest.decode(body, None if length is None else int(length))
        self.asked.append((asked, length is not None, dict(request.headers)))
        if self.answer is not None:
            return self.answer
        logits = _array(asked.inputs[0]).astype(np.float32) @ WEIGHT if self.logits is None else self.logits
        return _answer(logits, binary=asked.binary, name=self.name)


def _array(tensor: Tensor) -> NDArray[np.generic]:
    return np.frombuffer(tensor.data, dtype=NUMPY_NAMES[tensor.datatype]).reshape(tensor.shape)


def _answer(logits: NDArray[np.generic], *, binary: bool, name: str = "logits") -> Response:
    tensor = Tensor(name, DATATYPE_OF[logits.dtype.name], logits.shape, logits.tobytes())
    body, length = InferResponse(model="teacher", outputs=(tensor,)).encode(binary=binary)
    return Response(body, headers={} if length is None else {HEADER: str(length)})


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.fixture
def server() -> _Server:
    return _Server()


@pytest.fixture
def transport(server: _Server) -> Iterator[AsgiTransport]:
    with AsgiTransport(server.asgi) as opened:
        yield opened


def _model(transport: Transport, clock: FakeClock | None = None, **rest: object) -> RemoteModel:
    wanted = {"model": "teacher", "clock": clock or FakeClock(), "timeout": 5.0} | rest
    return RemoteModel(transport, URL, **wanted)  # type: ignore[arg-type]  # keywords by name


def test_an_answer_is_the_softmax_of_the_servers_logits(transport: AsgiTransport) -> None:
    """In float32, named as the teacher's, with its confidence."""
    answer = _model(transport, temperature=2.0).predict(BATCH)
    assert answer.probabilities.dtype == answer.confidence.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, _softmax(BATCH @ WEIGHT / 2), rtol=1e-6)
    np.testing.assert_array_equal(answer.confidence, answer.probabilities.max(axis=1))
    assert answer.decided_by == ("teacher",) * 3
    assert answer.teacher is not None
    assert answer.alpha is not None
    np.testing.assert_array_equal(answer.teacher, answer.probabilities)
    np.testing.assert_array_equal(answer.alpha, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("told", "heard"),
    [
        (["student", "teacher", "fused"], ("student", "teacher", "fused")),
        (["student", "teacher"], ("teacher",) * 3),
        (["student", "teacher", "the king"], ("teacher",) * 3),
        (["student", ["teacher"], None], ("teacher",) * 3),
        ("student", ("teacher",) * 3),
        (None, ("teacher",) * 3),
    ],
)
def test_who_decided_is_told_by_a_server_of_ours(
    server: _Server, transport: AsgiTransport, told: Json, heard: tuple[str, ...]
) -> None:
    """A gateway that answered without its teacher says so; what makes no sense is passed over."""
    tensor = Tensor("logits", "FP32", (3, 2), np.zeros((3, 2), np.float32).tobytes())
    said = InferResponse(model="teacher", outputs=(tensor,), parameters={"decided_by": told})
    body, length = said.encode()
    server.answer = Response(body, headers={HEADER: str(length)})
    answer = _model(transport).predict(BATCH)
    assert answer.decided_by == heard
    assert answer.teacher is not None
    assert np.isfinite(answer.teacher[:, 0]).tolist() == [one == "teacher" for one in heard]


def test_who_does_not_tell_is_the_teacher_only_where_we_say_so(transport: AsgiTransport) -> None:
    """A neighbour's server of any make is another student until it says otherwise."""
    answer = _model(transport, is_teacher=False).predict(BATCH)
    assert answer.decided_by == ("student",) * 3
    assert answer.teacher is not None
    assert np.isnan(answer.teacher).all()


def test_the_question_carries_what_was_given(server: _Server, transport: AsgiTransport) -> None:
    """Input, output, parameters and credential; raw tensors, and no need for a JSON answer."""
    model = _model(
        transport, credential="c0ffee", parameters={"purpose": "audit", "retain": True}, input="sensor"
    )
    model.predict(BATCH.astype(np.uint8))
    asked, binary, headers = server.asked[0]
    assert (asked.inputs[0].name, asked.inputs[0].datatype, asked.inputs[0].shape) == (
        "sensor",
        "UINT8",
        (3, 4),
    )
    assert bytes(asked.inputs[0].data) == bytes(range(12))
    assert asked.parameters == {"purpose": "audit", "retain": True, "timeout_ms": 4500}
    assert (asked.outputs, asked.binary, binary) == (("logits",), True, True)
    assert headers["authorization"] == "Bearer c0ffee"


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    name=st.sampled_from(["uint8", "int16", "int64", "float16", "float32", "float64", "bool"]),
    big_endian=st.booleans(),
    binary=st.booleans(),
)
def test_every_array_arrives_as_it_was(shape: list[int], name: str, big_endian: bool, binary: bool) -> None:
    """Of any datatype, byte order, memory layout and rank, with raw tensors and with JSON."""
    server = _Server()
    server.speaks_binary, server.logits = binary, np.zeros((shape[0], 2), np.float32)
    batch = (np.random.default_rng(0).normal(0, 3, shape[::-1]) ** 2).astype(name).T
    if big_endian:
        batch = batch.astype(batch.dtype.newbyteorder(">"))
    with AsgiTransport(server.asgi) as transport:
        _model(transport).predict(batch)
    np.testing.assert_array_equal(_array(server.asked[0][0].inputs[0]), batch)


@pytest.mark.parametrize("refusal", [400, 415, 422, 500])
def test_a_server_that_refuses_raw_tensors_is_asked_in_json(
    server: _Server, transport: AsgiTransport, refusal: int
) -> None:
    """Once, and then always."""
    server.speaks_binary, server.refusal = False, refusal
    faulty = FaultyTransport(transport, [], clock=FakeClock())
    model = _model(faulty)
    for _ in range(2):
        np.testing.assert_allclose(model.predict(BATCH).probabilities, _softmax(BATCH @ WEIGHT), rtol=1e-6)
    assert [HEADER in request.headers for request in faulty.requests] == [True, False, False]
    assert server.asked[0][0].binary is False


def test_a_question_that_is_refused_either_way_is_not_taken_for_json(
    server: _Server, transport: AsgiTransport
) -> None:
    """The refusal is told, and raw tensors stay worth a try."""
    faulty = FaultyTransport(transport, lambda _: Fault(status=422), clock=FakeClock())
    model = _model(faulty)
    for _ in range(2):
        with pytest.raises(
            RefusedError, match=r"at POST http://teacher.test/v2/models/teacher/infer; got HTTP 422"
        ):
            model.predict(BATCH)
    assert [HEADER in request.headers for request in faulty.requests] == [True, False, True, False]


def test_a_server_that_has_taken_raw_tensors_is_not_asked_in_json(
    server: _Server, transport: AsgiTransport
) -> None:
    """Its refusal is about the question."""
    faulty = FaultyTransport(transport, [None, Fault(status=400)], clock=FakeClock())
    model = _model(faulty)
    model.predict(BATCH)
    with pytest.raises(RefusedError, match="got HTTP 400"):
        model.predict(BATCH)
    assert len(faulty.requests) == 2


def test_a_model_that_is_not_there_is_not_found(transport: AsgiTransport) -> None:
    """And no name of a model leads to another path."""
    with pytest.raises(NotFoundError, match="no such model"):
        _model(transport, model="other").predict(BATCH)
    with pytest.raises(NotFoundError, match=r"models/\.\.%2F\.\.%2Fadmin/infer"):
        _model(transport, model="../../admin").predict(BATCH)


def test_a_stranger_has_no_access(transport: AsgiTransport) -> None:
    """401 is told as such."""
    faulty = FaultyTransport(transport, [Fault(status=401)], clock=FakeClock())
    with pytest.raises(AccessError, match="got HTTP 401"):
        _model(faulty).predict(BATCH)


# Garbage is never returned


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros((3, 0), np.float32),
        np.zeros(3, np.float32),
        np.zeros((3, 3, 1), np.float32),
        np.zeros((3, 3), np.int32),
        np.zeros((3, 3), np.bool_),
    ],
)
def test_attack_an_answer_of_another_shape(
    server: _Server, transport: AsgiTransport, logits: NDArray[np.generic]
) -> None:
    """Rows, columns, rank and datatype must be those of an answer to this question."""
    server.logits = logits
    with pytest.raises(
        RefusedError, match=r"an answer of another shape; at .*logits; expected floats \[3, C\]"
    ):
        _model(transport).predict(BATCH)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_attack_an_answer_that_is_not_finite(
    server: _Server, transport: AsgiTransport, bad: float, name: str
) -> None:
    """A single NaN spoils it."""
    server.logits = np.zeros((3, 3), name)
    server.logits[1, 1] = bad
    with pytest.raises(RefusedError, match="an answer that is not finite"):
        _model(transport).predict(BATCH)


def test_attack_another_number_of_classes(server: _Server, transport: AsgiTransport) -> None:
    """It is fixed by the first answer, or beforehand."""
    model = _model(transport)
    model.predict(BATCH)
    server.logits = np.zeros((3, 4), np.float32)
    with pytest.raises(RefusedError, match=r"expected floats \[3, 3\]; got FP32 \[3, 4\]"):
        model.predict(BATCH)
    with pytest.raises(RefusedError, match=r"expected floats \[3, 5\]"):
        _model(transport, classes=5).predict(BATCH)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"not json",
        b'{"model_name": "teacher", "outputs": []}',
        json.dumps(
            {
                "model_name": "t",
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [3, 3], "data": [1]}],
            }
        ).encode(),
        json.dumps(
            {
                "model_name": "t",
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2**31] * 8, "data": []}],
            }
        ).encode(),
    ],
)
def test_attack_an_answer_that_is_none(server: _Server, transport: AsgiTransport, body: bytes) -> None:
    """Whatever it is, it is a refusal and not an answer."""
    server.answer = Response(body)
    with pytest.raises(RefusedError, match=r"an answer (that is none|without the output)"):
        _model(transport).predict(BATCH)


@pytest.mark.parametrize("length", ["-1", "x", "1" * 50, "999999", "²"])
def test_attack_a_length_that_is_none(server: _Server, transport: AsgiTransport, length: str) -> None:
    """Of the JSON before the raw tensors."""
    faulty = FaultyTransport(transport, [Fault(headers=((HEADER, length),))], clock=FakeClock())
    with pytest.raises(RefusedError, match="an answer that is none"):
        _model(faulty).predict(BATCH)


def test_attack_an_answer_that_is_too_long(server: _Server, transport: AsgiTransport) -> None:
    """More than the numbers asked for can need is not read."""
    server.answer = Response(b" " * 200_000)
    with pytest.raises(RefusedError, match="an answer that is too long"):
        _model(transport, classes=3).predict(BATCH)


@pytest.mark.parametrize("temperature", [1.0, 1e-300, 1e300])
def test_extreme_logits_are_an_answer(server: _Server, transport: AsgiTransport, temperature: float) -> None:
    """They make probabilities, and never NaN, at any temperature."""
    server.logits = np.array([[1.7e308, -1.7e308], [0, 1e3], [-1e5, -1e5]])
    got = _model(transport, temperature=temperature).predict(BATCH).probabilities
    np.testing.assert_allclose(got.sum(axis=1), 1)
    np.testing.assert_array_equal(got[2], [0.5, 0.5])
    if temperature <= 1:
        np.testing.assert_array_equal(got[:2], [[1, 0], [0, 1]])


# What is not asked


@pytest.mark.parametrize("shape", [(), (0, 4), (3, 0), (1,) * 9])
def test_a_batch_without_a_question_is_refused(transport: AsgiTransport, shape: tuple[int, ...]) -> None:
    """Before anything is sent."""
    with pytest.raises(ShapeError, match=r"a batch that cannot be asked about; at input"):
        _model(transport).predict(np.zeros(shape, np.float32))


def test_a_batch_of_no_datatype_of_the_protocol_is_refused(transport: AsgiTransport) -> None:
    """Such as complex numbers and texts."""
    for name in ("complex64", "U3"):
        with pytest.raises(DtypeError, match="a batch that cannot be asked about"):
            _model(transport).predict(np.zeros((1, 2), name))


def test_a_batch_that_is_not_finite_is_refused(transport: AsgiTransport) -> None:
    """No server shall be asked what nobody can answer."""
    for name in ("float16", "float64"):
        with pytest.raises(NotFiniteError, match="a batch with NaN or infinity"):
            _model(transport).predict(np.full((1, 2), np.nan, name))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(transport: AsgiTransport, temperature: float) -> None:
    """When the model is made."""
    with pytest.raises(SettingError, match="a temperature out of range"):
        _model(transport, temperature=temperature)


# Deadlines, budgets and breakers end a question


def test_the_earlier_of_deadline_and_timeout_holds(transport: AsgiTransport) -> None:
    """A caller's deadline may be earlier than the model's timeout, never later."""
    for deadline, until in ((3.0, 3.0), (100.0, 5.0), (None, 5.0)):
        clock = FakeClock(monotonic=0)
        faulty = FaultyTransport(transport, [Fault(delay=50)], clock=clock)
        with pytest.raises(DeadlineError, match="no answer in time"):
            _model(faulty, clock).predict(BATCH, deadline=deadline)
        assert clock.monotonic() == until


def test_a_deadline_that_has_passed_asks_nobody(transport: AsgiTransport) -> None:
    """And does not count against the peer."""
    clock = FakeClock(monotonic=10)
    faulty = FaultyTransport(transport, [], clock=clock)
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    with pytest.raises(DeadlineError, match=r"no time left to ask; at .*; got -1\.000 s"):
        _model(faulty, clock, breaker=guard).predict(BATCH, deadline=9)
    assert (faulty.requests, guard.state) == ([], "closed")


def test_latency_is_what_the_clock_says(transport: AsgiTransport) -> None:
    """From asking to answering."""
    clock = FakeClock()
    answer = _model(FaultyTransport(transport, [Fault(delay=2)], clock=clock), clock).predict(BATCH)
    assert answer.latency == 2


def test_questions_and_answers_are_counted(server: _Server, transport: AsgiTransport) -> None:
    """Both bodies; a second question in JSON too."""
    clock = FakeClock()
    meter = Meter(Allowance(), clock)
    model = _model(transport, clock, allowance=meter)
    model.predict(BATCH)
    once = meter.allowance.spent
    assert once > BATCH.nbytes + 3 * 3 * 4
    model.predict(BATCH)
    assert meter.allowance.spent == 2 * once


def test_attack_a_question_that_is_under_way_has_its_bytes_for_itself(
    transport: AsgiTransport, tmp_path: Path
) -> None:
    """Another at the same time is not asked with them, and the count on disk has them before they go."""
    clock = FakeClock()
    path = tmp_path / "budget.json"
    sizes = _model(transport, clock)
    sizes.predict(BATCH)
    ledger = Ledger(path, bytes_per_day=sizes.take_sent() + BATCH.nbytes, clock=clock)
    outcomes: list[str] = []

    class Slow:
        """While the first question goes, another is asked."""

        def send(self, request: protocols.Request, *, timeout: float) -> protocols.Response:
            counted = Ledger(path, bytes_per_day=None, clock=clock).account().allowance.spent
            assert counted >= len(request.body)
            with pytest.raises(SpentError):
                _model(transport, clock, allowance=ledger).predict(BATCH)
            outcomes.append("refused")
            return transport.send(request, timeout=timeout)

    _model(Slow(), clock, allowance=ledger).predict(BATCH)
    assert outcomes == ["refused"]


def test_a_question_beyond_the_budget_is_not_asked(transport: AsgiTransport) -> None:
    """It costs nothing, and says nothing about the peer."""
    clock = FakeClock()
    faulty = FaultyTransport(transport, [], clock=clock)
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    meter = Meter(Allowance(bytes_per_day=BATCH.nbytes - 1), clock)
    with pytest.raises(SpentError, match="the data budget of today is used up"):
        _model(faulty, clock, allowance=meter, breaker=guard).predict(BATCH)
    assert (faulty.requests, meter.allowance.spent, guard.state) == ([], 0, "closed")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(lose_answer=True),
        Fault(delay=100),
        Fault(status=502),
        Fault(status=503),
        Fault(end_after=50),
        Fault(break_after=50),
        Fault(alter_at=0),
        Fault(status=302),
    ],
)
def test_what_speaks_against_the_peer_opens_the_breaker(transport: AsgiTransport, fault: Fault) -> None:
    """Then it is left alone, asked once after the pause, and trusted again when it answers."""
    clock = FakeClock()
    faulty = FaultyTransport(transport, [fault, fault], clock=clock)
    guard = Guard(Breaker(threshold=2, pause=10), clock=clock, random=lambda: 0.5)
    model = _model(faulty, clock, breaker=guard)
    for _ in range(2):
        with pytest.raises((UnreachableError, DeadlineError, RefusedError)):
            model.predict(BATCH)
    with pytest.raises(UnreachableError, match="left alone"):
        model.predict(BATCH)
    assert len(faulty.requests) == 2
    clock.advance(10)
    model.predict(BATCH)
    assert guard.state == "closed"


def test_a_server_that_fails_in_both_forms_counts_once_for_each_question(transport: AsgiTransport) -> None:
    """Until it has shown what it takes, a failure may be its way to refuse raw tensors."""
    clock = FakeClock()
    faulty = FaultyTransport(transport, [Fault(status=500)] * 4, clock=clock)
    guard = Guard(Breaker(threshold=2, pause=10), clock=clock, random=lambda: 0.5)
    model = _model(faulty, clock, breaker=guard)
    for state in ("closed", "open"):
        with pytest.raises(RefusedError):
            model.predict(BATCH)
        assert guard.state == state
    assert len(faulty.requests) == 4


def test_probabilities_are_taken_as_they_are(transport: AsgiTransport, server: _Server) -> None:
    """No softmax and no temperature is laid over them."""
    given = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0.3333, 0.3333, 0.3333]], np.float32)
    server.name, server.logits = "probabilities", given
    model = _model(transport, FakeClock(), output="probabilities", temperature=3.0)
    answer = model.predict(BATCH)
    np.testing.assert_array_equal(answer.probabilities, given)
    np.testing.assert_array_equal(answer.confidence, given.max(axis=1))


@pytest.mark.parametrize("row", [[0.5, 0.25, 0.26], [1.5, -0.5, 0], [0, 0, 0], [3, -1, -1]])
def test_attack_what_is_no_set_of_probabilities_is_no_answer(
    transport: AsgiTransport, server: _Server, row: list[float]
) -> None:
    """Negative ones, and such as do not sum to 1."""
    server.name, server.logits = "probabilities", np.array([row] * 3, np.float32)
    with pytest.raises(RefusedError, match="no set of probabilities"):
        _model(transport, FakeClock(), output="probabilities").predict(BATCH)


@pytest.mark.parametrize("status", [401, 409, 429])
def test_what_speaks_against_the_question_does_not(transport: AsgiTransport, status: int) -> None:
    """The peer answered."""
    clock = FakeClock()
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    faulty = FaultyTransport(transport, [Fault(status=status)], clock=clock)
    with pytest.raises((RefusedError, AccessError)):
        _model(faulty, clock, breaker=guard).predict(BATCH)
    assert guard.state == "closed"


def test_a_server_without_the_model_is_left_alone_for_a_while(transport: AsgiTransport) -> None:
    """The next question would miss it as well, and would cost its bytes."""
    clock = FakeClock()
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    with pytest.raises(NotFoundError):
        _model(FaultyTransport(transport, [Fault(status=404)], clock=clock), clock, breaker=guard).predict(
            BATCH
        )
    with pytest.raises(UnreachableError, match="left alone"):
        _model(transport, clock, breaker=guard).predict(BATCH)


def test_models_of_one_server_share_a_breaker(transport: AsgiTransport) -> None:
    """What one has learned keeps the other away."""
    clock = FakeClock()
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    faulty = FaultyTransport(transport, [Fault(drop=True)], clock=clock)
    first, second = (
        _model(faulty, clock, breaker=guard, parameters={"purpose": name}) for name in ("escalation", "audit")
    )
    with pytest.raises(UnreachableError, match="no connection"):
        first.predict(BATCH)
    with pytest.raises(UnreachableError, match="left alone"):
        second.predict(BATCH)

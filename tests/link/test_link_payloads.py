"""A remote model that takes payloads gets few bytes, and one that does not gets the numbers: the answer is the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from edgestill.core.errors import DeadlineError, RefusedError, SpentError, UnreachableError
from edgestill.core.oip import DATATYPE_OF, HEADER, InferRequest, InferResponse, Tensor
from edgestill.infer.payload import LOSSLESS, Coder, Payload, decode
from edgestill.link.allowance import Allowance, Meter
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.inference import RemoteModel
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from starlette.requests import Request as WebRequest

    from edgestill.core.jsonio import JsonObject

BATCH = np.repeat(np.arange(3, dtype=np.uint8)[:, None], 400, axis=1)


class _Server:
    """Answers each input's first number as its class; takes payloads where it says so, or where it says so and lies."""

    def __init__(self) -> None:
        self.metadata: Any = {"inputs": [{"name": "input", "parameters": {"codecs": ["deflate", "rle"]}}]}
        self.status = 200
        self.takes_payloads = self.speaks_binary = True
        self.asked: list[Tensor] = []
        self.looked = 0
        self.parameters: JsonObject = {}
        self.told: dict[str, Any] = {}
        self.refuses = 0
        routes = [
            Route("/v2/models/teacher", self.model),
            Route("/v2/models/teacher/infer", self.infer, methods=["POST"]),
        ]
        self.asgi = Starlette(routes=routes)

    async def model(self, _: WebRequest) -> Response:
        self.looked += 1
        data = self.metadata if isinstance(self.metadata, bytes) else json.dumps(self.metadata).encode()
        return Response(data, self.status)

    async def infer(self, request: WebRequest) -> Response:
        body, length = await request.body(), request.headers.get(HEADER)
        if length is not None and not self.speaks_binary:
            return Response(b"{}", 422)
        asked = InferRequest.decode(body, None if length is None else int(length))
        (tensor,) = asked.inputs
        self.asked.append(tensor)
        self.told = dict(asked.parameters)
        if self.refuses:
            return Response(b'{"error": "no"}', self.refuses)
        if tensor.datatype == "BYTES" and not self.takes_payloads:
            return Response(b'{"error": "another datatype"}', 400)
        logits = np.eye(3, dtype=np.float32)[_batch(tensor)[:, 0]]
        answer = Tensor("logits", DATATYPE_OF[logits.dtype.name], logits.shape, logits.tobytes())
        said = InferResponse(model="teacher", outputs=(answer,), parameters=self.parameters)
        data, size = said.encode(binary=asked.binary)
        return Response(data, headers={} if size is None else {HEADER: str(size)})


def _batch(tensor: Tensor) -> NDArray[np.generic]:
    if tensor.datatype != "BYTES":
        return np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    payload = Payload(codec=str(tensor.parameters["codec"]), parts=tensor.strings())
    assert tensor.parameters["shape"] == [400]
    return decode(payload, np.dtype(np.uint8), (400,))


@pytest.fixture
def server() -> _Server:
    return _Server()


@pytest.fixture
def transport(server: _Server) -> Iterator[AsgiTransport]:
    with AsgiTransport(server.asgi) as opened:
        yield opened


def remote(transport: Any, clock: FakeClock | None = None, **rest: Any) -> RemoteModel:
    """It, with every lossless codec allowed."""
    own = clock or FakeClock()
    coder = Coder(LOSSLESS, clock=own)
    return RemoteModel(
        transport, "http://teacher.test", model="teacher", clock=own, timeout=5.0, coder=coder, **rest
    )


def classes(model: RemoteModel) -> list[int]:
    """What it answers to `BATCH`."""
    found: list[int] = model.predict(BATCH).probabilities.argmax(axis=1).tolist()
    return found


def test_what_is_offered_is_used_and_asked_for_once(server: _Server, transport: AsgiTransport) -> None:
    """Payloads go out in the codec that both know, and the metadata are looked at before the first."""
    model = remote(transport)
    assert [classes(model) for _ in range(3)] == [[0, 1, 2]] * 3
    assert [tensor.datatype for tensor in server.asked] == ["BYTES"] * 3
    assert server.asked[0].parameters["codec"] == "deflate"
    assert server.looked == 1
    assert len(server.asked[0].data) < BATCH.nbytes / 10


@pytest.mark.parametrize(
    "metadata",
    [
        {"inputs": [{"name": "input"}]},
        {"inputs": [{"name": "input", "parameters": {}}]},
        {"inputs": [{"name": "input", "parameters": {"codecs": []}}]},
        {"inputs": [{"name": "input", "parameters": {"codecs": ["rle", 7, None]}}]},
        {"inputs": [{"name": "input", "parameters": {"codecs": "deflate"}}]},
        {"inputs": [{"name": "input", "parameters": 3}]},
        {"inputs": [{"name": "other", "parameters": {"codecs": ["deflate"]}}]},
        {"inputs": [{"name": 3}]},
        {"inputs": {}},
        {},
        [],
        b"no json",
    ],
)
def test_where_nothing_is_offered_the_numbers_are_sent(
    server: _Server, transport: AsgiTransport, metadata: Any
) -> None:
    """Metadata that say nothing of codecs, or make no sense, cost nothing but the look."""
    server.metadata = metadata
    model = remote(transport)
    assert [classes(model) for _ in range(2)] == [[0, 1, 2]] * 2
    assert [tensor.datatype for tensor in server.asked] == ["UINT8"] * 2
    assert server.looked == 1


@pytest.mark.parametrize("status", [401, 404, 405, 500])
def test_a_server_without_metadata_gets_the_numbers(
    server: _Server, transport: AsgiTransport, status: int
) -> None:
    """Some servers do not tell them, or not to everybody."""
    server.status = status
    assert classes(remote(transport)) == [0, 1, 2]
    assert server.asked[0].datatype == "UINT8"


def test_a_server_that_refuses_what_it_offered_gets_the_numbers_from_then_on(
    server: _Server, transport: AsgiTransport
) -> None:
    """One question is asked twice, and none after it."""
    server.takes_payloads = False
    model = remote(transport)
    assert [classes(model) for _ in range(3)] == [[0, 1, 2]] * 3
    assert [tensor.datatype for tensor in server.asked] == ["BYTES", "UINT8", "UINT8", "UINT8"]


def test_a_server_that_speaks_json_only_gets_json(server: _Server, transport: AsgiTransport) -> None:
    """An offer does not hide that raw tensors are refused."""
    server.speaks_binary = False
    model = remote(transport)
    assert [classes(model) for _ in range(2)] == [[0, 1, 2]] * 2
    assert {tensor.datatype for tensor in server.asked} == {"UINT8"}


def test_a_lost_look_at_the_metadata_is_a_lost_question_and_no_more(
    server: _Server, transport: AsgiTransport
) -> None:
    """The connection breaks while it is asked for: a coded error, then the numbers, and after a minute another look."""
    clock = FakeClock()
    model = remote(FaultyTransport(transport, [Fault(drop=True)], clock=clock), clock=clock)
    with pytest.raises(UnreachableError):
        model.predict(BATCH)
    assert classes(model) == [0, 1, 2]
    clock.advance(60.0)
    assert classes(model) == [0, 1, 2]
    assert [tensor.datatype for tensor in server.asked] == ["UINT8", "BYTES"]
    assert server.looked == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_say_now_is_asked_again_later(
    server: _Server, transport: AsgiTransport, status: int
) -> None:
    """Busy or broken metadata are no refusal for ever."""
    clock = FakeClock()
    model, server.status = remote(transport, clock=clock), status
    assert classes(model) == [0, 1, 2]
    server.status = 200
    clock.advance(60.0)
    assert classes(model) == [0, 1, 2]
    assert [tensor.datatype for tensor in server.asked] == ["UINT8", "BYTES"]


def test_metadata_that_hang_take_half_of_the_time_once(server: _Server, transport: AsgiTransport) -> None:
    """The question is still asked with the other half, and the next one does not wait for them again."""
    clock = FakeClock()
    hanging = FaultyTransport(
        transport, lambda request: Fault(delay=3600.0) if request.method == "GET" else None, clock=clock
    )
    model, start = remote(hanging, clock=clock), clock.monotonic()
    assert model.predict(BATCH, deadline=start + 2.0).probabilities.argmax(axis=1).tolist() == [0, 1, 2]
    assert clock.monotonic() - start == pytest.approx(1.0)
    assert classes(model) == [0, 1, 2]
    assert clock.monotonic() - start == pytest.approx(1.0)


def test_one_bad_input_does_not_end_the_payloads(server: _Server, transport: AsgiTransport) -> None:
    """Where the numbers are refused as well, it was the input: the next one is coded again."""
    model = remote(transport)
    classes(model)
    server.refuses = 422
    with pytest.raises(RefusedError):
        model.predict(BATCH)
    server.refuses = 0
    classes(model)
    assert server.asked[-1].datatype == "BYTES"


def test_coding_that_takes_too_long_says_nothing_against_the_peer(
    server: _Server, transport: AsgiTransport
) -> None:
    """The deadline passes before anything is sent: a coded error, and the breaker stays as it was."""
    clock = FakeClock()
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)

    def slow(_batch: NDArray[np.generic], _offered: Any, _until: float) -> None:
        clock.advance(10.0)

    model = RemoteModel(
        transport, "http://teacher.test", model="teacher", clock=clock, timeout=5.0, coder=slow, breaker=guard
    )
    for _ in range(3):
        with pytest.raises(DeadlineError):
            model.predict(BATCH)
    assert guard.state == "closed"
    assert server.asked == []


def test_the_fallback_to_the_numbers_must_fit_the_data_budget(
    server: _Server, transport: AsgiTransport
) -> None:
    """A payload is refused, and the numbers are too many bytes for today: they are not sent."""
    server.takes_payloads = False
    meter = Meter(Allowance(bytes_per_day=1_100), clock=FakeClock())
    model = remote(transport, allowance=meter)
    with pytest.raises(SpentError):
        model.predict(BATCH)
    assert [tensor.datatype for tensor in server.asked] == ["BYTES"]


def test_the_server_is_told_how_long_it_has(server: _Server, transport: AsgiTransport) -> None:
    """A part of what is left, so that a gateway answers alone in time."""
    clock = FakeClock()
    remote(transport, clock=clock).predict(BATCH, deadline=clock.monotonic() + 2.0)
    assert 1_000 < server.told["timeout_ms"] <= 1_800


def test_the_data_budget_counts_what_was_sent_and_not_the_numbers(
    server: _Server, transport: AsgiTransport
) -> None:
    """And `bytes_each` tells what an input takes: at first its numbers, then what it took."""
    meter = Meter(Allowance(), clock=FakeClock())
    model = remote(transport, allowance=meter)
    assert model.bytes_each(BATCH) == 400
    classes(model)
    assert 0 < meter.allowance.spent < 1_500
    sent = model.take_sent()
    assert model.bytes_each(BATCH) == pytest.approx(sent / 3, abs=1)
    assert len(server.asked[0].data) < sent < BATCH.nbytes
    assert model.take_sent() == 0


def test_a_payload_that_does_not_fit_the_data_budget_is_not_sent(
    server: _Server, transport: AsgiTransport
) -> None:
    """The numbers would not fit either way; the payload fits until the budget is used up, and the breaker stays closed."""
    clock = FakeClock()
    meter = Meter(Allowance(bytes_per_day=800), clock=clock)
    guard = Guard(Breaker(threshold=1), clock=clock, random=lambda: 0.5)
    model = remote(transport, allowance=meter, breaker=guard)
    assert classes(model) == [0, 1, 2]
    meter.spend(meter.left() or 0)
    with pytest.raises(SpentError):
        classes(model)
    assert guard.state == "closed"
    assert BATCH.nbytes > 800


@pytest.mark.parametrize(
    ("told", "tiers"),
    [
        (["cloud,near", "", "cloud"], ("cloud", "near")),
        ([], ()),
        ("cloud", ()),
        ([7, None, "cloud"], ("cloud",)),
        (["a\nb", "cloud"], ("cloud",)),
        ([",".join(f"t{at}" for at in range(500))], tuple(f"t{at}" for at in range(16))),
        ({"cloud": 1}, ()),
    ],
)
def test_whom_the_server_asked_is_told_and_bounded(
    server: _Server, transport: AsgiTransport, told: Any, tiers: tuple[str, ...]
) -> None:
    """As one of ours tells it; anything else is left out, and never an error."""
    server.parameters = {"tiers": told}
    assert remote(transport).predict(BATCH).tiers == tiers


def test_garbage_for_a_payload_is_refused_as_it_is_for_numbers(
    server: _Server, transport: AsgiTransport
) -> None:
    """An answer for fewer inputs is none."""
    model = remote(transport, classes=4)
    with pytest.raises(RefusedError):
        model.predict(BATCH)

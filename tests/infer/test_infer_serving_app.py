"""The ASGI application: who is let in, what is read, and what comes back, over the real application in memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_served import asked, doubling, output, sums

from edgestill.core import errors
from edgestill.core.errors import AccessError, EdgestillError, MessageError
from edgestill.core.oip import HEADER
from edgestill.infer.serving import bodies, replies
from edgestill.infer.serving.app import App, respond
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.limits import Rate, RateLimit
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.oip import InferRequest
    from edgestill.infer.serving.app import Scope
    from edgestill.infer.serving.endpoint import Question
    from edgestill.infer.serving.served import Rows

INFER = "/v2/models/double/infer"
BATCH = np.array([[1, 2], [3, 4]], np.float32)


@dataclass
class Visitor:
    """Tells what it saw."""

    caller: str
    seen: list[int] = field(default_factory=list)

    def check(self, request: InferRequest) -> None:
        """Understands no colours."""
        if "colour" in request.parameters:
            raise MessageError("no colours here", where="parameters", expected="none", got="one")

    async def answered(self, question: Question, rows: Rows) -> dict[str, Any]:
        """Counts."""
        self.seen.append(len(question.batch))
        return {"seen": sum(self.seen), "outputs": sorted(rows.outputs)}


class Door:
    """Lets in who says a name."""

    def __init__(self) -> None:
        self.visitors: dict[str, Visitor] = {}

    async def admit(self, scope: Scope) -> Visitor:
        """By the header `name`."""
        name = dict(scope["headers"]).get(b"name", b"").decode()
        if not name:
            raise AccessError("who is it", where="name", expected="a name", got="none", fix="say it")
        return self.visitors.setdefault(name, Visitor(name))


class Caller:
    """Sends requests to the application, as a server would."""

    def __init__(self, **settings: Any) -> None:
        self.endpoint = Endpoint(
            [doubling(), sums()], about=About(name="test", version="0"), clock=FakeClock()
        )
        self.app = App(self.endpoint, gate=Door(), **settings)

    def __call__(
        self, method: str, path: str, *chunks: bytes | None, name: str = "ann", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields, body; a chunk that is None is a caller who hangs up."""
        named = {key.replace("_", "-"): value for key, value in headers.items()} | {"name": name}
        return asyncio.run(self._call(method, path, chunks or (b"",), named))

    async def _call(
        self, method: str, path: str, chunks: tuple[bytes | None, ...], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        pairs = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        left, sent = list(chunks), []

        async def receive() -> dict[str, Any]:
            if not left:
                await asyncio.Event().wait()
            chunk = left.pop(0)
            if chunk is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": bool(left) or chunk == b"..."}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self.app(scope, receive, send)
        except EdgestillError as error:
            await respond(send, replies.refused(error))
        fields = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return sent[0]["status"], fields, sent[1]["body"]


@pytest.fixture
def call() -> Iterator[Caller]:
    """An application over two models."""
    made = Caller()
    yield made
    made.endpoint.close()


def sent(array: Any = BATCH, **rest: Any) -> tuple[bytes, dict[str, str]]:
    """A question: body and headers."""
    body, length = asked(array, **rest)
    return body, {} if length is None else {HEADER.replace("-", "_"): str(length)}


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("cut", [1, 50, 10_000])
def test_a_question_is_answered_however_it_is_packed_and_cut(call: Caller, encoding: str, cut: int) -> None:
    """Compression covers the whole body, the header counts uncompressed JSON."""
    body, headers = sent()
    pack: dict[str, Any] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}
    packed = pack[encoding](body)
    chunks = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    status, fields, answer = call("POST", INFER, *chunks, content_encoding=encoding, **headers)
    assert (status, fields["content-type"]) == (200, "application/octet-stream")
    np.testing.assert_array_equal(output((answer, int(fields[HEADER])), "twice"), BATCH * 2)


def test_a_large_question_in_json_is_answered_too(call: Caller) -> None:
    """It is read apart from the loop that serves the others."""
    array = np.ones((500, 100), np.float32)
    body, _ = sent(array, binary=False)
    assert len(body) > 64_000
    status, fields, answer = call("POST", INFER, body)
    assert (status, fields["content-type"]) == (200, "application/json")
    np.testing.assert_array_equal(output((answer, None), "twice"), array * 2)


def test_what_the_place_adds_is_part_of_the_answer(call: Caller) -> None:
    """A gate sees every question and all rows, and may refuse what only it understands."""
    body, headers = sent(binary=False)
    for seen in (2, 4):
        parameters = json.loads(call("POST", INFER, body, **headers)[2])["parameters"]
        assert (parameters["seen"], parameters["outputs"]) == (seen, ["twice"])
    refused, _ = sent(binary=False, parameters={"colour": "red"})
    assert call("POST", INFER, refused)[0] == 400


def test_who_is_not_let_in_is_refused_before_anything_is_read(call: Caller) -> None:
    """401, with the way to say who one is; health and metadata are open."""
    status, fields, answer = call("POST", INFER, None, name="")
    assert (status, fields["www-authenticate"]) == (401, "Bearer")
    assert json.loads(answer) == {
        "error": "[access-denied] who is it; at name; expected a name; got none; say it"
    }
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/double", "/v2/openapi.json"):
        assert call("GET", path, name="")[0] == 200


def test_who_asks_too_often_is_told_to_wait() -> None:
    """429 before the body is read; others are not affected."""
    call = Caller(limit=RateLimit(Rate(0.25, 1), clock=FakeClock()))
    body, headers = sent()
    assert call("POST", INFER, body, **headers)[0] == 200
    status, fields, answer = call("POST", INFER, None)
    assert (status, fields["retry-after"]) == (429, "4")
    assert json.loads(answer)["error"].startswith("[rate-exceeded] too many questions; at ann")
    assert call("POST", INFER, body, name="bob", **headers)[0] == 200
    call.endpoint.close()


@pytest.mark.parametrize(
    ("chunks", "headers", "status"),
    [
        ([b"x" * 101], {}, 413),
        ([b"x" * 60, b"x" * 60], {}, 413),
        ([None], {"content_length": "101"}, 413),
        ([gzip.compress(bytes(10_000))], {"content_encoding": "gzip"}, 413),
        ([gzip.compress(b"{}")[:-3]], {"content_encoding": "gzip"}, 400),
        ([b"not gzip"], {"content_encoding": "gzip"}, 400),
        ([b"{}"], {"content_encoding": "br"}, 400),
        ([b"{}"], {"content_length": "-2"}, 400),
        ([b"{}"], {"content_length": "2" * 20}, 400),
        ([b"{}"], {"inference_header_content_length": "x"}, 400),
        ([b"{}"], {"inference_header_content_length": "99"}, 400),
        ([b"..."], {}, 400),
        ([b"half", None], {}, 400),
        ([b""], {}, 400),
        ([b"[]"], {}, 400),
        ([b'{"inputs": NaN}'], {}, 400),
    ],
)
def test_attack_a_body_that_is_no_question_is_refused(
    chunks: list[bytes | None], headers: dict[str, str], status: int
) -> None:
    """Too long, a bomb, damaged, cut off, never ending, no message."""
    call = Caller(max_body=100, body_seconds=0.05)
    found, _, answer = call("POST", INFER, *chunks, **headers)
    assert (found, list(json.loads(answer))) == (status, ["error"])
    call.endpoint.close()


@pytest.mark.parametrize("path", ["/", "/v2/", "/v2/models", "/v2/models/x/y", "/v2/models/double/infer/"])
def test_a_path_that_is_not_there_is_404(call: Caller, path: str) -> None:
    """With a word about which there are."""
    status, _, answer = call("GET", path)
    assert status == 404
    assert "/v2/openapi.json" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", INFER, "POST"), ("POST", "/v2", "GET, HEAD"), ("DELETE", "/v2/models/double", "GET, HEAD")],
)
def test_a_method_that_is_not_there_is_405(call: Caller, method: str, path: str, allowed: str) -> None:
    """With those that are."""
    status, fields, _ = call(method, path)
    assert (status, fields["allow"]) == (405, allowed)


def test_the_list_of_models_takes_a_small_object_or_nothing(call: Caller) -> None:
    """As Triton's clients send it."""
    for body in (b"", b"{}", b'{"ready": true}'):
        status, _, answer = call("POST", "/v2/repository/index", body)
        assert (status, [one["name"] for one in json.loads(answer)]) == (200, ["double", "sums"])
    for body, wanted in (
        (b"[]", 400),
        (b'{"ready": 1}', 400),
        (b'{"ready": null}', 400),
        (b" " * 70_000, 413),
    ):
        assert call("POST", "/v2/repository/index", body)[0] == wanted


@pytest.mark.parametrize("kind", list(errors.codes().values()), ids=list(errors.codes()))
def test_every_error_has_an_answer_that_tells_no_more_than_it_may(kind: type[EdgestillError]) -> None:
    """What is the caller's to mend is told whole; of the server's own fault only code and statement."""
    reply = replies.refused(kind("it went wrong", where="/secret/path", expected="a", got="b", fix="c"))
    told = json.loads(reply.body)["error"]
    assert told.startswith(f"[{kind.code}] it went wrong")
    assert ("/secret/path" in told) == (reply.status != 500)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), bound=st.integers(0, 300), name=st.sampled_from([gzip, zlib]))
def test_the_bound_holds_for_what_comes_out(data: bytes, bound: int, name: Any) -> None:
    """One byte over it is too long, and none less."""
    if len(data) <= bound:
        assert bodies.inflated(name.compress(data), bound) == data
    else:
        with pytest.raises(errors.TooLongError):
            bodies.inflated(name.compress(data), bound)

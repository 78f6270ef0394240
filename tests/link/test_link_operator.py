"""An operator's calls against an application that speaks the admin API."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, ConflictError, MessageError, NotFoundError, RefusedError
from edgestill.core.oip import HEADER, InferResponse, Tensor
from edgestill.core.release import Gates
from edgestill.link.operator import OperatorClient
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request as WebRequest

    from edgestill.core.jsonio import JsonObject

METHODS = ["GET", "POST", "PUT"]


class _Hub:
    """Answers what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Response = JSONResponse({})
        self.asked: list[tuple[str, bytes]] = []
        self.asgi = Starlette(routes=[Route("/v1/admin/{rest:path}", self.hear, methods=METHODS)])

    async def hear(self, request: WebRequest) -> Response:
        if request.headers["authorization"] != "Bearer t0ken":
            return JSONResponse({"what": "unknown token"}, 401)
        query = f"?{request.url.query}" if request.url.query else ""
        self.asked.append((f"{request.method} {request.path_params['rest']}{query}", await request.body()))
        return self.answer


@pytest.fixture
def hub() -> _Hub:
    return _Hub()


@pytest.fixture
def transport(hub: _Hub) -> Iterator[AsgiTransport]:
    with AsgiTransport(hub.asgi) as opened:
        yield opened


@pytest.fixture
def client(transport: AsgiTransport) -> OperatorClient:
    return OperatorClient(transport, "http://hub.test/", token="t0ken")


def test_an_unknown_token_has_no_access(transport: AsgiTransport) -> None:
    """Whatever is asked."""
    with pytest.raises(
        AccessError, match=r"unknown token; at GET http://hub.test/v1/admin/fleet; got HTTP 401"
    ):
        OperatorClient(transport, "http://hub.test", token="wrong").fleet()


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (OperatorClient.online_key, "GET online-key"),
        (OperatorClient.releases, "GET releases"),
        (OperatorClient.rollouts, "GET rollouts"),
        (OperatorClient.fleet, "GET fleet"),
        (OperatorClient.evidence, "GET evidence"),
        (lambda client: client.rollout("3"), "GET rollouts/3"),
        (lambda client: client.pause("3"), "POST rollouts/3/pause"),
        (lambda client: client.resume("3"), "POST rollouts/3/resume"),
        (lambda client: client.rollback("3"), "POST rollouts/3/rollback"),
    ],
)
def test_what_people_look_at_is_handed_on(
    hub: _Hub, client: OperatorClient, call: Callable[[OperatorClient], JsonObject], asked: str
) -> None:
    """As the JSON object that the hub answered."""
    hub.answer = JSONResponse({"some": ["thing"]})
    assert call(client) == {"some": ["thing"]}
    assert hub.asked == [(asked, b"")]
    hub.answer = JSONResponse(["no object"])
    with pytest.raises(MessageError, match="not a JSON object"):
        call(client)


def test_publishing_hands_over_the_very_bytes(hub: _Hub, client: OperatorClient) -> None:
    """Root and list as they were signed."""
    client.upload_root(b'{"root": 1}')
    client.upload_targets(b'{"targets": 1}')
    assert hub.asked == [("POST root", b'{"root": 1}'), ("POST targets", b'{"targets": 1}')]


def test_an_uploaded_bundle_is_what_the_hub_keeps(hub: _Hub, client: OperatorClient) -> None:
    """Digest and size are compared with what was sent."""
    archive = b"archive" * 1_000
    hub.answer = JSONResponse({"digest": str(Digest.of(archive)), "size": len(archive)}, 201)
    kept = client.upload_bundle(archive)
    assert (kept.digest, kept.size) == (Digest.of(archive), 7_000)
    assert hub.asked == [("PUT blobs", archive)]
    with pytest.raises(MessageError, match="the hub keeps another archive"):
        client.upload_bundle(archive[:-1])


def test_the_published_list(hub: _Hub, client: OperatorClient) -> None:
    """None before the first; a refusal stays one."""
    hub.answer = Response(b'{"signed": {}}')
    assert client.targets() == b'{"signed": {}}'
    hub.answer = JSONResponse({"what": "nothing yet"}, 404)
    assert client.targets() is None
    hub.answer = JSONResponse({"what": "broken"}, 500)
    with pytest.raises(RefusedError, match=r"broken; at GET http://hub.test/v1/admin/metadata/targets"):
        client.targets()


def test_join_tokens(hub: _Hub, client: OperatorClient) -> None:
    """Uses and lifetime go there, the token comes back."""
    hub.answer = JSONResponse({"token": "est1.secret.digest"}, 201)
    assert client.join_token(uses=5, expires_in=60) == "est1.secret.digest"
    assert json.loads(hub.asked[0][1]) == {"uses": 5, "expires_in": 60}
    hub.answer = JSONResponse({"token": "two words"})
    with pytest.raises(MessageError, match="token"):
        client.join_token()
    hub.answer = JSONResponse({"what": "there is no root yet"}, 409)
    with pytest.raises(ConflictError, match="there is no root yet"):
        client.join_token()


def test_starting_a_rollout(hub: _Hub, client: OperatorClient) -> None:
    """Release, stages, gates and cohort go there; the id comes back as text."""
    hub.answer = JSONResponse({"id": 7}, 201)
    gates = Gates(min_agreement=0.9)
    assert client.start_rollout("watch/1.0.0", stages=(0.2, 1), gates=gates, labels={"site": "north"}) == "7"
    asked, body = hub.asked[0]
    assert asked == "POST rollouts"
    assert json.loads(body) == {
        "release": "watch/1.0.0",
        "stages": [0.2, 1],
        "gates": {
            "max_failed": 0.0,
            "min_agreement": 0.9,
            "min_audits": 20,
            "silent_after": 3600.0,
            "max_errors": None,
            "max_escalated": None,
            "max_latency": None,
            "min_answers": 20,
        },
        "labels": {"site": "north"},
    }
    for status, kind in ((404, NotFoundError), (409, ConflictError)):
        hub.answer = JSONResponse({"what": "no"}, status)
        with pytest.raises(kind, match="no; at POST"):
            client.start_rollout("watch/1.0.0")


@pytest.mark.parametrize("wrong", ["", "../fleet", "1/2", "x", "-1", "1" * 10])
def test_attack_an_id_that_is_a_path(hub: _Hub, client: OperatorClient, wrong: str) -> None:
    """It is refused before anything is sent, and as an answer too."""
    with pytest.raises(MessageError, match="not the id of a rollout"):
        client.rollback(wrong)
    assert hub.asked == []
    hub.answer = JSONResponse({"id": wrong})
    with pytest.raises(MessageError, match="not the id of a rollout"):
        client.start_rollout("watch/1.0.0")


def test_samples_are_tensors(hub: _Hub, client: OperatorClient) -> None:
    """In the protocol's response form, from an id on."""
    logits = Tensor("teacher", "FP32", (1, 2), struct.pack("<2f", 1, 2))
    message = InferResponse(model="evidence", outputs=(logits,), parameters={"devices": ["d1"], "last": 9})
    body, length = message.encode()
    hub.answer = Response(body, headers={HEADER: str(length)})
    got = client.samples(after=4, limit=10)
    assert got.parameters == {"devices": ["d1"], "last": 9}
    assert bytes(got.outputs[0].data) == logits.data
    assert hub.asked[0][0] == "GET evidence/samples?after=4&limit=10"
    for lie in ("-1", "x", "9" * 20, str(len(body) + 1)):
        hub.answer = Response(body, headers={HEADER: lie})
        with pytest.raises(MessageError, match="inference-header-content-length"):
            client.samples()


def test_a_device_is_revoked_by_its_name(hub: _Hub, client: OperatorClient) -> None:
    """Whatever the name holds, it stays within its place in the path; one that is unknown is an error of its own."""
    hub.answer = JSONResponse({"device": "d0", "revoked_at": 1.5})
    assert client.revoke("d0") == {"device": "d0", "revoked_at": 1.5}
    client.revoke("../rollouts/1?x=#y")
    assert [path for path, _ in hub.asked] == [
        "POST devices/d0/revoke",
        "POST devices/../rollouts/1?x=#y/revoke",
    ]
    hub.answer = JSONResponse({"what": "no such device"}, 404)
    with pytest.raises(NotFoundError, match="no such device"):
        client.revoke("d1")


def test_sums_of_a_kind_can_be_asked_for(hub: _Hub, client: OperatorClient) -> None:
    """By its counts of classes and features."""
    hub.answer = Response(b"message")
    client.statistics(Digest.of(b"backbone"), kind=(4, 16))
    assert hub.asked[0][0].endswith("&classes=4&features=16")


def test_statistics_are_handed_on(hub: _Hub, client: OperatorClient) -> None:
    """By backbone; none are an error of their own."""
    backbone = Digest.of(b"backbone")
    hub.answer = Response(b"message")
    assert client.statistics(backbone) == b"message"
    assert hub.asked[0][0] == f"GET evidence/statistics?backbone=sha256%3A{backbone.hex}"
    hub.answer = JSONResponse({"what": "none of this backbone"}, 404)
    with pytest.raises(NotFoundError, match="none of this backbone"):
        client.statistics(backbone)


def test_timing_jobs_are_asked_for_by_id(hub: _Hub, client: OperatorClient) -> None:
    """Each call is one exchange; a profile is handed on as it came."""
    hub.answer = JSONResponse({"id": 4, "devices": ["d0"]}, 201)
    assert client.start_timing("timing/watch/1.0.0/x.est", devices=2, labels={"site": "north"})["id"] == 4
    assert hub.asked[-1][0] == "POST timings"
    assert json.loads(hub.asked[-1][1]) == {
        "target": "timing/watch/1.0.0/x.est",
        "devices": 2,
        "labels": {"site": "north"},
    }
    client.timings()
    client.timing("4")
    client.cancel_timing("4")
    assert [one for one, _ in hub.asked[1:]] == ["GET timings", "GET timings/4", "POST timings/4/cancel"]
    hub.answer = Response(b"{}", media_type="application/json")
    assert client.profile("4") == b"{}"
    assert client.profile("4", device="d 0") == b"{}"
    assert [one for one, _ in hub.asked[4:]] == [
        "GET timings/4/profile",
        "GET timings/4/profile?device=d%200",
    ]
    with pytest.raises(MessageError):
        client.timing("../roles")
    hub.answer = JSONResponse({"what": "over"}, 409)
    with pytest.raises(ConflictError):
        client.cancel_timing("4")
    hub.answer = JSONResponse({"what": "none"}, 404)
    with pytest.raises(NotFoundError):
        client.profile("4")

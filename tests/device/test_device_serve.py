"""Who may ask a device or a gateway, where it listens, and what becomes of failures."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import batches, logits_of, model, policy_of, tiny_bundle

from edgestill.core.bundle import Bundle
from edgestill.core.errors import AccessError, PathError, SettingError
from edgestill.core.protocols import Request
from edgestill.device.memory import Memory
from edgestill.device.neighbours import Neighbours, Upstream
from edgestill.device.serve.app import Outermost
from edgestill.device.serve.listening import Listening, Tls, tls_of
from edgestill.device.serve.models import KEEP_EVERY, of_bundle
from edgestill.device.serve.running import endpoint_of
from edgestill.device.serve.server import app_of
from edgestill.device.serve.tokens import Bearers, Token, digest_of, read_tokens
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.limits import Rate
from edgestill.infer.serving.served import of_engine
from edgestill.infer.serving.waiting import Capacity
from edgestill.link.inference import RemoteModel
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from edgestill.infer.serving.served import Served

POLICY = policy_of()
SECRET = "s" * 32
URL = "http://device.test"


def bundle(tmp_path: Path, **changes: Any) -> Bundle:
    """A bundle whose student never asks, unless its policy says so."""
    policy = policy_of(**({"threshold": 0.0, "escalation_share": 0.0, "audit_share": 0.0} | changes))
    path = tmp_path / "tiny.esb"
    path.write_bytes(tiny_bundle(policy=policy))
    return Bundle.open(path)


def student(tmp_path: Path) -> Served:
    """It, served under the bundle's name."""
    return of_bundle(bundle(tmp_path), clock=FakeClock(), random=lambda: 0.5)


def opened(served: Served, listening: Listening, clock: FakeClock | None = None) -> AsgiTransport:
    """The application of a server, in memory."""
    clock = clock or FakeClock()
    endpoint = endpoint_of(served, listening, capacity=Capacity(), clock=clock)
    return AsgiTransport(app_of(endpoint, listening, rate=Rate(1, 3), clock=clock, max_body=10_000))


def token(secret: str = SECRET, **rest: Any) -> Token:
    """What is kept of a token."""
    return Token(caller="token 1", digest=digest_of(secret), **rest)


def call(transport: AsgiTransport, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    """Status, header fields, JSON."""
    response = transport.send(Request(method, URL + path, headers, body), timeout=30)
    return response.status, response.headers, json.loads(b"".join(response.chunks()) or b"null")


def remote(transport: AsgiTransport, credential: str | None = None) -> RemoteModel:
    """Our own client."""
    return RemoteModel(
        transport,
        URL,
        model="tiny",
        clock=FakeClock(),
        timeout=30,
        output="probabilities",
        credential=credential,
    )


def test_our_own_client_gets_the_students_answer(tmp_path: Path) -> None:
    """Probabilities as they are, over raw tensors."""
    batch = batches(5, 1)
    served = student(tmp_path)
    with opened(served, Listening()) as there:
        found = remote(there).predict(batch)
    alone: Any = served.run(batch, None).outputs["probabilities"]
    np.testing.assert_array_equal(found.probabilities, alone)


def test_a_gateway_answers_together_with_a_larger_model(tmp_path: Path) -> None:
    """A student behind one server asks a teacher behind another, and both are fused; the answer says so."""
    batch, clock = batches(4, 2), FakeClock()
    engine = of_engine(OnnxEngine(model(2)), name="teacher", version="1")
    upstairs = Endpoint([engine], about=About(name="up", version="0"), clock=clock)
    up = Listening(tokens=(token("u" * 32),))
    with AsgiTransport(
        app_of(upstairs, up, rate=Rate(100, 100), clock=clock, max_body=10**6)
    ) as teacher_there:
        asks = bundle(tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0, alpha=1.0)
        upstream = Upstream(url=URL, token="u" * 32, transport=teacher_there)
        served = of_bundle(asks, upstream=upstream, clock=clock, random=lambda: 0.5)
        with opened(served, Listening()) as there:
            found = remote(there).predict(batch)
            told = call(there, "POST", "/v2/models/tiny/infer", _json(batch))[2]["parameters"]
    powers = np.exp(logits_of(2, batch))
    np.testing.assert_allclose(found.probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)
    assert found.tiers == ("teacher",)
    # the second question was about the same inputs: nobody was asked again
    assert told == {"alpha": [1.0] * 4, "decided_by": ["teacher"] * 4, "tiers": ["teacher,memory"] * 4}


def test_a_gateway_without_its_teacher_answers_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens there: the student's answer stands, marked as its own; and the log says why, once."""
    asks = bundle(tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0)
    upstream = Upstream(url="http://127.0.0.1:1", timeout=0.5)
    served = of_bundle(asks, upstream=upstream, clock=FakeClock(), random=lambda: 0.5)
    with opened(served, Listening()) as there:
        for seed in (2, 3):
            told = call(there, "POST", "/v2/models/tiny/infer", _json(batches(2, seed)))[2]["parameters"]
            assert told["decided_by"] == ["student", "student"]
    assert [
        one.getMessage().split(":")[0] for one in caplog.records if one.name == "edgestill.infer.tiers"
    ] == ["teacher does not answer"]


def _json(batch: Any) -> bytes:
    one = {"name": "input", "datatype": "FP32", "shape": list(batch.shape), "data": batch.ravel().tolist()}
    return json.dumps({"inputs": [one]}).encode()


def test_who_shows_a_token_may_ask_until_it_ends(tmp_path: Path) -> None:
    """None, another, one that has ended: 401 and the protocol's error, which repeats no token."""
    clock = FakeClock()
    listening = Listening(tokens=(token(expires=clock.now() + 60), token("t" * 32)))
    with opened(student(tmp_path), listening, clock) as there:
        assert len(remote(there, SECRET).predict(batches(1, 1))) == 1
        for headers, code in (
            ({}, "access-denied"),
            ({"authorization": "Bearer " + "x" * 32}, "access-denied"),
            ({"authorization": f"Basic {SECRET}"}, "access-denied"),
            ({"authorization": "Bearer " + "x" * 10_000}, "access-denied"),
        ):
            status, fields, told = call(there, "POST", "/v2/models/tiny/infer", b"", **headers)
            assert (status, fields["www-authenticate"]) == (401, "Bearer")
            assert told["error"].startswith(f"[{code}]")
        clock.advance(61)
        status, fields, told = call(
            there, "POST", "/v2/models/tiny/infer", b"", authorization=f"Bearer {SECRET}"
        )
        assert (status, fields["www-authenticate"], told["error"][:9]) == (401, "Bearer", "[expired]")
        assert SECRET not in told["error"]
        assert len(remote(there, "t" * 32).predict(batches(1, 1))) == 1


def test_the_rate_is_counted_for_each_caller(tmp_path: Path) -> None:
    """By token, and by address where there are none."""
    body = _json(batches(1, 1))
    with opened(student(tmp_path), Listening()) as there:
        statuses = [call(there, "POST", "/v2/models/tiny/infer", body)[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


def test_a_bug_is_told_to_the_log_and_not_to_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """500 with nothing of the inside, and the server goes on; other scopes are not spoken."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("the secret of the house")

    with AsgiTransport(Outermost(broken)) as there:
        for _ in range(2):
            status, _, told = call(there, "GET", "/v2")
            assert (status, told) == (500, {"error": "[internal] the server failed"})
    assert "the secret of the house" in caplog.text
    with pytest.raises(RuntimeError, match="no websocket here"):
        asyncio.run(Outermost(broken)({"type": "websocket"}, None, None))  # type: ignore[arg-type]  # never used


def test_a_file_of_tokens_is_read(tmp_path: Path) -> None:
    """One a line, with or without an end; comments and empty lines are passed over."""
    path = tmp_path / "tokens"
    path.write_text(f"# ours\n\n{'a' * 16}\n  {'b' * 300}   2027-01-31T00:00:00Z\n")
    one, two = read_tokens(path)
    assert (one.caller, one.expires, one.digest) == ("token 3", None, digest_of("a" * 16))
    assert (two.caller, two.expires) == ("token 4", 1801353600.0)
    assert "a" * 16 not in repr(one)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "short\n",
        "a" * 301,
        f"{'a' * 20} tomorrow",
        f"{'a' * 20} 2027-01-31T00:00:00",
        f"{'a' * 20} 2027-01-31T00:00:00Z more",
        "ä" * 20,
        "a" * 19 + "\x1b",
    ],
)
def test_a_file_of_tokens_with_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    """The line is named, and what stands there is not repeated."""
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SettingError) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value)
    assert "aaaa" not in str(caught.value)


def test_a_file_of_tokens_that_is_none_is_refused(tmp_path: Path) -> None:
    """A folder, nothing at all, one without end."""
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(PathError):
            read_tokens(path)


def test_every_token_is_compared_and_a_wrong_one_is_unknown() -> None:
    """Of many the right one is found, wherever it stands."""
    many = tuple(Token(caller=f"token {number}", digest=digest_of(f"{number:032}")) for number in range(50))
    gate = Bearers(many, FakeClock())

    def caller(secret: str) -> str:
        scope = {"headers": [(b"authorization", f"bearer {secret}".encode())]}
        return asyncio.run(gate.admit(scope)).caller

    assert [caller(f"{number:032}") for number in (0, 25, 49)] == ["token 0", "token 25", "token 49"]
    with pytest.raises(AccessError, match="unknown token"):
        caller(secrets.token_urlsafe())


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"host": "0.0.0.0"}, "anybody could ask"),
        ({"host": "::"}, "anybody could ask"),
        ({"host": "device.example"}, "anybody could ask"),
        ({"host": "0.0.0.0", "tls": Tls(certificate=Path("c"), key=Path("k"))}, "anybody could ask"),
        ({"host": "0.0.0.0", "tokens": (token(),)}, "tokens would travel in the clear"),
        ({"host": "0.0.0.0", "tokens": (token(),), "is_open": True}, "tokens would travel in the clear"),
        ({"port": 70_000}, "a port is out of range"),
    ],
)
def test_attack_nobody_is_exposed_by_a_forgotten_option(settings: dict[str, Any], what: str) -> None:
    """What others could reach or read is refused, with what to give."""
    with pytest.raises(SettingError, match=what):
        Listening(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "::1"},
        {"host": "localhost", "tokens": (token(),)},
        {"host": "0.0.0.0", "is_open": True},
        {"host": "0.0.0.0", "tokens": (token(),), "behind_proxy": True},
        {"host": "0.0.0.0", "tls": Tls(certificate=Path("c"), key=Path("k"), clients=Path("a"))},
        {"host": "0.0.0.0", "tokens": (token(),), "tls": Tls(certificate=Path("c"), key=Path("k"))},
    ],
)
def test_what_is_safe_or_was_asked_for_is_let_be(settings: dict[str, Any]) -> None:
    """Loopback, tokens under TLS, clients with certificates, open on purpose."""
    Listening(**settings)


def test_files_for_tls_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Half of them, none that is there, none that is one."""
    assert tls_of(None, None, None) is None
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("nothing")
    for files in ((rubbish, None, None), (None, rubbish, None), (None, None, rubbish)):
        with pytest.raises(SettingError, match="half of what TLS needs"):
            tls_of(*files)
    for one in (rubbish, tmp_path / "none.pem"):
        with pytest.raises(SettingError, match="the files for TLS cannot be used"):
            tls_of(one, one, None)


def decided(tmp_path: Path, teacher: AsgiTransport, clock: FakeClock, state: Path | None, seed: int) -> Any:
    """Who decides about one input of a gateway that begins now, and may send some hundred bytes a day."""
    asks = bundle(
        tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0, alpha=1.0, bytes_per_day=900
    )
    memory = None if state is None else Memory(state, asks.manifest.digest)
    upstream = Upstream(url=URL, transport=teacher)
    served = of_bundle(asks, upstream=upstream, memory=memory, clock=clock, random=lambda: 0.5)
    found: list[Any] = []
    for number in range(4):
        clock.advance(KEEP_EVERY)
        found += served.run(batches(1, 10 * seed + number), None).told["decided_by"]
    return found


def test_a_gateways_day_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Where there is a folder for it: what was sent today stays sent. Without one, a new start has a new day's bytes."""
    clock = FakeClock(1_790_000_000.0)
    engine = of_engine(OnnxEngine(model(2)), name="teacher", version="1")
    upstairs = Endpoint([engine], about=About(name="up", version="0"), clock=clock)
    app = app_of(upstairs, Listening(), rate=Rate(100, 100), clock=clock, max_body=10**6)
    with AsgiTransport(app) as teacher:
        kept = [decided(tmp_path, teacher, clock, tmp_path / "state", start) for start in range(3)]
        fresh = [decided(tmp_path, teacher, clock, None, start) for start in range(3, 6)]
    assert [one.count("teacher") for one in fresh] == [3, 3, 3]
    # a question is charged as it went lately, and the first of a start as its numbers: one more may be asked than fit
    assert [one.count("teacher") for one in kept] == [3, 1, 0]


def test_a_gateways_state_is_written_at_once_then_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    """A kill forgets what was asked in the seconds after the last write; an orderly end forgets nothing."""
    clock, asks = FakeClock(), bundle(tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0)
    upstream, memory = Upstream(url="http://127.0.0.1:1"), Memory(tmp_path / "state", asks.manifest.digest)
    served = of_bundle(asks, upstream=upstream, memory=memory, clock=clock, random=lambda: 0.5)

    def written() -> int:
        return Memory(tmp_path / "state", asks.manifest.digest).policy_state(POLICY).seen

    def ask() -> int:
        served.run(batches(1, int(clock.monotonic())), None)
        return written()

    assert ask() == 1
    clock.advance(KEEP_EVERY / 2)
    assert (ask(), ask()) == (1, 1)
    clock.advance(KEEP_EVERY / 2)
    assert ask() == 4
    assert ask() == 4
    served.close()
    assert written() == 5


def test_a_gateway_asks_its_neighbours_before_its_teacher(tmp_path: Path) -> None:
    """And the teacher where they are gone; both are told."""
    batch, clock = batches(2, 2), FakeClock()
    engine = of_engine(OnnxEngine(model(2)), name="teacher", version="1")
    upstairs = Endpoint([engine], about=About(name="up", version="0"), clock=clock)
    app = app_of(upstairs, Listening(), rate=Rate(100, 100), clock=clock, max_body=10**6)
    asks = bundle(tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0, alpha=1.0)
    with AsgiTransport(app) as there:
        for near, tiers, voice in (
            (Upstream(url=URL, name="near", transport=there), "near", "student"),
            (Upstream(url="http://127.0.0.1:1", name="near"), "near,teacher", "teacher"),
        ):
            served = of_bundle(
                asks,
                upstream=Upstream(url=URL, transport=there),
                neighbours=Neighbours(each=(near,)),
                clock=clock,
                random=lambda: 0.5,
            )
            told = served.run(batch, None).told
            assert told["tiers"] == (tiers,) * 2
            assert told["decided_by"] == (voice,) * 2, "a neighbour that does not tell is another student"


def test_a_gateway_whose_state_cannot_be_written_answers_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is told to the log."""
    clock, folder = FakeClock(), tmp_path / "state"
    folder.write_text("in the way")
    asks = bundle(tmp_path, threshold=2.0, escalation_share=1.0, audit_share=0.0)
    upstream, memory = Upstream(url="http://127.0.0.1:1", timeout=0.5), Memory(folder, asks.manifest.digest)
    served = of_bundle(asks, upstream=upstream, memory=memory, clock=clock, random=lambda: 0.5)
    clock.advance(KEEP_EVERY)
    assert len(served.run(batches(2, 2), None).outputs["probabilities"]) == 2
    assert str(folder) in caplog.text

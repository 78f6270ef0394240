"""Neighbours are asked before the hub: their file, the verb that writes it, and real ones over sockets."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest
from device_bundles import HERE, HttpHub, TinyHub, batches, logits_of, policy_of, tiny_bundle
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.bundle import Bundle
from edgestill.core.errors import ConflictError, EdgestillError, MessageError, NotFoundError, SettingError
from edgestill.core.manifest import MODEL
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.main import main
from edgestill.device.model import Serving
from edgestill.device.neighbours import INPUT, MOST, Neighbours, Upstream
from edgestill.device.serve.listening import Listening
from edgestill.device.serve.models import of_bundle
from edgestill.device.serve.running import endpoint_of
from edgestill.device.serve.server import app_of
from edgestill.infer.cascade import Cascade, Escalation
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.serving.limits import Rate
from edgestill.infer.serving.waiting import Capacity
from edgestill.infer.student import Student
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.answer import Answer

GATEWAY = Upstream(name="gateway", url="https://gateway.example")
TOKEN = "t" * 40
NOBODY = "http://127.0.0.1:9"

upstreams = st.builds(
    Upstream,
    name=st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True).map("n".__add__),
    url=st.just("https://x.example:8443/y"),
    model=st.text("abc-_.", min_size=1, max_size=20),
    output=st.sampled_from(["logits", "probabilities"]),
    input=st.text("abc", max_size=9),
    timeout=st.floats(0.001, 60),
    token=st.none() | st.text("abc", min_size=16, max_size=40),
    plain_http=st.booleans(),
)


@given(
    each=st.lists(upstreams, max_size=MOST, unique_by=lambda one: one.name),
    hedge=st.none() | st.floats(0, 60),
)
def test_a_file_is_read_as_it_was_written(each: list[Upstream], hedge: float | None) -> None:
    """Whatever is in it."""
    written = Neighbours(each=tuple(each), hedge_after=hedge)
    assert Neighbours.from_bytes(written.to_bytes()) == written


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "teacher"}, "name"),
        ({"name": "Gate way"}, "name"),
        ({"name": "../up"}, "name"),
        ({"url": "ftp://x.example"}, "url"),
        ({"url": "http://a b"}, "url"),
        ({"url": "http://x\r\nhost: y"}, "url"),
        ({"output": "features"}, "output"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"plain_http": "yes"}, "plain_http"),
        ({"fleet": True}, "fleet"),
        ({"fleet": ""}, "fleet"),
        ({"fleet": "d1:device"}, "fleet"),
        ({"fleet": "gateway*"}, "fleet"),
        ({"fleet": "gateway", "url": "http://127.0.0.1:8000"}, "url"),
        ({"model": "a\x1b[2J"}, "model"),
        ({"token": 7}, "token"),
        ({"plain_htpp": True}, "neighbours[0]"),
        ({"url": "https://user:secret@x.example"}, "x.example"),
        ({"url": "https://x.example:99999"}, "x.example"),
        ({"url": "http://10.0.0.2:8000"}, "10.0.0.2"),
        ({"url": "https://\u00e4.example"}, "example"),
        ({"model": ""}, "model"),
        ({"token": ""}, "credential"),
        ({"token": f"{TOKEN} 2027-01-31T00:00:00Z\nanother"}, "credential"),
    ],
)
def test_attack_a_file_with_a_strange_neighbour_is_refused(wrong: dict[str, object], said: str) -> None:
    """By the name of the field; the token is not repeated."""
    told = {"name": "gateway", "url": "https://gateway.example", "token": TOKEN} | wrong
    with pytest.raises(EdgestillError) as raised:
        Neighbours.from_bytes(json.dumps({"neighbours": [told]}).encode())
    assert isinstance(raised.value, MessageError | SettingError)
    assert said in str(raised.value.where)
    assert TOKEN not in str(raised.value)


def test_attack_no_error_repeats_a_token() -> None:
    """Whatever stands where the list should be."""
    one: dict[str, object] = {"name": "gateway", "url": "https://gateway.example", "token": TOKEN}
    for wrong in (one, [one] * (MOST + 1), [[one]], TOKEN, [TOKEN], [one | {"token": f"{TOKEN}\u00e4"}]):
        with pytest.raises(EdgestillError) as raised:
            Neighbours.from_bytes(json.dumps({"neighbours": wrong}).encode())
        assert TOKEN not in str(raised.value)


def test_attack_too_many_or_the_same_twice_are_refused() -> None:
    """A file cannot make a device ask a crowd."""
    many = Neighbours()
    for number in range(MOST):
        many = many.with_one(Upstream(name=f"n{number}", url="https://x.example"))
    with pytest.raises(ConflictError):
        many.with_one(GATEWAY)
    one = {"name": "gateway", "url": "https://gateway.example"}
    with pytest.raises(ConflictError):
        Neighbours.from_bytes(json.dumps({"neighbours": [one, one]}).encode())
    crowd = json.dumps({"neighbours": [one | {"name": f"n{number}"} for number in range(MOST + 1)]})
    with pytest.raises(MessageError):
        Neighbours.from_bytes(crowd.encode())
    with pytest.raises(MessageError):
        Neighbours.from_bytes(b'{"neighbours": [], "hedge_after": -1}')


def home_at(path: Path, hub: str = NOBODY, *, leaves: str = "raw") -> Home:
    """A device."""
    identity = Identity(device="d1", credential="c" * 32, hub=hub, hardware_class=HERE, interval=1.0)
    return Home.create(path, identity=identity, settings=Settings(leaves=leaves, labels={}), root=b"{}")


@pytest.fixture(scope="module")
def near() -> Iterator[HttpHub]:
    """A server with a larger model."""
    with HttpHub(TinyHub(teacher_seed=2)) as one:
        yield one


@pytest.fixture(scope="module")
def hub() -> Iterator[HttpHub]:
    """A hub with a teacher."""
    with HttpHub(TinyHub(teacher_seed=3)) as one:
        yield one


def gateway(url: str) -> Upstream:
    """As a device is told of it."""
    return Upstream(name="gateway", url=url, token="c" * 32)


def opened(home: Home, *, coin: float = 0.9, **policy: float) -> Serving:
    """A bundle that serves, and escalates everything."""
    path = home.path / "x.esb"
    path.write_bytes(tiny_bundle(policy=policy_of(alpha=1.0, **policy)))
    return Serving.open(home, path, clock=FakeClock(), random=lambda: coin)


def predicted(serving: Serving) -> Answer:
    """What it says to three inputs."""
    return answer_from_frame(serving.answer(Frame({"op": "predict"}, (to_tensor("input", batches(3, 1)),))))


def test_a_neighbour_answers_before_the_hub_is_asked(tmp_path: Path, near: HttpHub, hub: HttpHub) -> None:
    """Its probabilities are the teacher's part of the answer, which names it; the hub hears nothing of it."""
    home = home_at(tmp_path / "h", hub.url)
    Neighbours().with_one(gateway(near.url)).write(home.neighbours)
    near.hub.asked.clear()
    hub.hub.asked.clear()
    serving = opened(home)
    answer = predicted(serving)
    np.testing.assert_allclose(answer.probabilities, softmax(8 * logits_of(2, batches(3, 1))), atol=1e-5)
    assert (answer.tiers, len(near.hub.asked), hub.hub.asked) == (("gateway",), 1, [])
    assert set(near.hub.asked[0]) == {"timeout_ms"}, "a neighbour is not asked to keep anything"
    assert serving.status()["asks"] == ["gateway", "teacher"]


def test_where_the_neighbour_is_gone_the_hub_answers(tmp_path: Path, hub: HttpHub) -> None:
    """Both were turned to, and both are named."""
    home = home_at(tmp_path / "h", hub.url)
    Neighbours().with_one(gateway(NOBODY)).write(home.neighbours)
    answer = predicted(opened(home))
    np.testing.assert_allclose(answer.probabilities, softmax(8 * logits_of(3, batches(3, 1))), atol=1e-5)
    assert answer.tiers == ("gateway", "teacher")


def test_a_damaged_file_stops_no_bundle_from_serving(tmp_path: Path, hub: HttpHub) -> None:
    """It would be taken for the bundle's fault: the hub is asked alone, and the status tells why."""
    home = home_at(tmp_path / "h", hub.url)
    home.neighbours.write_text('{"neighbours": "all of them"}')
    serving = opened(home)
    assert predicted(serving).tiers == ("teacher",)
    status = serving.status()
    assert (status["asks"], status["neighbours_failure"]) == (["teacher"], "message-invalid")


def test_a_gateways_student_behind_a_device_teaches_nothing(tmp_path: Path) -> None:
    """A real gateway whose teacher is gone: its answer helps, and is not taken for the teacher's."""
    asks = tmp_path / "gateway.esb"
    asks.write_bytes(tiny_bundle(seed=2))
    served = of_bundle(
        Bundle.open(asks), upstream=Upstream(url=NOBODY), clock=FakeClock(), random=lambda: 0.9
    )
    endpoint = endpoint_of(served, Listening(), capacity=Capacity(), clock=FakeClock())
    app = app_of(endpoint, Listening(), rate=Rate(100, 100), clock=FakeClock(), max_body=10**6)
    with AsgiTransport(app) as there:
        near = Upstream(
            name="gateway", url="http://near.test", model="tiny", output="probabilities", transport=there
        )
        told: list[Escalation] = []
        student = OnnxEngine(Bundle.open(asks).read(MODEL))
        policy = policy_of(alpha=0.5)
        teachers, _ = Neighbours(each=(near,)).before(
            Upstream(url=NOBODY).connect(policy, INPUT, clock=FakeClock(), random=lambda: 0.9),
            policy,
            INPUT,
            clock=FakeClock(),
            random=lambda: 0.9,
        )
        cascade = Cascade(
            Student(student, policy, clock=FakeClock()),
            teachers,
            policy,
            clock=FakeClock(),
            random=lambda: 0.9,
            names=("gateway", "teacher"),
            observe=told.append,
        )
        answer = cascade.predict(batches(3, 1))
    assert answer.decided_by == ("student",) * 3
    assert answer.tiers[0] == "gateway"
    assert not told[0].heard.any()


def test_where_nobody_answers_all_are_named_and_the_student_stands(tmp_path: Path) -> None:
    """Neither the neighbour's failure nor the hub's reaches the asker."""
    home = home_at(tmp_path / "h")
    Neighbours().with_one(gateway(NOBODY)).write(home.neighbours)
    answer = predicted(opened(home))
    assert answer.decided_by == ("student",) * 3
    assert answer.tiers == ("gateway", "teacher")


def test_audits_go_to_the_teacher_alone(tmp_path: Path, near: HttpHub, hub: HttpHub) -> None:
    """A neighbour's opinion says nothing of how well the student follows its teacher."""
    home = home_at(tmp_path / "h", hub.url)
    Neighbours().with_one(gateway(near.url)).write(home.neighbours)
    near.hub.asked.clear()
    hub.hub.asked.clear()
    answer = predicted(opened(home, coin=0.0, threshold=0.0, audit_share=0.5, escalation_share=1.0))
    assert (answer.tiers, near.hub.asked) == (("teacher",), [])
    assert [one["purpose"] for one in hub.hub.asked] == ["audit"]


def test_attack_what_may_not_leave_is_not_sent_to_a_neighbour(tmp_path: Path, near: HttpHub) -> None:
    """It is on the same network, and still another machine."""
    home = home_at(tmp_path / "h", leaves="features")
    Neighbours().with_one(gateway(near.url)).write(home.neighbours)
    near.hub.asked.clear()
    serving = opened(home)
    assert predicted(serving).teacher is None
    assert (near.hub.asked, serving.status()["asks"]) == ([], [])


def test_the_command_line_adds_removes_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is for its owner alone, since it may hold tokens, which are not shown."""
    home, token = home_at(tmp_path / "h"), tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    call = ["neighbours", "--home", str(home.path)]
    add = ["--add", "gateway=https://gateway.example", "--timeout", "250ms", "--token-file", str(token)]
    assert main([*call, *add, "--model", "watch", "--hedge-after", "50ms"]) == 0
    found = Neighbours.of(home.neighbours)
    assert found.hedge_after == pytest.approx(0.05)
    assert found.each == (
        Upstream(name="gateway", url="https://gateway.example", model="watch", timeout=0.25, token=TOKEN),
    )
    assert stat.S_IMODE(home.neighbours.stat().st_mode) == 0o600
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()] == [
        ["gateway", "https://gateway.example", "watch"],
        ["teacher", NOBODY],
    ]
    assert main([*call, "--remove", "gateway", "--hedge-after", "never"]) == 0
    assert Neighbours.of(home.neighbours) == Neighbours()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--remove", "nobody"], "not-found"),
        (["--add", "gateway"], "setting-invalid"),
        (["--add", "teacher=https://x.example"], "setting-invalid"),
        (["--add", "gateway=ftp://x.example"], "message-invalid"),
        (["--add", "gateway=https://x.example", "--timeout", "0s"], "message-invalid"),
        (["--add", "gateway=http://10.0.0.2:8000"], "setting-invalid"),
        (["--add", "gateway=https://x.example", "--token-file", "EMPTY"], "setting-invalid"),
        (["--add", "gateway=https://x.example", "--token-file", "ENDS"], "setting-invalid"),
        (["--add", "gateway=https://x.example", "--token-file", "TWO"], "setting-invalid"),
        (["--model", "watch"], "setting-invalid"),
        (["--plain-http"], "setting-invalid"),
        (["--hedge-after", "2h"], "setting-invalid"),
        (["--add", "gateway=https://x.example", "--token-file", "/nowhere"], "path-unusable"),
    ],
)
def test_the_command_line_refuses_what_the_file_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    """One line says what is wrong, and nothing is written: the agent must be able to read it."""
    home = home_at(tmp_path / "h")
    for name, text in (
        ("EMPTY", ""),
        ("ENDS", f"{TOKEN} 2027-01-31T00:00:00Z"),
        ("TWO", f"{TOKEN}\n{TOKEN}"),
    ):
        (tmp_path / name).write_text(text)
    arguments = [str(tmp_path / one) if one in {"EMPTY", "ENDS", "TWO"} else one for one in arguments]
    assert main(["neighbours", "--home", str(home.path), *arguments]) == 1
    assert code in capsys.readouterr().err
    assert not home.neighbours.exists()


def test_who_is_no_neighbour_cannot_be_removed() -> None:
    """The text names those that are there."""
    with pytest.raises(NotFoundError, match="gateway"):
        Neighbours().with_one(GATEWAY).without("cloud")

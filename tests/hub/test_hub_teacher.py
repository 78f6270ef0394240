"""The teacher's endpoint, the evidence it keeps, and the statistics that devices send."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hub_worlds import World, answer, question, sums, teacher_model, world
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from edgestill.core.digest import Digest
from edgestill.core.errors import DeadlineError, EngineError, ModelError
from edgestill.core.oip import HEADER, InferRequest, Tensor
from edgestill.hub import bodies, evidence, inference
from edgestill.hub.settings import Settings
from edgestill.hub.teacher import endpoint_of
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.payload import CODECS
from edgestill.infer.serving.batching import Batcher
from edgestill.infer.serving.waiting import Capacity
from edgestill.learn.statistics import Statistics
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub_worlds import Device, Reply
    from numpy.typing import NDArray

    from edgestill.infer.serving.served import Rows

INFER = "/v2/models/teacher/infer"
BATCH = np.arange(8, dtype=np.float32).reshape(2, 4)
LOGITS = np.array([[6, 12, 18], [22, 44, 66]], dtype=np.float32)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root and a teacher."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        made.give_root()
        yield made


def infer(device: Device, batch: NDArray[np.float32] = BATCH, **rest: object) -> Reply:
    """Asks the teacher."""
    body, headers = question(batch, **rest)  # type: ignore[arg-type]  # handed through
    return device.call("POST", INFER, body, **headers)


def retain(device: Device, batch: NDArray[np.float32], purpose: str = "escalation", request: str = "") -> int:
    """Asks the teacher and lets the hub keep it: how many samples were kept."""
    reply = infer(device, batch, id=request, parameters={"purpose": purpose, "retain": True})
    assert reply.status == 200, reply
    kept = answer(reply).parameters["retained"]
    assert isinstance(kept, int)
    return kept


@pytest.mark.parametrize("binary", [True, False])
def test_the_teacher_answers(there: World, binary: bool) -> None:
    """In raw tensors or in JSON, as asked, under the request's id."""
    found = answer(infer(there.enrol("d0"), binary=binary, id="q1"))
    assert (found.model, found.id, found.outputs[0].name) == ("teacher", "q1", "logits")
    logits = np.frombuffer(found.outputs[0].data, "<f4").reshape(found.outputs[0].shape)
    np.testing.assert_array_equal(logits, LOGITS)


def test_json_by_hand_is_answered_in_json(there: World) -> None:
    """What any client of the protocol may write, nested lists and no parameters."""
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [[0, 1, 2, 3]]}]}
    reply = there.enrol("d0").call("POST", INFER, json.dumps(body).encode())
    assert reply.json["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [6.0, 12.0, 18.0]}
    ]


def test_a_compressed_question_is_understood(there: World) -> None:
    """The compression covers the whole body; the header counts uncompressed JSON."""
    body, headers = question(BATCH)
    reply = there.enrol("d0").call("POST", INFER, gzip.compress(body), content_encoding="gzip", **headers)
    assert answer(reply).outputs[0].shape == (2, 3)


def test_the_operator_may_ask_too_and_leaves_no_evidence(there: World) -> None:
    """Evidence belongs to a device."""
    body, headers = question(BATCH, parameters={"retain": True})
    reply = there.call("POST", INFER, body, authorization=f"Bearer {there.operator}", **headers)
    assert answer(reply).parameters["retained"] == 0
    assert there.admin("GET", "evidence").json["samples"]["total"] == 0


def test_metadata_describes_the_model(there: World) -> None:
    """Server, model, readiness, and the same under the version's path."""
    assert there.call("GET", "/v2").json["extensions"][:1] == ["binary_tensor_data"]
    found = there.call("GET", "/v2/models/teacher").json
    told = {"name": "input", "datatype": "FP32", "shape": [-1, 4]}
    assert found["inputs"] == [told | {"parameters": {"codecs": ["deflate"]}}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert found["versions"] == [Digest.of(teacher_model()).hex[:12]]
    versioned = f"/v2/models/teacher/versions/{found['versions'][0]}"
    assert there.call("GET", versioned).json == found
    assert there.call("GET", f"{versioned}/ready").json["ready"]
    assert there.call("GET", "/v2/health/ready").json == {"ready": True}
    assert there.call("GET", "/v2/health/live").json == {"live": True}


def test_without_a_teacher_the_hub_says_so(tmp_path: Path) -> None:
    """Not ready, and no model of that name."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        assert there.call("GET", "/v2/health/ready").status == 503
        assert there.call("GET", "/v2/models/teacher").status == 404
        reply = infer(there.enrol("d0"))
        assert reply.status == 404
        assert reply.json == {
            "error": "[not-found] no such model; at models; expected none: this hub has no teacher; got 'teacher'; name the model that this hub serves"
        }


@pytest.mark.parametrize(
    ("batch", "rest", "text"),
    [
        (np.zeros((0, 4), np.float32), {}, "[shape-mismatch] another shape"),
        (np.zeros((5, 4), np.float32), {}, "with N from 1 to 4"),
        (np.zeros((1, 5), np.float32), {}, "[shape-mismatch] another shape"),
        (np.zeros((1, 4, 1), np.float32), {}, "[shape-mismatch] another shape"),
        (np.full((1, 4), np.nan, np.float32), {}, "[not-finite] inputs hold NaN"),
        (np.full((1, 4), np.inf, np.float32), {}, "[not-finite] inputs hold NaN"),
        (BATCH, {"outputs": ("secrets",)}, "[message-invalid] the model has one output"),
        (BATCH, {"parameters": {"purpose": "fun"}}, "[message-invalid] unknown purpose"),
    ],
)
def test_a_question_the_model_cannot_take_is_refused(
    tmp_path: Path, batch: NDArray[np.float32], rest: dict[str, object], text: str
) -> None:
    """With 400 and the protocol's `error`, before anything runs."""
    with world(tmp_path / "hub", teacher=teacher_model(), settings=Settings(max_batch=4)) as there:
        there.give_root()
        reply = infer(there.enrol("d0"), batch, **rest)
        assert reply.status == 400
        assert list(reply.json) == ["error"]
        assert text in reply.json["error"]


@pytest.mark.parametrize(
    ("name", "datatype", "data"), [("inputs", "FP32", [1.0] * 4), ("input", "INT32", [1] * 4)]
)
def test_another_name_or_datatype_is_refused(
    there: World, name: str, datatype: str, data: list[float]
) -> None:
    """The text tells what the model takes."""
    body = {"inputs": [{"name": name, "datatype": datatype, "shape": [1, 4], "data": data}]}
    reply = there.enrol("d0").call("POST", INFER, json.dumps(body).encode())
    assert reply.status == 400
    assert "expected input" in reply.json["error"] or "expected FP32" in reply.json["error"]


@pytest.mark.parametrize("length", ["x", "-1", "9" * 20, "1e3", "99999"])
def test_a_wrong_json_length_is_refused(there: World, length: str) -> None:
    """The header comes from outside like everything else."""
    body, _ = question(BATCH)
    reply = there.enrol("d0").call("POST", INFER, body, inference_header_content_length=length)
    assert reply.status == 400


def test_attack_a_small_body_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    """The bound is on what comes out: 413."""
    with world(tmp_path / "hub", teacher=teacher_model(), settings=Settings(max_infer=10_000)) as there:
        there.give_root()
        bomb = gzip.compress(b" " * 10_000_000)
        assert len(bomb) < 10_000
        device = there.enrol("d0")
        assert device.call("POST", INFER, bomb, content_encoding="gzip").status == 413
        assert device.call("POST", INFER, b" " * 10_001).status == 413
        assert device.call("POST", INFER, gzip.compress(b"{}")[:-4], content_encoding="gzip").status == 400
        assert device.call("POST", INFER, b"{}", content_encoding="br").status == 400


def test_attack_a_bomb_is_not_unpacked_to_find_out_that_it_is_one() -> None:
    """50 MB of zeros in 50 kB, bound 10 kB: memory for about the bound is all that is ever taken."""
    bomb = bytearray(gzip.compress(bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException) as caught:
            bodies._inflated(bomb, 10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status_code == 413
    assert peak < 1_000_000


def test_evidence_is_kept_where_the_device_says_so(there: World) -> None:
    """Inputs and the teacher's logits come back in one batch, audits marked, devices named."""
    one, two = there.enrol("one"), there.enrol("two")
    infer(one)
    retain(one, BATCH, "audit")
    retain(two, BATCH[:1] + 1)
    reply = there.admin("GET", "evidence/samples")
    found = answer(reply)
    inputs, teacher, audit, ids = found.outputs
    assert [tensor.name for tensor in found.outputs] == ["input", "teacher", "audit", "id"]
    np.testing.assert_array_equal(
        np.frombuffer(inputs.data, "<f4").reshape(inputs.shape), np.concatenate([BATCH, BATCH[:1] + 1])
    )
    assert np.frombuffer(teacher.data, "<f4").reshape(teacher.shape)[1].tolist() == LOGITS[1].tolist()
    assert list(np.frombuffer(audit.data, "?")) == [True, True, False]
    assert list(np.frombuffer(ids.data, "<i8")) == [1, 2, 3]
    assert found.parameters == {"devices": ["one", "one", "two"], "last": 3}
    assert there.admin("GET", "evidence").json["samples"] == {
        "total": 3,
        "devices": {"one": {"audit": 2}, "two": {"escalation": 1}},
    }


def test_evidence_that_came_as_a_payload_is_the_numbers(there: World) -> None:
    """What is kept is what the teacher saw, however it travelled."""
    parts = [CODECS["deflate"].encode(row) for row in BATCH]
    tensor = Tensor.of_strings("input", parts, {"codec": "deflate", "shape": [4]})
    body, length = InferRequest(inputs=(tensor,), parameters={"purpose": "audit", "retain": True}).encode()
    reply = there.enrol("d0").call("POST", INFER, body, **{HEADER.replace("-", "_"): str(length)})
    np.testing.assert_array_equal(
        np.frombuffer(answer(reply).outputs[0].data, "<f4").reshape(LOGITS.shape), LOGITS
    )
    inputs = answer(there.admin("GET", "evidence/samples")).outputs[0]
    assert (inputs.datatype, inputs.shape) == ("FP32", BATCH.shape)
    np.testing.assert_array_equal(np.frombuffer(inputs.data, "<f4").reshape(BATCH.shape), BATCH)


def test_evidence_is_read_in_pages(there: World) -> None:
    """`last` goes on from where a page ended; an empty page is the end."""
    device = there.enrol("d0")
    for _ in range(3):
        retain(device, BATCH)
    seen, after = 0, 0
    for wanted in (4, 2, 0):
        found = answer(there.admin("GET", f"evidence/samples?after={after}&limit=4"))
        assert found.outputs[0].shape[0] == wanted
        seen += wanted
        last = found.parameters["last"]
        assert isinstance(last, int)
        after = last
    assert (seen, after) == (6, 6)


def test_a_question_that_comes_twice_is_kept_once(there: World) -> None:
    """A device that lost the answer asks again under the same id."""
    device = there.enrol("d0")
    assert [retain(device, BATCH, request="q7") for _ in range(3)] == [2, 0, 0]
    assert retain(device, BATCH, request="q8") == 2


def test_evidence_of_one_device_is_bounded(tmp_path: Path) -> None:
    """What is over the bound is answered and not kept; another device has its own room."""
    with world(tmp_path / "hub", teacher=teacher_model(), settings=Settings(max_samples=3)) as there:
        there.give_root()
        one, two = there.enrol("one"), there.enrol("two")
        assert [retain(one, BATCH) for _ in range(3)] == [2, 1, 0]
        assert retain(two, BATCH) == 2


def test_a_database_that_fails_costs_the_evidence_and_not_the_answer(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not make devices answer alone."""

    async def full(*_: object, **__: object) -> int:
        raise OperationalError("INSERT", {}, Exception("disk full"))

    monkeypatch.setattr(evidence, "keep_samples", full)
    reply = infer(there.enrol("d0"), parameters={"retain": True})
    assert reply.status == 200
    assert answer(reply).parameters["retained"] == 0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("after=-1", "from 0 to 9007199254740991"),
        ("after=1e9", "from 0 to 9007199254740991"),
        ("after=9007199254740992", "from 0 to 9007199254740991"),
        ("after=", "from 0 to 9007199254740991"),
        ("after=%D9%A3", "from 0 to 9007199254740991"),
        ("limit=0", "from 1 to 1000"),
        ("limit=-5", "from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=x", "from 1 to 1000"),
        ("limit=1.0", "from 1 to 1000"),
        ("limit=" + "9" * 5_000, "from 1 to 1000"),
    ],
)
def test_a_page_that_makes_no_sense_is_refused(there: World, query: str, expected: str) -> None:
    """With 400 and what could be asked for: an empty page would say that there is no more evidence."""
    retain(there.enrol("d0"), BATCH)
    reply = there.admin("GET", f"evidence/samples?{query}")
    assert (reply.status, reply.json["code"]) == (400, "message-invalid")
    assert reply.json["where"] == f"query: {query.partition('=')[0]}"
    assert reply.json["expected"] == f"a whole number {expected}"


@pytest.mark.parametrize(
    "query", ["limit=1", "limit=1000", "after=9007199254740991&limit=0001", "limit=7&limit=3"]
)
def test_a_page_at_the_bounds_is_given(there: World, query: str) -> None:
    """The smallest and the largest, and after the last row there can be."""
    assert there.admin("GET", f"evidence/samples?{query}").status == 200


def test_a_busy_teacher_says_so_at_once() -> None:
    """With one waiting and room for one, the next is told to come back; later it is served."""
    begun, may_end = threading.Event(), threading.Event()
    (served,) = endpoint_of(teacher_model(), Settings(), clock=FakeClock()).models

    def run(batch: NDArray[np.generic], deadline: float | None) -> Rows:
        begun.set()
        assert may_end.wait(30)
        return served.run(batch, deadline)

    batcher = Batcher(replace(served, run=run), capacity=Capacity(most_waiting=1), clock=FakeClock())
    first = batcher.submit(BATCH)
    assert begun.wait(30)
    with pytest.raises(DeadlineError, match="the teacher is busy"):
        batcher.submit(BATCH)
    may_end.set()
    for found in (first.result(30), batcher.submit(BATCH).result(30)):
        np.testing.assert_array_equal(found.outputs["logits"], LOGITS)
    batcher.close()


def test_being_busy_is_503_with_a_time_to_come_back(there: World) -> None:
    """So that a client's breaker knows that the teacher lives."""
    there.hub.endpoint._batchers["teacher"]._waiting.requests = 10**6
    reply = infer(there.enrol("d0"))
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert reply.json["error"].startswith("[deadline-passed] the teacher is busy")


def test_a_device_that_asks_too_often_is_told_to_wait(tmp_path: Path) -> None:
    """With 429 and the seconds; another device and the operator have buckets of their own, and waiting helps."""
    rate = Settings(infer_rate=0.5, infer_burst=2)
    with world(tmp_path / "hub", teacher=teacher_model(), settings=rate) as there:
        there.give_root()
        one, two = there.enrol("one"), there.enrol("two")
        assert [infer(one).status for _ in range(3)] == [200, 200, 429]
        assert infer(one).headers["retry-after"] == "2"
        assert infer(two).status == 200
        there.clock.advance(2)
        assert [infer(one).status for _ in range(2)] == [200, 429]


def test_a_question_may_say_how_long_it_waits(there: World) -> None:
    """One whose time is over is not run; one that gives no time, or a time out of range, is told so."""
    device = there.enrol("d0")
    late = infer(device, parameters={"timeout_ms": 0})
    assert (late.status, late.json["error"][:17]) == (503, "[deadline-passed]")
    assert infer(device, parameters={"timeout_ms": 5_000}).status == 200
    for wrong in (-1, "1", 10**9, True):
        assert infer(device, parameters={"timeout_ms": wrong}).status == 400


def test_the_hub_tells_tritons_clients_what_they_ask_for(there: World) -> None:
    """A configuration, the list of models, and a description of every path."""
    config = there.call("GET", "/v2/models/teacher/config").json
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (1024, [4])
    assert [one["name"] for one in there.call("POST", "/v2/repository/index", b"").json] == ["teacher"]
    assert there.call("POST", "/v2/repository/index", b"[]").status == 400
    assert "/v2/models/teacher/infer" in there.call("GET", "/v2/openapi.json").json["paths"]


def test_a_teacher_that_fails_is_the_hubs_fault(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with the code and nothing of the inside."""

    def broken(*_: object) -> None:
        raise EngineError("the engine could not run the model", where="/secret/path", got="0xdead")

    monkeypatch.setattr(OnnxEngine, "run", broken)
    reply = infer(there.enrol("d0"))
    assert (reply.status, reply.json) == (
        500,
        {"error": "[engine-failed] the engine could not run the model"},
    )


def test_a_model_that_is_no_teacher_is_refused_at_the_start() -> None:
    """It needs an output named `logits`, and to be ONNX at all."""
    with pytest.raises(ModelError, match="a teacher needs logits"):
        endpoint_of(teacher_model(outputs=("scores",)), Settings(), clock=FakeClock())
    with pytest.raises((ModelError, EngineError)):
        endpoint_of(b"not a model", Settings(), clock=FakeClock())


def test_purposes_are_the_two_that_devices_have() -> None:
    """Audits are unbiased, escalations are not: they must not be mixed up."""
    assert inference.PURPOSES == ("escalation", "audit")


def send(device: Device, message: Statistics, id_: str) -> Reply:
    """Sends statistics."""
    return device.call("POST", "/v1/evidence/statistics", message.to_bytes("float64"), x_edgestill_id=id_)


def summed(there: World, backbone: str = "backbone") -> Statistics:
    """The hub's sum."""
    reply = there.admin("GET", f"evidence/statistics?backbone={Digest.of(backbone.encode())}")
    assert reply.status == 200, reply
    return Statistics.from_bytes(reply.body)


def equal(one: Statistics, other: Statistics) -> bool:
    """Whether two sums are the same up to the order of addition."""
    return one.n == other.n and np.allclose(one.a, other.a) and np.allclose(one.b, other.b)


def test_statistics_are_summed_over_devices_and_windows(there: World) -> None:
    """Exactly as if all samples had been in one place."""
    devices = [there.enrol(f"d{index}") for index in range(3)]
    total = None
    for seed, device in enumerate(devices):
        for window in (1, 2):
            message = sums(window=window, seed=10 * seed + window)
            assert send(device, message, f"m{window}").json == {"accepted": True}
            total = message if total is None else total + message
    assert total is not None
    assert equal(summed(there), total)
    found = there.admin("GET", "evidence").json["statistics"]
    told = {"messages": 6, "devices": 3, "n": 48, "classes": 2, "features": 3, "apart": 0}
    assert found == {str(Digest.of(b"backbone")): told}


def test_a_message_that_comes_twice_counts_once(there: World) -> None:
    """Under its id."""
    device, message = there.enrol("d0"), sums()
    assert send(device, message, "m1").json == {"accepted": True}
    assert send(device, message, "m1").json == {"accepted": False, "reason": "known already"}
    assert equal(summed(there), message)


def test_a_newer_message_of_the_same_window_replaces_the_older(there: World) -> None:
    """Also when the older one then comes again."""
    device = there.enrol("d0")
    old, new = sums(seed=1), sums(seed=1) + sums(seed=2)
    send(device, old, "m1")
    send(device, new, "m2")
    assert send(device, old, "m1").json == {"accepted": False, "reason": "known already"}
    assert equal(summed(there), new)


def test_old_windows_are_forgotten_whole(tmp_path: Path) -> None:
    """Of five windows the newest two stay, in whatever order they came."""
    with world(tmp_path / "hub", settings=Settings(max_windows=2)) as there:
        there.give_root()
        device = there.enrol("d0")
        for window in (3, 5, 1, 4, 2):
            send(device, sums(window=window, seed=window), f"m{window}")
        assert equal(summed(there), sums(window=4, seed=4) + sums(window=5, seed=5))


def test_backbones_are_kept_apart(there: World) -> None:
    """Features of another backbone mean something else."""
    device = there.enrol("d0")
    send(device, sums(seed=1), "m1")
    send(device, sums(seed=2, backbone="other"), "m2")
    assert equal(summed(there, "other"), sums(seed=2, backbone="other"))
    reply = there.admin("GET", f"evidence/statistics?backbone={Digest.of(b'nobody')}")
    assert (reply.status, reply.json["what"]) == (404, "no statistics of this backbone")
    assert there.admin("GET", "evidence/statistics?backbone=x").status == 400


@pytest.mark.parametrize("id_", ["", "a b", "x" * 65, "<script>"])
def test_statistics_need_an_id(there: World, id_: str) -> None:
    """Without one they could not be counted once."""
    assert send(there.enrol("d0"), sums(), id_).status == 400


def test_attack_statistics_that_no_samples_could_give_are_refused(there: World) -> None:
    """Garbage, NaN, and a body longer than the bound."""
    device = there.enrol("d0")
    good = sums().to_bytes("float64")
    for body, status in (
        (b"garbage", 400),
        (good[:-1], 400),
        (good[:-8] + np.array([np.nan]).tobytes(), 422),
        (b"x" * 4_000_001, 413),
    ):
        reply = device.call("POST", "/v1/evidence/statistics", body, x_edgestill_id="m1")
        assert reply.status == status, reply
    assert there.admin("GET", "evidence").json["statistics"] == {}

"""An endpoint: bytes to rows to bytes, and what is told of the models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_served import LABELS, Sums, asked, doubling, output, sums, tensor, twice

from edgestill.core.errors import (
    AnswerNotFiniteError,
    DtypeError,
    EdgestillError,
    EngineError,
    MessageError,
    ModelError,
    NotFiniteError,
    NotFoundError,
    SettingError,
    ShapeError,
)
from edgestill.core.oip import InferRequest, InferResponse
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.places import Place, parse, paths
from edgestill.infer.serving.served import Port, Rows, Served
from edgestill.infer.serving.waiting import Capacity
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PAIRS = np.array([[1, 0], [1, 1], [2, 2]], np.uint8)
ABOUT = About(name="test", version="0")


@pytest.fixture
def there() -> Iterator[Endpoint]:
    """Two models."""
    made = Endpoint([doubling(), sums()], about=ABOUT, capacity=Capacity(most_asked=8), clock=FakeClock())
    yield made
    made.close()


def ask(there: Endpoint, array: NDArray[Any], datatype: str, model: str, **rest: object) -> InferResponse:
    """Asks a model, and waits."""
    question = there.question(there.model(model), *asked(array, datatype, **rest))  # type: ignore[arg-type]  # handed through
    rows = there.submit(question).result(30)
    return InferResponse.decode(*there.answer(question, rows))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2), min_size=1, max_size=8),
    binary=st.booleans(),
)
def test_an_answer_is_the_models_in_either_form(rows: list[list[float]], binary: bool) -> None:
    """Raw tensors or JSON, to the last bit, under the request's id."""
    there = Endpoint([doubling()], about=ABOUT, clock=FakeClock())
    array = np.array(rows, np.float32)
    found = ask(there, array, "FP32", "double", binary=binary, id="q1")
    np.testing.assert_array_equal(output(found, "twice"), array * 2)
    assert (found.model, found.version, found.id) == ("double", "1", "q1")
    assert found.parameters == {"first": array[:, 0].tolist()}
    there.close()


def test_a_prediction_tells_probabilities_confidence_and_who_decided(there: Endpoint) -> None:
    """Of each input; the teacher's weight too where there is one."""
    found = ask(there, PAIRS, "UINT8", "sums")
    assert [one.name for one in found.outputs] == ["probabilities", "confidence"]
    np.testing.assert_array_equal(output(found, "probabilities"), np.eye(3)[[1, 2, 1]])
    np.testing.assert_array_equal(output(found, "confidence"), [1, 1, 1])
    assert found.parameters == {"decided_by": ["student", "fused", "student"], "alpha": [0.25, 0.5, 0.25]}


def test_features_are_sent_where_they_are_asked_for_by_name(there: Endpoint) -> None:
    """In the order in which outputs are named, and each once."""
    found = ask(there, PAIRS, "UINT8", "sums", outputs=("features", "confidence", "features"))
    assert [one.name for one in found.outputs] == ["features", "confidence"]
    np.testing.assert_array_equal(output(found, "features"), PAIRS)


def test_a_deadline_reaches_the_model(there: Endpoint) -> None:
    """In monotonic time; without one the model is told of none."""
    model = Sums()
    clock = FakeClock()
    one = Endpoint([sums(model)], about=ABOUT, clock=clock)
    ask(one, PAIRS, "UINT8", "sums", parameters={"timeout_ms": 1500})
    ask(one, PAIRS, "UINT8", "sums")
    assert model.deadlines == [clock.monotonic() + 1.5, None]
    one.close()


@pytest.mark.parametrize("value", [-1, "5", True, [], 1e7])
def test_a_deadline_that_is_none_is_refused(there: Endpoint, value: Any) -> None:
    """It is a number of milliseconds within bounds."""
    with pytest.raises(MessageError, match="timeout_ms"):
        ask(there, PAIRS, "UINT8", "sums", parameters={"timeout_ms": value})


@pytest.mark.parametrize(
    ("array", "datatype", "kind"),
    [
        (np.zeros((0, 2), np.float32), "FP32", ShapeError),
        (np.zeros((9, 2), np.float32), "FP32", ShapeError),
        (np.zeros((1, 0), np.float32), "FP32", ShapeError),
        (np.zeros(2, np.float32), "FP32", ShapeError),
        (np.zeros((1, 2, 2), np.float32), "FP32", ShapeError),
        (np.zeros((1, 2), np.float64), "FP64", DtypeError),
        (np.zeros((1, 2), np.int32), "INT32", DtypeError),
        (np.array([[np.nan, 0]], np.float32), "FP32", NotFiniteError),
        (np.array([[0, -np.inf]], np.float32), "FP32", NotFiniteError),
    ],
)
def test_attack_what_the_model_does_not_take_is_refused_before_it_is_run(
    there: Endpoint, array: NDArray[Any], datatype: str, kind: type[EdgestillError]
) -> None:
    """Wrong rank, size, datatype, NaN."""
    with pytest.raises(kind):
        there.question(there.model("double"), *asked(array, datatype))


def test_another_input_or_output_is_refused(there: Endpoint) -> None:
    """The text tells which there are."""
    one = tensor("input", PAIRS, "UINT8")
    for inputs in ((tensor("other", PAIRS, "UINT8"),), (one, tensor("more", PAIRS, "UINT8"))):
        with pytest.raises(MessageError, match="one input; at inputs; expected input"):
            there.question(there.model("sums"), *InferRequest(inputs=inputs).encode())
    with pytest.raises(MessageError, match="expected probabilities, confidence, features"):
        ask(there, PAIRS, "UINT8", "sums", outputs=("secrets",))


@pytest.mark.parametrize(("name", "version"), [("nobody", ""), ("sums", "8"), ("", "")])
def test_another_model_or_version_is_not_found(there: Endpoint, name: str, version: str) -> None:
    """The text tells which there are."""
    with pytest.raises(NotFoundError, match="expected double/1, sums/7"):
        there.model(name, version)


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=80) | st.text(max_size=40).map(str.encode),
    length=st.none() | st.integers(-5, 100),
)
def test_attack_any_bytes_are_a_question_or_an_error_of_ours(body: bytes, length: int | None) -> None:
    """Nothing else is ever raised."""
    there = Endpoint([doubling()], about=ABOUT, clock=FakeClock())
    with pytest.raises(EdgestillError):
        there.question(there.model("double"), body, length)


def told(there: Endpoint, path: str) -> Any:
    """What is told at a path."""
    place = parse(path)
    assert place is not None
    return there.tell(place)


def test_a_model_is_described(there: Endpoint) -> None:
    """Ports, labels, a configuration in Triton's words, the list of all."""
    status, found = told(there, "/v2/models/sums/versions/7")
    assert (status, found["name"], found["versions"]) == (200, "sums", ["7"])
    taken = {"name": "input", "datatype": "UINT8", "shape": [-1, 2]}
    assert found["inputs"] == [taken | {"parameters": {"codecs": ["deflate"]}}]
    assert [one["name"] for one in found["outputs"]] == ["probabilities", "confidence", "features"]
    assert found["outputs"][0]["parameters"] == {"labels": list(LABELS)}
    assert found["outputs"][2]["parameters"] == {"by_name": True}
    config = told(there, "/v2/models/sums/config")[1]
    assert config["input"] == [{"name": "input", "data_type": "TYPE_UINT8", "dims": [2]}]
    assert (config["max_batch_size"], config["dynamic_batching"]["preferred_batch_size"]) == (8, [64])
    assert [one["name"] for one in told(there, "/v2/repository/index")[1]] == ["double", "sums"]
    assert told(there, "/v2")[1]["name"] == "test"


def test_readiness_ends_when_the_end_is_near_and_health_does_not(there: Endpoint) -> None:
    """So that a balancer sends nobody any more, and who has asked is answered."""
    assert told(there, "/v2/health/ready") == (200, {"ready": True})
    there.drain()
    assert told(there, "/v2/health/ready") == (503, {"ready": False})
    assert told(there, "/v2/models/sums/ready") == (200, {"name": "sums", "ready": False})
    assert told(there, "/v2/health/live") == (200, {"live": True})
    ask(there, PAIRS, "UINT8", "sums")


def test_an_endpoint_without_models_is_not_ready_and_says_why() -> None:
    """And has a description all the same."""
    there = Endpoint([], about=ABOUT, clock=FakeClock())
    assert told(there, "/v2/health/ready")[0] == 503
    with pytest.raises(NotFoundError, match="expected none: nothing is served here"):
        told(there, "/v2/models/m")
    assert told(there, "/v2/openapi.json")[1]["openapi"] == "3.1.0"


def test_the_description_names_every_path_with_its_method(there: Endpoint) -> None:
    """With the models' own names, so that a reader can try them; it is JSON, and every reference leads somewhere."""
    document = told(there, "/v2/openapi.json")[1]
    assert document["paths"]["/v2/models/sums/infer"].keys() == {"post"}
    wanted = {path for name, version in (("double", "1"), ("sums", "7")) for path in paths(name, version)}
    assert set(document["paths"]) == wanted
    assert json.loads(json.dumps(document)) == document
    assert {"$ref": "#/components/schemas/Error"} in list(_walk(document))
    assert "Error" in document["components"]["schemas"]


def _walk(value: Any) -> Iterator[Any]:
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _walk(one)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v2", Place("server")),
        ("/v2/models/m", Place("model", "m")),
        ("/v2/models/m/versions/1", Place("model", "m", "1")),
        ("/v2/models/m/versions/1/infer", Place("infer", "m", "1")),
        ("/v2/models/versions/versions/versions", Place("model", "versions", "versions")),
        ("/v2/models/m/config", Place("config", "m")),
        ("/v2/", None),
        ("/v2x", None),
        ("/v3", None),
        ("/v2/models", None),
        ("/v2/models/", None),
        ("/v2/models//infer", None),
        ("/v2/models/m/", None),
        ("/v2/models/m/versions", None),
        ("/v2/models/m/versions/", None),
        ("/v2/models/m/infer/more", None),
        ("/v2/health", None),
    ],
)
def test_a_path_is_one_of_the_protocols_or_none(path: str, place: Place | None) -> None:
    """No slash more or less, no empty name."""
    assert parse(path) == place


def test_every_path_that_is_told_is_understood() -> None:
    """One table is read in both directions."""
    assert all(parse(path) == place for path, place in paths("m", "3").items())


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".hidden", "x" * 101, "ä", "a?b"])
def test_a_name_that_no_path_can_hold_is_refused(name: str) -> None:
    """When the model is made, not when it is asked for."""
    port = Port(name="x", datatype="FP32", shape=(None,))
    with pytest.raises(SettingError, match="a name that no path can hold"):
        Served(name=name, version="1", platform="", input=port, outputs=(port,), run=twice)


def test_a_model_with_a_fixed_batch_is_refused() -> None:
    """Questions are joined, and have any number of inputs."""
    port = Port(name="x", datatype="FP32", shape=(1, 3))
    with pytest.raises(ModelError, match="needs a free batch"):
        Served(name="m", version="1", platform="", input=port, outputs=(port,), run=twice)


class _Liar(Sums):
    """Answers something else than it should."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._change = change

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Any:
        answer = super().predict(batch, deadline=deadline)
        found = {name: getattr(answer, name) for name in ("probabilities", "confidence", "decided_by")}
        return type(answer)(**(found | self._change(found)))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda found: {"probabilities": found["probabilities"][:1]}, EngineError),
        (lambda found: {"confidence": found["confidence"][:, None]}, EngineError),
        (lambda found: {"probabilities": found["probabilities"] * np.nan}, AnswerNotFiniteError),
    ],
)
def test_a_model_that_answers_with_other_rows_is_not_believed(
    change: Any, kind: type[EdgestillError]
) -> None:
    """The asker is told, and gets nothing of it."""
    there = Endpoint([sums(_Liar(change))], about=ABOUT, clock=FakeClock())
    with pytest.raises(kind):
        ask(there, PAIRS, "UINT8", "sums")
    there.close()


def test_rows_are_cut_with_what_is_told_of_them() -> None:
    """A part of the outputs goes with the same part of everything beside them."""
    rows = Rows({"a": np.arange(4), "b": np.eye(4)}, {"who": tuple("wxyz")}).cut(1, 3)
    assert (rows.outputs["a"].tolist(), rows.outputs["b"].shape, rows.told) == (
        [1, 2],
        (2, 4),
        {"who": ("x", "y")},
    )

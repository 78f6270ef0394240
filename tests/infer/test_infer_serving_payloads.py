"""Inputs that came as payloads: the model sees the numbers, and strangers' bytes are bounded and checked."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_served import twice

from edgestill.core.errors import EdgestillError, MessageError, NotFiniteError, SettingError, ShapeError
from edgestill.core.oip import InferRequest, InferResponse, Tensor
from edgestill.infer.payload import LOSSLESS, encode
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.places import Place
from edgestill.infer.serving.served import Port, Rows, Served
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

IMAGES = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (3, 200)])


def model(name: str, datatype: str, *shape: int | None) -> Served:
    """Answers the sum of each input."""

    def run(batch: NDArray[np.generic], _: float | None) -> Rows:
        sums = batch.reshape(len(batch), -1).astype(np.float32).sum(axis=1, keepdims=True)
        return Rows({"sum": sums})

    return Served(
        name=name,
        version="1",
        platform="test",
        input=Port(name="input", datatype=datatype, shape=(None, *shape)),
        outputs=(Port(name="sum", datatype="FP32", shape=(None, 1)),),
        run=run,
    )


@pytest.fixture(scope="module")
def there() -> Iterator[Endpoint]:
    models = [
        model("camera", "UINT8", 8, 8, 3),
        model("any", "UINT8", None, None, 3),
        model("motion", "FP32", 16),
    ]
    made = Endpoint(models, about=About(name="test", version="1"), clock=FakeClock())
    yield made
    made.close()


def ask(there: Endpoint, name: str, parts: list[bytes], parameters: JsonObject) -> NDArray[np.float32]:
    """The sums of inputs that came as these parts."""
    request = InferRequest(inputs=(Tensor.of_strings("input", parts, parameters),))
    question = there.question(there.model(name), *request.encode())
    body, length = there.answer(question, there.submit(question).result(30))
    tensor = InferResponse.decode(body, length).outputs[0]
    return np.frombuffer(tensor.data, np.float32)


def coded(batch: NDArray[np.generic], *allowed: str) -> tuple[list[bytes], JsonObject]:
    """A batch as a client sends it."""
    made = encode(batch, allowed)
    assert made is not None
    return list(made.parts), {"codec": made.codec, "shape": list(batch.shape[1:])}


@pytest.mark.parametrize("codec", ["deflate", "webp", "png"])
@pytest.mark.parametrize("name", ["camera", "any"])
def test_a_payload_is_answered_like_the_numbers(there: Endpoint, codec: str, name: str) -> None:
    """Whatever the codec, and whether or not the model's size is free."""
    wanted = IMAGES.reshape(2, -1).astype(np.float32).sum(axis=1)
    np.testing.assert_array_equal(ask(there, name, *coded(IMAGES, codec)), wanted)


def test_numbers_of_several_bytes_are_those_that_were_sent(there: Endpoint) -> None:
    """Floats come back to the bit."""
    batch = np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 16).round(1)
    found = ask(there, "motion", *coded(batch, *LOSSLESS))
    np.testing.assert_array_equal(found, twice(batch, None).outputs["twice"].sum(axis=1) / 2)


def test_the_metadata_offer_the_codecs_that_fit() -> None:
    """Those of pictures for pictures, and for motion the one for any numbers."""
    models = [model("camera", "UINT8", 8, 8, 3), model("motion", "FP32", 16)]
    made = Endpoint(models, about=About(name="test", version="1"), clock=FakeClock())
    found: list[Any] = [made.tell(Place("model", name))[1] for name in ("camera", "motion")]
    made.close()
    assert {"deflate", "webp", "png", "jpeg"} <= set(found[0]["inputs"][0]["parameters"]["codecs"])
    assert found[1]["inputs"][0]["parameters"]["codecs"] == ["deflate"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"codec": "zip"}, SettingError),
        ({"codec": 7}, MessageError),
        ({"codec": "png"}, MessageError),
        ({"shape": [8, 9, 3]}, ShapeError),
        ({"shape": [8, 8]}, ShapeError),
        ({"shape": []}, ShapeError),
        ({"shape": [8, -8, 3]}, MessageError),
        ({"shape": [8, 8.5, 3]}, MessageError),
        ({"shape": [2**40, 8, 3]}, MessageError),
        ({"shape": "8"}, MessageError),
        ({"shape": [1] * 20}, MessageError),
    ],
)
def test_attack_a_payload_that_says_something_else_is_refused(
    there: Endpoint, changes: JsonObject, error: type[EdgestillError]
) -> None:
    """Another codec, no codec, another shape or none: a coded error, and nothing is decoded."""
    parts, parameters = coded(IMAGES, "deflate")
    with pytest.raises(error):
        ask(there, "camera", parts, parameters | changes)


def test_attack_a_payload_without_a_shape_is_refused(there: Endpoint) -> None:
    """It is told beside the parts, and not guessed."""
    parts, _ = coded(IMAGES, "deflate")
    with pytest.raises(MessageError, match="shape"):
        ask(there, "camera", parts, {"codec": "deflate"})


def test_attack_a_free_size_cannot_be_made_huge(there: Endpoint) -> None:
    """A model of any size still has a bound on what is decoded, for one input and for all together."""
    with pytest.raises(MessageError, match="coded so"):
        ask(there, "any", [b""], {"codec": "deflate", "shape": [30_000, 30_000, 3]})
    with pytest.raises(MessageError, match="coded so"):
        ask(there, "any", [b""] * 1000, {"codec": "deflate", "shape": [400, 400, 3]})


def test_attack_nan_in_a_payload_is_refused(there: Endpoint) -> None:
    """Numbers are looked at after decoding as before."""
    batch = np.zeros((1, 16), np.float32)
    batch[0, 3] = np.nan
    with pytest.raises(NotFiniteError):
        ask(there, "motion", *coded(batch, "deflate"))


def test_attack_too_many_inputs_are_refused(there: Endpoint) -> None:
    """The bound on inputs of one question counts those of a payload."""
    parts, parameters = coded(IMAGES[:1], "deflate")
    with pytest.raises(ShapeError):
        ask(there, "camera", parts * 2000, parameters)


def test_strings_without_a_codec_are_another_datatype(there: Endpoint) -> None:
    """BYTES by themselves are no input of ours."""
    with pytest.raises(EdgestillError, match="another datatype"):
        ask(there, "camera", [b"abc"], {})


@given(
    st.lists(st.binary(max_size=80), min_size=1, max_size=3),
    st.sampled_from(["deflate", "png", "webp", "jpeg"]),
)
@settings(max_examples=80, deadline=None)
def test_attack_any_parts_are_refused_with_a_code(parts: list[bytes], codec: str) -> None:
    """Bytes from anywhere under any codec never get to the model, and never raise anything else."""
    made = Endpoint(
        [model("camera", "UINT8", 8, 8, 3)], about=About(name="test", version="1"), clock=FakeClock()
    )
    try:
        with pytest.raises(MessageError):
            ask(made, "camera", parts, {"codec": codec, "shape": [8, 8, 3]})
    finally:
        made.close()


def test_attack_a_bomb_in_a_payload_stops_at_the_input(there: Endpoint) -> None:
    """Fifty megabytes of zeros for an input of 192 bytes are not inflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(50_000_000)) + packer.flush()
    with pytest.raises(MessageError, match="not 192 bytes"):
        ask(there, "camera", [bomb], {"codec": "deflate", "shape": [8, 8, 3]})

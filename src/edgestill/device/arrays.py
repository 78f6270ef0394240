"""Arrays as tensors of a frame, and back; an answer as a frame, and back.

The engine child and the application's client use this; the supervisor, which knows no numpy, never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.errors import DtypeError, MessageError
from edgestill.core.jsonio import Fields
from edgestill.core.oip import DATATYPE_OF, NUMPY_NAMES, Tensor
from edgestill.device.frames import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import Json

MAX_TIERS = 32
_MATRIX = 2
_PARTS = ("probabilities", "confidence", "features", "alpha", "student", "teacher")


def to_tensor(name: str, array: NDArray[np.generic]) -> Tensor:
    """The array as bytes.

    Raises:
        DtypeError: an element type without a name in the Open Inference Protocol.
    """
    datatype = DATATYPE_OF.get(array.dtype.name)
    if datatype is None:
        raise DtypeError(
            "an array that cannot be sent",
            where=name,
            got=array.dtype.name,
            expected=", ".join(NUMPY_NAMES.values()),
            fix='convert it, for example with .astype("float32")',
        )
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return Tensor(name, datatype, array.shape, little.tobytes())


def to_array(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor as an array of its own.

    Raises:
        MessageError: it holds strings.
    """
    if tensor.datatype not in NUMPY_NAMES:
        raise MessageError(
            "a tensor that is no array",
            where=tensor.name,
            expected=", ".join(NUMPY_NAMES),
            got=tensor.datatype,
        )
    dtype = np.dtype(NUMPY_NAMES[tensor.datatype]).newbyteorder("<")
    flat = np.frombuffer(tensor.data, dtype=dtype)
    return flat.reshape(tensor.shape).astype(dtype.newbyteorder("="))


def answer_to_frame(answer: Answer) -> Frame:
    """An answer, ready to be sent."""
    parts = [(name, getattr(answer, name)) for name in _PARTS]
    names: list[Json] = list(answer.decided_by)
    return Frame(
        {"decided_by": names, "tiers": list(answer.tiers[:MAX_TIERS]), "latency": answer.latency},
        tuple(to_tensor(name, value) for name, value in parts if value is not None),
    )


def answer_from_frame(frame: Frame) -> Answer:
    """The answer that was sent.

    Raises:
        MessageError: no answer, or one whose parts have other shapes than an answer's.
    """
    fields = Fields(frame.header, "answer")
    decided_by = tuple(map(str, fields.items("decided_by", at_most=1_000_000)))
    probabilities, confidence = _floats(frame, "probabilities"), _floats(frame, "confidence")
    if probabilities is None or confidence is None:
        raise MessageError(
            "an answer without probabilities", where="answer", expected="probabilities", got="none"
        )
    answer = Answer(
        probabilities=probabilities,
        confidence=confidence,
        decided_by=decided_by,
        features=_floats(frame, "features"),
        alpha=_floats(frame, "alpha"),
        student=_floats(frame, "student"),
        teacher=_floats(frame, "teacher"),
        tiers=tuple(map(str, fields.items("tiers", at_most=MAX_TIERS))) if fields.has("tiers") else (),
        latency=fields.number("latency", least=0),
    )
    _check_shapes(answer)
    return answer


def as_labels(labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Labels as the learner takes them.

    Raises:
        DtypeError: no whole numbers; a score is not rounded to a class.
    """
    if labels.dtype.kind not in "iu":
        raise DtypeError(
            "labels of another element type",
            where="labels",
            expected="whole numbers",
            got=labels.dtype.name,
            fix="number the classes from 0",
        )
    return labels.astype(np.int64)


def _check_shapes(answer: Answer) -> None:
    n, said = len(answer), answer.probabilities.shape
    parts = (
        ("probabilities", answer.probabilities, (n, *(said[1:] if len(said) == _MATRIX else "C"))),
        ("confidence", answer.confidence, (n,)),
        ("alpha", answer.alpha, (n,)),
        ("student", answer.student, said),
        ("teacher", answer.teacher, said),
        ("features", answer.features, None),
    )
    for name, part, wanted in parts:
        if part is None:
            continue
        wide = part.ndim == _MATRIX and len(part) == n
        if not (wide if wanted is None else part.shape == wanted):
            raise MessageError(
                "an answer whose parts do not fit",
                where=f"answer: {name}",
                expected=[n, "D"] if wanted is None else list(wanted),
                got=list(part.shape),
            )


def _floats(frame: Frame, name: str) -> NDArray[np.float32] | None:
    tensor = frame.tensor(name)
    if tensor is None:
        return None
    if tensor.datatype != "FP32":
        raise MessageError("an answer of another datatype", where=name, expected="FP32", got=tensor.datatype)
    return to_array(tensor).astype(np.float32, copy=False)

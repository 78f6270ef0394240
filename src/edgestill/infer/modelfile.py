"""What an ONNX file would make the engine do, read before the engine sees it.

An ONNX file can name other files as the home of its weights, and operators that only a plug-in knows. Either makes a
model more than data: the first reads paths of the writer's choosing, the second wants code. Both are refused here, by
walking the protobuf wire format (ONNX `onnx.proto3`, ModelProto) without building objects: lengths are checked
against what is there, nesting is bounded, tensor contents are skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.core.errors import ModelError
from edgestill.core.protobuf import BYTES, fields_of, not_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_DEPTH: Final = 24
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that stock onnxruntime carries; its own one holds the fused and quantised operators."""

_EXTERNAL: Final = 1

# message -> field number -> the message inside; fields that are not named are skipped
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NODE_DOMAIN: Final = 7
_FUNCTION_DOMAIN: Final = 10
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_LOCATION: Final = 14


def check_self_contained(model: bytes) -> None:
    """Refuses a model that is more than data.

    Raises:
        ModelError: not an ONNX file, weights in other files, or operators that stock onnxruntime does not have.
    """
    allowed = set(DOMAINS)
    used: set[str] = set()
    view = memoryview(model)
    if not any(number == _MODEL_GRAPH and kind == BYTES for number, kind, _ in fields_of(view)):
        raise not_onnx("no graph")
    for message, number, value in _walk(view, "model", 0):
        if message == "tensor" and (
            number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value == _EXTERNAL)
        ):
            raise ModelError(
                "a model must hold its weights itself",
                where="model.onnx",
                expected="no external data",
                fix="save it as one file",
                got="weights in another file",
            )
        if message == "node" and number == _NODE_DOMAIN:
            used.add(_text(value))
        if message == "function" and number == _FUNCTION_DOMAIN:
            allowed.add(_text(value))
    if not used <= allowed:
        raise ModelError(
            "a model with operators of its own",
            where="model.onnx",
            expected=f"operators of {', '.join(sorted(DOMAINS - {''}))}",
            got=", ".join(sorted(used - allowed)),
            fix="export it with standard operators",
        )


_MODEL_GRAPH: Final = 7


def _walk(view: memoryview, message: str, depth: int) -> Iterator[tuple[str, int, int | memoryview]]:
    """Every (message, field number, value) down to the tensors, outer ones first."""
    if depth > MAX_DEPTH:
        raise ModelError(
            "a model is nested too deeply",
            where="model.onnx",
            expected=f"at most {MAX_DEPTH} levels",
            got="more",
            fix="export it again without nested control flow",
        )
    inside = _INSIDE[message]
    for number, kind, value in fields_of(view):
        yield message, number, value
        if number in inside:
            if kind != BYTES or isinstance(value, int):
                raise not_onnx(f"field {number} of {message} is no message")
            yield from _walk(value, inside[number], depth + 1)


def _text(value: int | memoryview) -> str:
    return str(value) if isinstance(value, int) else bytes(value[:200]).decode("utf-8", "replace")

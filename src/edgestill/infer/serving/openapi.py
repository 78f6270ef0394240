"""What is served, as an OpenAPI 3.1 document: a page for people's tools, and what a fuzzer starts from.

JSON bodies are described as closely as a schema can say it; that numbers and shape agree is checked by the server alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.core.oip import HEADER, MAX_TENSORS
from edgestill.infer.serving.places import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.infer.serving.descriptions import About
    from edgestill.infer.serving.places import Place
    from edgestill.infer.serving.served import Served
    from edgestill.infer.serving.waiting import Capacity

_RANGES: Final[dict[str, tuple[int, int]]] = {
    name: bounds
    for bits in (8, 16, 32, 64)
    for name, bounds in (
        (f"UINT{bits}", (0, 2**bits - 1)),
        (f"INT{bits}", (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)),
    )
}
_LARGEST: Final = {"FP16": 65_504.0, "FP32": 3.4028234e38, "FP64": 1.7976931348623157e308}
_SUMMARIES: Final = {
    "server": "The server",
    "live": "Whether the process lives",
    "ready": "Whether questions are answered",
    "openapi": "This document",
    "index": "All models",
    "model": "A model's inputs and outputs",
    "model-ready": "Whether a model answers",
    "config": "A model's configuration",
    "infer": "Answers for a batch",
}
_REFUSALS: Final = {
    "index": (400, 413),
    "infer": (400, 401, 404, 413, 422, 429, 500, 502, 503),
    "ready": (503,),
}
_BOOL: Final[JsonObject] = {"type": "boolean"}
_TEXT: Final[JsonObject] = {"type": "string"}


def document(models: Sequence[Served], capacity: Capacity, about: About) -> JsonObject:
    """The document."""
    described: JsonObject = {}
    for model in models:
        for path, place in paths(model.name, model.version).items():
            described[path] = _path(place, model, capacity, about)
    return {
        "openapi": "3.1.0",
        "info": {"title": about.name, "version": about.version},
        "paths": described or {"/v2": {}},
        "components": {
            "schemas": {"Error": _object({"error": _TEXT})},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _path(place: Place, model: Served, capacity: Capacity, about: About) -> JsonObject:
    statuses = _REFUSALS.get(place.kind, ())
    responses: JsonObject = {"200": _ok(place, model)}
    for status in statuses:
        responses[str(status)] = _content(
            _ready() if place.kind == "ready" else {"$ref": "#/components/schemas/Error"}
        )
    about_it: JsonObject = {"summary": _SUMMARIES[place.kind], "responses": responses}
    if place.kind == "index":
        about_it["requestBody"] = _content(_object({"ready": _BOOL}, required=False)) | {"required": False}
    if place.kind == "infer":
        about_it["requestBody"] = _content(_request(model, capacity)) | {"required": True}
        if about.needs_token:
            needed: JsonObject = {"token": []}
            about_it["security"] = [needed]
    return {place.methods[0].lower(): about_it}


def _ok(place: Place, model: Served) -> JsonObject:
    if place.kind == "infer":
        binary: JsonObject = {"application/octet-stream": {"schema": _TEXT | {"format": "binary"}}}
        answer = _content(_response(model), "The answer; with raw tensors where they were asked for")
        content = answer["content"]
        assert isinstance(content, dict)
        lengths: JsonObject = {HEADER: {"schema": {"type": "integer"}, "description": "Bytes of JSON"}}
        return answer | {"content": content | binary, "headers": lengths}
    schemas: dict[str, JsonObject] = {
        "live": _object({"live": _BOOL}),
        "ready": _ready(),
        "model-ready": _object({"name": _TEXT, "ready": _BOOL}),
        "index": {"type": "array", "items": _object({"name": _TEXT, "version": _TEXT, "state": _TEXT})},
        "server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "model": _object(
            {"name": _TEXT, "versions": _list(_TEXT), "inputs": _list({}), "outputs": _list({})}
        ),
    }
    return _content(schemas.get(place.kind, {"type": "object"}))


def _request(model: Served, capacity: Capacity) -> JsonObject:
    port = model.input
    shape: list[Json] = [{"type": "integer", "minimum": 1, "maximum": capacity.most_asked}]
    shape += [{"type": "integer", "minimum": 1} if dim is None else {"const": dim} for dim in port.shape[1:]]
    tensor = _object(
        {
            "name": {"const": port.name},
            "datatype": {"const": port.datatype},
            "shape": {"type": "array", "prefixItems": shape, "items": False, "minItems": len(shape)},
            "data": _list(_number(port.datatype)),
        }
    )
    named = _one_of(port.name for port in model.outputs)
    outputs: JsonObject = {"type": "array", "items": _object({"name": named}), "maxItems": MAX_TENSORS}
    parameters = _object(
        {"timeout_ms": _or_null({"type": "number", "minimum": 0, "maximum": capacity.longest * 1e3})},
        required=False,
    )
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _or_null(_TEXT | {"maxLength": 200, "pattern": r"^[ -~]*$"}),
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": _or_null(outputs),
            "parameters": _or_null(parameters),
        },
    }


def _response(model: Served) -> JsonObject:
    tensor = _object(
        {
            "name": _one_of(port.name for port in model.outputs),
            "datatype": _one_of(port.datatype for port in model.outputs),
            "shape": _list({"type": "integer"}),
            "data": _list({"type": "number"}),
        }
    )
    return _object({"model_name": {"const": model.name}, "outputs": _list(tensor)})


def _number(datatype: str) -> JsonObject:
    if datatype == "BOOL":
        return _BOOL
    if datatype in _RANGES:
        least, most = _RANGES[datatype]
        return {"type": "integer", "minimum": least, "maximum": most}
    return {"type": "number", "minimum": -_LARGEST[datatype], "maximum": _LARGEST[datatype]}


def _or_null(schema: JsonObject) -> JsonObject:
    """What may be left out may be null too."""
    return schema | {"type": [schema["type"], "null"]}


def _one_of(texts: Iterable[str]) -> JsonObject:
    return {"enum": list(dict.fromkeys(texts))}


def _ready() -> JsonObject:
    return _object({"ready": _BOOL})


def _object(properties: dict[str, JsonObject], *, required: bool = True) -> JsonObject:
    described: JsonObject = {"type": "object", "properties": {**properties}}
    if required:
        described["required"] = list(properties)
    return described


def _list(items: JsonObject) -> JsonObject:
    return {"type": "array", "items": items}


def _content(schema: JsonObject, description: str = "JSON") -> JsonObject:
    return {"description": description, "content": {"application/json": {"schema": schema}}}

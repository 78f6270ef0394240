"""The teacher's endpoints: `/v2/...` of the Open Inference Protocol, JSON or binary, gzip understood.

Health and metadata are open to anybody; to infer takes a device's credential or the operator's token. A device may say in
the request's parameters why it asks (`purpose`: `escalation` or `audit`) and whether the hub may keep what it sends (`retain`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

import edgestill
from edgestill.core.errors import MessageError, NotFoundError
from edgestill.core.oip import HEADER, InferRequest
from edgestill.hub import bodies, evidence, registry
from edgestill.hub.access import bearer, calling_device, hub_of, is_operator
from edgestill.hub.teacher import NAME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from starlette.requests import Request

    from edgestill.hub.service import Hub
    from edgestill.hub.teacher import Teacher

log: Final = logging.getLogger(__name__)

PURPOSES: Final = ("escalation", "audit")

_MAX_DIGITS: Final = 12


async def live(_: Request) -> Response:
    """`GET /v2/health/live`."""
    return bodies.answer({"live": True})


async def ready(request: Request) -> Response:
    """`GET /v2/health/ready`: 503 while there is no teacher, or the hub is about to end."""
    hub = hub_of(request)
    is_ready = hub.teacher is not None and not hub.draining
    return bodies.answer({"ready": is_ready}, status=200 if is_ready else 503)


async def server(_: Request) -> Response:
    """`GET /v2`."""
    return bodies.answer(
        {"name": "edgestill-hub", "version": edgestill.__version__, "extensions": ["binary_tensor_data"]}
    )


async def model(request: Request) -> Response:
    """`GET /v2/models/teacher`."""
    return bodies.answer(_teacher(request).describe())


async def model_ready(request: Request) -> Response:
    """`GET /v2/models/teacher/ready`."""
    return bodies.answer({"name": NAME, "ready": _teacher(request) is not None})


async def infer(request: Request) -> Response:
    """`POST /v2/models/teacher/infer`."""
    hub = hub_of(request)
    device = None if is_operator(request, bearer(request)) else (await calling_device(request)).id
    teacher = _teacher(request)
    body = await bodies.read(request, at_most=hub.settings.max_infer, compressed=True)
    asked = InferRequest.decode(body, _json_length(request))
    purpose = asked.parameters.get("purpose", PURPOSES[0])
    if purpose not in PURPOSES:
        raise MessageError(
            "unknown purpose", where="parameters", expected=" or ".join(PURPOSES), got=repr(purpose)[:80]
        )
    batch = teacher.batch(asked)
    logits = await teacher.logits(batch)
    kept = 0
    if device is not None and asked.parameters.get("retain") is True:
        kept = await _retain(hub, _asked(device, str(purpose), asked, batch, logits))
    log.debug(
        "the teacher answers %d inputs of %s, %s; %d are kept",
        len(batch),
        device or "the operator",
        purpose,
        kept,
    )
    answer = teacher.answer(asked, logits, {"retained": kept})
    data, json_length = answer.encode(binary=asked.binary)
    if json_length is None:
        return Response(data, media_type="application/json")
    return Response(data, media_type="application/octet-stream", headers={HEADER: str(json_length)})


async def _retain(hub: Hub, asked: evidence.Asked) -> int:
    try:
        async with hub.database.write() as connection:
            await registry.require_standing(connection, asked.device)
            return await evidence.keep_samples(
                connection, asked, now=hub.clock.now(), most=hub.settings.max_samples
            )
    except SQLAlchemyError:
        log.exception("evidence of %s could not be kept", asked.device)
        return 0


def _asked(
    device: str,
    purpose: str,
    request: InferRequest,
    batch: NDArray[np.generic],
    logits: NDArray[np.float32],
) -> evidence.Asked:
    tensor = request.inputs[0]
    data, count = bytes(tensor.data), len(batch)
    width = len(data) // count
    return evidence.Asked(
        device=device,
        purpose=purpose,
        request=request.id,
        datatype=tensor.datatype,
        shape=tensor.shape[1:],
        inputs=[data[index * width : (index + 1) * width] for index in range(count)],
        logits=[row.astype("<f4").tobytes() for row in logits],
    )


def _teacher(request: Request) -> Teacher:
    """The model that the path names.

    Raises:
        NotFoundError: another name or version, or no teacher at all.
    """
    teacher = hub_of(request).teacher
    name, version = request.path_params["model"], request.path_params.get("version")
    if teacher is None or name != NAME or version not in {None, teacher.version}:
        raise NotFoundError(
            "no such model",
            got=repr(f"{name}/{version}" if version else name)[:80],
            where="models",
            expected="none: this hub has no teacher" if teacher is None else f"{NAME}/{teacher.version}",
            fix="name the model that this hub serves",
        )
    return teacher


def _json_length(request: Request) -> int | None:
    said = request.headers.get(HEADER)
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) <= _MAX_DIGITS):
        raise MessageError("not a length", where=HEADER, expected="a whole number", got=said[:40])
    return int(said)

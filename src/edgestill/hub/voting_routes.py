"""Voting rounds over HTTP: a device's ballot, and what operators do.

| exchange | what it does |
|---|---|
| `POST /v1/evidence/votes/ROUND` | a device's ballot |
| `GET /v1/admin/votings` | the newest rounds |
| `POST /v1/admin/votings` | `{"target", "labels", "hardware_class", "seconds"}`: opens one |
| `GET /v1/admin/votings/ROUND` | one, with its devices |
| `POST /v1/admin/votings/ROUND/close` | closes one |
| `POST /v1/admin/votings/ROUND/outcome` | `{"weights"}`: what came together, as tensors of the Open Inference Protocol; weights of devices, each 0 to 1 |
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import numpy as np
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgestill.core import hardware
from edgestill.core.errors import EvidenceError, MessageError, NotFoundError
from edgestill.core.oip import HEADER, InferResponse, Tensor
from edgestill.core.release import PROXY
from edgestill.hub import bodies, messages, refusals, registry, votings
from edgestill.hub.access import calling_device, hub_of
from edgestill.learn.proxysets import question_of
from edgestill.learn.votes import MAX_BYTES, Ballot

if TYPE_CHECKING:
    from starlette.requests import Request

    from edgestill.core.jsonio import Fields, Json, JsonObject
    from edgestill.hub.service import Hub
    from edgestill.learn.votes import Outcome

log: Final = logging.getLogger(__name__)

MOST_WEIGHED: Final = 500
"""Devices to which an operator may give a weight of their own; a request of so many is within the bound of all."""
_USUAL: Final = 7 * 86_400.0


async def vote(request: Request) -> Response:
    """`POST /v1/evidence/votes/ROUND`."""
    hub, number = hub_of(request), request.path_params["id"]
    device = await calling_device(request)
    hub.ballots.require(f"device {device.id}")
    id_, sequence = messages.message_id(request), messages.sequence(request)
    if sequence is None:
        raise MessageError("a ballot without its place", where="votes", expected="a sequence", got="none")
    try:
        body = await bodies.read(request, at_most=MAX_BYTES)
    except HTTPException:
        await messages.refuse(hub, device.id, refusals.TOO_LONG)
        raise
    try:
        async with hub.database.read() as connection:
            question = await votings.question_of(connection, number, device.id, hub.clock.now())
        ballot = await hub.in_thread(lambda: Ballot.from_bytes(body, question))
        message = votings.Message(device=device.id, id=id_, sequence=sequence, ballot=ballot, body=body)
        async with hub.database.write() as connection:
            await registry.require_standing(connection, device.id)
            await votings.question_of(connection, number, device.id, hub.clock.now())
            verdict = await votings.keep(connection, number, message, hub.clock.now())
            if verdict != "counts":
                await refusals.count(connection, device.id, messages.NOT_TAKEN[verdict], hub.clock.now())
    except (MessageError, EvidenceError) as error:
        await messages.refuse(hub, device.id, error.what)
        raise
    log.info(
        "device %s has voted on %d of %d samples of round %d: %s",
        *(device.id, ballot.votes, question.samples, number),
        messages.NOT_TAKEN.get(verdict, "accepted"),
    )
    told: JsonObject = {"accepted": verdict == "counts"}
    return bodies.answer(told if verdict == "counts" else told | {"reason": messages.NOT_TAKEN[verdict]})


async def list_votings(request: Request) -> Response:
    """`GET /v1/admin/votings`."""
    hub = hub_of(request)
    async with hub.database.read() as connection:
        found: list[Json] = [*await votings.newest(connection, hub.clock.now())]
    return bodies.answer({"votings": found})


async def show_voting(request: Request) -> Response:
    """`GET /v1/admin/votings/ROUND`."""
    return await _shown(request)


async def start_voting(request: Request) -> Response:
    """`POST /v1/admin/votings`."""
    hub = hub_of(request)
    wish = await _wish(hub, await bodies.read_object(request, where="voting"))
    about: JsonObject = {"target": wish.target, "seconds": wish.seconds}
    about |= {"labels": dict(wish.labels)} if wish.labels else {}
    request.state.about = about | ({"class": wish.hardware_class} if wish.hardware_class else {})
    async with hub.database.write() as connection:
        number, chosen = await votings.start(connection, wish, hub.clock.now())
    request.state.about |= {"round": number, "devices": len(chosen)}
    log.info("voting round %d: %d devices have a turn on %s", number, len(chosen), wish.target)
    hub.bell.ring(chosen)
    return bodies.answer({"id": number, "devices": len(chosen)}, status=201)


async def close_voting(request: Request) -> Response:
    """`POST /v1/admin/votings/ROUND/close`."""
    hub, number = hub_of(request), request.path_params["id"]
    async with hub.database.write() as connection:
        freed = await votings.close(connection, number, hub.clock.now())
    log.info("voting round %d is closed, by an operator", number)
    hub.bell.ring(freed)
    return await _shown(request)


async def outcome(request: Request) -> Response:
    """`POST /v1/admin/votings/ROUND/outcome`."""
    hub, number = hub_of(request), request.path_params["id"]
    fields = await bodies.read_object(request, where="outcome")
    fields.only(("weights",))
    weights = _weights(fields)
    request.state.about = {"round": number} | ({"weights": dict(weights)} if weights else {})
    async with hub.agreeing, hub.database.read() as connection:  # beside everything else, one at a time
        target, found = await votings.outcome(connection, number, weights, asyncio.to_thread)
    data, json_length = await asyncio.to_thread(lambda: _as_message(found, target).encode())
    headers = {HEADER: str(json_length), "cache-control": "no-store"}
    return Response(data, media_type="application/octet-stream", headers=headers)


async def _wish(hub: Hub, fields: Fields) -> votings.Wish:
    fields.only(("target", "labels", "hardware_class", "seconds"))
    target = fields.text("target", at_most=200, pattern=PROXY)
    info = hub.artefacts.publication.proxy_sets.get(target)
    if info is None:
        raise NotFoundError(
            "the publisher does not list this proxy set",
            where="targets.json",
            expected="proxy/NAME/VERSION/samples.esp, as the list has it",
            got=target,
            fix="publish it: edgestill release publish NAME.esp",
        )
    head = await hub.in_thread(lambda: hub.artefacts.proxy_set(info.digest.hex).head)
    has_class, has_time = fields.has("hardware_class"), fields.has("seconds")
    return votings.Wish(
        target=target,
        question=question_of(info.digest, head),
        labels=fields.texts("labels", at_most=16, plain=True) if fields.has("labels") else {},
        hardware_class=fields.text("hardware_class", pattern=hardware.PATTERN) if has_class else "",
        seconds=fields.number("seconds", least=votings.SHORTEST, most=votings.LONGEST)
        if has_time
        else _USUAL,
    )


def _weights(fields: Fields) -> dict[str, float]:
    if not fields.has("weights"):
        return {}
    given = fields.inner("weights")
    if len(given.names()) > MOST_WEIGHED:
        raise MessageError(
            "too many weights", where="outcome", expected=f"at most {MOST_WEIGHED}", got=len(given.names())
        )
    return {name: given.number(name, least=0, most=1) for name in given.names()}


def _as_message(found: Outcome, target: str) -> InferResponse:
    """`soft` FP32 `[N, C]`, `voted` INT64 and `weight` FP64 `[N]`; what was asked, and of how many, beside them."""
    n, classes = found.soft.shape
    return InferResponse(
        model="votes",
        outputs=(
            Tensor("soft", "FP32", (n, classes), found.soft.astype("<f4").tobytes()),
            Tensor("voted", "INT64", (n,), found.voted.astype("<i8").tobytes()),
            Tensor("weight", "FP64", (n,), np.ascontiguousarray(found.weight, "<f8").tobytes()),
        ),
        parameters={
            "target": target,
            "proxy": str(found.question.proxy),
            "voters": found.voters,
            "students": found.students,
        },
    )


async def _shown(request: Request) -> Response:
    hub = hub_of(request)
    async with hub.database.read() as connection:
        return bodies.answer(await votings.status(connection, request.path_params["id"], hub.clock.now()))

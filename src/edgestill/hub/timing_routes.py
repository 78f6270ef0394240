"""Timing jobs, for operators.

| exchange | what it does |
|---|---|
| `GET /v1/admin/timings` | the newest jobs |
| `POST /v1/admin/timings` | `{"target", "labels", "devices"}`: begins one |
| `GET /v1/admin/timings/ID` | one, with its devices |
| `POST /v1/admin/timings/ID/cancel` | ends one |
| `GET /v1/admin/timings/ID/profile?device=NAME` | what came of it, as `edgestill search --profile` takes it: of all devices, or of one |
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from edgestill.core.errors import NotFoundError
from edgestill.core.release import TIMING
from edgestill.hub import bodies, timings
from edgestill.hub.access import hub_of
from edgestill.infer.outlines import outlines_of, profile_bytes

if TYPE_CHECKING:
    from starlette.requests import Request

    from edgestill.core.jsonio import Json
    from edgestill.hub.service import Hub

log: Final = logging.getLogger(__name__)


async def list_timings(request: Request) -> Response:
    """`GET /v1/admin/timings`."""
    async with hub_of(request).database.read() as connection:
        found: list[Json] = [*await timings.newest(connection)]
    return bodies.answer({"timings": found})


async def show_timing(request: Request) -> Response:
    """`GET /v1/admin/timings/ID`."""
    return await _shown(request)


async def start_timing(request: Request) -> Response:
    """`POST /v1/admin/timings`."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="timing")
    fields.only(("target", "labels", "devices"))
    target = fields.text("target", at_most=200, pattern=TIMING)
    labels = fields.texts("labels", at_most=16, plain=True) if fields.has("labels") else {}
    count = fields.integer("devices", least=1, most=timings.MOST_DEVICES)
    request.state.about = {"target": target, "devices": count} | ({"labels": dict(labels)} if labels else {})
    info = hub.artefacts.publication.families.get(target)
    if info is None:
        raise NotFoundError(
            "the publisher does not list this family of models",
            where="targets.json",
            expected="timing/NAME/VERSION/CLASS.est, as the list has it",
            got=target,
            fix="publish it: edgestill release publish NAME.est",
        )
    within = timings.CALLED_POLLS * hub.settings.poll_interval
    models = await hub.in_thread(lambda: len(hub.artefacts.family(info.digest.hex).head.models))
    async with hub.database.write() as connection:
        wish = timings.Wish(target, info, labels, count, models, within)
        job, chosen = await timings.start(connection, wish, hub.clock.now())
    request.state.about |= {"timing": job, "given_to": ", ".join(chosen)[:400]}
    log.info("timing job %d: %d devices time %s", job, len(chosen), target)
    hub.bell.ring(chosen)
    return bodies.answer({"id": job, "devices": [*chosen]}, status=201)


async def cancel_timing(request: Request) -> Response:
    """`POST /v1/admin/timings/ID/cancel`."""
    hub, job = hub_of(request), request.path_params["id"]
    async with hub.database.write() as connection:
        freed = await timings.cancel(connection, job, hub.clock.now())
    log.info("timing job %d is cancelled, by an operator", job)
    hub.bell.ring(freed)
    return await _shown(request)


async def profile(request: Request) -> Response:
    """`GET /v1/admin/timings/ID/profile`."""
    hub, device = hub_of(request), request.query_params.get("device")
    async with hub.database.read() as connection:
        taken = await timings.taken(connection, request.path_params["id"], device)
    data = await hub.in_thread(lambda: _profile(hub, taken))
    return Response(data, media_type="application/json", headers={"cache-control": "no-store"})


def _profile(hub: Hub, taken: timings.Taken) -> bytes:
    family = hub.artefacts.family(taken.digest)
    there = len(family.head.models)  # of a job of an earlier hub it was not known when its devices were heard
    times, told = timings.merged(
        {name: {at: pair for at, pair in one.items() if at < there} for name, one in taken.times.items()}
    )
    more: dict[str, Json] = {"timing": {"target": taken.target, **told}}
    return profile_bytes(outlines_of(family), times, family.head.hardware_class, more)


async def _shown(request: Request) -> Response:
    async with hub_of(request).database.read() as connection:
        return bodies.answer(await timings.status(connection, request.path_params["id"]))

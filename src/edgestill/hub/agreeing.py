"""`POST /v1/admin/evidence/statistics/agreed`: the sum over the fleet in which no single device decides (`learn.robust`).

The operator sends the statistics that are believed: the bundle's own, in the coordinates that the devices send. So the hub needs to
know nothing of coordinates. The answer is one JSON object: the weighed sum as a message (base64, float64, without the reference), the
weight of each device that was weighed down, and by how much the scores would change without the device that changes them most.

It is computed beside everything else, on a thread of its own, one at a time: of thousands of devices it takes minutes.
"""

from __future__ import annotations

import asyncio
import base64
import math
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import MessageError
from edgestill.hub import bodies, sums
from edgestill.hub.access import hub_of
from edgestill.learn.robust import Rule
from edgestill.learn.statistics import MAX_BYTES, Statistics

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.robust import Agreed

MOST_TOLD: Final = 1_000
"""Devices whose weights are told, the lowest first."""


async def agreed(request: Request) -> Response:
    """`POST /v1/admin/evidence/statistics/agreed`."""
    hub = hub_of(request)
    rule = _rule(request)
    body = await bodies.read(request, at_most=MAX_BYTES)
    reference = await hub.in_thread(lambda: Statistics.from_bytes(body))
    kind = sums.Kind(reference.classes, reference.features)
    totals: dict[str, Statistics] = {}
    async with hub.agreeing:
        async with hub.database.read() as connection:
            async for some in sums.bodies(connection, reference.backbone, kind):
                await asyncio.to_thread(sums.add_by_device, totals, some)
        found = await asyncio.to_thread(sums.agreed, totals, reference, rule)
        told = await asyncio.to_thread(_told, found)
    return bodies.answer(told)


def _told(found: Agreed) -> JsonObject:
    lowered = sorted((weight, device) for device, weight in found.weights.items() if weight < 1)
    message = sums.as_message(found.total, found.total.backbone)
    return {
        "statistics": base64.b64encode(message).decode("ascii"),
        "devices": len(found.weights),
        "lowered": len(lowered),
        "weights": {device: weight for weight, device in lowered[:MOST_TOLD]},
        "largest": found.largest,
        "settled": found.settled,
    }


def _rule(request: Request) -> Rule:
    usual = Rule()
    return Rule(
        size=_number(request, "size", usual.size),
        influence=_number(request, "influence", usual.influence),
        prior=_number(request, "prior", usual.prior),
        ridge=_number(request, "ridge", usual.ridge),
    )


def _number(request: Request, name: str, usual: float) -> float:
    text = request.query_params.get(name, str(usual))[:40]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MessageError(
            "not a number that can be asked for",
            where=f"query: {name}",
            expected="a finite number",
            got=repr(text),
            fix=f"leave {name} out, or change it",
        )
    return value

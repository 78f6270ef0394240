"""A page for people: one look at the fleet, made on the server, without scripts.

Every value is escaped, whoever it came from; the policy sent along lets the browser run nothing and load nothing but the
page's own style. The browser asks for the operator's token as the password of HTTP Basic authentication.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from edgestill.core.errors import AccessError
from edgestill.hub import registry, rollouts, sums
from edgestill.hub.access import basic_password, bearer, hub_of, operator_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.requests import Request

    from edgestill.core.jsonio import Json, JsonObject

MAX_ROWS: Final = 200

_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0 2rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; }
.trouble { color: #a00; }
"""
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


async def status(request: Request) -> Response:
    """`GET /`."""
    if not await _may_look(request):
        return PlainTextResponse(
            "An operator's token is the password.\n",
            401,
            headers={"www-authenticate": 'Basic realm="edgestill hub", charset="UTF-8"'},
        )
    hub = hub_of(request)
    async with hub.database.read() as connection:
        devices = await registry.fleet(connection)
        records = await rollouts.newest(connection, MAX_ROWS)
        counts = await sums.counts(connection)
    parts = [
        _trouble(hub.trouble),
        _table("Rollouts", _ROLLOUT, map(rollouts.summary, records)),
        _table(f"Devices ({len(devices)})", _DEVICE, map(_flattened, devices[:MAX_ROWS])),
        _table("Statistics", _BACKBONE, _backbones(counts)),
    ]
    return HTMLResponse(_page(parts), headers=_HEADERS)


async def live(_: Request) -> Response:
    """`GET /health/live`: the process answers."""
    return PlainTextResponse("live\n")


async def ready(request: Request) -> Response:
    """`GET /health/ready`: the database answers, and the hub is not about to end."""
    hub = hub_of(request)
    if hub.draining:
        return PlainTextResponse("draining\n", 503)
    async with hub.database.read() as connection:
        await rollouts.newest(connection, 1)
    return PlainTextResponse("ready\n")


_ROLLOUT: Final = ("id", "release", "state", "stage", "reason")
_DEVICE: Final = (
    "device",
    "class",
    "release",
    "assigned",
    "state",
    "reason",
    "last_seen",
    "revoked_at",
    "answers",
    "escalated",
    "audits",
    "agreed",
    "drift",
)
_BACKBONE: Final = ("backbone", "classes", "features", "devices", "messages", "n", "apart")


async def _may_look(request: Request) -> bool:
    try:
        secret = basic_password(request) or bearer(request)
    except AccessError:
        return False
    operator = await operator_of(request, secret)
    return operator is not None and operator.may("view")


def _flattened(device: JsonObject) -> JsonObject:
    figures = device["health"]
    times = {name: device[name] for name in ("last_seen", "revoked_at")}
    return {
        **device,
        **(figures if isinstance(figures, dict) else {}),
        **{name: _when(at) if isinstance(at, float) else None for name, at in times.items()},
    }


def _backbones(counts: JsonObject) -> list[JsonObject]:
    return [{"backbone": name, **one} for name, one in counts.items() if isinstance(one, dict)]


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _trouble(text: str) -> str:
    return f'<p class="trouble">{escape(text)}</p>' if text else ""


def _table(title: str, columns: Sequence[str], rows: Iterable[JsonObject]) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in columns) + "</tr>" for row in rows
    )
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: Json) -> str:
    return "" if value is None else escape(str(value))


def _page(parts: Iterable[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>edgestill hub</title>'
        f"<style>{_STYLE}</style></head><body><h1>edgestill hub</h1>{''.join(parts)}</body></html>"
    )

"""The operators' API: publishing, join tokens, rollouts, and what the fleet looks like.

Who may call what stands beside the paths in `hub.app`; orders, and the reading of samples, are written into the audit log.

| exchange | what it does |
|---|---|
| `GET /v1/admin/online-key` | the hub's public key, for the publisher to name in root.json |
| `POST /v1/admin/root` | the publisher's root metadata, the first or the next |
| `POST /v1/admin/roots` | `{"roots": [...]}`, every root as text, for a hub that has none |
| `POST /v1/admin/join-tokens` | `{"uses", "expires_in"}` -> `{"token"}`; `GET` lists them, without their secrets |
| `POST /v1/admin/join-tokens/revoke` | `{"token"}`, an id or the token itself -> `{"id", "devices", "more"}` |
| `PUT /v1/admin/blobs` | an archive -> `{"digest", "size"}` |
| `PUT /v1/admin/images` | an image for other updaters, of an archive that is here -> `{"archive", "digest", "size"}` |
| `GET /v1/admin/metadata/targets` | the publisher's list as it is served |
| `POST /v1/admin/targets` | the publisher's next list |
| `GET /v1/admin/roles` | `{"roles": [...]}`, whom the publisher delegates to, and which version of its list was named last |
| `GET /v1/admin/roles/ROLE` | the role's list as it is served; `POST` takes its next one |
| `GET /v1/admin/releases` | `{"releases": [...]}` |
| `POST /v1/admin/rollouts` | `{"release", "stages", "gates", "labels"}` -> `{"id"}`; `GET` lists the newest |
| `GET /v1/admin/rollouts/ID` | where it is, why, and how each device stands |
| `POST /v1/admin/rollouts/ID/pause`, `/resume`, `/advance`, `/rollback` | the rollout afterwards |
| `GET /v1/admin/fleet` | `{"devices": [...]}` |
| `POST /v1/admin/devices/NAME/assignment` | `{"expires_in"}` -> what a poll of the device would be answered, to be carried to it |
| `POST /v1/admin/devices/NAME/revoke` | `{"device", "revoked_at"}`; its credential is refused from now on |
| `GET /v1/admin/evidence` | counts |
| `GET /v1/admin/evidence/samples?after=ID&limit=N` | samples in the Open Inference Protocol's response form |
| `GET /v1/admin/evidence/statistics?backbone=DIGEST` | the sum as a `learn.statistics` message; `&classes=C&features=D` for another kind |
| `POST /v1/admin/evidence/statistics/agreed` | the reference as a message -> a sum in which no single device decides |
| `POST /v1/admin/operators` | `{"name", "role", "expires_in"}` -> `{"token"}`; `GET` lists them |
| `POST /v1/admin/operators/NAME/revoke` | `{"name", "revoked_at"}`; the token is refused from now on |
| `GET /v1/admin/audit-log?after=ID&limit=N` | `{"entries": [...]}`, in their order |

Every call asks for an operator's token as a Bearer token.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, replace
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, EdgestillError, MessageError, NotFoundError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.oip import HEADER
from edgestill.core.release import Gates, Rollout, Stage
from edgestill.hub import (
    assignments,
    auditing,
    bodies,
    delegates,
    enrolment,
    evidence,
    images,
    operators,
    refusals,
    registry,
    rollouts,
    sums,
)
from edgestill.hub.access import digest_of, hub_of, require
from edgestill.learn.statistics import MAX_CLASSES, MAX_FEATURES
from edgestill.trust.root import epoch_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection
    from starlette.requests import Request

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.hub.service import Hub
    from edgestill.learn.statistics import Statistics

log: Final = logging.getLogger(__name__)

MAX_ROOT_BYTES: Final = 128_000
MAX_TARGETS_BYTES: Final = 5_000_000
MAX_ROOTS_BYTES: Final = 8_000_000
MOST_ROOTS: Final = 1_000
MAX_STAGES: Final = 20
LISTED_ROLLOUTS: Final = 100
LONGEST_CARRIED: Final = 30 * 86_400.0
"""Seconds for which an assignment may hold that is carried to its device."""

_RELEASE: Final = r"[a-z0-9][a-z0-9_-]{0,63}/[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}"
_WEEK: Final = 7 * 86_400.0
_MAX_ROW: Final = 2**53 - 1


Handler = Callable[["Request"], Awaitable[Response]]


def viewed(handler: Handler, right: str = "view") -> Handler:
    """The endpoint, for operators whose role has this right."""

    async def run(request: Request) -> Response:
        await require(request, right)
        return await handler(request)

    return run


def ordered(handler: Handler, right: str, what: str) -> Handler:
    """Likewise, written into the audit log: before it is tried, and what came of it."""

    async def run(request: Request) -> Response:
        hub, operator = hub_of(request), await require(request, right)
        asked: JsonObject = {name: str(value) for name, value in request.path_params.items()}
        order = await _note(hub, operator.name, what, asked)
        # a body may come slowly: who was revoked meanwhile orders nothing any more
        request.state.once_read = lambda: require(request, right)
        outcome = "failed"
        try:
            response = await handler(request)
            outcome = "done"
        except EdgestillError as error:
            outcome = error.code
            raise
        finally:
            came: JsonObject = {"order": order, "outcome": outcome, **getattr(request.state, "about", {})}
            try:
                await _note(hub, operator.name, what, came)
            except Exception:  # what was done is done, and its answer may be seen this once
                log.exception("what came of order %d could not be written into the audit log", order)
        return response

    return run


async def _note(hub: Hub, who: str, what: str, about: JsonObject) -> int:
    async with hub.database.write() as connection:
        return await auditing.note(connection, who=who, what=what, about=about, now=hub.clock.now())


async def online_key(request: Request) -> Response:
    """`GET /v1/admin/online-key`."""
    return bodies.answer(hub_of(request).home.key.public.as_json())


async def set_root(request: Request) -> Response:
    """`POST /v1/admin/root`."""
    root = await bodies.read(request, at_most=MAX_ROOT_BYTES)
    await hub_of(request).set_root(root)
    request.state.about = {"digest": str(Digest.of(root))}
    log.info("root.json %s is accepted", Digest.of(root))
    return bodies.answer({"digest": str(Digest.of(root))})


async def set_roots(request: Request) -> Response:
    """`POST /v1/admin/roots`."""
    data = await bodies.read(request, at_most=MAX_ROOTS_BYTES)
    fields = Fields(parse_object(data, where="roots", max_bytes=MAX_ROOTS_BYTES), "roots")
    fields.only(("roots",))
    roots = [str(one).encode("utf-8", "replace") for one in fields.items("roots", at_most=MOST_ROOTS)]
    await hub_of(request).set_roots(roots)
    request.state.about = {"digest": str(Digest.of(roots[-1])), "roots": len(roots)}
    log.info("%d roots are accepted, the newest %s", len(roots), Digest.of(roots[-1]))
    return bodies.answer({"digest": str(Digest.of(roots[-1]))})


async def make_join_token(request: Request) -> Response:
    """`POST /v1/admin/join-tokens`."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="join token")
    fields.only(("uses", "expires_in"))
    root = hub.artefacts.publication.root
    if root is None:
        raise ConflictError(
            "there is no root yet",
            fix="upload root.json first",
            where="root.json",
            expected="an uploaded root",
            got="none",
        )
    uses = fields.integer("uses") if fields.has("uses") else 1
    expires_in = fields.number("expires_in") if fields.has("expires_in") else _WEEK
    async with hub.database.write() as connection:
        token = await enrolment.make_join_token(
            connection,
            secret=hub.secret(),
            root=Digest.of(root),
            authority=hub.home.authority.authorities.digests[0],
            uses=uses,
            expires_in=expires_in,
            now=hub.clock.now(),
        )
    request.state.about = {"id": enrolment.id_of(token), "uses": uses, "expires_in": expires_in}
    log.info("a join token is made: uses %d, lifetime %g s", uses, expires_in)
    return bodies.answer({"token": token}, status=201)


async def list_join_tokens(request: Request) -> Response:
    """`GET /v1/admin/join-tokens`."""
    hub = hub_of(request)
    async with hub.database.read() as connection:
        return bodies.answer(await enrolment.join_tokens_listed(connection, hub.clock.now()))


async def revoke_join_token(request: Request) -> Response:
    """`POST /v1/admin/join-tokens/revoke`; what names it is in the body, for an address is written into logs."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="join token")
    fields.only(("token",))
    named = fields.secret("token", at_most=300).strip()
    async with hub.database.write() as connection:
        ended = await enrolment.revoke_join_token(connection, named)
    request.state.about = {"id": ended["id"]}
    log.warning("join token %s is revoked", ended["id"])
    return bodies.answer(ended)


async def add_archive(request: Request) -> Response:
    """`PUT /v1/admin/blobs`."""
    hub = hub_of(request)
    with hub.artefacts.incoming() as coming:
        await bodies.save(request, coming.write, at_most=hub.settings.max_bundle, in_thread=hub.in_thread)
        info = await hub.in_thread(lambda: hub.artefacts.add_archive(coming))
    request.state.about = {"digest": str(info.digest), "size": info.size}
    log.info("archive %s of %d bytes is accepted", info.digest, info.size)
    return bodies.answer({"digest": str(info.digest), "size": info.size}, status=201)


async def add_image(request: Request) -> Response:
    """`PUT /v1/admin/images`."""
    hub = hub_of(request)
    with hub.artefacts.incoming() as coming:
        at_most = hub.settings.max_bundle + images.MAX_OVERHEAD
        await bodies.save(request, coming.write, at_most=at_most, in_thread=hub.in_thread)
        image = await hub.in_thread(lambda: hub.artefacts.add_image(coming))
    async with hub.database.write() as connection:
        await images.keep(connection, image, hub.clock.now())
    told: JsonObject = {
        "archive": f"sha256:{image.archive}",
        "digest": f"sha256:{image.digest}",
        "size": image.size,
    }
    request.state.about = told
    log.info("image %s of archive %s is accepted", told["digest"], told["archive"])
    return bodies.answer(told, status=201)


async def targets(request: Request) -> Response:
    """`GET /v1/admin/metadata/targets`."""
    served = hub_of(request).artefacts.publication.targets
    if served is None:
        raise NotFoundError(
            "nothing is published yet",
            fix="upload targets.json",
            where="targets.json",
            expected="an uploaded list",
            got="none",
        )
    return Response(served, media_type="application/json", headers={"cache-control": "no-store"})


async def publish(request: Request) -> Response:
    """`POST /v1/admin/targets`."""
    return await _publish(request, hub_of(request).publish)


async def roles(request: Request) -> Response:
    """`GET /v1/admin/roles`."""
    artefacts = hub_of(request).artefacts
    served = artefacts.publication
    return bodies.answer(delegates.told(served.targets, served.delegated, artefacts.versions_said))


async def role_list(request: Request) -> Response:
    """`GET /v1/admin/roles/ROLE`."""
    role: str = request.path_params["role"]
    served = hub_of(request).artefacts.publication.delegated.get(role)
    if served is None:
        raise NotFoundError(
            "no list of this role is served",
            fix="publish one: edgestill release publish --role ROLE",
            where="roles",
            expected="a role that the publisher delegates to, and that has a list",
            got=repr(role[:80]),
        )
    return Response(served.data, media_type="application/json", headers={"cache-control": "no-store"})


async def publish_role(request: Request) -> Response:
    """`POST /v1/admin/roles/ROLE`."""
    hub, role = hub_of(request), request.path_params["role"]
    return await _publish(request, lambda data: hub.publish_role(role, data))


async def _publish(request: Request, take: Callable[[bytes], Awaitable[None]]) -> Response:
    """Takes in a list, and says what may be installed now; the audit log is told what has changed by it."""
    hub = hub_of(request)
    data = await bodies.read(request, at_most=MAX_TARGETS_BYTES)
    request.state.about = {"list": str(Digest.of(data))}
    before = hub.artefacts.publication.listers.keys()
    await take(data)
    now = hub.artefacts.publication.listers.keys()
    changed = {"released": now - before, "retired": before - now}
    request.state.about |= {verb: ", ".join(sorted(paths)) for verb, paths in changed.items() if paths}
    for verb, paths in changed.items():
        for path in sorted(paths):
            log.info("%s %s", verb, path)
    listed: list[Json] = [*sorted(now)]
    return bodies.answer({"listed": listed})


async def releases(request: Request) -> Response:
    """`GET /v1/admin/releases`."""
    hub = hub_of(request)
    listers = {path: who for path, (who, _) in hub.artefacts.publication.listers.items()}
    async with hub.database.read() as connection:
        found: list[Json] = [*await registry.releases(connection, listers)]
    return bodies.answer({"releases": found})


async def start_rollout(request: Request) -> Response:
    """`POST /v1/admin/rollouts`."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="rollout")
    fields.only(("release", "stages", "gates", "labels"))
    labels = fields.texts("labels", at_most=16, plain=True) if fields.has("labels") else {}
    wanted = _rollout(fields)
    shares = ", ".join(f"{stage.share:g}" for stage in wanted.stages)
    gates: JsonObject = {name: value for name, value in asdict(wanted.gates).items() if value is not None}
    about = {"release": wanted.release, "stages": shares, "gates": gates}
    request.state.about = about | ({"labels": dict(labels)} if labels else {})
    async with hub.database.write() as connection:
        rollout = await rollouts.start(connection, wanted, labels=labels, now=hub.clock.now())
    request.state.about |= {"rollout": rollout}
    log.info("rollout %d of %s is started, in stages of %s", rollout, wanted.release, shares)
    await hub.step()
    return bodies.answer({"id": rollout}, status=201)


async def list_rollouts(request: Request) -> Response:
    """`GET /v1/admin/rollouts`."""
    async with hub_of(request).database.read() as connection:
        found = await rollouts.newest(connection, LISTED_ROLLOUTS)
    return bodies.answer({"rollouts": [rollouts.summary(record) for record in found]})


async def show_rollout(request: Request) -> Response:
    """`GET /v1/admin/rollouts/ID`."""
    return await _shown(request)


async def pause(request: Request) -> Response:
    """`POST /v1/admin/rollouts/ID/pause`."""
    return await _order(request, rollouts.pause)


async def resume(request: Request) -> Response:
    """`POST /v1/admin/rollouts/ID/resume`."""
    return await _order(request, rollouts.resume)


async def roll_back(request: Request) -> Response:
    """`POST /v1/admin/rollouts/ID/rollback`."""
    return await _order(request, rollouts.roll_back)


async def advance(request: Request) -> Response:
    """`POST /v1/admin/rollouts/ID/advance`: `{"stage"}`, of which it is."""
    fields = await bodies.read_object(request, where="advance")
    fields.only(("stage",))
    stage = fields.integer("stage", most=MAX_STAGES)
    request.state.about = {"stage": stage}

    async def accept(connection: AsyncConnection, rollout: int, now: float) -> None:
        await rollouts.accept(connection, rollout, stage, now)

    return await _order(request, accept)


async def fleet(request: Request) -> Response:
    """`GET /v1/admin/fleet`."""
    async with hub_of(request).database.read() as connection:
        found: list[Json] = [*await registry.fleet(connection)]
    return bodies.answer({"devices": found})


async def revoke(request: Request) -> Response:
    """`POST /v1/admin/devices/NAME/revoke`."""
    hub = hub_of(request)
    async with hub.database.write() as connection:
        device = await registry.revoke(connection, request.path_params["device"], hub.clock.now())
    log.warning("device %s is revoked, by an operator", device.id)
    hub.bell.ring([device.id])
    await hub.step()
    return bodies.answer({"device": device.id, "revoked_at": device.revoked_at})


async def assignment(request: Request) -> Response:
    """`POST /v1/admin/devices/NAME/assignment`."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="assignment")
    fields.only(("expires_in",))
    expires_in = fields.number("expires_in", least=1, most=LONGEST_CARRIED)
    async with hub.database.read() as connection:
        device = await registry.require_device(connection, request.path_params["device"])
    root = hub.artefacts.publication.root
    expires = math.ceil(hub.clock.now() + expires_in)
    epoch = 0 if root is None else epoch_of(root)
    told = assignments.until(expires, device, key=hub.home.key, epoch=epoch)
    if told is None:
        raise ConflictError(
            "nothing is assigned to this device",
            where=f"device {device.id}",
            expected="an assignment, by a rollout",
            got="none" if device.revoked_at is None else "none: its credential was revoked",
            fix="start a rollout that takes it in: edgestill rollout why DEVICE tells what it waits for",
        )
    request.state.about = {"target": device.target, "expires": expires}
    log.info("an assignment of device %s is handed out, to be carried to it", device.id)
    return bodies.answer({"assignment": told, "interval": hub.settings.poll_interval})


async def add_operator(request: Request) -> Response:
    """`POST /v1/admin/operators`."""
    hub = hub_of(request)
    fields = await bodies.read_object(request, where="operator")
    fields.only(("name", "role", "expires_in"))
    name, role = fields.text("name", at_most=64, plain=True), fields.text("role", at_most=20, plain=True)
    request.state.about = {"name": name, "role": role}
    token = f"{operators.TOKEN}{hub.secret()}"
    async with hub.database.write() as connection:
        await operators.add(
            connection,
            name=name,
            role=role,
            digest=digest_of(token),
            expires_in=fields.number("expires_in") if fields.has("expires_in") else None,
            now=hub.clock.now(),
        )
    log.warning("operator %s is made, as %s", name, role)
    return bodies.answer({"name": name, "role": role, "token": token}, status=201)


async def list_operators(request: Request) -> Response:
    """`GET /v1/admin/operators`."""
    async with hub_of(request).database.read() as connection:
        found: list[Json] = [*await operators.listed(connection)]
    return bodies.answer({"operators": found})


async def revoke_operator(request: Request) -> Response:
    """`POST /v1/admin/operators/NAME/revoke`."""
    hub, name = hub_of(request), request.path_params["operator"]
    async with hub.database.write() as connection:
        revoked_at = await operators.revoke(connection, name, hub.clock.now())
    log.warning("operator %s is revoked", name)
    return bodies.answer({"name": name, "revoked_at": revoked_at})


async def audit_log(request: Request) -> Response:
    """`GET /v1/admin/audit-log`."""
    after = _number(request, "after", default=0, least=0, most=_MAX_ROW)
    limit = _number(request, "limit", default=auditing.MOST_ENTRIES, least=1, most=auditing.MOST_ENTRIES)
    async with hub_of(request).database.read() as connection:
        found = await auditing.entries(connection, after=after, limit=limit)
    return bodies.answer({"entries": [one.as_json() for one in found]})


async def evidence_counts(request: Request) -> Response:
    """`GET /v1/admin/evidence`."""
    async with hub_of(request).database.read() as connection:
        found: JsonObject = {
            "samples": await evidence.counts(connection),
            "statistics": await sums.counts(connection),
            "refused": await refusals.counts(connection),
        }
    return bodies.answer(found)


async def samples(request: Request) -> Response:
    """`GET /v1/admin/evidence/samples`."""
    after = _number(request, "after", default=0, least=0, most=_MAX_ROW)
    limit = _number(request, "limit", default=evidence.MAX_SAMPLES, least=1, most=evidence.MAX_SAMPLES)
    async with hub_of(request).database.read() as connection:
        message = await evidence.samples_after(connection, after, limit)
    data, json_length = message.encode()
    headers = {HEADER: str(json_length), "cache-control": "no-store"}
    return Response(data, media_type="application/octet-stream", headers=headers)


async def statistics(request: Request) -> Response:
    """`GET /v1/admin/evidence/statistics`."""
    hub = hub_of(request)
    backbone = Digest.parse(request.query_params.get("backbone", ""))
    asked = _kind(request)
    total: Statistics | None = None
    async with hub.database.read() as connection:
        kind = asked or await sums.kind_of(connection, backbone)
        without = await sums.too_noisy(connection, backbone, kind)
        async for some in sums.bodies(connection, backbone, kind):
            total = await hub.in_thread(_adding(total, some, without))
    data = await hub.in_thread(lambda: sums.as_message(total, backbone))
    return Response(data, media_type="application/octet-stream", headers={"cache-control": "no-store"})


async def _order(
    request: Request, order: Callable[[AsyncConnection, int, float], Awaitable[None]]
) -> Response:
    hub = hub_of(request)
    async with hub.database.write() as connection:
        await order(connection, request.path_params["id"], hub.clock.now())
    log.info("rollout %d: %s, by an operator", request.path_params["id"], request.url.path.rpartition("/")[2])
    await hub.step()
    return await _shown(request)


async def _shown(request: Request) -> Response:
    hub = hub_of(request)
    async with hub.database.read() as connection:
        return bodies.answer(await rollouts.status(connection, request.path_params["id"], hub.clock.now()))


def _adding(
    total: Statistics | None, some: list[sums.Sent], without: Collection[str]
) -> Callable[[], Statistics | None]:
    return lambda: sums.add_bodies(total, some, without=without)


def _kind(request: Request) -> sums.Kind | None:
    """The kind that the query asks for: both numbers or neither."""
    if not {"classes", "features"} & set(request.query_params):
        return None
    return sums.Kind(
        _number(request, "classes", default=0, least=1, most=MAX_CLASSES),
        _number(request, "features", default=0, least=1, most=MAX_FEATURES),
    )


def _rollout(fields: Fields) -> Rollout:
    stages: list[Json] = fields.items("stages", at_most=MAX_STAGES) if fields.has("stages") else [1.0]
    if not all(isinstance(share, int | float) and not isinstance(share, bool) for share in stages):
        raise MessageError(
            "stages are shares", where="rollout: stages", expected="numbers in (0, 1]", got=repr(stages)[:80]
        )
    return Rollout(
        release=fields.text("release", pattern=_RELEASE),
        stages=tuple(Stage(share=share) for share in stages if isinstance(share, int | float)),
        gates=_gates(fields.inner("gates")) if fields.has("gates") else Gates(),
    )


def _gates(fields: Fields) -> Gates:
    fields.only(tuple(one.name for one in fields_of(Gates)))
    shares = ("max_failed", "min_agreement", "silent_after", "max_errors", "max_escalated", "max_latency")
    told: dict[str, Any] = {name: fields.number(name) for name in shares if fields.has(name)}
    told |= {name: fields.integer(name) for name in ("min_audits", "min_answers") if fields.has(name)}
    return replace(Gates(), **told)


def _number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number of the query; MessageError where it is none, or out of range."""
    text = request.query_params.get(name, str(default))
    if re.fullmatch(r"[0-9]{1,16}", text, re.ASCII) is None or not least <= int(text) <= most:
        raise MessageError(
            "not a number that can be asked for",
            where=f"query: {name}",
            expected=f"a whole number from {least} to {most}",
            got=repr(text[:40]),
            fix=f"leave {name} out, or change it",
        )
    return int(text)

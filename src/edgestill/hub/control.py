"""The control plane: how devices enrol, ask what to run, and tell what happened.

| exchange | what it does |
|---|---|
| `POST /v1/enrol` | a join token becomes a device with a credential, and with a certificate where it sent a request |
| `POST /v1/certificate` | a device's next certificate; by the one that it has, or by its credential |
| `GET /v1/authorities` | the certificates of the fleet's authority, for anybody |
| `GET /v1/authorities/vouched` | the hub's signed word about them (`trust.vouched`), for anybody |
| `GET /v1/poll?wait=SECONDS` | the signed assignment, and beside it what to time and to vote on; 304 while it is the one of `If-None-Match`, after waiting that long |
| `POST /v1/reports` | steps and health figures; each counts once |
| `POST /v1/evidence/statistics` | a `learn.statistics` message under the id in `x-edgestill-id`; counts once. Of a window
  the largest `x-edgestill-sequence` counts, or without one the last to arrive |
| `POST /v1/evidence/votes/ROUND` | a `learn.votes` ballot, likewise (`hub.voting_routes`) |
| `POST /v1/timing` | a `core.timing.TimingReport` of the device's timing job; each step counts once |

All others ask for the device's certificate in the handshake, or for its credential as a Bearer token (`hub.access`). A device that was
revoked is refused everywhere, and a poll that waits ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, EvidenceError, MessageError
from edgestill.core.timing import MAX_BYTES as MAX_TIMING_BYTES
from edgestill.core.timing import TimingReport
from edgestill.core.wire import (
    BELIEVES_HEADER,
    MAX_MESSAGE_BYTES,
    Certified,
    Certify,
    Enrol,
    Enrolled,
    Poll,
    reports_from_bytes,
)
from edgestill.hub import (
    assignments,
    auditing,
    authority,
    bodies,
    certificates,
    enrolment,
    messages,
    refusals,
    registry,
    reports,
    sums,
    timings,
    votings,
)
from edgestill.hub.access import calling_device, hub_of
from edgestill.learn.statistics import MAX_BYTES
from edgestill.trust.root import epoch_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.wire import Report
    from edgestill.hub.registry import Device
    from edgestill.hub.service import Hub

log: Final = logging.getLogger(__name__)

_SEEN_SHARE: Final = 4
"""Being seen is written at most this often within a poll interval."""


async def enrol(request: Request) -> Response:
    """`POST /v1/enrol`."""
    hub = hub_of(request)
    message = Enrol.from_bytes(await bodies.read(request, at_most=MAX_MESSAGE_BYTES))
    root = hub.artefacts.publication.root
    if root is None:
        raise ConflictError(
            "there is no root yet",
            fix="the publisher uploads root.json first",
            where="root.json",
            expected="an uploaded root",
            got="none",
        )
    credential = f"esd1.{hub.secret()}"
    issued = _issued(hub, message)
    async with hub.database.write() as connection:
        now = hub.clock.now()
        if await enrolment.enrol(
            connection,
            message,
            credential=credential,
            root=Digest.of(root),
            authority=hub.home.authority.authorities.digests[0],
            now=now,
            issued=issued,
        ):
            about: JsonObject = {"class": message.hardware_class}
            await auditing.note(
                connection, who=f"device {message.device}", what="device.enrol", about=about, now=now
            )
    log.info("device %s has enrolled, as %s", message.device, message.hardware_class)
    await hub.step()
    enrolled = Enrolled(
        device=message.device,
        credential=credential,
        root=root,
        interval=_interval(hub),
        certificate="" if issued is None else issued.certificate,
        authorities="" if issued is None else certificates.authorities(hub),
    )
    return _message(enrolled.to_bytes(), status=201)


async def certify(request: Request) -> Response:
    """`POST /v1/certificate`."""
    hub = hub_of(request)
    device = await calling_device(request, renewing=True)
    message = Certify.from_bytes(await bodies.read(request, at_most=MAX_MESSAGE_BYTES))
    requested = certificates.requested_by(message.request)
    shows = certificates.shown_in(request.scope) is not None
    async with hub.database.write() as connection:
        present = await registry.require_standing(connection, device.id)
        issued = await certificates.renew(connection, hub, present, requested, shows_certificate=shows)
        await registry.mark_seen(connection, device.id, hub.clock.now())
    log.info("device %s has its next certificate, until %.0f", device.id, issued.until)
    told = Certified(certificate=issued.certificate, authorities=certificates.authorities(hub))
    return _message(told.to_bytes())


async def authorities(request: Request) -> Response:
    """`GET /v1/authorities`."""
    return Response(certificates.authorities(hub_of(request)), media_type="application/x-pem-file")


async def vouched(request: Request) -> Response:
    """`GET /v1/authorities/vouched`."""
    return _message(authority.word(hub_of(request)))


async def poll(request: Request) -> Response:
    """`GET /v1/poll`."""
    hub = hub_of(request)
    device = await calling_device(request)
    wait = min(_wait(request), hub.settings.longest_poll)
    await mark_seen(hub, device)
    await authority.remember(hub, device, request.headers.get(BELIEVES_HEADER, ""))
    await hub.tick_if_due()
    with hub.bell.listening(device.id) as rung:
        told, tag = await _told(hub, device.id)
        if _knows(request, tag) and wait > 0 and not hub.draining:
            await _wait_for(rung, request, wait)
            told, tag = await _told(hub, device.id)
    if _knows(request, tag):
        return Response(status_code=304, headers={"etag": tag, "cache-control": "no-store"})
    return _message(told.to_bytes(), headers={"etag": tag})


async def report(request: Request) -> Response:
    """`POST /v1/reports`."""
    hub = hub_of(request)
    device = await calling_device(request)
    batch = reports_from_bytes(await bodies.read(request, at_most=MAX_MESSAGE_BYTES, compressed=True))
    async with hub.database.write() as connection:
        await registry.require_standing(connection, device.id)
        accepted = await reports.accept(connection, device.id, batch, hub.clock.now())
        await registry.mark_seen(connection, device.id, hub.clock.now())
    for one in accepted:
        tell(device.id, one)
    if any(map(reports.is_decisive, accepted)):
        await hub.step()
    return bodies.answer({"accepted": len(accepted), "duplicates": len(batch) - len(accepted)})


async def statistics(request: Request) -> Response:
    """`POST /v1/evidence/statistics`."""
    hub = hub_of(request)
    device = await calling_device(request)
    message_id, sequence = messages.message_id(request), messages.sequence(request)
    try:
        body = await bodies.read(request, at_most=MAX_BYTES)
    except HTTPException:
        await messages.refuse(hub, device.id, refusals.TOO_LONG)
        raise
    try:
        parsed = await hub.in_thread(lambda: sums.parsed(body))
        message = sums.Message(device=device.id, id=message_id, sequence=sequence, parsed=parsed, body=body)
        async with hub.database.write() as connection:
            await registry.require_standing(connection, device.id)
            verdict = await sums.keep(connection, message, now=hub.clock.now(), settings=hub.settings)
            if verdict != "counts":
                await refusals.count(connection, device.id, messages.NOT_TAKEN[verdict], hub.clock.now())
    except (MessageError, EvidenceError) as error:
        await messages.refuse(hub, device.id, error.what)
        raise
    log.log(
        logging.INFO if verdict == "counts" else logging.DEBUG,
        "device %s sent statistics of %d samples, window %s, of backbone %s: %s",
        *(device.id, parsed.n, parsed.window, parsed.backbone),
        messages.NOT_TAKEN.get(verdict, "accepted"),
    )
    told: JsonObject = {"accepted": verdict == "counts"}
    return bodies.answer(told if verdict == "counts" else told | {"reason": messages.NOT_TAKEN[verdict]})


def _issued(hub: Hub, message: Enrol) -> certificates.Issued | None:
    """A certificate where one was asked for."""
    if not message.request:
        return None
    return certificates.issue(hub, message.device, certificates.requested_by(message.request))


def tell(device: str, report: Report) -> None:
    """Writes to the log what a device says: a step is worth a line, a failure a warning; figures of health come every few seconds."""
    if report.state == "fell-back":
        log.warning("device %s fell back from %s: %s", device, report.release, report.reason)
    elif report.state is not None:
        log.info("device %s: %s %s", device, report.state, report.release)
    else:
        log.debug("device %s: health of %s", device, report.release)


async def timing(request: Request) -> Response:
    """`POST /v1/timing`."""
    hub = hub_of(request)
    device = await calling_device(request)
    report = TimingReport.from_bytes(await bodies.read(request, at_most=MAX_TIMING_BYTES))
    async with hub.database.write() as connection:
        await registry.require_standing(connection, device.id)
        now = hub.clock.now()
        accepted = await timings.accept(connection, device.id, report, now)
        await registry.mark_seen(connection, device.id, now)
    if accepted:
        why = f": {report.reason}" if report.reason else ""
        log.info("device %s has %s a timing job, of %s%s", device.id, report.state, report.archive, why)
    return bodies.answer({"accepted": accepted})


async def _told(hub: Hub, device: str) -> tuple[Poll, str]:
    """What a poll is answered, and the tag of that."""
    root, now = hub.artefacts.publication.root, hub.clock.now()
    epoch, lifetime = 0 if root is None else epoch_of(root), hub.settings.assignment_lifetime
    key, expires = hub.home.key, assignments.end(now, lifetime)
    async with hub.database.read() as connection:
        present = await registry.require_standing(connection, device)
        measure = await timings.envelope(connection, device, key=key, epoch=epoch, expires=expires)
        vote = await votings.envelope(connection, device, key=key, epoch=epoch, expires=expires, now=now)
    run = assignments.envelope(present, key=key, epoch=epoch, now=now, lifetime=lifetime)
    place = authority.place(hub)
    poll = Poll(assignment=run, interval=_interval(hub), authorities=place, measure=measure, vote=vote)
    return poll, assignments.tag(run, measure, vote, authorities=place)


async def mark_seen(hub: Hub, device: Device) -> None:
    """Remembers that the device called, unless it just did."""
    now = hub.clock.now()
    if device.last_seen is None or not 0 <= now - device.last_seen < hub.settings.poll_interval / _SEEN_SHARE:
        async with hub.database.write() as connection:
            await registry.mark_seen(connection, device.id, now)


def _knows(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` names this tag: one of a list, and weak where a proxy made it so (RFC 9110, 13.1.2)."""
    named = request.headers.get("if-none-match", "").split(",")
    return tag in {one.strip().removeprefix("W/") for one in named}


async def _wait_for(rung: asyncio.Event, request: Request, seconds: float) -> None:
    """Waits until the bell rings, the caller hangs up, or time is over."""
    tasks = {asyncio.create_task(rung.wait()), asyncio.create_task(_hung_up(request))}
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wait(request: Request) -> float:
    text = request.query_params.get("wait", "0")
    try:
        wait = float(text[:40])
    except ValueError:
        wait = math.nan
    if not 0 <= wait < math.inf:
        raise MessageError("not a time to wait", where="wait", expected="seconds", got=repr(text[:40]))
    return wait


def _interval(hub: Hub) -> float:
    return assignments.spread(hub.settings.poll_interval, hub.chance())


def _message(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        body, status, {"cache-control": "no-store"} | (headers or {}), media_type="application/json"
    )

"""hawkBit's Direct Device Integration API (v1) over HTTP, for fleets whose devices have an updater that speaks it.

Below `/default/controller/v1/DEVICE`:

| exchange | what it does |
|---|---|
| `GET` it | when to ask again, and links to what there is to do |
| `PUT configData` | what the device says of itself |
| `GET deploymentBase/ACTION` | what to install |
| `POST deploymentBase/ACTION/feedback` | how that goes |
| `GET cancelAction/ACTION` | what to stop |
| `POST cancelAction/ACTION/feedback` | whether it did |
| `GET softwaremodules/IMAGE/artifacts/FILE` | the image, with ranges |

A device has enrolled as any other; its credential is the token, after `TargetToken` or `GatewayToken` (or `Bearer`). There is no token that
speaks for several devices. What is refused is answered in hawkBit's form (see `hub.problems`).
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, MessageError, NotFoundError
from edgestill.core.wire import Report
from edgestill.hub import assignments, bodies, control, ddi, images, registry, reports
from edgestill.hub.access import calling_device, hub_of
from edgestill.hub.ddi import Action, Cancel, Feedback, Install
from edgestill.hub.registry import Parts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection
    from starlette.requests import Request

    from edgestill.hub.ddi import Heard
    from edgestill.hub.registry import Device
    from edgestill.hub.service import Hub

log: Final = logging.getLogger(__name__)

SCHEMES: Final = ("targettoken", "gatewaytoken", "bearer")

_HOST: Final = r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?"
_ACTION: Final = r"[0-9]{1,15}"


async def root(request: Request) -> Response:
    """`GET /TENANT/controller/v1/DEVICE`."""
    hub, device = hub_of(request), await _caller(request)
    await control.mark_seen(hub, device)
    await hub.tick_if_due()
    async with hub.database.read() as connection:
        device = await registry.require_standing(connection, device.id)
        last, known = await images.last_action(connection, device.id)
        todo = ddi.due(last, counter=device.counter, target=device.target)
        lacks = await _lacks_image(connection, todo)
    if lacks:
        todo = await _without_image(hub, device.id)
    interval = assignments.spread(hub.settings.poll_interval, hub.chance())
    return bodies.answer(
        ddi.root_message(_base(request, device), todo, interval=interval, wants_attributes=known is None)
    )


async def config_data(request: Request) -> Response:
    """`PUT /TENANT/controller/v1/DEVICE/configData`."""
    hub, device = hub_of(request), await _caller(request)
    data = await bodies.read(request, at_most=ddi.MAX_FEEDBACK_BYTES)
    async with hub.database.write() as connection:
        await registry.require_standing(connection, device.id)
        _, known = await images.last_action(connection, device.id)
        await images.keep_attributes(connection, device.id, ddi.attributes(data, known))
        await registry.mark_seen(connection, device.id, hub.clock.now())
    return Response(status_code=200)


async def deployment(request: Request) -> Response:
    """`GET /TENANT/controller/v1/DEVICE/deploymentBase/ACTION`; from then on it is under way."""
    hub, device, action = hub_of(request), await _caller(request), _action(request)
    async with hub.database.write() as connection:
        device = await registry.require_standing(connection, device.id)
        last, _ = await images.last_action(connection, device.id)
        todo = ddi.due(last, counter=device.counter, target=device.target)
        image = await images.of_target(connection, todo.target) if isinstance(todo, Install) else None
        if not isinstance(todo, Install) or todo.action != action or image is None:
            raise _no_action(action, last)
        if last.id != action or not last.is_under_way:
            await images.keep_action(
                connection, device.id, Action(id=action, target=todo.target, outcome="open")
            )
            await reports.remark(connection, device.id, Parts.of(todo.target).release, "")
        has_it = last.id == action and last.is_staged
    told = images.deployment(action, todo.target, None if has_it else image, _base(request, device))
    return bodies.answer(told)


async def feedback(request: Request) -> Response:
    """`POST /TENANT/controller/v1/DEVICE/deploymentBase/ACTION/feedback`."""
    hub, device, action = hub_of(request), await _caller(request), _action(request)
    said = Feedback.from_bytes(await bodies.read(request, at_most=ddi.MAX_FEEDBACK_BYTES), action=action)
    async with hub.database.write() as connection:
        await registry.require_standing(connection, device.id)
        last, _ = await images.last_action(connection, device.id)
        heard = ddi.hear(last, said) if last.id == action else None
        if heard is None:
            raise _no_action(action, last)
        accepted = await _take_in(connection, device.id, heard, hub.clock.now())
    for one in accepted:
        control.tell(device.id, one)
    if any(map(reports.is_decisive, accepted)):
        await hub.step()
    return Response(status_code=200)


async def cancellation(request: Request) -> Response:
    """`GET /TENANT/controller/v1/DEVICE/cancelAction/ACTION`."""
    hub, device, action = hub_of(request), await _caller(request), _action(request)
    async with hub.database.read() as connection:
        device = await registry.require_standing(connection, device.id)
        last, _ = await images.last_action(connection, device.id)
    if ddi.due(last, counter=device.counter, target=device.target) != Cancel(action):
        raise _no_action(action, last)
    return bodies.answer(ddi.cancel_message(action))


async def cancel_feedback(request: Request) -> Response:
    """`POST /TENANT/controller/v1/DEVICE/cancelAction/ACTION/feedback`."""
    hub, device, action = hub_of(request), await _caller(request), _action(request)
    said = Feedback.from_bytes(await bodies.read(request, at_most=ddi.MAX_FEEDBACK_BYTES), action=action)
    async with hub.database.write() as connection:
        device = await registry.require_standing(connection, device.id)
        last, _ = await images.last_action(connection, device.id)
        now = ddi.hear_of_cancelling(last, said, counter=device.counter) if last.id == action else None
        if now is None:
            raise _no_action(action, last)
        await images.keep_action(connection, device.id, now)
        await registry.mark_seen(connection, device.id, hub.clock.now())
    if now != last:
        log.info("device %s: action %d is %s", device.id, action, _IN_WORDS[now.outcome])
    return Response(status_code=200)


async def artefact(request: Request) -> Response:
    """`GET /TENANT/controller/v1/DEVICE/softwaremodules/IMAGE/artifacts/FILE`, while the device has it to install."""
    hub, device = hub_of(request), await _caller(request)
    asked: tuple[str, str] = (request.path_params["module"], request.path_params["file"])
    async with hub.database.read() as connection:
        last, _ = await images.last_action(connection, device.id)
        image = await images.of_target(connection, last.target, asked[0]) if last.is_under_way else None
    if image is None or asked != (image.digest, images.file_name(last.target)):
        raise NotFoundError(
            "no such image",
            where="softwaremodules",
            expected="the image of the action that is under way",
            got=repr("/".join(asked)[:160]),
            fix="ask for the deployment again",
        )
    return FileResponse(
        hub.artefacts.image_path(Digest(image.digest)),
        media_type="application/octet-stream",
        headers={"cache-control": "private, no-cache", "etag": f'"{image.digest}"'},
    )


_IN_WORDS: Final = {"cancelled": "called off", "bound": "not called off: the device goes on", "open": "open"}


async def _caller(request: Request) -> Device:
    """The device that calls, under its own name.

    Raises:
        AccessError: it is not the one that the address names. NotFoundError: another tenant.
    """
    device = await calling_device(request, SCHEMES)
    if request.path_params["controller"] != device.id:
        raise AccessError(
            "a token of another device",
            where="authorization",
            expected="the credential of the device in the address",
            got="another",
            fix="compare id and token on the device",
        )
    if request.path_params["tenant"].lower() != ddi.TENANT:
        raise NotFoundError(
            "no such tenant",
            where="address",
            expected=ddi.TENANT,
            got=repr(request.path_params["tenant"][:40]),
            fix=f"set the device's tenant to {ddi.TENANT}",
        )
    return device


async def _take_in(connection: AsyncConnection, device: str, heard: Heard, now: float) -> list[Report]:
    await registry.mark_seen(connection, device, now)
    await images.keep_action(connection, device, heard.action)
    release = Parts.of(heard.action.target).release
    if heard.lives:
        await reports.hear(connection, device, release, now)
    if heard.state is None:
        return []
    report = Report(
        id=f"ddi-{heard.action.id}-{heard.state}",
        at=now,
        bundle=str(await images.archive_of(connection, heard.action.target)),
        release=release,
        state=heard.state,
        reason=heard.reason,
    )
    return await reports.accept(connection, device, [report], now)


async def _lacks_image(connection: AsyncConnection, todo: Install | Cancel | None) -> bool:
    return isinstance(todo, Install) and await images.of_target(connection, todo.target) is None


async def _without_image(hub: Hub, device: str) -> Install | Cancel | None:
    """What a device shall do, there being no image of what it should; says once that there is none of what is assigned to it."""
    async with hub.database.write() as connection:
        present = await registry.require_standing(connection, device)
        last, _ = await images.last_action(connection, device)
        closed = ddi.without_image(last)
        if closed != last and await images.of_target(connection, last.target) is None:
            await images.keep_action(connection, device, closed)
            log.info("device %s: action %d is closed: %s", device, last.id, closed.note)
            last = closed
        todo = ddi.due(last, counter=present.counter, target=present.target)
        if not isinstance(todo, Install) or not await _lacks_image(connection, todo):
            return todo
        if last.is_under_way or (last.id, last.outcome) == (todo.action, "missing"):
            return None
        missing = Action(id=todo.action, target=todo.target, outcome="missing")
        await images.keep_action(connection, device, missing)
        await reports.remark(connection, device, Parts.of(todo.target).release, "no image was handed over")
    log.warning("device %s takes images, and there is none of %s", device, todo.target)
    return None


def _action(request: Request) -> int:
    """The id in the address.

    Raises:
        NotFoundError: no id of ours.
    """
    told: str = request.path_params["action"]
    if re.fullmatch(_ACTION, told, re.ASCII) is None:
        raise _unknown(repr(told[:40]))
    return int(told)


def _no_action(action: int, last: Action) -> Exception:
    """Of an action that there was, that it is gone; of any other, that there is none."""
    if 0 < action <= last.id and last.outcome != "missing":
        return HTTPException(410, f"action {action} is closed, or was called off")
    return _unknown(str(action))


def _unknown(got: str) -> NotFoundError:
    return NotFoundError(
        "no such action",
        where="actions",
        expected="the action that the device was told of",
        got=got,
        fix="ask for the controller resource again",
    )


def _base(request: Request, device: Device) -> str:
    """The address of the controller resource as the device reaches it: never in the clear where a proxy ends TLS.

    Raises:
        MessageError: the request names a host that no link can hold.
    """
    path, settings = f"{ddi.TENANT}/controller/v1/{device.id}", hub_of(request).settings
    if settings.public_url:
        return f"{settings.public_url}/{path}"
    host = request.headers.get("host", "")
    if re.fullmatch(_HOST, host, re.ASCII) is None:
        raise MessageError(
            "no host to link to", where="host", expected="HOST or HOST:PORT", got=repr(host[:80])
        )
    scheme = "https" if settings.behind_proxy else request.url.scheme
    return f"{scheme}://{host}/{path}"

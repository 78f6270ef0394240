"""Who calls: a device by its certificate or its credential, or an operator by a token. Secrets are compared by their digests.

A certificate that is shown says who calls. A credential beside it must be of the same device: two callers in one request are none.
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError
from edgestill.hub import certificates, operators, registry
from edgestill.hub.operators import Operator

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection
    from starlette.requests import Request

    from edgestill.hub.registry import Device
    from edgestill.hub.service import Hub

MAX_SECRET: Final = 300


def hub_of(request: Request) -> Hub:
    """The hub that serves this request."""
    hub: Hub = request.app.state.hub
    return hub


def digest_of(secret: str) -> str:
    """What is kept of a secret: SHA-256 as hex. Secrets are 256 random bits, so that no slower digest is needed."""
    return Digest.of(secret.encode("utf-8", "surrogateescape")).hex


async def calling_device(
    request: Request, schemes: tuple[str, ...] = ("bearer",), *, renewing: bool = False
) -> Device:
    """The device that sends this request.

    Args:
        request: from it.
        schemes: names of authentication that are understood, in lower case.
        renewing: whether the credential will do where certificates are required.

    Raises:
        AccessError: neither certificate nor credential, one that nobody has, or one that was revoked; a credential alone where
            certificates are required.
    """
    hub, shown = hub_of(request), certificates.shown_in(request.scope)
    if shown is None and hub.settings.require_certificates and not renewing:
        raise AccessError(
            "a certificate is missing",
            where="TLS",
            expected="the device's certificate in the handshake, as this hub requires",
            got="none",
            fix="let the device ask for one (POST /v1/certificate), and reach the hub itself and not a proxy",
        )
    async with hub.database.read() as connection:
        if shown is None:
            device = await _by_credential(connection, bearer(request, schemes))
        else:
            device = await certificates.device_of(connection, hub, shown)
            if "authorization" in request.headers:
                _require_same(device, await _by_credential(connection, bearer(request, schemes)))
    request.state.caller = f"device {device.id}"
    return registry.standing(device)


async def _by_credential(connection: AsyncConnection, credential: str) -> Device:
    device = await registry.device_by_credential(connection, digest_of(credential))
    if device is None:
        raise AccessError(
            "unknown credential",
            fix="enrol the device",
            where="authorization",
            expected="the credential of an enrolled device",
            got="another",
        )
    return device


def _require_same(shown: Device, other: Device) -> None:
    if shown.id != other.id:
        raise AccessError(
            "certificate and credential are of two devices",
            where="authorization",
            expected=f"the credential of {shown.id}, or none",
            got=f"that of {other.id}",
            fix="send the device's own",
        )


async def require(request: Request, right: str) -> Operator:
    """The operator who calls, if the role allows it.

    Args:
        request: with the token.
        right: a key of `hub.operators.RIGHTS`.

    Raises:
        AccessError: no token, one that is nobody's, has ended or was revoked, or a role without the right.
    """
    found = await operator_of(request, bearer(request))
    if found is None:
        raise AccessError(
            "not an operator's token",
            expected="the content of operator.token, or a token that an admin has made",
            where="authorization",
            got="another, or one that has ended",
            fix="read it from the folder of the hub, or ask an admin",
        )
    request.state.caller = f"operator {found.name}"
    if not found.may(right):
        raise AccessError(
            "this role may not do that",
            expected=" or ".join(sorted(operators.RIGHTS[right])),
            where=f"operator {found.name}",
            got=found.role,
            fix="ask somebody who may, or an admin for another role",
        )
    return found


async def operator_of(request: Request, secret: str) -> Operator | None:
    """Whose token it is; None where it is nobody's."""
    hub, digest = hub_of(request), digest_of(secret)
    if hmac.compare_digest(digest, hub.home.operator):
        return Operator(operators.OWNER, "admin")
    async with hub.database.read() as connection:
        return await operators.by_token(connection, digest, hub.clock.now())


def basic_password(request: Request) -> str:
    """The password of HTTP Basic authentication (RFC 7617), which a browser can ask a person for; else empty."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(value) > 2 * MAX_SECRET:
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # no base64, or no UTF-8 within it
        return ""


def bearer(request: Request, schemes: tuple[str, ...] = ("bearer",)) -> str:
    """The secret in the `Authorization` header, after one of these schemes.

    Raises:
        AccessError: none, or one too long to be ours.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() not in schemes or not 0 < len(secret) <= MAX_SECRET:
        raise AccessError(
            "a credential is missing",
            expected="Authorization: Bearer SECRET",
            where="authorization",
            got="none",
            fix="send the header",
        )
    return secret

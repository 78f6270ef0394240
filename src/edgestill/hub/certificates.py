"""Certificates of devices: who gets one, for which key, and whom one that is shown speaks for.

- A device has one key, which the join token vouched for: the request at enrolment binds it, and one with another key is refused.
  A device that enrolled without a request (of an older version, or an existing fleet's) has none, and gets no certificate under
  this name: a first key that its credential could bind might be that of whoever copied the credential. So a copied credential alone
  gets no certificate, of any device, and an answer that went astray is of no use to whoever found it.
- A request is no secret and needs no freshness: what it leads to is of use only to who holds the key (RFC 8446, 4.4.3). Whoever
  sends it must show a certificate that holds, or the credential; and the credential only until `certificate_grace` after the last
  certificate has ended. A device that was away for longer enrols anew, under another name.
- Issuing twice does no harm: an answer that got lost is asked for again.
- A certificate that is shown was checked in the handshake, and is checked again here for each request, by the hub's clock: a
  connection may outlive the certificate that it began with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, update

from edgestill.core.errors import AccessError, ConflictError, ExpiredError, MessageError, TrustError
from edgestill.hub import registry
from edgestill.hub.tables import devices
from edgestill.trust.certificates import Requested

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.hub.registry import Device
    from edgestill.hub.service import Hub

log: Final = logging.getLogger(__name__)

TLS: Final = "tls"
"""Name of the ASGI extension, and of `client_cert_chain` within it (ASGI TLS extension 0.2)."""
CHAIN: Final = "client_cert_chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was made.

    Attributes:
        certificate: PEM.
        key: id of its key.
        until: hub time at which it ends.
    """

    certificate: str
    key: str
    until: float


def issue(hub: Hub, device: str, requested: Requested) -> Issued:
    """A certificate for this device; nothing is written down."""
    now, lifetime = hub.clock.now(), hub.settings.certificate_lifetime
    certificate = hub.home.authority.device(requested, device, now=now, lifetime=lifetime)
    return Issued(
        certificate=certificate.decode("ascii"), key=requested.key, until=float(int(now + lifetime))
    )


def requested_by(request: str) -> Requested:
    """A request as it came; MessageError or TrustError where it is none (`Requested.from_pem`)."""
    return Requested.from_pem(request.encode("utf-8", "surrogatepass"))


def authorities(hub: Hub) -> str:
    """Whom members of the fleet shall believe, as PEM."""
    return hub.home.authority.authorities.to_pem().decode("ascii")


async def renew(
    connection: AsyncConnection, hub: Hub, device: Device, requested: Requested, *, shows_certificate: bool
) -> Issued:
    """The next certificate of a device, which is remembered.

    Args:
        connection: of a write.
        hub: that issues.
        device: as it stands within this transaction.
        requested: for which key.
        shows_certificate: whether the device came with one that holds, and not with its credential only.

    Raises:
        ConflictError: another key than the one it has, or it has none.
        AccessError: its last certificate ended too long ago.
    """
    if device.key is None:
        raise ConflictError(
            "a device that enrolled without a key",
            where=f"device {device.id}",
            expected="one whose key came with its join token",
            got="none",
            fix="go on with the credential; for certificates, enrol the device under another name",
        )
    if device.key != requested.key:
        raise ConflictError(
            "another key than the device's",
            where=f"device {device.id}",
            expected=f"key {device.key}",
            got=requested.key,
            fix="ask with the key that it enrolled with; where that is lost, enrol under another name",
        )
    until = device.certified_until
    if (
        not shows_certificate
        and until is not None
        and hub.clock.now() > until + hub.settings.certificate_grace
    ):
        raise AccessError(
            "the last certificate ended too long ago",
            where=f"device {device.id}",
            expected=f"one that ended less than {hub.settings.certificate_grace:g} s ago",
            got=f"{hub.clock.now() - until:.0f} s",
            fix="enrol the device anew, under another name",
        )
    issued = issue(hub, device.id, requested)
    await connection.execute(
        update(devices)
        .where(devices.c.id == device.id)
        .values(key=issued.key, certified_until=max(issued.until, until or 0.0))
    )
    return issued


async def tell_who_has_none(hub: Hub) -> int:
    """Warns of devices that this hub shuts out: it requires certificates, and they enrolled without; how many there are.

    Those that were revoked do not count.
    """
    if not hub.settings.require_certificates:
        return 0
    shut_out = (
        select(func.count())
        .select_from(devices)
        .where(devices.c.key.is_(None), devices.c.revoked_at.is_(None))
    )
    async with hub.database.read() as connection:
        count = int((await connection.execute(shut_out)).scalar_one())
    if count:
        log.warning("requires certificates: %d devices that enrolled without one are shut out", count)
    return count


async def device_of(connection: AsyncConnection, hub: Hub, shown: str) -> Device:
    """The device whose certificate is shown.

    Raises:
        AccessError: not a certificate of a device here, one that does not hold now, or for another key than the device's.
    """
    try:
        member = hub.home.authority.authorities.member(shown.encode("ascii", "replace"))
        member.check_time(hub.clock.now())
    except (MessageError, TrustError, ExpiredError) as error:
        raise AccessError(
            error.what,
            where=error.where,
            expected=error.expected,
            got=error.got,
            fix="renew it with the device's credential, or enrol the device",
        ) from error
    device = await registry.device_by_id(connection, member.device)
    if device is None or device.key != member.key:
        raise AccessError(
            "a certificate of no device that is here",
            where=f"device {member.device}",
            expected="the certificate of an enrolled device, for the key that it has now",
            got="another",
            fix="enrol the device",
        )
    return device


def shown_in(scope: Mapping[str, Any]) -> str | None:
    """The certificate (PEM) that the caller's end of the connection showed; None where it showed none."""
    chain = tuple((scope.get("extensions") or {}).get(TLS, {}).get(CHAIN) or ())
    return str(chain[0]) if chain else None

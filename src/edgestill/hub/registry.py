"""Who is in the fleet and what may be installed: functions on a connection.

- Each takes the connection first, so that several make one transaction. None opens or commits anything.
- `targets` mirrors the publisher's signed list, so that the rest can be asked in SQL. The signed list decides; the mirror
  is set from it at every publication and at every start.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, delete, insert, select, update

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, NotFoundError
from edgestill.hub.tables import controllers, devices, health, reports, targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject
    from edgestill.trust.repository import TargetInfo

ANY_CLASS: Final = "any"
HEALTH_SUMS: Final = ("answers", "escalated", "audits", "agreed", "audits_lost", "errors", "bytes_up")
HEALTH_LATEST: Final = ("latency_p50", "latency_p95", "drift", "confidence", "leverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as its own calls need it.

    Attributes:
        id: the device.
        counter: of its assignment; 0 while there never was one.
        target: TUF path it shall run; None where nothing is assigned.
        last_seen: hub time of its last recorded call; None if it never called.
        revoked_at: hub time at which its credential was revoked; None while it is good.
        key: id of the key that its certificates are for; None while it has none.
        certified_until: hub time at which its last certificate ends; None likewise.
        believes: place of the newest word about the authority that it goes by, as it says; None while it says nothing.
        issuer: digest of the authority that has issued its certificate, as it says; empty where it has none.
    """

    id: str
    counter: int
    target: str | None
    last_seen: float | None
    revoked_at: float | None = None
    key: str | None = None
    certified_until: float | None = None
    believes: int | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a bundle's own statistics are of.

    Attributes:
        backbone: digest of the weights up to `features`, as text; empty where the bundle brings no statistics.
        classes: C.
        features: D.
    """

    backbone: str = ""
    classes: int = 0
    features: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a target's path, `NAME/VERSION/CLASS.esb`."""

    name: str
    version: str
    hardware_class: str

    @classmethod
    def of(cls, path: str) -> Parts:
        """The parts of a path that the publisher's list has already checked."""
        name, version, file = path.split("/")
        return cls(name, version, file.removesuffix(".esb"))

    @property
    def release(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"

    @property
    def order(self) -> tuple[int, ...]:
        """Sorts versions."""
        return tuple(int(part) for part in self.version.split("."))


async def device_by_credential(connection: AsyncConnection, digest: str) -> Device | None:
    """The device that holds this credential."""
    return await _device(connection, devices.c.credential == digest)


async def device_by_id(connection: AsyncConnection, device: str) -> Device | None:
    """The device of this name."""
    return await _device(connection, devices.c.id == device)


async def _device(connection: AsyncConnection, condition: object) -> Device | None:
    columns = [devices.c[one.name] for one in fields(Device)]
    row = (await connection.execute(select(*columns).where(condition))).mappings().first()  # type: ignore[arg-type]  # a column's comparison is a condition, which mypy sees as bool
    return None if row is None else Device(**row)


async def mark_seen(connection: AsyncConnection, device: str, now: float) -> None:
    """Remembers that the device called."""
    await connection.execute(update(devices).where(devices.c.id == device).values(last_seen=now))


async def assign(connection: AsyncConnection, told: Mapping[str, str | None], now: float) -> None:
    """Tells each device (device -> target) what to run; None withdraws what it was told. Either way its counter grows."""
    await connection.execute(
        update(devices)
        .where(devices.c.id == bindparam("device"))
        .values(counter=devices.c.counter + 1, target=bindparam("told"), assigned_at=now),
        [{"device": device, "told": target} for device, target in told.items()],
    )


async def unread_targets(connection: AsyncConnection, listed: Mapping[str, TargetInfo]) -> dict[str, Digest]:
    """Archives by path whose own statistics the mirror has not been told of: new ones, and those of an older schema."""
    rows = await connection.execute(select(targets.c.path, targets.c.digest, targets.c.backbone))
    known = {row.path: (row.digest, row.backbone) for row in rows}
    unread = {path: Digest(digest) for path, (digest, backbone) in known.items() if backbone is None}
    return unread | {
        path: info.digest for path, info in listed.items() if known.get(path, ("",))[0] != info.digest.hex
    }


async def mirror_targets(
    connection: AsyncConnection,
    listed: Mapping[str, TargetInfo],
    now: float,
    references: Mapping[str, Reference] | None = None,
) -> None:
    """Makes `targets` say what the signed list says; what is no longer listed stays as history.

    Args:
        connection: of a write.
        listed: what the publisher's list says.
        now: hub time.
        references: what archives say of themselves, by path, where that was just read.
    """
    known = {row.path: row for row in await connection.execute(select(targets))}
    for path, info in listed.items():
        values = {"digest": info.digest.hex, "size": info.size, "listed": True}
        if path not in known:
            parts = Parts.of(path)
            values |= {"release": parts.release, "hardware_class": parts.hardware_class, "published_at": now}
            await connection.execute(insert(targets).values(path=path, **values))
        elif (known[path].digest, known[path].listed) != (info.digest.hex, True):
            await connection.execute(update(targets).where(targets.c.path == path).values(**values))
    for path, reference in (references or {}).items():
        await connection.execute(update(targets).where(targets.c.path == path).values(**asdict(reference)))
    gone = [path for path, row in known.items() if row.listed and path not in listed]
    if gone:
        await connection.execute(update(targets).where(targets.c.path.in_(gone)).values(listed=False))


async def release_targets(connection: AsyncConnection, release: str) -> dict[str, str]:
    """Hardware class -> TUF path of the release's listed bundles."""
    rows = await connection.execute(
        select(targets.c.hardware_class, targets.c.path).where(targets.c.release == release, targets.c.listed)
    )
    return {row.hardware_class: row.path for row in rows}


async def is_known(connection: AsyncConnection, release: str) -> bool:
    """Whether the publisher has listed a bundle of this release here, now or once."""
    rows = await connection.execute(select(targets.c.path).where(targets.c.release == release).limit(1))
    return rows.first() is not None


async def listed_paths(connection: AsyncConnection) -> frozenset[str]:
    """All TUF paths that the publisher lists."""
    rows = await connection.execute(select(targets.c.path).where(targets.c.listed))
    return frozenset(rows.scalars())


async def releases(connection: AsyncConnection, listers: Mapping[str, str] | None = None) -> list[JsonObject]:
    """Every release there ever was, newest publication first, with its bundles by class, and who lists them (path -> role)."""
    rows = await connection.execute(
        select(targets).order_by(targets.c.published_at.desc(), targets.c.release, targets.c.path)
    )
    found: dict[str, JsonObject] = {}
    for row in rows:
        one = found.setdefault(
            row.release,
            {"release": row.release, "published_at": row.published_at, "listed": False, "bundles": {}},
        )
        bundles = one["bundles"]
        assert isinstance(bundles, dict)
        bundles[row.hardware_class] = {
            "target": row.path,
            "digest": f"sha256:{row.digest}",
            "size": row.size,
            "listed": row.listed,
            "role": (listers or {}).get(row.path),
        }
        one["listed"] = bool(one["listed"] or row.listed)
    return list(found.values())


async def fleet(connection: AsyncConnection) -> list[JsonObject]:
    """Every device: what it shall run, what it says it runs, when it was seen, and its health on that."""
    running = (devices.c.id == health.c.device_id) & (devices.c.running == health.c.release)
    figures = [health.c[name] for name in (*HEALTH_SUMS, *HEALTH_LATEST)]
    rows = await connection.execute(
        select(devices, controllers.c.attributes, *figures)
        .select_from(devices.outerjoin(health, running).outerjoin(controllers))
        .order_by(devices.c.id)
    )
    return [_described(row) for row in rows.mappings()]


def _described(row: RowMapping) -> JsonObject:
    figures = {name: row[name] for name in (*HEALTH_SUMS, *HEALTH_LATEST)}
    return {
        "device": row["id"],
        "labels": row["labels"],
        "attributes": row["attributes"] or {},
        "class": row["hardware_class"],
        "release": row["running"] or None,
        "assigned": row["target"],
        "state": row["state"] or None,
        "state_release": row["state_release"] or None,
        "reason": row["reason"],
        "enrolled_at": row["enrolled_at"],
        "last_seen": row["last_seen"],
        "revoked_at": row["revoked_at"],
        "certified_until": row["certified_until"],
        "health": None if row["answers"] is None else figures,
    }


async def require_device(connection: AsyncConnection, device: str) -> Device:
    """The device of this name.

    Raises:
        NotFoundError: nobody of that name is enrolled.
    """
    found = await device_by_id(connection, device)
    if found is None:
        raise NotFoundError(
            "no such device",
            got=repr(device[:80]),
            where="devices",
            expected="a device that has enrolled",
            fix="look at the list of devices",
        )
    return found


async def require_standing(connection: AsyncConnection, device: str) -> Device:
    """The device of this name, whose credential is good.

    Asked again within the transaction that takes in what a device sent: a call that began before the credential was
    revoked, and dragged on, brings nothing in after it.

    Raises:
        NotFoundError: nobody of that name is enrolled.
        AccessError: its credential was revoked.
    """
    return standing(await require_device(connection, device))


def standing(device: Device) -> Device:
    """The same device; AccessError where its credential was revoked."""
    if device.revoked_at is not None:
        raise AccessError(
            "the credential was revoked",
            where=f"device {device.id}",
            fix="ask the operator; it may enrol again under another name",
            expected="a credential that still holds",
            got="one that was revoked",
        )
    return device


async def revoke(connection: AsyncConnection, device: str, now: float) -> Device:
    """Takes a device's credential back, for ever; doing it twice changes nothing. The device afterwards.

    Raises:
        NotFoundError: nobody of that name is enrolled.
    """
    await connection.execute(
        update(devices)
        .where(devices.c.id == device, devices.c.revoked_at.is_(None))
        .values(revoked_at=now, target=None, counter=devices.c.counter + 1)
    )
    return await require_device(connection, device)


async def forget_reports(connection: AsyncConnection, before: float) -> None:
    """Drops reports received before this hub time; what they said stays summed up."""
    await connection.execute(delete(reports).where(reports.c.received_at < before))


def bundle_for(bundles: Mapping[str, str], hardware_class: str) -> str | None:
    """The path for a class: its own bundle where there is one, else the one for any class."""
    return bundles.get(hardware_class, bundles.get(ANY_CLASS))


def has_labels(labels: Mapping[str, str], wanted: Iterable[tuple[str, str]]) -> bool:
    """Whether these labels include all the wanted ones."""
    return all(labels.get(name) == value for name, value in wanted)


def may_overlap(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a device could carry all labels of both cohorts."""
    return all(other.get(name, value) == value for name, value in one.items())

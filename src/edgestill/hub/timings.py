"""Timing jobs: which devices time a family of models in idle hours, and what came of it.

- A job names a family that the publisher itself lists, and some devices of its hardware class, chosen once: those that called last
  and within some polls (`CALLED_POLLS`), which carry the labels, have no other job, and ask by our own protocol. It touches no rollout, and no rollout touches it.
- A device is told by a counter of its own, which only grows (`measuring`). What it says counts where counter and archive are those of
  its job, and its first last word stays: `measured` and `refused` are never changed.
- Times are judged against the archive that was listed: no more models than there are, and no other hardware class.
- A job is done when every device has said its last word or was revoked; it ends early by an operator, when its family is retired, or after
  `LONGEST` seconds.
- A profile of several devices has the models that more than half of those that measured have timed: no single one of three or more decides
  which there are. Each has the median over those that timed it. How many these are, and how far they lie apart, stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, insert, select, update

from edgestill.core.errors import ConflictError, MessageError, NotFoundError
from edgestill.core.family import MAX_MODELS
from edgestill.core.release import Measurement
from edgestill.hub import registry
from edgestill.hub.tables import controllers, devices, measuring, timed, timings
from edgestill.trust import assignment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.timing import TimingReport
    from edgestill.trust.keys import SigningKey
    from edgestill.trust.repository import TargetInfo

MOST_DEVICES: Final = 1000
LISTED: Final = 50
CALLED_POLLS: Final = 20
"""A device that has not called for so many intervals of polls is not given a job."""
LONGEST: Final = 14 * 86_400.0
"""Seconds after which a job does not wait for its devices any more."""
RUNNING, DONE, CANCELLED, RETIRED, EXPIRED = "running", "done", "cancelled", "retired", "expired"
ASSIGNED, DOWNLOADED, MEASURED, REFUSED, LEFT = "assigned", "downloaded", "measured", "refused", "left"
_OPEN: Final = (ASSIGNED, DOWNLOADED)


@dataclass(frozen=True, slots=True)
class Wish:
    """A job that is to be started.

    Attributes:
        target: the family's name on the list.
        info: what the list says of it.
        labels: that its devices carry.
        devices: how many, at most.
        models: in the archive.
        within: seconds in which they have called.
    """

    target: str
    info: TargetInfo
    labels: Mapping[str, str]
    devices: int
    models: int
    within: float


async def start(connection: AsyncConnection, wish: Wish, now: float) -> tuple[int, list[str]]:
    """Begins a job; its id, and its devices.

    Raises:
        NotFoundError: no device is free for it.
    """
    chosen = await _free(connection, wish, now)
    if not chosen:
        raise NotFoundError(
            "no device is free to time this",
            where=wish.target,
            expected=f"devices of its hardware class, with these labels, that called within {wish.within:g} s and have no other timing job",
            got="none",
            fix="look at the devices: edgestill fleet list, and at the jobs: edgestill timing status",
        )
    made = await connection.execute(
        insert(timings).values(
            target=wish.target,
            digest=wish.info.digest.hex,
            models=wish.models,
            labels=dict(wish.labels),
            wanted=wish.devices,
            state=RUNNING,
            created_at=now,
            changed_at=now,
        )
    )
    (job,) = made.inserted_primary_key or (0,)
    for device in chosen:
        counter = await _tell(connection, device, wish.target)
        await connection.execute(
            insert(timed).values(timing_id=job, device_id=device, counter=counter, state=ASSIGNED)
        )
    return int(job), chosen


async def cancel(connection: AsyncConnection, job: int, now: float) -> list[str]:
    """Ends a job; the devices that need not go on.

    Raises:
        NotFoundError: no such job. ConflictError: it is over.
    """
    row = await _require(connection, job)
    if row.state != RUNNING:
        raise ConflictError(
            "this timing job is over",
            where=f"timing {job}",
            expected=f"one that is {RUNNING}",
            got=row.state,
            fix="nothing: its devices time nothing any more",
        )
    return await _end(connection, job, CANCELLED, "by an operator", now)


async def settle(connection: AsyncConnection, families: Iterable[str], now: float) -> list[str]:
    """Ends what nobody lists any more or has run too long, and what waits for nobody but revoked devices; the devices that need not go on.

    Args:
        connection: of a write.
        families: names that the publisher lists.
        now: hub time.
    """
    listed, freed = set(families), list[str]()
    for row in (await connection.execute(select(timings).where(timings.c.state == RUNNING))).all():
        if row.target not in listed:
            freed += await _end(connection, row.id, RETIRED, "the publisher lists it no more", now)
            continue
        if now - row.created_at > LONGEST:
            freed += await _end(connection, row.id, EXPIRED, "not all of its devices were heard in time", now)
            continue
        gone = select(devices.c.id).where(devices.c.revoked_at.is_not(None))
        await connection.execute(
            update(timed)
            .where(timed.c.timing_id == row.id, timed.c.state.in_(_OPEN), timed.c.device_id.in_(gone))
            .values(state=LEFT, reason="its credential was revoked")
        )
        await _finish(connection, row.id, now)
    return freed


async def accept(connection: AsyncConnection, device: str, report: TimingReport, now: float) -> bool:
    """Takes in what a device says; whether it changed anything.

    Args:
        connection: of a write.
        device: that says it.
        report: what.
        now: hub time.

    Raises:
        MessageError: it tells times of models that are not in the archive.
    """
    row = await job_of(connection, device, report)
    if row is None or row.state not in _OPEN or (row.state, report.state) == (DOWNLOADED, DOWNLOADED):
        return False
    most = MAX_MODELS if row.models is None else row.models
    if report.models and report.models[-1].at >= most:
        raise MessageError(
            "times of models that are not in the archive",
            where="timing",
            expected=f"places below {most}",
            got=report.models[-1].at,
        )
    is_last = report.state != DOWNLOADED
    await connection.execute(
        update(timed)
        .where(timed.c.timing_id == row.id, timed.c.device_id == device)
        .values(
            state=report.state,
            reason=report.reason,
            times=[one.as_json() for one in report.models] if report.models else None,
            heard_at=now,
        )
    )
    if is_last:
        await _withdraw(connection, [device])
        await _finish(connection, row.id, now)
    return True


async def job_of(connection: AsyncConnection, device: str, report: TimingReport) -> Row | None:  # type: ignore[type-arg]  # of a join, whose type nobody can write down
    """The running job that a report is of: `id`, `models` in its archive, and `state` of the device in it; None for another's or an old one's."""
    rows = await connection.execute(
        select(timings.c.id, timings.c.models, timed.c.state)
        .join(timed, timed.c.timing_id == timings.c.id)
        .where(
            timed.c.device_id == device,
            timed.c.counter == report.counter,
            timings.c.digest == report.archive.hex,
            timings.c.state == RUNNING,
        )
    )
    return rows.first()


# What devices are told


async def envelope(
    connection: AsyncConnection, device: str, *, key: SigningKey, epoch: int, expires: int
) -> JsonObject | None:
    """What a device shall time, signed; None for nothing.

    Args:
        connection: of a read.
        device: that asks.
        key: the hub's.
        epoch: of that key, as the root says.
        expires: seconds since 1970.
    """
    row = (
        await connection.execute(
            select(measuring).where(measuring.c.device_id == device, measuring.c.target.is_not(None))
        )
    ).first()
    if row is None:
        return None
    told = Measurement(device=device, counter=row.counter, target=row.target, expires=expires, epoch=epoch)
    return assignment.sign_measurement(told, key)


# What people are told


async def newest(connection: AsyncConnection) -> list[JsonObject]:
    """The newest jobs, each with counts of its devices by state."""
    rows = await connection.execute(select(timings).order_by(timings.c.id.desc()).limit(LISTED))
    return [_described(row) | {"devices": await _counts(connection, row.id)} for row in rows.all()]


async def status(connection: AsyncConnection, job: int) -> JsonObject:
    """A job with its devices.

    Raises:
        NotFoundError: no such job.
    """
    row = await _require(connection, job)
    rows = await connection.execute(select(timed).where(timed.c.timing_id == job).order_by(timed.c.device_id))
    members: JsonObject = {
        one.device_id: {
            "state": one.state,
            "reason": one.reason,
            "models": len(one.times or ()),
            "heard_at": one.heard_at,
        }
        for one in rows
    }
    return _described(row) | {"devices": members}


@dataclass(frozen=True, slots=True)
class Taken:
    """What a job has brought.

    Attributes:
        target: the family.
        digest: of its archive, 64 hex digits.
        times: device -> place of a model -> p50 and p95, seconds.
    """

    target: str
    digest: str
    times: dict[str, dict[int, tuple[float, float]]]


async def taken(connection: AsyncConnection, job: int, device: str | None) -> Taken:
    """The times of a job's devices, or of one of them.

    Raises:
        NotFoundError: no such job, or nobody has measured yet.
    """
    row = await _require(connection, job)
    condition = () if device is None else (timed.c.device_id == device,)
    rows = await connection.execute(
        select(timed.c.device_id, timed.c.times)
        .where(timed.c.timing_id == job, timed.c.state == MEASURED, *condition)
        .order_by(timed.c.device_id)
    )
    times = {one.device_id: {each["at"]: (each["p50"], each["p95"]) for each in one.times} for one in rows}
    if not times:
        raise NotFoundError(
            "nobody has measured yet" if device is None else "this device has not measured",
            where=f"timing {job}",
            expected="a device that has measured",
            got="none" if device is None else device[:80],
            fix="see edgestill timing status ID",
        )
    return Taken(row.target, row.digest, times)


def merged(
    times: Mapping[str, Mapping[int, tuple[float, float]]],
) -> tuple[dict[int, tuple[float, float]], JsonObject]:
    """The medians of each model that more than half of the devices timed, over those, and what is to be known of how they came about.

    Returns:
        Place -> p50 and p95; and `devices`, `left_out` (places that no more than half timed) and, of several devices, `timed_by` (of each model
        that is there, how many timed it) and `apart` (over the models that several timed: the largest p95 over the smallest, its median
        and its maximum).

    Raises:
        ConflictError: there is no such model.
    """
    by_model: dict[int, list[tuple[float, float]]] = {}
    for one in times.values():
        for at, pair in one.items():
            by_model.setdefault(at, []).append(pair)
    chosen = {at: pairs for at, pairs in sorted(by_model.items()) if 2 * len(pairs) > len(times)}
    if not chosen:
        raise ConflictError(
            "no model that more than half of the devices timed",
            where="timing",
            expected=f"one that {len(times) // 2 + 1} of {len(times)} devices have timed",
            got=f"at most {max(map(len, by_model.values()), default=0)}",
            fix="fetch one device's: edgestill timing fetch ID --device NAME",
        )
    told: JsonObject = {
        "devices": [*sorted(times)],
        "left_out": [at for at in sorted(by_model) if at not in chosen],
    }
    if len(times) > 1:
        told |= {"timed_by": [len(pairs) for pairs in chosen.values()], **_apart(chosen)}
    found = {
        at: (median(p50 for p50, _ in pairs), median(p95 for _, p95 in pairs)) for at, pairs in chosen.items()
    }
    return found, told


def _apart(times: Mapping[int, Sequence[tuple[float, float]]]) -> JsonObject:
    """How many times as long as the fastest device the slowest took, over the models that several timed."""
    several = [[p95 for _, p95 in pairs] for pairs in times.values() if len(pairs) > 1]
    ratios = [max(each) / min(each) for each in several]
    return {"apart": {"median": median(ratios), "most": max(ratios)}} if ratios else {}


async def _free(connection: AsyncConnection, wish: Wish, now: float) -> list[str]:
    """Devices that may take a job, those that called last first."""
    hardware_class = wish.target.rpartition("/")[2].removesuffix(".est")
    busy = select(measuring.c.device_id).where(measuring.c.target.is_not(None))
    rows = await connection.execute(
        select(devices.c.id, devices.c.labels)
        .where(
            devices.c.hardware_class == hardware_class,
            devices.c.revoked_at.is_(None),
            func.coalesce(devices.c.last_seen, devices.c.enrolled_at) >= now - wish.within,
            devices.c.id.not_in(busy),
            devices.c.id.not_in(select(controllers.c.device_id)),
        )
        .order_by(func.coalesce(devices.c.last_seen, 0.0).desc(), devices.c.id)
    )
    wanted: Sequence[tuple[str, str]] = list(wish.labels.items())
    return [row.id for row in rows if registry.has_labels(row.labels, wanted)][: wish.devices]


async def _tell(connection: AsyncConnection, device: str, target: str) -> int:
    """Tells a device what to time; the counter by which it knows that."""
    last = (
        await connection.execute(select(measuring.c.counter).where(measuring.c.device_id == device))
    ).scalar()
    if last is None:
        await connection.execute(insert(measuring).values(device_id=device, counter=1, target=target))
        return 1
    await connection.execute(
        update(measuring)
        .where(measuring.c.device_id == device)
        .values(counter=measuring.c.counter + 1, target=target)
    )
    return int(last) + 1


async def _withdraw(connection: AsyncConnection, some: Iterable[str]) -> None:
    await connection.execute(
        update(measuring).where(measuring.c.device_id.in_(list(some))).values(target=None)
    )


async def _end(connection: AsyncConnection, job: int, state: str, reason: str, now: float) -> list[str]:
    rows = await connection.execute(
        select(timed.c.device_id).where(timed.c.timing_id == job, timed.c.state.in_(_OPEN))
    )
    freed = list(rows.scalars())
    await _withdraw(connection, freed)
    await connection.execute(
        update(timed)
        .where(timed.c.timing_id == job, timed.c.state.in_(_OPEN))
        .values(state=LEFT, reason=state)
    )
    await connection.execute(
        update(timings).where(timings.c.id == job).values(state=state, reason=reason, changed_at=now)
    )
    return freed


async def _finish(connection: AsyncConnection, job: int, now: float) -> None:
    """Closes a job that waits for nobody."""
    waits = await connection.execute(
        select(timed.c.device_id).where(timed.c.timing_id == job, timed.c.state.in_(_OPEN)).limit(1)
    )
    if waits.first() is None:
        await connection.execute(
            update(timings)
            .where(timings.c.id == job, timings.c.state == RUNNING)
            .values(state=DONE, changed_at=now)
        )


async def _counts(connection: AsyncConnection, job: int) -> JsonObject:
    rows = await connection.execute(
        select(timed.c.state, func.count()).where(timed.c.timing_id == job).group_by(timed.c.state)
    )
    return {state: int(count) for state, count in rows.all()}


async def _require(connection: AsyncConnection, job: int) -> Row:  # type: ignore[type-arg]  # as above
    row = (await connection.execute(select(timings).where(timings.c.id == job))).first()
    if row is None:
        raise NotFoundError(
            "no such timing job",
            where="timings",
            expected="the id of a job",
            got=job,
            fix="run: edgestill timing status",
        )
    return row


def _described(row: Row) -> JsonObject:  # type: ignore[type-arg]  # as above
    labels: Json = dict(row.labels)
    return {
        "id": row.id,
        "target": row.target,
        "digest": f"sha256:{row.digest}",
        "labels": labels,
        "wanted": row.wanted,
        "state": row.state,
        "reason": row.reason,
        "created_at": row.created_at,
        "changed_at": row.changed_at,
    }

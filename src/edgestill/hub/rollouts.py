"""Rollouts in the database: builds the view that `engine.decide` judges, and does what it says.

- `advance` takes every rollout that may have something to do, asks `decide` until it has nothing more to say, and tells
  which devices are assigned something else. It runs in one write transaction: a kill leaves all of it undone, and the next
  one does it again.
- Two rollouts never pull at one device: one is refused while another is open (running or paused) for devices that
  could be in both cohorts.
- A cohort is the devices that carry all of the rollout's labels; without labels it is the whole fleet.
- A device whose credential was revoked is in no cohort: it is neither chosen nor waited for, and counts neither way.
- Sums of audits are kept by device and release. What was counted before a member joined, or was excused, is subtracted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final, assert_never

from sqlalchemy import insert, select, update

from edgestill.core.errors import ConflictError, NotFoundError
from edgestill.core.release import Gates, Rollout, Stage
from edgestill.hub import engine, registry
from edgestill.hub.tables import devices, health, members, rollouts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.release import RolloutState

OPEN: Final = ("running", "paused")
STANDING: Final = 10
"""Finished rollouts that still welcome devices: the newest ones."""

SUMS: Final = ("audits", "agreed", "answers", "escalated", "errors")
"""Of `health`, that gates look at."""
NOTHING: Final = {f"{name}_before": 0 for name in SUMS}
"""Of a device that has told nothing yet."""

_BY_OPERATOR: Final = "by the operator"
_MAX_ID: Final = 2**53
_SHOWN: Final = 5
"""Names in one line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A rollout as it is stored."""

    id: int
    rollout: Rollout
    labels: Mapping[str, str]
    state: RolloutState
    stage: int
    reason: str
    accepted: int = -1


@dataclass(frozen=True, slots=True)
class Moved:
    """What `advance` did.

    Attributes:
        devices: that are assigned something else.
        told: the same for the log.
    """

    devices: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)


async def start(
    connection: AsyncConnection, rollout: Rollout, *, labels: Mapping[str, str], now: float
) -> int:
    """Begins a rollout, and returns its id.

    Raises:
        NotFoundError: the publisher lists no bundle of the release.
        ConflictError: another rollout is open for devices that could be in both cohorts.
    """
    if not await registry.release_targets(connection, rollout.release):
        raise NotFoundError(
            "no such release is listed",
            got=rollout.release,
            fix="publish it first",
            where="releases",
            expected="a release in targets.json",
        )
    rows = await connection.execute(select(rollouts).where(rollouts.c.state.in_(OPEN)))
    for other in map(_record, rows):
        if registry.may_overlap(labels, other.labels):
            raise ConflictError(
                "another rollout is open",
                where=f"rollout {other.id} ({other.rollout.release}, {other.state})",
                expected="one open rollout for each device",
                fix=f"let it finish, or roll it back: edgestill rollout rollback {other.id}",
                got=f"a second one for some of its devices, of {rollout.release}",
            )
    result = await connection.execute(
        insert(rollouts).values(
            release=rollout.release,
            stages=[stage.share for stage in rollout.stages],
            gates=asdict(rollout.gates),
            labels=dict(labels),
            state="running",
            stage=0,
            created_at=now,
            changed_at=now,
        )
    )
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


async def find(connection: AsyncConnection, rollout: int) -> Record:
    """The rollout of this id; NotFoundError where there is none."""
    row = None
    if rollout <= _MAX_ID:
        row = (await connection.execute(select(rollouts).where(rollouts.c.id == rollout))).first()
    if row is None:
        raise NotFoundError(
            "no such rollout",
            got=rollout,
            where="rollouts",
            expected="the id of a rollout",
            fix="look at the list of rollouts",
        )
    return _record(row)


async def newest(connection: AsyncConnection, limit: int) -> list[Record]:
    """The newest rollouts, newest first."""
    rows = await connection.execute(select(rollouts).order_by(rollouts.c.id.desc()).limit(limit))
    return [_record(row) for row in rows]


async def pause(connection: AsyncConnection, rollout: int, now: float) -> None:
    """Stops a running rollout; pausing a paused one changes nothing.

    Raises:
        NotFoundError: no such rollout. ConflictError: it is over.
    """
    record = await find(connection, rollout)
    if record.state != "paused":
        _require(record, "running")
        await _set(connection, rollout, now, state="paused", reason=_BY_OPERATOR)


async def resume(connection: AsyncConnection, rollout: int, now: float) -> None:
    """Runs a paused rollout on, and excuses the failures and disagreements there are.

    Raises:
        NotFoundError: no such rollout. ConflictError: it is over.
    """
    record = await find(connection, rollout)
    if record.state == "running":
        return
    _require(record, "paused")
    if record.reason == _BY_OPERATOR:  # who stopped it for another reason forgets nothing
        await _set(connection, rollout, now, state="running", reason="")
        return
    seen = await view(connection, record)
    failures = engine.excusable(seen, now)
    before = await _sums(connection, record.rollout.release)
    for device in seen.devices:
        if device.member is not None:
            await connection.execute(
                update(members)
                .where(members.c.rollout_id == rollout, members.c.device_id == device.id)
                .values(excused=failures.get(device.id, ""), **before.get(device.id, NOTHING))
            )
    await _set(connection, rollout, now, state="running", reason="", accepted=-1)


async def accept(connection: AsyncConnection, rollout: int, stage: int, now: float) -> None:
    """Lets a running rollout go on at this stage without what its gates wait for; what is sure still pauses it.

    Raises:
        NotFoundError: no such rollout. ConflictError: it does not run, or is at another stage.
    """
    record = await find(connection, rollout)
    _require(record, "running")
    if record.stage != stage:
        raise ConflictError(
            "the rollout is at another stage by now",
            where=f"rollout {rollout}",
            expected=f"stage {stage}",
            got=f"stage {record.stage}",
            fix="look at it again",
        )
    await _set(connection, rollout, now, accepted=record.stage)


async def roll_back(connection: AsyncConnection, rollout: int, now: float) -> None:
    """Marks a rollout to be undone; `advance` then sends its devices back. Doing it twice changes nothing.

    Raises:
        NotFoundError: no such rollout.
    """
    record = await find(connection, rollout)
    if record.state != "rolled-back":
        await _set(connection, rollout, now, state="rolled-back", reason=_BY_OPERATOR)


async def advance(connection: AsyncConnection, now: float) -> Moved:
    """Does what there is to do now."""
    moved = Moved()
    for record in await _with_work(connection):
        present = record
        while actions := engine.decide(await view(connection, present), now):
            chosen = {one.device: one.target for one in actions if isinstance(one, engine.Assign)}
            await _join(connection, present, chosen, now)
            moved.devices.update(chosen)
            for action in actions:
                moved.devices.update(await _apply(connection, present, action, now))
            moved.told.extend(f"rollout {record.id}: {line}" for line in _in_words(present, actions))
            present = await find(connection, record.id)
    return moved


async def view(connection: AsyncConnection, record: Record) -> engine.View:
    """All that is known about a rollout now."""
    bundles = await registry.release_targets(connection, record.rollout.release)
    over = record.state in {"done", "rolled-back"}
    held = await _held(connection, record.id) if over else frozenset()
    back = await _ways_back(connection, record.id) if record.state == "rolled-back" else {}
    mine = (members.c.device_id == devices.c.id) & (members.c.rollout_id == record.id)
    sums = (health.c.device_id == devices.c.id) & (health.c.release == record.rollout.release)
    rows = await connection.execute(
        select(
            devices.c.id,
            devices.c.hardware_class,
            devices.c.labels,
            devices.c.last_seen,
            devices.c.enrolled_at,
            members,
            *(health.c[name] for name in SUMS),
            health.c.latency_p95,
        )
        .select_from(devices.outerjoin(members, mine).outerjoin(health, sums))
        .where(devices.c.revoked_at.is_(None))
    )
    return engine.View(
        id=record.id,
        rollout=record.rollout,
        state=record.state,
        stage=record.stage,
        accepted=record.accepted,
        devices=[
            engine.DeviceView(
                id=row.id,
                target=registry.bundle_for(bundles, row.hardware_class),
                last_seen=row.enrolled_at if row.last_seen is None else row.last_seen,
                member=None if row.rollout_id is None else _member(row),
                held=row.id in held,
                back_to=back.get(row.id),
            )
            for row in rows
            if row.rollout_id is not None or registry.has_labels(row.labels, record.labels.items())
        ],
    )


async def status(connection: AsyncConnection, rollout: int, now: float) -> JsonObject:
    """The rollout for an operator: where it is, why, and how each device stands.

    Raises:
        NotFoundError: no such rollout.
    """
    record = await find(connection, rollout)
    seen = await view(connection, record)
    rows = await connection.execute(select(devices.c.id, devices.c.running))
    running = {row.id: row.running or None for row in rows}
    revoked = await _revoked(connection, rollout)
    gates = record.rollout.gates
    stages: JsonObject = {
        "id": record.id,
        "release": record.rollout.release,
        "state": record.state,
        "stage": record.stage,
        "stages": [stage.share for stage in record.rollout.stages],
        "gates": asdict(gates),
        "labels": dict(record.labels),
        "reason": record.reason or engine.explain(seen, now),
        "audits": sum(device.member.audits for device in seen.devices if device.member),
        "agreed": sum(device.member.agreed for device in seen.devices if device.member),
        "health": [*engine.figures(seen, now)],
    }
    return stages | {
        "devices": {
            device.id: _standing(device, gates, now) | {"release": running.get(device.id)}
            for device in seen.devices
            if device.target is not None or device.member is not None
        }
        | {name: {"state": "revoked", "reason": "", "release": running.get(name)} for name in revoked}
    }


def summary(record: Record) -> JsonObject:
    """The rollout without its devices."""
    return {
        "id": record.id,
        "release": record.rollout.release,
        "state": record.state,
        "stage": record.stage,
        "stages": [stage.share for stage in record.rollout.stages],
        "labels": dict(record.labels),
        "reason": record.reason,
    }


def _standing(device: engine.DeviceView, gates: Gates, now: float) -> JsonObject:
    if device.member is None:
        return {"state": "waiting", "reason": ""}
    how = engine.failure(device.member, gates, now)
    if how == "silent":
        return {
            "state": "silent",
            "reason": f"{device.member.state}, then no report for {gates.silent_after:g} s",
        }
    if how == "slow":
        reason = f"95 of 100 answers within {device.member.latency:g} s (most: {gates.max_latency:g} s)"
        return {"state": "slow", "reason": reason}
    return {"state": device.member.state, "reason": device.member.reason}


async def _revoked(connection: AsyncConnection, rollout: int) -> list[str]:
    """Members whose credential was revoked since."""
    rows = await connection.execute(
        select(devices.c.id)
        .join(members, members.c.device_id == devices.c.id)
        .where(members.c.rollout_id == rollout, devices.c.revoked_at.is_not(None))
        .order_by(devices.c.id)
    )
    return list(rows.scalars())


async def _with_work(connection: AsyncConnection) -> list[Record]:
    """Rollouts that `decide` may have something to say about; newest first, so that newer ones hold their devices."""
    unreturned = (
        select(members.c.rollout_id)
        .join(devices, devices.c.id == members.c.device_id)
        .where(members.c.returned.is_(False), devices.c.revoked_at.is_(None))
    )
    rows = await connection.execute(
        select(rollouts)
        .where(
            rollouts.c.state.in_(("running", "done"))
            | ((rollouts.c.state == "rolled-back") & rollouts.c.id.in_(unreturned))
        )
        .order_by(rollouts.c.id.desc())
    )
    records = [_record(row) for row in rows]
    standing = [record.id for record in records if record.state == "done"][:STANDING]
    return [record for record in records if record.state != "done" or record.id in standing]


async def _apply(connection: AsyncConnection, record: Record, action: engine.Action, now: float) -> set[str]:
    match action:
        case engine.Assign():
            pass  # `_join` takes all of them together: a large stage is three statements, not three for each device
        case engine.RollBack(device, target):
            await registry.assign(connection, {device: target}, now)
            await connection.execute(
                update(members)
                .where(members.c.rollout_id == record.id, members.c.device_id == device)
                .values(returned=True)
            )
            return {device}
        case engine.Advance(stage):
            await _set(connection, record.id, now, stage=stage, reason="")
        case engine.Pause(reason):
            await _set(connection, record.id, now, state="paused", reason=reason[:500])
        case engine.Finish():
            await _set(connection, record.id, now, state="done", reason="")
        case _:
            assert_never(action)
    return set()


def _in_words(record: Record, actions: Sequence[engine.Action]) -> Iterator[str]:
    assigned = sorted(one.device for one in actions if isinstance(one, engine.Assign))
    if assigned:
        yield f"{record.rollout.release} is assigned to {_names(assigned)}"
    for action in actions:
        match action:
            case engine.RollBack(device, target):
                yield f"{device} goes back to {target}"
            case engine.Advance(stage):
                yield f"goes on to stage {stage}"
            case engine.Pause(reason):
                yield f"is paused: {reason}"
            case engine.Finish():
                yield "is done"
            case _:
                pass


def _names(devices: Sequence[str]) -> str:
    shown = ", ".join(devices[:_SHOWN])
    return shown if len(devices) <= _SHOWN else f"{shown} and {len(devices) - _SHOWN} more"


async def _join(connection: AsyncConnection, record: Record, chosen: Mapping[str, str], now: float) -> None:
    """Makes members of these devices (device -> target) and assigns the release to them."""
    if not chosen:
        return
    before = await _sums(connection, record.rollout.release)
    await registry.assign(connection, chosen, now)
    await connection.execute(
        insert(members),
        [
            {
                "rollout_id": record.id,
                "device_id": device,
                "target": target,
                "state": "assigned",
                "assigned_at": now,
            }
            | before.get(device, NOTHING)
            for device, target in chosen.items()
        ],
    )


async def _sums(connection: AsyncConnection, release: str) -> dict[str, dict[str, int]]:
    """All that was ever counted for this release, by device, under the names of `members`."""
    rows = await connection.execute(
        select(health.c.device_id, *(health.c[name] for name in SUMS)).where(health.c.release == release)
    )
    return {row["device_id"]: {f"{name}_before": row[name] for name in SUMS} for row in rows.mappings()}


async def _held(connection: AsyncConnection, rollout: int) -> frozenset[str]:
    """Devices that a later rollout has assigned something to."""
    rows = await connection.execute(
        select(members.c.device_id)
        .join(rollouts, rollouts.c.id == members.c.rollout_id)
        .where(members.c.rollout_id > rollout, rollouts.c.state != "rolled-back")
    )
    return frozenset(rows.scalars())


async def _ways_back(connection: AsyncConnection, rollout: int) -> dict[str, str]:
    """For each device the newest bundle that an earlier rollout left it with and that it may still run.

    That is one it confirmed; or one a finished rollout assigned, as long as it has not fallen back from it.
    """
    listed = await registry.listed_paths(connection)
    rows = await connection.execute(
        select(members.c.device_id, members.c.target)
        .join(rollouts, rollouts.c.id == members.c.rollout_id)
        .where(
            members.c.rollout_id < rollout,
            members.c.state != "fell-back",
            (rollouts.c.state == "done") | (members.c.state == "confirmed"),
            rollouts.c.state != "rolled-back",
        )
        .order_by(members.c.rollout_id)
    )
    return {row.device_id: row.target for row in rows if row.target in listed}


async def _set(connection: AsyncConnection, rollout: int, now: float, **values: object) -> None:
    await connection.execute(
        update(rollouts).where(rollouts.c.id == rollout).values(changed_at=now, **values)
    )


def _require(record: Record, state: RolloutState) -> None:
    if record.state != state:
        raise ConflictError(
            "a rollout in this state cannot do that",
            where=f"rollout {record.id}",
            expected=state,
            got=record.state,
            fix="look at its state, and decide from there",
        )


def _record(row: Row[tuple[object, ...]]) -> Record:
    return Record(
        id=row.id,
        rollout=Rollout(
            release=row.release,
            stages=tuple(Stage(share=share) for share in row.stages),
            gates=Gates(**row.gates),
        ),
        labels=row.labels,
        state=row.state,
        stage=row.stage,
        reason=row.reason,
        accepted=row.accepted,
    )


def _member(row: Row[tuple[object, ...]]) -> engine.Member:
    found = engine.Member(
        state=row.state,
        assigned_at=row.assigned_at,
        heard_at=row.heard_at,
        reason=row.reason,
        excused=row.excused or None,
        returned=row.returned,
    )
    if row.audits is None:
        return found
    told = row._mapping  # noqa: SLF001  # public in spite of its name
    since = {name: max(0, told[name] - told[f"{name}_before"]) for name in SUMS}
    return replace(found, **since, latency=row.latency_p95)

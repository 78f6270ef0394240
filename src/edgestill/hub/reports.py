"""Reports from devices: each counts once, and the order in which they arrive does not matter.

- A report's id is unique for its device. What was already there changes nothing.
- Steps merge to the furthest one (`engine.merge`); health figures are added up by device and release. Both give the same
  whatever arrives first. What a device runs *now* follows its own clock, bounded so that a clock gone wild cannot
  silence later reports for ever.
- A device that fell back is not shown as running what it fell back from.
- Figures are added up only for releases that the publisher has listed here at some time: a device may make up any
  number of names, and each would take a row. The report itself is taken, and shown as what the device runs.
- Sums stop growing at 2^53 - 1, the largest count a message can carry.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, select, update

from edgestill.hub import engine, registry
from edgestill.hub.database import insert_once
from edgestill.hub.registry import HEALTH_LATEST, HEALTH_SUMS
from edgestill.hub.tables import devices, health, members, reports, rollouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.wire import Health, Report

CLOCK_AHEAD: Final = 300.0
"""Seconds by which a device's clock is believed to be ahead of the hub's."""

MAX_SUM: Final = 2**53 - 1

_SHOWS_RUNNING: Final = ("serving", "confirmed")
_DECISIVE: Final = ("confirmed", "fell-back")


async def accept(
    connection: AsyncConnection, device: str, batch: Sequence[Report], now: float
) -> list[Report]:
    """Takes in the reports that are new, and returns those."""
    accepted = []
    for report in batch:
        row = {
            "device_id": device,
            "id": report.id,
            "at": report.at,
            "received_at": now,
            "bundle": report.bundle,
            "release": report.release,
            "state": report.state,
            "reason": report.reason,
        }
        if await insert_once(connection, reports, [row]):
            accepted.append(report)
            await _take_in(connection, device, report, now)
    return accepted


def is_decisive(report: Report) -> bool:
    """Whether a rollout may have something to do after this report: steps on the way change no decision.

    Gates on escalations and latencies are looked at from tick to tick: every report has figures of these.
    """
    figures = report.health
    return report.state in _DECISIVE or (figures is not None and (figures.audits > 0 or figures.errors > 0))


async def _take_in(connection: AsyncConnection, device: str, report: Report, now: float) -> None:
    at = min(report.at, now + CLOCK_AHEAD)
    await _tell_rollout(connection, device, report, now)
    if report.health is not None:
        if await registry.is_known(connection, report.release):
            await _add_health(connection, device, report.release, report.health, at)
    else:
        await _show_state(connection, device, report, at)
    if report.health is not None or report.state in _SHOWS_RUNNING:
        await _show_running(connection, device, report.release, at)
    elif report.state == "fell-back":
        await connection.execute(
            update(devices)
            .where(devices.c.id == device, devices.c.running == report.release, devices.c.running_at <= at)
            .values(running="", running_at=at)
        )


async def hear(connection: AsyncConnection, device: str, release: str, now: float) -> None:
    """Remembers that the device is at the release, in the newest rollout that brought it."""
    if (rollout := await _newest(connection, device, release)) is not None:
        await connection.execute(update(members).where(*_member(rollout, device)).values(heard_at=now))


async def remark(connection: AsyncConnection, device: str, release: str, reason: str) -> None:
    """Says in the newest rollout of the release what keeps the device waiting, as long as it has done nothing; empty for nothing."""
    if (rollout := await _newest(connection, device, release)) is not None:
        await connection.execute(
            update(members)
            .where(*_member(rollout, device), members.c.state == "assigned")
            .values(reason=reason)
        )


async def _newest(connection: AsyncConnection, device: str, release: str) -> int | None:
    rows = await connection.execute(
        select(members.c.rollout_id)
        .join(rollouts, rollouts.c.id == members.c.rollout_id)
        .where(members.c.device_id == device, rollouts.c.release == release)
        .order_by(members.c.rollout_id.desc())
    )
    found: int | None = rows.scalars().first()
    return found


def _member(rollout: int, device: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return members.c.rollout_id == rollout, members.c.device_id == device


async def _tell_rollout(connection: AsyncConnection, device: str, report: Report, now: float) -> None:
    """Moves the device on in the newest rollout that brought it this release."""
    rollout = await _newest(connection, device, report.release)
    if rollout is None:
        return
    mine = _member(rollout, device)
    values: dict[str, object] = {"heard_at": now}
    if report.state is not None:
        known = (await connection.execute(select(members.c.state).where(*mine))).scalar_one()
        values["state"] = engine.merge(known, report.state)
        if report.state == "fell-back":
            values["reason"] = report.reason
    await connection.execute(update(members).where(*mine).values(**values))


async def _add_health(
    connection: AsyncConnection, device: str, release: str, figures: Health, at: float
) -> None:
    key = (health.c.device_id == device) & (health.c.release == release)
    known = (await connection.execute(select(health).where(key))).mappings().first()
    told = asdict(figures)
    latest = {name: told[name] for name in HEALTH_LATEST} | {"latest_at": at}
    if known is None:
        sums = {name: told[name] for name in HEALTH_SUMS}
        await connection.execute(insert(health).values(device_id=device, release=release, **sums, **latest))
        return
    sums = {name: min(MAX_SUM, known[name] + told[name]) for name in HEALTH_SUMS}
    newer = latest if at >= known["latest_at"] else {}
    await connection.execute(update(health).where(key).values(**sums, **newer))


async def _show_state(connection: AsyncConnection, device: str, report: Report, at: float) -> None:
    """Shows the step that is newest by the device's clock; of two at the same time the further one."""
    row = (
        await connection.execute(
            select(devices.c.state, devices.c.state_release, devices.c.state_at).where(devices.c.id == device)
        )
    ).one()
    assert report.state is not None
    is_same_update = row.state_release == report.release and row.state_at == at
    if at < row.state_at or (is_same_update and engine.merge(row.state, report.state) == row.state):
        return
    await connection.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(state=report.state, state_release=report.release, state_at=at, reason=report.reason)
    )


async def _show_running(connection: AsyncConnection, device: str, release: str, at: float) -> None:
    await connection.execute(
        update(devices)
        .where(devices.c.id == device, devices.c.running_at <= at)
        .values(running=release, running_at=at)
    )

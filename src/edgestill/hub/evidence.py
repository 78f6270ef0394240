"""Evidence: answers of the teacher that devices let the hub keep, and the sums they send.

- Samples are kept only where the request asked for it (`retain`), at most so many for each device. A request that is sent
  again under its id keeps nothing twice.
- Statistics count once for each device, backbone and window: the message that arrived last replaces the one before.
  A message that is sent again under its id changes nothing, even when a newer one came between.
- Statistics of one backbone are all of one kind (classes, features); the first to arrive says which.
- Old windows are forgotten whole, so that order never matters. So are backbones of which a device names too many.
- No message is so large that sums with it could not be written any more.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from sqlalchemy import delete, func, select, update

from edgestill.core.errors import EvidenceError, NotFoundError
from edgestill.core.oip import InferResponse, Tensor
from edgestill.hub.database import insert_once
from edgestill.hub.tables import devices, samples, statistics
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.hub.settings import Settings

MAX_SAMPLES: Final = 1_000
MAX_SAMPLE_BYTES: Final = 32_000_000
MAX_MESSAGE_N: Final = 10**9
MAX_MESSAGE_SUM: Final = 1e24

_CHUNK: Final = 64
_AUDIT: Final = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a device asked the teacher, and what the teacher said, for N inputs.

    Attributes:
        device: who asked.
        purpose: `escalation` or `audit`.
        request: the request's id; empty where it had none.
        datatype: of the inputs, as the Open Inference Protocol names it.
        shape: of one input.
        inputs: each input's bytes.
        logits: float32 `[C]` for each input, as bytes.
    """

    device: str
    purpose: str
    request: str
    datatype: str
    shape: tuple[int, ...]
    inputs: Sequence[bytes]
    logits: Sequence[bytes]


async def keep_samples(connection: AsyncConnection, asked: Asked, *, now: float, most: int) -> int:
    """Keeps the samples that are new, and says how many those were.

    Args:
        connection: of a write.
        asked: what to keep.
        now: hub time.
        most: samples that may be kept for the device.
    """
    found = await connection.execute(select(devices.c.samples).where(devices.c.id == asked.device))
    room = max(0, most - found.scalar_one())
    rows = [
        {
            "device_id": asked.device,
            "received_at": now,
            "purpose": asked.purpose,
            "request_id": asked.request or None,
            "position": position,
            "datatype": asked.datatype,
            "shape": list(asked.shape),
            "input": one,
            "logits": logits,
        }
        for position, (one, logits) in enumerate(zip(asked.inputs, asked.logits, strict=True))
    ]
    kept = await insert_once(connection, samples, rows[:room])
    await connection.execute(
        update(devices).where(devices.c.id == asked.device).values(samples=devices.c.samples + kept)
    )
    return kept


async def samples_after(connection: AsyncConnection, after: int, limit: int) -> InferResponse:
    """The next samples after this id, all of one shape, so that they form one batch.

    Outputs are `input` `[N, ...]`, `teacher` FP32 `[N, C]`, `audit` BOOL `[N]` and `id` INT64 `[N]`; parameters are the
    `devices` by row and the `last` id, to go on from. N = 0 says that there are none.

    Args:
        connection: of a read.
        after: 0 to begin.
        limit: samples at most, from 1 to `MAX_SAMPLES`; fewer come where shapes change, or where they would be over
            `MAX_SAMPLE_BYTES`.
    """
    found = await connection.execute(
        select(samples).where(samples.c.id > after).order_by(samples.c.id).limit(limit)
    )
    batch: list[RowMapping] = []
    size = 0
    for row in found.mappings():
        size += len(row["input"]) + len(row["logits"])
        if batch and (_kind(row) != _kind(batch[0]) or size > MAX_SAMPLE_BYTES):
            break
        batch.append(row)
    return _as_message(batch, after)


async def keep_statistics(
    connection: AsyncConnection,
    device: str,
    message_id: str,
    parsed: Statistics,
    body: bytes,
    *,
    now: float,
    settings: Settings,
) -> bool:
    """Keeps a message unless it was here before; returns whether it was new.

    Raises:
        EvidenceError: other counts of classes or features than known for this backbone, or sums too large for
            one device.
    """
    backbone = str(parsed.backbone)
    _check_size(parsed)
    await _check_kind(connection, parsed)
    row = {
        "device_id": device,
        "message_id": message_id,
        "received_at": now,
        "backbone": backbone,
        "window": parsed.window,
        "n": parsed.n,
        "classes": parsed.classes,
        "features": parsed.features,
    }
    if not await insert_once(connection, statistics, [row]):
        return False
    mine = (statistics.c.device_id == device) & (statistics.c.backbone == backbone)
    await connection.execute(
        update(statistics).where(mine, statistics.c.window == parsed.window).values(body=None)
    )
    await connection.execute(
        update(statistics)
        .where(statistics.c.device_id == device, statistics.c.message_id == message_id)
        .values(body=body)
    )
    kept = (
        select(statistics.c.window)
        .where(mine, statistics.c.body.is_not(None))
        .order_by(statistics.c.window.desc())
        .limit(settings.max_windows)
    )
    await connection.execute(
        update(statistics).where(mine, statistics.c.window.not_in(kept)).values(body=None)
    )
    await _forget_backbones(connection, device, settings.max_backbones)
    return True


async def forget_messages(connection: AsyncConnection, before: float) -> None:
    """Drops what no longer counts and was received before this hub time: only its id was still remembered."""
    await connection.execute(
        delete(statistics).where(statistics.c.body.is_(None), statistics.c.received_at < before)
    )


async def statistics_bodies(connection: AsyncConnection, backbone: Digest) -> AsyncIterator[list[bytes]]:
    """The messages that count for a backbone, a few at a time."""
    last = 0
    while True:
        found = await connection.execute(
            select(statistics.c.id, statistics.c.body)
            .where(
                statistics.c.backbone == str(backbone),
                statistics.c.body.is_not(None),
                statistics.c.id > last,
            )
            .order_by(statistics.c.id)
            .limit(_CHUNK)
        )
        rows = found.all()
        if not rows:
            return
        last = rows[-1].id
        yield [row.body for row in rows]


def add_bodies(total: Statistics | None, bodies: Sequence[bytes]) -> Statistics | None:
    """The sum of `total` and these messages."""
    for body in bodies:
        one = Statistics.from_bytes(body)
        total = one if total is None else total + one
    return total


def as_message(total: Statistics | None, backbone: Digest) -> bytes:
    """A sum as a message: exact where that fits into one, else rounded as little as makes it fit.

    Raises:
        NotFoundError: nothing to sum.
    """
    if total is None:
        raise NotFoundError("no statistics of this backbone", got=backbone)
    for dtype in ("float64", "float32"):
        with suppress(EvidenceError):
            return total.to_bytes(dtype)
    return total.to_bytes("float16")


async def counts(connection: AsyncConnection) -> JsonObject:
    """What there is: samples by device and purpose, statistics by backbone."""
    by_device: dict[str, JsonObject] = {}
    total = 0
    rows = await connection.execute(
        select(samples.c.device_id, samples.c.purpose, func.count().label("found")).group_by(
            samples.c.device_id, samples.c.purpose
        )
    )
    for row in rows:
        by_device.setdefault(row.device_id, {})[row.purpose] = row.found
        total += row.found
    rows = await connection.execute(
        select(
            statistics.c.backbone,
            func.count().label("messages"),
            func.count(statistics.c.device_id.distinct()).label("devices"),
            func.sum(statistics.c.n).label("n"),
        )
        .where(statistics.c.body.is_not(None))
        .group_by(statistics.c.backbone)
    )
    sums: JsonObject = {
        row.backbone: {"messages": row.messages, "devices": row.devices, "n": int(row.n)} for row in rows
    }
    return {"samples": {"total": total, "devices": dict(by_device)}, "statistics": sums}


async def _forget_backbones(connection: AsyncConnection, device: str, most: int) -> None:
    """Keeps the backbones that the device named last: it may make up any number, and each would take room."""
    mine = (statistics.c.device_id == device) & statistics.c.body.is_not(None)
    kept = (
        select(statistics.c.backbone)
        .where(mine)
        .group_by(statistics.c.backbone)
        .order_by(func.max(statistics.c.id).desc())
        .limit(most)
    )
    await connection.execute(
        update(statistics).where(mine, statistics.c.backbone.not_in(kept)).values(body=None)
    )


async def _check_kind(connection: AsyncConnection, parsed: Statistics) -> None:
    row = (
        await connection.execute(
            select(statistics.c.classes, statistics.c.features).where(
                statistics.c.backbone == str(parsed.backbone)
            )
        )
    ).first()
    if row is not None and (row.classes, row.features) != (parsed.classes, parsed.features):
        raise EvidenceError(
            "statistics of another kind",
            where=parsed.backbone,
            expected=f"{row.classes} classes, {row.features} features",
            got=f"{parsed.classes} classes, {parsed.features} features",
        )


def _check_size(parsed: Statistics) -> None:
    """Whatever devices send, their sum must stay finite and writable: no single one can make it unreadable."""
    largest = max(float(np.abs(parsed.a).max()), float(np.abs(parsed.b).max()))
    if parsed.n > MAX_MESSAGE_N or largest > MAX_MESSAGE_SUM:
        raise EvidenceError(
            "sums too large for one device",
            where=parsed.backbone,
            expected=f"at most {MAX_MESSAGE_N:.0e} samples and {MAX_MESSAGE_SUM:g} in any sum",
            got=f"{parsed.n} samples, {largest:g}",
        )


def _kind(row: RowMapping) -> tuple[object, ...]:
    return row["datatype"], tuple(row["shape"]), len(row["logits"])


def _as_message(batch: Sequence[RowMapping], after: int) -> InferResponse:
    n = len(batch)
    datatype, shape, width = _kind(batch[0]) if batch else ("FP32", (), 0)
    assert isinstance(datatype, str)
    assert isinstance(shape, tuple)
    assert isinstance(width, int)
    ids = np.array([row["id"] for row in batch], dtype="<i8")
    audits = np.array([row["purpose"] == _AUDIT for row in batch], dtype=np.bool_)
    return InferResponse(
        model="evidence",
        outputs=(
            Tensor("input", datatype, (n, *shape), b"".join(row["input"] for row in batch)),
            Tensor("teacher", "FP32", (n, width // 4), b"".join(row["logits"] for row in batch)),
            Tensor("audit", "BOOL", (n,), audits.tobytes()),
            Tensor("id", "INT64", (n,), ids.tobytes()),
        ),
        parameters={
            "devices": [row["device_id"] for row in batch],
            "last": batch[-1]["id"] if batch else after,
        },
    )

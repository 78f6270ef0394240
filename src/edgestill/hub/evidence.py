"""Evidence: answers of the teacher that devices let the hub keep. The sums they send are in `hub.sums`.

Samples are kept only where the request asked for it (`retain`), at most so many for each device. A request that is sent
again under its id keeps nothing twice. Samples of a device whose credential was revoked are no longer handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from sqlalchemy import func, select, update

from edgestill.core.oip import InferResponse, Tensor
from edgestill.hub.database import insert_once
from edgestill.hub.tables import devices, samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject

MAX_SAMPLES: Final = 1_000
MAX_SAMPLE_BYTES: Final = 32_000_000

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
        select(samples)
        .join(devices, devices.c.id == samples.c.device_id)
        .where(samples.c.id > after, devices.c.revoked_at.is_(None))
        .order_by(samples.c.id)
        .limit(limit)
    )
    batch: list[RowMapping] = []
    size = 0
    for row in found.mappings():
        size += len(row["input"]) + len(row["logits"])
        if batch and (_kind(row) != _kind(batch[0]) or size > MAX_SAMPLE_BYTES):
            break
        batch.append(row)
    return _as_message(batch, after)


async def counts(connection: AsyncConnection) -> JsonObject:
    """How many samples there are, by device and purpose."""
    by_device: dict[str, JsonObject] = {}
    total = 0
    rows = await connection.execute(
        select(samples.c.device_id, samples.c.purpose, func.count().label("found"))
        .join(devices, devices.c.id == samples.c.device_id)
        .where(devices.c.revoked_at.is_(None))
        .group_by(samples.c.device_id, samples.c.purpose)
    )
    for row in rows:
        by_device.setdefault(row.device_id, {})[row.purpose] = row.found
        total += row.found
    return {"total": total, "devices": dict(by_device)}


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

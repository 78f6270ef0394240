"""How long the messages of 10,000 devices take to be summed in one process: 256 features, 10 classes, one message a device.

- `read`: `Statistics.from_bytes` and `+`, as anybody would.
- `hub`: the messages lie in a hub's database, as its intake keeps them; the sum is what an operator asks the hub for, from the query to
  the message. Every byte comes from disk (or from the system's cache of it).
- `intake_of_50`: how long the hub's own checks of 50 messages take, screens included, and putting these into the database in one write.

Messages are of different samples, made beforehand and not counted.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import insert

from edgestill.core.digest import Digest
from edgestill.hub import sums, tables
from edgestill.hub.database import Database
from edgestill.hub.settings import Settings
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.learn.encodings import Dtype

DEVICES: Final = 10_000
FEATURES: Final = 256
CLASSES: Final = 10
SAMPLES: Final = 64
BACKBONE: Final = Digest.of(b"bench")
INTAKE: Final = 50
DIFFERENT: Final = 50
"""Messages that are really made; devices send these, in turn."""


def measured(_data: Path, folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Element type -> seconds and bytes."""
    devices = 100 if quick else DEVICES
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"devices": devices, "features": FEATURES, "classes": CLASSES}
    for dtype in ("float32", "int8"):
        messages = _messages(dtype)
        path = folder / f"{dtype}.db"
        path.unlink(missing_ok=True)
        found[dtype] = {"bytes": len(messages[0]), "read": _read(messages, devices)} | asyncio.run(
            _through_the_hub(path, messages, devices)
        )
        path.unlink()
    return found


def _messages(dtype: Dtype) -> list[bytes]:
    rng = np.random.default_rng(0)
    empty = Statistics.empty(backbone=BACKBONE, window=1, classes=CLASSES, features=FEATURES)
    return [
        empty.add(
            np.maximum(rng.normal(size=(SAMPLES, FEATURES)), 0),
            np.eye(CLASSES)[rng.integers(0, CLASSES, SAMPLES)],
        ).to_bytes(dtype)
        for _ in range(DIFFERENT)
    ]


class Clock:
    """Seconds on the wall and of the processor since it was made: on a busy machine they differ."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def told(self) -> dict[str, float]:
        """Both."""
        return {
            "seconds": round(time.perf_counter() - self._began[0], 2),
            "cpu_seconds": round(time.process_time() - self._began[1], 2),
        }


def _read(messages: Sequence[bytes], devices: int) -> dict[str, float]:
    clock = Clock()
    total = Statistics.from_bytes(messages[0])
    for place in range(1, devices):
        total = total + Statistics.from_bytes(messages[place % DIFFERENT])
    assert total.n == devices * SAMPLES
    return clock.told()


async def _through_the_hub(path: Path, messages: Sequence[bytes], devices: int) -> dict[str, Any]:
    database = Database.open(path)
    try:
        async with database.write() as connection:
            await connection.execute(insert(tables.devices), [_device(place) for place in range(devices)])
        clock = Clock()
        async with database.write() as connection:
            for place in range(INTAKE):
                assert await _taken_in(connection, messages, place) == "counts"
        intake = clock.told()
        for first in range(INTAKE, devices, 500):
            rows = [_row(messages, place) for place in range(first, min(first + 500, devices))]
            async with database.write() as connection:
                await connection.execute(insert(tables.statistics), rows)
        clock = Clock()
        total: Statistics | None = None
        async with database.read() as connection:
            kind = await sums.kind_of(connection, BACKBONE)
            async for some in sums.bodies(connection, BACKBONE, kind):
                total = await asyncio.to_thread(sums.add_bodies, total, some)
        data = sums.as_message(total, BACKBONE)
        found = clock.told()
        assert Statistics.from_bytes(data).n == devices * SAMPLES
    finally:
        await database.close()
    return {"hub": found, "intake_of_50": intake}


async def _taken_in(connection: AsyncConnection, messages: Sequence[bytes], place: int) -> str:
    body = messages[place % DIFFERENT]
    parsed = sums.parsed(body)
    message = sums.Message(device=f"d{place}", id="m1", sequence=1, parsed=parsed, body=body)
    return await sums.keep(connection, message, now=1.0, settings=Settings())


def _row(messages: Sequence[bytes], place: int) -> dict[str, Any]:
    """As the intake keeps it."""
    return {
        "device_id": f"d{place}",
        "message_id": "m1",
        "sequence": 1,
        "received_at": 1.0,
        "backbone": str(BACKBONE),
        "window": 1,
        "n": SAMPLES,
        "classes": CLASSES,
        "features": FEATURES,
        "body": messages[place % DIFFERENT],
    }


def _device(place: int) -> dict[str, Any]:
    return {
        "id": f"d{place}",
        "hardware_class": "any",
        "labels": {},
        "credential": f"{place:064x}",
        "join_token": "0" * 64,
        "enrolled_at": 1.0,
    }


def figures(part: dict[str, Any]) -> dict[str, float]:
    """Of `int8`, which jobs write into their bundles, through the hub: what an operator waits, and what the processor works."""
    hub = part["int8"]["hub"]
    return {"sum_10k_s": hub["seconds"], "sum_10k_cpu_s": hub["cpu_seconds"]}

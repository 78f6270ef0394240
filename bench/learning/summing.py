"""How long the messages of 10,000 devices take to be summed in one process: 256 features, 10 classes, one message a device.

- `read`: `Statistics.from_bytes` and `+`, as anybody would.
- `hub`: the messages lie in a hub's database, as its intake keeps them; the sum is what an operator asks the hub for, from the query to
  the message. Every byte comes from disk (or from the system's cache of it).
- `intake`: how long the hub's own checks of a message take, screens included, and putting it into the database.

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

    from edgestill.learn.encodings import Dtype

DEVICES: Final = 10_000
FEATURES: Final = 256
CLASSES: Final = 10
SAMPLES: Final = 64
BACKBONE: Final = Digest.of(b"bench")
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


def _read(messages: Sequence[bytes], devices: int) -> float:
    start = time.perf_counter()
    total = Statistics.from_bytes(messages[0])
    for place in range(1, devices):
        total = total + Statistics.from_bytes(messages[place % DIFFERENT])
    assert total.n == devices * SAMPLES
    return time.perf_counter() - start


async def _through_the_hub(path: Path, messages: Sequence[bytes], devices: int) -> dict[str, float]:
    database = Database.open(path)
    try:
        async with database.write() as connection:
            rows = [_device(place) for place in range(devices)]
            await connection.execute(insert(tables.devices), rows)
        start = time.perf_counter()
        for first in range(0, devices, 100):
            async with database.write() as connection:
                for place in range(first, min(first + 100, devices)):
                    body = messages[place % DIFFERENT]
                    message = sums.Message(
                        device=f"d{place}", id="m1", sequence=1, parsed=sums.parsed(body), body=body
                    )
                    assert await sums.keep(connection, message, now=1.0, settings=Settings()) == "counts"
        intake = time.perf_counter() - start
        start = time.perf_counter()
        total: Statistics | None = None
        async with database.read() as connection:
            kind = await sums.kind_of(connection, BACKBONE)
            async for some in sums.bodies(connection, BACKBONE, kind):
                total = await asyncio.to_thread(sums.add_bodies, total, some)
        data = sums.as_message(total, BACKBONE)
        seconds = time.perf_counter() - start
        assert Statistics.from_bytes(data).n == devices * SAMPLES
    finally:
        await database.close()
    return {"hub": seconds, "intake": intake}


def _device(place: int) -> dict[str, Any]:
    return {
        "id": f"d{place}",
        "hardware_class": "any",
        "labels": {},
        "credential": f"{place:064x}",
        "join_token": "0" * 64,
        "enrolled_at": 1.0,
    }

"""Sums from devices (`learn.statistics` messages): which of them count, and what they add up to.

- A message counts once for each device, backbone and window: the newest replaces the others, be it larger or smaller.
  The newest is the one with the largest sequence, in whatever order they arrive; of a device that does not number its
  messages it is the last to arrive. A message that is sent again under its id changes nothing.
- Sums add only where they are of one kind (classes, features). Of a backbone that a published bundle names, the bundle's
  own `reference.stats` says which kinds there are, and others are refused. Of any other backbone each kind is kept apart,
  and what most devices send is what the backbone is taken to be: no single one can shut the others out.
- Windows are days since 1970, and none may be later than the hub's own tomorrow: a device whose clock once stood in the future would shut its
  real windows out. Old windows are forgotten whole, so that order never matters; what is older than all that are kept is stale. So are backbones of which a device names too many.
- What a revoked device had sent no longer counts.
- No message is so large, and none claims so much noise, that sums with it could not be written any more. Who claims more than three
  times the noise of the median device is left out of the plain sum, as of the other.
- All are sums over a classifier's samples (`learn.screens`); what such samples cannot give is refused.
- A sum in which no single device decides (`learn.robust`) needs all messages at once; so there is a bound on how many those may be.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from sqlalchemy import delete, func, select, update

from edgestill.core.errors import EvidenceError, NotFoundError
from edgestill.core.manifest import REFERENCE
from edgestill.hub.database import insert_once
from edgestill.hub.tables import devices, statistics, targets
from edgestill.learn.framing import MAX_HEAD_BYTES
from edgestill.learn.robust import agree
from edgestill.learn.screens import check, read
from edgestill.learn.statistics import Statistics, claimed_noise, dtype_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.hub.settings import Settings
    from edgestill.learn.robust import Agreed, Rule

MAX_MESSAGE_N: Final = 10**9
MAX_MESSAGE_SUM: Final = 1e24

MOST_ELEMENTS: Final = 10**8
"""Of all messages of which a robust sum is made: 0.8 GB, such as 2,800 devices with 256 features and 10 classes, or 37,000 with 64."""

_CHUNK: Final = 64
_DAY: Final = 86_400.0
_MOST_NOISE: Final = 3.0
"""Times the median's; as `learn.robust.Rule.size`."""

Verdict = Literal["counts", "known", "stale"]


class Kind(NamedTuple):
    """What makes sums of one backbone add: their shape."""

    classes: int
    features: int

    def __str__(self) -> str:
        return f"{self.classes} classes, {self.features} features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a device sent.

    Attributes:
        device: who.
        id: made on the device.
        sequence: its place among the device's messages; None from a device that does not number them.
        parsed: what it says.
        body: its bytes.
    """

    device: str
    id: str
    sequence: int | None
    parsed: Statistics
    body: bytes


class Sent(NamedTuple):
    """A message that counts, and whose it is."""

    device: str
    body: bytes


class _Counted(NamedTuple):
    """What was sent of one kind."""

    messages: int
    devices: int
    n: int
    first: int


def parsed(body: bytes) -> Statistics:
    """What a device sent.

    Raises:
        MessageError, EvidenceError: no message, too large for one device, or nothing that a classifier's samples give.
    """
    found = Statistics.from_bytes(body)
    _check_size(found)
    check(found, dtype_of(body))
    return found


async def keep(connection: AsyncConnection, message: Message, *, now: float, settings: Settings) -> Verdict:
    """Keeps a message where it is the newest of its window; returns whether it counts now, was known by its id, or is not the newest.

    Raises:
        EvidenceError: another kind than the bundles of this backbone have, or a window of the future.
    """
    parsed, device = message.parsed, message.device
    latest = _check_window(parsed, now)
    backbone = str(parsed.backbone)
    await _check_kind(connection, parsed)
    row = {
        "device_id": device,
        "message_id": message.id,
        "sequence": message.sequence,
        "received_at": now,
        "backbone": backbone,
        "window": parsed.window,
        "n": parsed.n,
        "classes": parsed.classes,
        "features": parsed.features,
    }
    if not await insert_once(connection, statistics, [row]):
        return "known"
    mine = (statistics.c.device_id == device) & (statistics.c.backbone == backbone)
    this_window = mine & (statistics.c.window == parsed.window)
    if not await _is_newest(connection, message, this_window):
        return "stale"
    await connection.execute(update(statistics).where(this_window).values(body=None))
    await connection.execute(
        update(statistics)
        .where(statistics.c.device_id == device, statistics.c.message_id == message.id)
        .values(body=message.body)
    )
    kept = (
        select(statistics.c.window)
        .where(mine, statistics.c.body.is_not(None), statistics.c.window <= latest)
        .order_by(statistics.c.window.desc())
        .limit(settings.max_windows)
    )
    await connection.execute(
        update(statistics).where(mine, statistics.c.window.not_in(kept)).values(body=None)
    )
    await _forget_backbones(connection, device, settings.max_backbones)
    mine_now = await connection.execute(
        select(statistics.c.id).where(
            statistics.c.device_id == device,
            statistics.c.message_id == message.id,
            statistics.c.body.is_not(None),
        )
    )
    return "stale" if mine_now.first() is None else "counts"


async def forget(connection: AsyncConnection, before: float) -> None:
    """Drops what no longer counts and was received before this hub time: only its id was still remembered."""
    await connection.execute(
        delete(statistics).where(statistics.c.body.is_(None), statistics.c.received_at < before)
    )


async def bodies(connection: AsyncConnection, backbone: Digest, kind: Kind) -> AsyncIterator[list[Sent]]:
    """The messages of this kind that count for a backbone, a few at a time."""
    last = 0
    while True:
        found = await connection.execute(
            select(statistics.c.id, statistics.c.device_id, statistics.c.body)
            .join(devices, devices.c.id == statistics.c.device_id)
            .where(*_counting(backbone, kind), statistics.c.id > last)
            .order_by(statistics.c.id)
            .limit(_CHUNK)
        )
        rows = found.all()
        if not rows:
            return
        last = rows[-1].id
        yield [Sent(row.device_id, row.body) for row in rows]


async def kind_of(connection: AsyncConnection, backbone: Digest) -> Kind:
    """The kind that a backbone's sum is of, where nobody asks for another.

    Raises:
        NotFoundError: nothing to sum.
    """
    sent = {kind: one for _, kind, one in await _sent(connection, str(backbone))}
    chosen = _chosen(sent, await _known(connection, str(backbone)))
    if chosen is None:
        raise _nothing(backbone)
    return chosen


async def too_noisy(connection: AsyncConnection, backbone: Digest, kind: Kind) -> frozenset[str]:
    """Devices that claim more than three times the noise of the median device: they have no part in the plain sum.

    Noise is added up, and the head's ridge follows it: one who claims much of it would make everybody's head 0.
    """
    rows = await connection.execute(
        select(
            statistics.c.device_id, func.substr(statistics.c.body, 1, MAX_HEAD_BYTES + 64).label("beginning")
        )
        .join(devices, devices.c.id == statistics.c.device_id)
        .where(*_counting(backbone, kind))
    )
    claimed: dict[str, tuple[float, float]] = {}
    for row in rows:
        before, told = claimed.get(row.device_id, (0.0, 0.0)), claimed_noise(row.beginning)
        claimed[row.device_id] = (max(before[0], told[0]), max(before[1], told[1]))
    if not claimed:
        return frozenset()
    allowed = _MOST_NOISE * np.median(np.array(list(claimed.values())), axis=0)
    return frozenset(name for name, told in claimed.items() if (np.array(told) > allowed).any())


def add_bodies(
    total: Statistics | None, sent: Sequence[Sent], *, without: Collection[str] = ()
) -> Statistics | None:
    """The sum of `total` and these messages, but for those of some devices."""
    for device, body in sent:
        if device in without:
            continue
        one = Statistics.from_bytes(body)
        total = one if total is None else total + one
    return total


def add_by_device(totals: dict[str, Statistics], sent: Sequence[Sent]) -> None:
    """Adds these messages to the sum of each device; what an older hub took, and this one would not, is left.

    Raises:
        EvidenceError: more devices than fit into memory.
    """
    for device, body in sent:
        try:
            one = read(body)
        except EvidenceError:
            continue
        totals[device] = totals[device] + one if device in totals else one
        elements = len(totals) * (one.a.size + one.b.size)
        if elements > MOST_ELEMENTS:
            raise EvidenceError(
                "too many messages for a robust sum",
                where="statistics",
                expected=f"at most {MOST_ELEMENTS:.0e} elements in all",
                got=f"{len(totals)} devices with {one.features} features",
                fix="let the policy keep fewer coordinates, or take the plain sum",
            )


def agreed(totals: Mapping[str, Statistics], reference: Statistics, rule: Rule) -> Agreed:
    """The robust sum of the devices' sums.

    Raises:
        NotFoundError: nothing to sum. EvidenceError: as `learn.robust.agree`.
    """
    if not totals:
        raise _nothing(reference.backbone)
    return agree(totals, reference, rule)


def as_message(total: Statistics | None, backbone: Digest) -> bytes:
    """A sum as a message: exact where that fits into one, else rounded as little as makes it fit.

    Raises:
        NotFoundError: nothing to sum.
    """
    if total is None:
        raise _nothing(backbone)
    for dtype in ("float64", "float32"):
        with suppress(EvidenceError):
            return total.to_bytes(dtype)
    return total.to_bytes("float16")


async def counts(connection: AsyncConnection) -> JsonObject:
    """What there is of each backbone: of the kind that is summed, and how many messages of others are kept apart."""
    by_backbone: dict[str, dict[Kind, _Counted]] = {}
    for backbone, kind, one in await _sent(connection):
        by_backbone.setdefault(backbone, {})[kind] = one
    found: JsonObject = {}
    for backbone, sent in by_backbone.items():
        chosen = _chosen(sent, await _known(connection, backbone))
        if chosen is not None:
            found[backbone] = {
                "messages": sent[chosen].messages,
                "devices": sent[chosen].devices,
                "n": sent[chosen].n,
                "classes": chosen.classes,
                "features": chosen.features,
                "apart": sum(one.messages for kind, one in sent.items() if kind != chosen),
            }
    return found


def _counting(backbone: Digest, kind: Kind) -> tuple[ColumnElement[bool], ...]:
    return (
        devices.c.revoked_at.is_(None),
        statistics.c.backbone == str(backbone),
        statistics.c.classes == kind.classes,
        statistics.c.features == kind.features,
        statistics.c.body.is_not(None),
    )


def _nothing(backbone: Digest) -> NotFoundError:
    return NotFoundError(
        "no statistics of this backbone",
        got=backbone,
        where="statistics",
        expected="a backbone that devices have reported about",
        fix="compare the digest with the bundle of the devices; they may not have reported yet",
    )


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
    known = await _known(connection, str(parsed.backbone))
    kind = Kind(parsed.classes, parsed.features)
    if known and kind not in known:
        raise EvidenceError(
            "statistics of another kind",
            where=parsed.backbone,
            expected=f"{' or '.join(map(str, known))} (the published bundles' {REFERENCE})",
            got=kind,
        )


async def _known(connection: AsyncConnection, backbone: str) -> list[Kind]:
    """The kinds that published bundles of this backbone have, of the newest first; retired ones count: they may still run."""
    newest = func.max(targets.c.published_at)
    rows = await connection.execute(
        select(targets.c.classes, targets.c.features)
        .where(targets.c.backbone == backbone)
        .group_by(targets.c.classes, targets.c.features)
        .order_by(newest.desc(), targets.c.classes, targets.c.features)
    )
    return [Kind(row.classes, row.features) for row in rows]


async def _sent(connection: AsyncConnection, backbone: str | None = None) -> list[tuple[str, Kind, _Counted]]:
    """What counts, by backbone and kind."""
    asked: list[ColumnElement[bool]] = [statistics.c.body.is_not(None), devices.c.revoked_at.is_(None)]
    if backbone is not None:
        asked.append(statistics.c.backbone == backbone)
    key = (statistics.c.backbone, statistics.c.classes, statistics.c.features)
    rows = await connection.execute(
        select(
            *key,
            func.count().label("messages"),
            func.count(statistics.c.device_id.distinct()).label("devices"),
            func.sum(statistics.c.n).label("n"),
            func.min(statistics.c.id).label("first"),
        )
        .join(devices, devices.c.id == statistics.c.device_id)
        .where(*asked)
        .group_by(*key)
    )
    return [
        (
            row.backbone,
            Kind(row.classes, row.features),
            _Counted(row.messages, row.devices, int(row.n), row.first),
        )
        for row in rows
    ]


def _chosen(sent: Mapping[Kind, _Counted], known: Sequence[Kind]) -> Kind | None:
    """The kind to sum: of the newest bundle that there are sums of; where no bundle is known, what most devices sent."""
    if known:
        return next((kind for kind in known if kind in sent), None)
    return max(sent, key=lambda kind: (sent[kind].devices, -sent[kind].first), default=None)


async def _is_newest(connection: AsyncConnection, message: Message, window: ColumnElement[bool]) -> bool:
    """Whether nothing of this window has a later place; two of one place (a lost count) are told apart by their ids."""
    if message.sequence is None:
        return True
    rows = await connection.execute(
        select(statistics.c.sequence, statistics.c.message_id).where(
            window, statistics.c.sequence >= message.sequence
        )
    )
    mine = (message.sequence, message.id)
    return all((row.sequence, row.message_id) <= mine for row in rows)


def _check_window(parsed: Statistics, now: float) -> int:
    """The latest window that there can be; a day is for clocks that differ, and for time zones that are taken for clocks."""
    latest = int((now + _DAY) // _DAY)
    if parsed.window > latest:
        raise EvidenceError(
            "a window of the future",
            where=parsed.backbone,
            expected=f"at most {latest} (days since 1970, by the hub's clock)",
            got=parsed.window,
            fix="set the device's clock, or the hub's",
        )
    return latest


def _check_size(parsed: Statistics) -> None:
    """Whatever devices send, their sum must stay finite and writable: no single one can make it unreadable."""
    largest = max(float(np.abs(parsed.a).max()), float(np.abs(parsed.b).max()), *parsed.noise)
    if parsed.n > MAX_MESSAGE_N or largest > MAX_MESSAGE_SUM:
        raise EvidenceError(
            "sums too large for one device",
            where=parsed.backbone,
            expected=f"at most {MAX_MESSAGE_N:.0e} samples and {MAX_MESSAGE_SUM:g} in any sum and its noise",
            got=f"{parsed.n} samples, {largest:g}",
        )

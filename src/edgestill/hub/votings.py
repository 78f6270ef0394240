"""Voting rounds: which devices vote on a set of samples, until when, and what came of it.

- A round names a proxy set that the publisher itself lists, a cohort (labels, and a hardware class or all), and when it closes. Whoever belongs
  to the cohort while it is open has a turn, devices that come later too; a device has one open round at a time. It touches no rollout.
- Rounds are numbered, and the number is the counter of what a device is told, signed: so a replay names a round that is over.
- Of a device the ballot with the largest sequence counts, in whatever order they arrive, and once however often it is sent. A ballot on
  another question, of a device that has no turn, or of a round that is not open is refused; ballots are read before they are kept.
- A round closes when its time is over, by an operator, or when its set is retired. What was cast by then stays, and can be put together
  as often as one likes; ballots of devices that were revoked, whenever that was, are left out.
- What is told of it is the sum (`learn.votes.tally`), and of each device how many votes it cast: whom they were for stays here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import func, insert, select, update

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, EvidenceError, MessageError, NotFoundError
from edgestill.core.release import MAX_COUNTER, Turn
from edgestill.hub import registry
from edgestill.hub.database import insert_once
from edgestill.hub.tables import ballots, controllers, devices, votings
from edgestill.learn.votes import Ballot, Cast, Question, tally
from edgestill.trust import assignment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.learn.votes import Outcome
    from edgestill.trust.keys import SigningKey

LISTED: Final = 50
SHORTEST: Final = 60.0
LONGEST: Final = 28 * 86_400.0
"""Seconds that a round may be open."""
MOST_OPEN: Final = 32
MOST_TOLD: Final = 1_000
OPEN, CLOSED, EXPIRED, RETIRED = "open", "closed", "expired", "retired"
VOTED, WAITED_FOR, REVOKED = "voted", "waited for", "revoked"
_CHUNK: Final = 64

Verdict = Literal["counts", "known", "stale"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A round that is to be opened.

    Attributes:
        target: the proxy set's name on the list.
        question: about it.
        labels: that its devices carry.
        hardware_class: of its devices; empty for all.
        seconds: that it is open.
    """

    target: str
    question: Question
    labels: Mapping[str, str]
    hardware_class: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A ballot as it came in.

    Attributes:
        device: who sent it.
        id: made on the device.
        sequence: its place among the device's messages.
        ballot: read, and bounded.
        body: its bytes.
    """

    device: str
    id: str
    sequence: int
    ballot: Ballot
    body: bytes


async def start(connection: AsyncConnection, wish: Wish, now: float) -> tuple[int, list[str]]:
    """Opens a round; its number, and the devices that have a turn now.

    Raises:
        ConflictError: another round is open for devices that could be in both cohorts, or too many are.
    """
    rows = (await connection.execute(select(votings).where(_open(now)))).all()
    for other in rows:
        if _overlap(wish, other):
            raise ConflictError(
                "another voting round is open",
                where=f"round {other.id} ({other.target})",
                expected="one open round for each device",
                got=f"a second one for some of its devices, about {wish.target}",
                fix=f"let it close, or close it: edgestill learn vote close {other.id}",
            )
    if len(rows) >= MOST_OPEN:
        raise ConflictError(
            "too many voting rounds are open",
            where="votings",
            expected=f"at most {MOST_OPEN}",
            got=f"another one, about {wish.target}",
            fix="close one: edgestill learn vote close ROUND",
        )
    made = await connection.execute(
        insert(votings).values(
            target=wish.target,
            digest=wish.question.proxy.hex,
            samples=wish.question.samples,
            classes=wish.question.classes,
            labels=dict(wish.labels),
            hardware_class=wish.hardware_class,
            state=OPEN,
            created_at=now,
            closes_at=now + wish.seconds,
            changed_at=now,
        )
    )
    (number,) = made.inserted_primary_key or (0,)
    return int(number), await _members(connection, await _require(connection, int(number)))


async def close(connection: AsyncConnection, number: int, now: float) -> list[str]:
    """Closes a round; the devices that need not vote any more.

    Raises:
        NotFoundError: no such round. ConflictError: it is closed.
    """
    row = await _require(connection, number)
    if (state := _state(row, now)) != OPEN:
        raise ConflictError(
            "this voting round is over",
            where=f"round {number}",
            expected=f"one that is {OPEN}",
            got=state,
            fix="nothing: no ballot is taken any more",
        )
    return await _end(connection, row, CLOSED, "by an operator", now)


async def settle(connection: AsyncConnection, proxy_sets: Iterable[str], now: float) -> list[str]:
    """Closes what nobody lists any more, and what has come to its time; the devices that need not vote any more.

    Args:
        connection: of a write.
        proxy_sets: names that the publisher lists.
        now: hub time.
    """
    listed, freed = set(proxy_sets), list[str]()
    for row in (await connection.execute(select(votings).where(votings.c.state == OPEN))).all():
        if now >= row.closes_at:
            freed += await _end(connection, row, EXPIRED, "its time is over", now)
        elif row.target not in listed:
            freed += await _end(connection, row, RETIRED, "the publisher lists it no more", now)
    return freed


async def question_of(connection: AsyncConnection, number: int, device: str, now: float) -> Question:
    """What a device is asked in a round.

    Raises:
        NotFoundError: no such round. EvidenceError: it is not open, or it is not this device's turn.
    """
    row = await _require(connection, number)
    if (state := _state(row, now)) != OPEN:
        raise EvidenceError(
            "votes in a round that is over",
            where=f"round {number}",
            expected=f"one that is {OPEN}",
            got=state,
        )
    found = (await connection.execute(select(devices).where(devices.c.id == device))).first()
    if found is None or not _has_turn(row, found):
        raise EvidenceError(
            "votes in a round of other devices",
            where=f"round {number}",
            expected="a device of its cohort",
            got=device,
        )
    return _question(row)


async def keep(connection: AsyncConnection, number: int, message: Message, now: float) -> Verdict:
    """Keeps a ballot where it is its device's newest in the round; whether it counts now, was known by its id, or is not the newest."""
    row = {
        "message_id": message.id,
        "sequence": message.sequence,
        "received_at": now,
        "student": message.ballot.student,
        "votes": message.ballot.votes,
        "body": message.body,
    }
    if await insert_once(connection, ballots, [{"voting_id": number, "device_id": message.device, **row}]):
        return "counts"
    mine = (ballots.c.voting_id == number) & (ballots.c.device_id == message.device)
    newer = mine & (ballots.c.sequence < message.sequence) & (ballots.c.message_id != message.id)
    if (await connection.execute(update(ballots).where(newer).values(**row))).rowcount:
        return "counts"
    same = await connection.execute(
        select(ballots.c.sequence).where(mine, ballots.c.message_id == message.id)
    )
    return "stale" if same.first() is None else "known"


# What devices are told


async def envelope(
    connection: AsyncConnection, device: str, *, key: SigningKey, epoch: int, expires: int, now: float
) -> JsonObject | None:
    """What a device shall vote on, signed; None for nothing.

    Args:
        connection: of a read.
        device: that asks.
        key: the hub's.
        epoch: of that key, as the root says.
        expires: seconds since 1970; a round that closes before that ends then.
        now: hub time.
    """
    rows = (await connection.execute(select(votings).where(_open(now)).order_by(votings.c.id.desc()))).all()
    if not rows:
        return None
    found = (await connection.execute(select(devices).where(devices.c.id == device))).first()
    mine = next((row for row in rows if found is not None and _has_turn(row, found)), None)
    if mine is None:
        return None
    until = min(expires, int(mine.closes_at))
    told = Turn(device=device, counter=mine.id, target=mine.target, expires=until, epoch=epoch)
    return assignment.sign_turn(told, key)


# What people are told


async def newest(connection: AsyncConnection, now: float) -> list[JsonObject]:
    """The newest rounds, each with how many devices have voted."""
    rows = await connection.execute(select(votings).order_by(votings.c.id.desc()).limit(LISTED))
    return [_described(row, now) | {"voted": await _voted(connection, row.id)} for row in rows.all()]


async def status(connection: AsyncConnection, number: int, now: float) -> JsonObject:
    """A round with its devices, at most `MOST_TOLD` of them, those that have voted first; and how many there are of each kind.

    Raises:
        NotFoundError: no such round.
    """
    row = await _require(connection, number)
    voted = await connection.execute(
        select(
            ballots.c.device_id,
            ballots.c.votes,
            ballots.c.student,
            ballots.c.received_at,
            devices.c.revoked_at,
        )
        .join(devices, devices.c.id == ballots.c.device_id)
        .where(ballots.c.voting_id == number)
        .order_by(ballots.c.device_id)
    )
    members: JsonObject = {}
    counts = {VOTED: 0, WAITED_FOR: 0, REVOKED: 0}
    cast = set()
    for one in voted:
        cast.add(one.device_id)
        state = VOTED if one.revoked_at is None else REVOKED
        counts[state] += 1
        told = {"votes": one.votes, "student": one.student, "heard_at": one.received_at}
        members[one.device_id] = {"state": state, **told}
    turns = await _members(connection, row) if _state(row, now) == OPEN else []
    waited = [name for name in turns if name not in cast]
    counts[WAITED_FOR] = len(waited)
    nothing = {"state": WAITED_FOR, "votes": None, "student": None, "heard_at": None}
    members |= {name: dict(nothing) for name in waited}
    shown = dict(list(members.items())[:MOST_TOLD])
    return _described(row, now) | {"devices": shown, "counts": dict(counts)}


async def outcome(
    connection: AsyncConnection,
    number: int,
    weights: Mapping[str, float],
    in_thread: Callable[[Callable[[], Outcome]], Awaitable[Outcome]],
) -> tuple[str, Outcome]:
    """The proxy set of a round, and what was cast on it so far, be it open or closed: some ballots at a time, however many there are.

    Args:
        connection: of a read.
        number: of the round.
        weights: of devices; 1 where none is given.
        in_thread: does the sums.

    Raises:
        NotFoundError: no such round. MessageError: a weight for a device that has cast no ballot.
    """
    row = await _require(connection, number)
    await _check_weighed(connection, number, weights)
    question = _question(row)
    found, students, last = await in_thread(partial(tally, question, [])), set[str](), ""
    while some := await _cast_after(connection, number, last):
        last = some[-1].device_id
        students |= {one.student for one in some if weights.get(one.device_id, 1.0) > 0}
        found = await in_thread(partial(_added, found, some, weights, len(students)))
    return row.target, found


async def _check_weighed(connection: AsyncConnection, number: int, weights: Mapping[str, float]) -> None:
    """A name that is mistyped must not leave the device that was meant at its full weight."""
    rows = await connection.execute(
        select(ballots.c.device_id).where(ballots.c.voting_id == number, ballots.c.device_id.in_(weights))
    )
    if unknown := sorted(set(weights) - {row.device_id for row in rows}):
        raise MessageError(
            "a weight for a device without a ballot",
            where="weights",
            expected="devices that have voted in this round",
            got=", ".join(unknown)[:200],
            fix="look at edgestill learn vote status",
        )


async def _cast_after(connection: AsyncConnection, number: int, last: str) -> Sequence[Row]:  # type: ignore[type-arg]  # of a join, whose type nobody can write down
    """The next ballots, of devices that were not revoked, in the order of their names."""
    rows = await connection.execute(
        select(ballots.c.device_id, ballots.c.sequence, ballots.c.student, ballots.c.body)
        .join(devices, devices.c.id == ballots.c.device_id)
        .where(ballots.c.voting_id == number, devices.c.revoked_at.is_(None), ballots.c.device_id > last)
        .order_by(ballots.c.device_id)
        .limit(_CHUNK)
    )
    return rows.all()


def _added(found: Outcome, some: Sequence[Row], weights: Mapping[str, float], students: int) -> Outcome:  # type: ignore[type-arg]  # as above
    question = found.question
    cast = [
        Cast(voter=one.device_id, sequence=one.sequence, ballot=Ballot.from_bytes(one.body, question))
        for one in some
    ]
    return found.with_others(tally(question, cast, weights=weights), students=students)


def _open(now: float) -> ColumnElement[bool]:
    return (votings.c.state == OPEN) & (votings.c.closes_at > now)


def _state(row: Row, now: float) -> str:  # type: ignore[type-arg]  # of a whole table, whose type nobody can write down
    """As it is, also where time has passed that nobody has written down yet."""
    return EXPIRED if row.state == OPEN and now >= row.closes_at else str(row.state)


def _question(row: Row) -> Question:  # type: ignore[type-arg]  # as above
    return Question(proxy=Digest(row.digest), samples=row.samples, classes=row.classes)


def _overlap(wish: Wish, other: Row) -> bool:  # type: ignore[type-arg]  # as above
    classes = {wish.hardware_class, other.hardware_class} - {""}
    return len(classes) < 2 and registry.may_overlap(wish.labels, other.labels)


def _has_turn(row: Row, device: Row) -> bool:  # type: ignore[type-arg]  # as above
    return row.hardware_class in {"", device.hardware_class} and registry.has_labels(
        device.labels, row.labels.items()
    )


async def _members(connection: AsyncConnection, row: Row) -> list[str]:  # type: ignore[type-arg]  # as above
    """Devices that have a turn; those that ask by hawkBit's interface cannot be told."""
    rows = await connection.execute(
        select(devices)
        .where(devices.c.revoked_at.is_(None), devices.c.id.not_in(select(controllers.c.device_id)))
        .order_by(devices.c.id)
    )
    return [one.id for one in rows if _has_turn(row, one)]


async def _end(connection: AsyncConnection, row: Row, state: str, reason: str, now: float) -> list[str]:  # type: ignore[type-arg]  # as above
    await connection.execute(
        update(votings).where(votings.c.id == row.id).values(state=state, reason=reason, changed_at=now)
    )
    return await _members(connection, row)


async def _voted(connection: AsyncConnection, number: int) -> int:
    count = select(func.count()).select_from(ballots).where(ballots.c.voting_id == number)
    return int((await connection.execute(count)).scalar_one())


async def _require(connection: AsyncConnection, number: int) -> Row:  # type: ignore[type-arg]  # as above
    known = select(votings).where(votings.c.id == number)
    row = None if number > MAX_COUNTER else (await connection.execute(known)).first()
    if row is None:
        raise NotFoundError(
            "no such voting round",
            where="votings",
            expected="the number of a round",
            got=number,
            fix="run: edgestill learn vote status",
        )
    return row


def _described(row: Row, now: float) -> JsonObject:  # type: ignore[type-arg]  # as above
    labels: Json = dict(row.labels)
    return {
        "id": row.id,
        "target": row.target,
        "digest": f"sha256:{row.digest}",
        "samples": row.samples,
        "classes": row.classes,
        "labels": labels,
        "hardware_class": row.hardware_class,
        "state": _state(row, now),
        "reason": row.reason,
        "created_at": row.created_at,
        "closes_at": row.closes_at,
        "changed_at": row.changed_at,
    }

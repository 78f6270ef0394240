"""Reports, statistics and ballots that wait for the hub, kept so that no kill loses one.

- A report is written and synced before the step it tells of counts as done; it is forgotten when the hub has
  accepted it. Its id is made from what it tells (for steps) or at random (for figures), so that writing or sending it
  twice counts once.
- Statistics are sums over a window: a newer sum of the same window replaces an older one that still waits, be it larger
  or smaller (a device may begin its window anew). Each gets a number that only grows, so that the hub, too, keeps the
  newest, whichever arrives last. The numbers go on over restarts; where the file was lost, they go on from the time.
- Of one voting round the newest ballot waits. It has a number of the same row.
- The box is bounded. Where it is full, the oldest health figures go first; steps of an update are kept.
- A damaged file is put aside and a new one begun: reports matter less than serving.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, PathError
from edgestill.core.jsonio import canonical
from edgestill.core.wire import MAX_REPORTS, MAX_SEQUENCE, Report, reports_from_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_WAITING: Final = 10_000
MAX_STATISTICS: Final = 16
MAX_BALLOTS: Final = 4
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS reports (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, health INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS told (id TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS statistics (
    key TEXT PRIMARY KEY, seq INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ballots (
    round INTEGER PRIMARY KEY, seq INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS numbered (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), last INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A `learn.statistics` message that waits.

    Attributes:
        id: made on the device; the hub counts it once.
        body: the message.
        sequence: larger than that of every message made before.
    """

    id: str
    body: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A `learn.votes` ballot that waits.

    Attributes:
        round: at the hub.
        id: made on the device; the hub counts it once.
        body: the ballot.
        sequence: larger than that of every message made before.
    """

    round: int
    id: str
    body: bytes
    sequence: int


@final
class Outbox:
    """What waits for the hub. May be used from several threads.

    Args:
        connection: to the database; `Outbox.open` makes it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens or makes the box.

        Raises:
            PathError: the file cannot be written.
        """
        try:
            return cls(_checked(_connect(path)))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise PathError(
                    "cannot open the outbox",
                    where=path,
                    got=error,
                    expected="a database of ours",
                    fix="check its owner, and the room on the disk",
                ) from error
        for part in ("", "-wal", "-shm"):
            damaged = path.with_name(path.name + part)
            if damaged.exists():
                damaged.replace(path.with_name(f"damaged-{path.name}{part}"))
        return cls(_connect(path))

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._connection.close()

    def add(self, reports: Iterable[Report]) -> None:
        """Keeps reports until they are delivered; one that was kept or delivered before is left out.

        Raises:
            PathError: they cannot be written.
        """
        with self._writing() as write:
            for report in reports:
                if write.execute("SELECT 1 FROM told WHERE id = ?", (report.id,)).fetchone():
                    continue
                write.execute(
                    "INSERT OR IGNORE INTO reports (id, health, body) VALUES (?, ?, ?)",
                    (report.id, report.health is not None, canonical(report.as_json())),
                )
            _bound(write)

    def waiting(self, *, at_most: int = MAX_REPORTS) -> list[Report]:
        """The oldest reports that wait, in order."""
        with self._writing() as read:
            rows = read.execute("SELECT id, body FROM reports ORDER BY seq LIMIT ?", (at_most,)).fetchall()
            known = [(one, _report(body)) for one, body in rows]
            read.executemany(
                "DELETE FROM reports WHERE id = ?", [(one,) for one, report in known if report is None]
            )
        return [report for _, report in known if report is not None]

    def count(self) -> int:
        """How many reports wait."""
        with self._using() as read:
            (number,) = read.execute("SELECT count(*) FROM reports").fetchone()
        return int(number)

    def delivered(self, ids: Iterable[str]) -> None:
        """Forgets reports that the hub has accepted, or will never accept.

        Raises:
            PathError: it cannot be written; they will be sent again, and count once.
        """
        with self._writing() as write:
            for one in ids:
                steps = write.execute("SELECT seq FROM reports WHERE id = ? AND health = 0", (one,))
                for (seq,) in steps.fetchall():
                    write.execute("INSERT OR IGNORE INTO told (id, seq) VALUES (?, ?)", (one, seq))
                write.execute("DELETE FROM reports WHERE id = ?", (one,))

    def put_statistics(self, key: str, body: bytes, *, at: float) -> Statistics:
        """Keeps the newest sum under a key, in place of an older one that still waits, and returns it as it will be sent.

        Args:
            key: its backbone and window.
            body: the message.
            at: seconds since 1970.

        Raises:
            PathError: it cannot be written.
        """
        with self._writing() as write:
            sequence = _next_number(write, at)
            one = Statistics(f"{sequence:x}-{Digest.of(body).hex[:32]}", body, sequence)
            write.execute(
                "INSERT OR REPLACE INTO statistics (key, seq, id, body) VALUES (?, ?, ?, ?)",
                (key, sequence, one.id, body),
            )
            write.execute(
                "DELETE FROM statistics WHERE key NOT IN (SELECT key FROM statistics ORDER BY seq DESC LIMIT ?)",
                (MAX_STATISTICS,),
            )
        return one

    def statistics(self) -> Statistics | None:
        """The oldest statistics that wait."""
        with self._using() as read:
            row = read.execute("SELECT id, body, seq FROM statistics ORDER BY seq LIMIT 1").fetchone()
        return None if row is None else Statistics(*row)

    def statistics_delivered(self, one: str) -> None:
        """Forgets statistics by their id; a newer sum that replaced them stays."""
        with self._writing() as write:
            write.execute("DELETE FROM statistics WHERE id = ?", (one,))

    def drop_evidence(self) -> None:
        """Forgets sums and ballots that wait: nothing of them may leave any more. Reports stay."""
        with self._writing() as write:
            write.execute("DELETE FROM statistics")
            write.execute("DELETE FROM ballots")

    def put_ballot(self, round_: int, body: bytes, *, at: float) -> None:
        """Keeps a ballot, in place of an older one of the same round that still waits.

        Args:
            round_: its number at the hub.
            body: the ballot.
            at: seconds since 1970.

        Raises:
            PathError: it cannot be written.
        """
        with self._writing() as write:
            sequence = _next_number(write, at)
            id_ = f"{sequence:x}-{Digest.of(body).hex[:32]}"
            write.execute(
                "INSERT OR REPLACE INTO ballots (round, seq, id, body) VALUES (?, ?, ?, ?)",
                (round_, sequence, id_, body),
            )
            write.execute(
                "DELETE FROM ballots WHERE round NOT IN (SELECT round FROM ballots ORDER BY seq DESC LIMIT ?)",
                (MAX_BALLOTS,),
            )

    def ballot(self) -> Waiting | None:
        """The oldest ballot that waits."""
        with self._using() as read:
            row = read.execute("SELECT round, id, body, seq FROM ballots ORDER BY seq LIMIT 1").fetchone()
        return None if row is None else Waiting(*row)

    def ballot_delivered(self, one: str) -> None:
        """Forgets a ballot by its id; a newer one of the round stays."""
        with self._writing() as write:
            write.execute("DELETE FROM ballots WHERE id = ?", (one,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """The box for one's own: what is read here is still so when it is written."""
        with self._using() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Cursor]:
        try:
            with self._lock, self._connection, closing(self._connection.cursor()) as cursor:
                yield cursor
        except sqlite3.Error as error:
            raise PathError(
                "cannot use the outbox",
                where="outbox.db",
                expected="a disk with room",
                got=error,
                fix="check its owner, and the room on the disk",
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _checked(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The same connection; DatabaseError where something within the file is damaged, which opening it does not show."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise sqlite3.DatabaseError(str(found)[:200])
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def waiting_in(path: Path) -> int:
    """How many reports wait in a box, looked at without changing anything; 0 where there is none, or none to be read."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (number,) = connection.execute("SELECT count(*) FROM reports").fetchone()
    except sqlite3.Error:
        return 0
    return int(number)


def _next_number(write: sqlite3.Cursor, at: float) -> int:
    """A number above all before; of a new box the time in milliseconds, which is above those of a lost one."""
    (last,) = write.execute(
        "SELECT max(coalesce((SELECT last FROM numbered), 0), coalesce((SELECT max(seq) FROM statistics), 0))"
    ).fetchone()
    number = max(int(last) + 1, min(int(at * 1000), MAX_SEQUENCE // 2))
    write.execute("INSERT OR REPLACE INTO numbered (only_row, last) VALUES (1, ?)", (number,))
    return number


def _bound(write: sqlite3.Cursor) -> None:
    (number,) = write.execute("SELECT count(*) FROM reports").fetchone()
    over = number - MAX_WAITING
    if over > 0:
        oldest = "SELECT seq FROM reports ORDER BY health DESC, seq LIMIT ?"
        write.execute(f"DELETE FROM reports WHERE seq IN ({oldest})", (over,))  # noqa: S608  # both texts are ours
    write.execute("DELETE FROM told WHERE seq <= (SELECT max(seq) FROM told) - ?", (MAX_WAITING,))


def _report(body: bytes) -> Report | None:
    """A stored report; None where an older version wrote it otherwise."""
    try:
        return next(iter(reports_from_bytes(b"[" + body + b"]")), None)
    except MessageError:
        return None

"""The hub's database: one place that knows which engine it is.

- `read()` gives a connection with a consistent view; `write()` one that commits when its block ends well and rolls back
  otherwise. Nothing else opens connections.
- On SQLite: WAL, so that readers never wait for the writer; `synchronous=FULL`, because an assignment's counter that a
  power cut took back would look to a device like an attack; foreign keys are on; a writer says so at once
  (`BEGIN IMMEDIATE`), and writers of this process queue at a lock instead of at the file.
- `migrate` brings an older schema forward. A database written by a newer edgestill is refused, not guessed at.
- On PostgreSQL nothing of this is needed: the URL is the one thing to change, and `insert_once` already speaks both.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self, final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import create_async_engine

from edgestill.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

_WRITES: Final = "edgestill_writes"
_BUSY_SECONDS: Final = 30


@final
class Database:
    """Connections to one database.

    Args:
        engine: where they come from; made by `open`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{_WRITES: True})
        self._turn = asyncio.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Brings the file's schema forward, and makes an engine that connects when first asked.

        Raises:
            StoreError: not a database, or one that a newer edgestill wrote.
        """
        migrate(path)
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS}, hide_parameters=True
        )
        _tune(engine.sync_engine)
        return cls(engine)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose reads see one moment."""
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose changes come all or not at all."""
        async with self._turn, self._writer.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Closes every connection; a later use opens new ones."""
        await self._engine.dispose()


async def insert_once(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, object]]) -> int:
    """Inserts the rows whose keys are not there yet, and says how many those were."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    added = 0
    for row in rows:
        result = await connection.execute(insert(table).values(**row).on_conflict_do_nothing())
        added += result.rowcount
    return added


def migrate(path: Path) -> None:
    """Runs the revisions that this file has not seen, in one transaction; kills leave the old schema or the new.

    Raises:
        StoreError: not a database, or one that a newer edgestill wrote.
    """
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS})
    _tune(engine)
    try:
        with engine.execution_options(**{_WRITES: True}).begin() as connection:
            command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise StoreError(
            "the database has a schema this version does not know",
            where=path,
            expected=f"revision {ScriptDirectory.from_config(alembic_config(None)).get_current_head()} or older",
            got=error,
            fix="run the edgestill that wrote it, or a newer one",
        ) from error
    except DatabaseError as error:
        raise StoreError(
            "not a usable database",
            where=path,
            expected="SQLite",
            got=error.orig,
            fix="restore it from a backup, or move it away and begin anew",
        ) from error
    finally:
        engine.dispose()


def alembic_config(connection: Connection | None) -> Config:
    """Alembic's view of the migrations inside the package."""
    config = Config()
    config.set_main_option("script_location", "edgestill.hub:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _tune(engine: Engine) -> None:
    """Sets up every SQLite connection, and takes over where its transactions begin."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # The driver would begin transactions by itself, too late for a consistent read.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

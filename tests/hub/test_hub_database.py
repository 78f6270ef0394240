"""The database: its migrations, its transactions, and what a kill leaves."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command, op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import CreateTable

from edgestill.core.errors import StoreError
from edgestill.hub import database, tables
from edgestill.hub.database import Database, insert_once, migrate

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

TOKEN = {"digest": "d", "uses_left": 1, "expires_at": 2.0, "created_at": 1.0}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end."""
    return asyncio.run(work)


def table_names(path: Path) -> set[str]:
    """What tables a file has, without any of our code."""
    connection = sqlite3.connect(path)
    try:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        connection.close()


def test_migrations_lead_to_the_tables(tmp_path: Path) -> None:
    """The revisions and the tables in code are one schema."""
    migrate(tmp_path / "hub.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'hub.db'}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.METADATA)
    engine.dispose()
    assert differences == []


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    """The hub migrates at every start."""
    migrate(tmp_path / "hub.db")
    before = table_names(tmp_path / "hub.db")
    migrate(tmp_path / "hub.db")
    assert table_names(tmp_path / "hub.db") == before


def test_a_migration_that_dies_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of a revision leaves no table behind, and the next start does all of it."""
    real = op.create_table
    made: list[str] = []

    def dying(name: str, *columns: Any, **options: Any) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(name)
        return real(name, *columns, **options)

    monkeypatch.setattr(op, "create_table", dying)
    with pytest.raises(KeyboardInterrupt):
        migrate(tmp_path / "hub.db")
    assert table_names(tmp_path / "hub.db") == set()
    monkeypatch.undo()
    migrate(tmp_path / "hub.db")
    assert set(tables.METADATA.tables) < table_names(tmp_path / "hub.db")


EARLIER = [f"{number:04}" for number in range(1, 14)]
ROWS: dict[str, dict[str, Any]] = {
    "devices": {
        "id": "d0",
        "hardware_class": "any",
        "labels": '{"site":"north"}',
        "credential": "c",
        "join_token": "t",
        "enrolled_at": 1.5,
        "counter": 7,
        "running": "watch/1.0.0",
        "running_at": 2.5,
        "state": "confirmed",
        "state_release": "watch/1.0.0",
        "state_at": 2.5,
        "reason": "",
        "samples": 3,
    },
    "targets": {
        "path": "watch/1.0.0/any.esb",
        "release": "watch/1.0.0",
        "hardware_class": "any",
        "digest": "0" * 64,
        "size": 3,
        "listed": 1,
        "published_at": 1.5,
    },
    "rollouts": {
        "id": 4,
        "release": "watch/1.0.0",
        "stages": "[1.0]",
        "gates": '{"max_failed":0.0}',
        "labels": "{}",
        "state": "running",
        "stage": 0,
        "reason": "",
        "created_at": 1.5,
        "changed_at": 1.5,
    },
    "members": {
        "rollout_id": 4,
        "device_id": "d0",
        "target": "watch/1.0.0/any.esb",
        "state": "confirmed",
        "reason": "",
        "assigned_at": 1.5,
        "excused": "",
        "audits_before": 3,
        "agreed_before": 2,
        "returned": 0,
    },
    "statistics": {
        "device_id": "d0",
        "message_id": "m1",
        "received_at": 1.5,
        "backbone": "sha256:0",
        "window": 1,
        "n": 8.0,
        "classes": 2,
        "features": 3,
        "body": b"sums",
    },
}
NEW: dict[str, dict[str, int | None]] = {
    "devices": dict.fromkeys(("revoked_at", "key", "certified_until", "believes", "issuer")),
    "targets": dict.fromkeys(("backbone", "classes", "features")),
    "statistics": {"sequence": None},
    "rollouts": {},
    "members": dict.fromkeys(("answers_before", "escalated_before", "errors_before"), 0),
}


@pytest.mark.parametrize("revision", EARLIER)
def test_every_earlier_schema_is_brought_forward_with_what_is_in_it(tmp_path: Path, revision: str) -> None:
    """No row is lost or changed, what is new is unknown or none yet, and the schema is that of a new database."""
    path = tmp_path / "hub.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(database.alembic_config(connection), revision)
    for table, row in ROWS.items():
        with engine.begin() as connection:
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"), row)
    migrate(path)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.METADATA) == []
        for table, row in ROWS.items():
            (found,) = connection.execute(text(f"SELECT * FROM {table}")).mappings()
            assert {name: found[name] for name in row} == row
            assert {name: found[name] for name in NEW[table]} == NEW[table]
    engine.dispose()


def test_every_revision_is_tried(tmp_path: Path) -> None:
    """Whoever writes the next one adds its predecessor to the list above."""
    migrate(tmp_path / "hub.db")
    script = ScriptDirectory.from_config(database.alembic_config(None))
    names = [one.revision for one in script.walk_revisions()]
    assert names[1:] == EARLIER[::-1]


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """An older hub does not guess at what a newer one wrote."""
    path = tmp_path / "hub.db"
    migrate(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError) as caught:
        Database.open(path)
    assert caught.value.expected == "revision 0014 or older"
    assert "a schema this version does not know" in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Garbage is told as such."""
    (tmp_path / "hub.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a usable database"):
        Database.open(tmp_path / "hub.db")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Changes come all or not at all."""

    async def work() -> int:
        base = Database.open(tmp_path / "hub.db")

        async def half() -> None:
            async with base.write() as connection:
                await connection.execute(insert(tables.join_tokens).values(**TOKEN))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await half()
        async with base.read() as connection:
            found = (await connection.execute(select(tables.join_tokens))).all()
        await base.close()
        return len(found)

    assert run(work()) == 0


def test_a_reader_sees_one_moment_and_does_not_wait_for_the_writer(tmp_path: Path) -> None:
    """What is committed while a reader is at work does not show until it begins again."""

    async def work() -> list[int]:
        base = Database.open(tmp_path / "hub.db")
        seen = []
        async with base.read() as reader:
            seen.append(len((await reader.execute(select(tables.join_tokens))).all()))
            async with base.write() as writer:
                await writer.execute(insert(tables.join_tokens).values(**TOKEN))
            seen.append(len((await reader.execute(select(tables.join_tokens))).all()))
        async with base.read() as reader:
            seen.append(len((await reader.execute(select(tables.join_tokens))).all()))
        await base.close()
        return seen

    assert run(work()) == [0, 0, 1]


def test_writers_queue(tmp_path: Path) -> None:
    """Twenty writers at once each find what the others left: no update is lost, none is refused."""

    async def work() -> int:
        base = Database.open(tmp_path / "hub.db")
        async with base.write() as connection:
            await connection.execute(insert(tables.join_tokens).values(**TOKEN))

        async def one() -> None:
            async with base.write() as connection:
                uses = (await connection.execute(select(tables.join_tokens.c.uses_left))).scalar_one()
                await asyncio.sleep(0)
                await connection.execute(tables.join_tokens.update().values(uses_left=uses + 1))

        await asyncio.gather(*(one() for _ in range(20)))
        async with base.read() as connection:
            found: int = (await connection.execute(select(tables.join_tokens.c.uses_left))).scalar_one()
        await base.close()
        return found

    assert run(work()) == 21


def test_inserting_once_counts_what_is_new(tmp_path: Path) -> None:
    """A row whose key is there changes nothing and is not counted."""

    async def work() -> tuple[int, int]:
        base = Database.open(tmp_path / "hub.db")
        async with base.write() as connection:
            first = await insert_once(connection, tables.join_tokens, [TOKEN, TOKEN])
            again = await insert_once(connection, tables.join_tokens, [TOKEN | {"uses_left": 9}])
        await base.close()
        return first, again

    assert run(work()) == (1, 0)


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
)
def test_every_connection_is_tuned(tmp_path: Path, pragma: str, value: object) -> None:
    """WAL for readers, full synchronisation for counters that must not go back, foreign keys on."""

    async def work() -> object:
        base = Database.open(tmp_path / "hub.db")
        async with base.write() as connection:
            found = (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar()
        await base.close()
        return found

    assert run(work()) == value


def test_the_schema_is_postgresql_too() -> None:
    """Every table can be written in PostgreSQL's words; nothing of SQLite has crept in."""
    for table in tables.METADATA.sorted_tables:
        text = str(CreateTable(table).compile(dialect=PGDialect()))  # type: ignore[no-untyped-call]  # of SQLAlchemy
        assert f"CREATE TABLE {table.name}" in text


def test_the_package_carries_its_migrations() -> None:
    """Alembic finds exactly one head inside the package."""
    assert ScriptDirectory.from_config(database.alembic_config(None)).get_heads() == ["0014"]

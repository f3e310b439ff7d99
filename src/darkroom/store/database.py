"""The rows' database: an SQLite file by default, or PostgreSQL.

SQLite: one writer connection, a read-only pool beside it, one process that owns the file. SQLite 3.7.0 to 3.51.2 can
corrupt a WAL when two connections write or checkpoint at once, so there is only one writer, and its transactions begin
IMMEDIATE, one after the other. PostgreSQL: one pool for both, and several gateways may share it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from darkroom.errors import DarkroomError, Unavailable

BUSY_MS = 15_000  # that a write waits for somebody who holds the file; half of a lease, so that none is lost over it
AWAY = re.compile(r"locked|busy|full|I/O|unable to open", re.IGNORECASE)  # what SQLite says of its file; not "no such table"
# PostgreSQL's classes of errors that pass: connection, transaction rollback (deadlock), resources, operator, and read-only
PASSING = ("08", "40", "53", "57", "25006")
MIGRATIONS = resources.files("darkroom.store") / "migrations"
MIGRATING = 7_290_113_441  # PostgreSQL's advisory lock, so that of several gateways that start one migrates


class DatabaseBusy(Unavailable):
    """The database did not take a write in time, or is not there."""


class Database:
    """Opened by `open`, closed by `close`; both always. Raises DatabaseBusy from any call that finds it out of reach."""

    def __init__(self, path: Path | None, url: str = ""):
        """An SQLite file at `path`, or with a url PostgreSQL (`postgresql://user:password@host/name`). Raises DarkroomError."""
        self.path = None if url else path
        if url:
            self._writer = self._readers = _postgres(url)
            self._lock: Any = nullcontext()
            return
        assert path is not None
        self._writer = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)), pool_size=1, max_overflow=0, hide_parameters=True)
        # mode=ro makes a write through the pool an error instead of a second writer
        reading = sa.URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        self._readers = create_async_engine(reading, pool_size=4, max_overflow=0, hide_parameters=True)
        self._lock = asyncio.Lock()
        _configure(self._writer, writer=True)
        _configure(self._readers, writer=False)

    async def open(self) -> None:
        """Create the file (mode 600) where it is one, and bring the tables up to date."""
        if self.path is not None and not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        async with self.write() as connection:
            if self.path is None:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING)))
            await connection.run_sync(_migrate)

    async def close(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The writer, in a transaction that is committed at the end or rolled back."""
        with _reached():
            async with self._lock, self._writer.begin() as connection:
                yield connection

    async def rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        """All rows of a query, read beside the writer."""
        with _reached():
            async with self._readers.connect() as connection:
                return (await connection.execute(query)).mappings().all()


class _reached:
    """What a database that is locked or away raises is an answer for the client, not a fault of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, sa.exc.TimeoutError) or (isinstance(error, sa.exc.DBAPIError) and _passes(error)):
            raise DatabaseBusy("the database does not answer now; try again", retry_after=5) from error


def _passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the same call may do well a little later."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, sa.exc.InterfaceError) or error.connection_invalidated:
        return True
    if state is not None:
        return state.startswith(PASSING)
    return isinstance(error, sa.exc.OperationalError) and ("sqlite" not in type(error.orig).__module__ or bool(AWAY.search(str(error.orig))))


def _postgres(url: str) -> AsyncEngine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "postgresql":
            raise ValueError("it names no PostgreSQL")
        # READ COMMITTED, its default: every statement that must not race takes its rows by lock or by unique key
        return create_async_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=10, max_overflow=10, pool_pre_ping=True, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise DarkroomError("PostgreSQL needs the extra: pip install 'darkroom[postgres]'") from error
    except (sa.exc.ArgumentError, ValueError) as error:
        raise DarkroomError("database_url must read like postgresql://user:password@host/name") from error


def _configure(engine: AsyncEngine, writer: bool) -> None:
    @sa.event.listens_for(engine.sync_engine, "connect")
    def pragmas(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, and not IMMEDIATE
        cursor = connection.cursor()
        for pragma in [f"busy_timeout={BUSY_MS}", "foreign_keys=ON", *(["journal_mode=WAL", "synchronous=NORMAL"] if writer else [])]:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def _migrate(connection: sa.Connection) -> None:
    if _is_up_to_date(connection):
        return  # before alembic is imported, which is a tenth of the gateway's start
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_up_to_date(connection: sa.Connection) -> bool:
    """Whether alembic's table names the newest of the migrations, whose files begin with their revisions."""
    newest = max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").iterdir() if file.name[0].isdigit())
    return sa.inspect(connection).has_table("alembic_version") and connection.scalar(sa.text("select version_num from alembic_version")) == newest

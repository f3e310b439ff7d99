"""The SQLite file: one writer connection, a read-only pool beside it, one process that owns it.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL when two connections write or checkpoint at once, so there is only one writer,
and its transactions begin IMMEDIATE, one after the other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

BUSY_MS = 5000


class Database:
    """Opened by `open`, closed by `close`; both always."""

    def __init__(self, path: Path):
        self.path = path
        self._writer = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)), pool_size=1, max_overflow=0)
        # mode=ro makes a write through the pool an error instead of a second writer
        reading = sa.URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        self._readers = create_async_engine(reading, pool_size=4, max_overflow=0)
        self._lock = asyncio.Lock()
        _configure(self._writer, writer=True)
        _configure(self._readers, writer=False)

    async def open(self) -> None:
        """Create the file (mode 600) and bring its tables up to date."""
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        async with self.write() as connection:
            await connection.run_sync(_migrate)

    async def close(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The writer, in a transaction that is committed at the end or rolled back."""
        async with self._lock, self._writer.begin() as connection:
            yield connection

    async def rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        """All rows of a query, read beside the writer."""
        async with self._readers.connect() as connection:
            return (await connection.execute(query)).mappings().all()


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
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("darkroom.store") / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

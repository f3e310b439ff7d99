"""Rows of services, keys, jobs and pictures, in a real file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from darkroom.errors import DarkroomError
from darkroom.store.access import AccessStore
from darkroom.store.database import MIGRATIONS, Database, DatabaseBusy
from darkroom.store.jobs import JobStore
from darkroom.store.schema import jobs, metadata
from darkroom.types import Job, Limits, Status
from tests.store.conftest import KEY, SERVICE, job, picture


async def test_tables_of_the_migrations_are_those_of_the_schema(database: Database) -> None:
    async with database.write() as connection:
        made = await connection.run_sync(lambda c: {t: {x["name"] for x in sa.inspect(c).get_columns(t)} for t in sa.inspect(c).get_table_names()})
    made.pop("alembic_version")
    assert made == {table.name: {column.name for column in table.columns} for table in metadata.sorted_tables}


async def test_an_older_file_is_brought_up_to_date_once(tmp_path: Path) -> None:
    """The next opening leaves it alone, without alembic, which takes a tenth of a start."""
    file, config = tmp_path / "rows.sqlite", Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with sa.create_engine(f"sqlite:///{file}").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom darkroom.store.database import Database\n"
        "asyncio.run(Database(Path(sys.argv[1])).open())\nprint('alembic' in sys.modules)"
    )
    took_alembic = [subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert took_alembic == ["True\n", "False\n"]
    with contextlib.closing(sqlite3.connect(file)) as rows:
        assert rows.execute("select version_num from alembic_version").fetchone() == (ScriptDirectory.from_config(config).get_current_head(),)


async def test_the_file_is_the_owners_alone_and_survives_a_second_opening(tmp_path: Path) -> None:
    database = Database(tmp_path / "rows.sqlite")
    await database.open()
    assert database.path is not None
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    await AccessStore(database).add_service(SERVICE)
    again = Database(database.path)
    await again.open()
    assert await AccessStore(again).services() == [SERVICE]
    await again.close()


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    database = Database(tmp_path / "rows.sqlite")
    await database.open()
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        async with database._readers.connect() as connection:
            await connection.execute(jobs.delete())


async def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    access = AccessStore(database)
    with pytest.raises(sa.exc.IntegrityError):
        await access.add_key(KEY, b"hash")  # of a service that is not there
    assert await access.keys() == []


async def test_keys_come_back_as_they_were_and_are_revoked_once(database: Database) -> None:
    access = AccessStore(database)
    await access.add_service(SERVICE)
    await access.add_key(KEY, b"hash")
    assert await access.find_key("pub") == (KEY, b"hash")
    assert await access.find_key("other") is None
    assert await access.keys("svc-b") == []
    assert await access.revoke("pub")
    assert not await access.revoke("pub")
    await access.touch({"pub": 9.0})
    (key,) = await access.keys("svc-a")
    assert key.last_used_at == 9.0
    assert key.revoked_at is not None
    assert key.revoked_at <= time.time()


async def test_pictures_come_newest_first_and_bounded(rows: JobStore) -> None:
    for i in range(5):
        await accept(rows, job(f"job-{i}"))
        done = replace(job(f"job-{i}"), status=Status.FINISHED, steps_run=10)
        await rows.end(done, [picture(f"pic-{i}", f"job-{i}", created_at=float(i))])
    assert [row.id for row in await rows.pictures("svc-a", limit=2)] == ["pic-4", "pic-3"]
    assert await rows.pictures("svc-b") == []


async def test_many_at_once_wait_for_their_turn(rows: JobStore, database: Database) -> None:
    await asyncio.gather(*(accept(rows, job(f"job-{i}")) for i in range(200)), *(rows.pictures("svc-a") for _ in range(50)))
    assert await rows.count_unfinished() == 200


async def test_a_file_that_somebody_holds_is_waited_for_and_then_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.store.database.BUSY_MS", 300)
    database = Database(tmp_path / "rows.sqlite")
    await database.open()
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("begin immediate")
    with pytest.raises(DatabaseBusy):
        await AccessStore(database).add_service(SERVICE)
    holder.execute("rollback")
    await AccessStore(database).add_service(SERVICE)
    await database.close()


async def accept(rows: JobStore, one: Job) -> None:
    await rows.accept(one, {"prompt": "a cat"}, 1000, 1000, Limits())


def test_a_url_that_names_no_postgresql_is_refused(tmp_path: Path) -> None:
    for url in ("mysql://a/b", "nonsense", "postgres", "sqlite:///x"):
        with pytest.raises(DarkroomError, match="postgresql://"):
            Database(tmp_path / "x", url)

"""Rows of services, keys, jobs and pictures, in a real file."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from darkroom.store.access import AccessStore
from darkroom.store.database import Database
from darkroom.store.jobs import JobStore
from darkroom.store.schema import jobs, metadata
from darkroom.types import ApiKey, Job, Params, PictureRow, Service, Status

SERVICE = Service("svc-a", "first", ("demo-xl",), "operator", 1.0)
KEY = ApiKey("pub", "svc-a", "default", "abcd", "operator", "client", ("images",), 2.0)


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "rows.sqlite")
    await opened.open()
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def rows(database: Database) -> JobStore:
    """Jobs, with a service and a key to belong to."""
    access = AccessStore(database)
    await access.add_service(SERVICE)
    await access.add_key(KEY, b"hash")
    return JobStore(database)


def job(name: str, created_at: float = 3.0) -> Job:
    return Job(name, "svc-a", "pub", Params("demo-xl", "a cat"), Status.QUEUED, created_at)


def picture(name: str, of: str, created_at: float = 4.0) -> PictureRow:
    return PictureRow(name, of, "svc-a", f"aa/{name}.png", 128, 128, 10, "0" * 64, {"prompt": "a cat"}, created_at)


async def test_tables_of_the_migrations_are_those_of_the_schema(database: Database) -> None:
    async with database.write() as connection:
        made = await connection.run_sync(lambda c: {t: {x["name"] for x in sa.inspect(c).get_columns(t)} for t in sa.inspect(c).get_table_names()})
    made.pop("alembic_version")
    assert made == {table.name: {column.name for column in table.columns} for table in metadata.sorted_tables}


async def test_the_file_is_the_owners_alone_and_survives_a_second_opening(database: Database) -> None:
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    await AccessStore(database).add_service(SERVICE)
    again = Database(database.path)
    await again.open()
    assert await AccessStore(again).services() == [SERVICE]
    await again.close()


async def test_a_reader_cannot_write(database: Database) -> None:
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


async def test_a_job_ends_with_its_picture_in_one_go(rows: JobStore) -> None:
    await rows.add(job("job-1"), {"prompt": "a cat"})
    await rows.end("job-1", Status.FINISHED, picture("pic-1", "job-1"), steps_run=10)
    found = await rows.find("job-1")
    assert found is not None
    assert (found["status"], found["steps_run"], found["parameters"]) == ("finished", 10, {"prompt": "a cat"})
    assert await rows.pictures("svc-a") == [picture("pic-1", "job-1")]
    await rows.add(job("job-2"), {})
    with pytest.raises(sa.exc.IntegrityError):
        await rows.end("job-2", Status.FINISHED, picture("pic-1", "job-2"))  # a name twice
    found = await rows.find("job-2")
    assert found is not None
    assert found["status"] == "queued"
    assert await rows.find("job-3") is None


async def test_pictures_come_newest_first_and_bounded(rows: JobStore) -> None:
    for i in range(5):
        await rows.add(job(f"job-{i}"), {})
        await rows.end(f"job-{i}", Status.FINISHED, picture(f"pic-{i}", f"job-{i}", created_at=float(i)))
    assert [row.id for row in await rows.pictures("svc-a", limit=2)] == ["pic-4", "pic-3"]
    assert await rows.pictures("svc-b") == []


async def test_only_what_had_not_ended_is_failed_after_a_restart(rows: JobStore) -> None:
    for i in range(3):
        await rows.add(job(f"job-{i}"), {})
    await rows.end("job-0", Status.CANCELLED, error="the client left")
    assert await rows.fail_unfinished("the server ended") == 2
    assert await rows.fail_unfinished("the server ended") == 0
    statuses = [(await rows.find(f"job-{i}") or {})["status"] for i in range(3)]
    assert statuses == ["cancelled", "failed", "failed"]


async def test_many_at_once_wait_for_their_turn(rows: JobStore, database: Database) -> None:
    await asyncio.gather(*(rows.add(job(f"job-{i}"), {}) for i in range(200)), *(rows.pictures("svc-a") for _ in range(50)))
    await database.close()
    with sqlite3.connect(database.path) as connection:
        assert connection.execute("select count(*) from jobs").fetchone() == (200,)
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)

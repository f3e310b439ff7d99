"""Rows of jobs and pictures."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import jobs, pictures
from darkroom.types import Job, PictureRow, Status


class JobStore:
    """What `jobs.py` keeps."""

    def __init__(self, database: Database):
        self._database = database

    async def add(self, job: Job, parameters: dict[str, Any]) -> None:
        row = {
            "id": job.id, "service_id": job.service_id, "key_id": job.key_id, "status": job.status, "model": job.params.model,
            "parameters": parameters, "created_at": job.created_at,
        }  # fmt: skip
        async with self._database.write() as connection:
            await connection.execute(jobs.insert().values(row))

    async def begin(self, job_id: str) -> None:
        """Its first step is done."""
        async with self._database.write() as connection:
            await connection.execute(jobs.update().where(jobs.c.id == job_id, jobs.c.status == Status.QUEUED).values(status=Status.RUNNING))

    async def end(self, job_id: str, status: Status, picture: PictureRow | None = None, **columns: Any) -> None:
        """The final status of a job, and the picture it made, in one transaction."""
        async with self._database.write() as connection:
            await connection.execute(jobs.update().where(jobs.c.id == job_id).values(status=status, ended_at=time.time(), **columns))
            if picture is not None:
                await connection.execute(pictures.insert().values(asdict(picture)))

    async def fail_unfinished(self, why: str) -> int:
        """Jobs that an earlier process left behind; their clients are gone. Returns how many."""
        left = jobs.update().where(jobs.c.status.in_([Status.QUEUED, Status.RUNNING]))
        async with self._database.write() as connection:
            return (await connection.execute(left.values(status=Status.FAILED, error=why, ended_at=time.time()))).rowcount

    async def find(self, job_id: str) -> dict[str, Any] | None:
        rows = await self._database.rows(sa.select(jobs).where(jobs.c.id == job_id))
        return dict(rows[0]) if rows else None

    async def pictures(self, service_id: str, limit: int = 100) -> list[PictureRow]:
        """Newest first."""
        query = sa.select(pictures).where(pictures.c.service_id == service_id).order_by(pictures.c.created_at.desc()).limit(limit)
        return [PictureRow(**row) for row in await self._database.rows(query)]

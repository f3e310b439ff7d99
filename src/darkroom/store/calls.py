"""Rows of the log of requests, and what was used by day, key and model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import jobs, requests, services, usage
from darkroom.types import Call, Status

CACHED = "cached"  # outcome of a call whose picture was here already
NEWEST = 200_000  # calls that percentiles are taken over
PICTURES = ("/v1/images/generate", "/v1/images/control")  # routes whose calls count as requests for a picture


class CallStore:
    """What the pages of requests and usage read."""

    def __init__(self, database: Database):
        self._database = database

    async def add(self, calls: Sequence[Call]) -> None:
        async with self._database.write() as connection:
            await connection.execute(requests.insert(), [asdict(call) for call in calls])

    async def page(
        self, service_id: str, limit: int, before: tuple[float, str] | None = None, statuses: tuple[int, int] | None = None,
        key_id: str = "", route: str = "", since: float | None = None, until: float | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Newest first, without bodies, with what their jobs say; statuses is a range, its end not included."""
        query = _with_jobs().where(requests.c.service_id == service_id)
        if before is not None:
            query = query.where(sa.tuple_(requests.c.at, requests.c.id) < sa.tuple_(sa.literal(before[0]), sa.literal(before[1])))
        if statuses is not None:
            query = query.where(requests.c.status >= statuses[0], requests.c.status < statuses[1])
        query = query.where(*[column == value for column, value in ((requests.c.key_id, key_id), (requests.c.route, route)) if value])
        query = query.where(*([requests.c.at >= since] if since is not None else []), *([requests.c.at < until] if until is not None else []))
        return [dict(row) for row in await self._database.rows(query.order_by(requests.c.at.desc(), requests.c.id.desc()).limit(limit))]

    async def find(self, call_id: str) -> dict[str, Any] | None:
        """With its body."""
        rows = await self._database.rows(_with_jobs().add_columns(requests.c.body, requests.c.service_id).where(requests.c.id == call_id))
        return dict(rows[0]) if rows else None

    async def services(self) -> set[str]:
        """The ids of all services."""
        return {row["id"] for row in await self._database.rows(sa.select(services.c.id))}

    async def remove(self, before: float) -> None:
        async with self._database.write() as connection:
            await connection.execute(requests.delete().where(requests.c.at < before))

    async def summary(self, service_id: str, since: float, until: float, by: str) -> list[dict[str, Any]]:
        """What was used by `day` (UTC), `key` or `model`: pictures, pixel-steps, requests, errors, cancelled jobs, and the times of replies."""
        zero = dict.fromkeys(("pictures", "pixel_steps", "requests", "errors", "cancelled"), 0)
        groups: dict[str, dict[str, Any]] = defaultdict(lambda: {**zero, "times": []})
        used = sa.select(usage.c.at, usage.c.key_id, usage.c.model, usage.c.pictures, usage.c.pixel_steps)
        for row in await self._database.rows(used.where(usage.c.service_id == service_id, usage.c.at >= since, usage.c.at < until)):
            group = groups[_group(row, by)]
            group["pictures"] += row["pictures"]
            group["pixel_steps"] += row["pixel_steps"]
        columns = (requests.c.at, requests.c.key_id, requests.c.model, requests.c.status, requests.c.ms)
        calls = sa.select(*columns, jobs.c.status.label("job"))
        calls = calls.outerjoin(jobs, jobs.c.id == requests.c.job_id)
        calls = calls.where(requests.c.service_id == service_id, requests.c.route.in_(PICTURES))
        calls = calls.where(requests.c.at >= since, requests.c.at < until)
        calls = calls.where(requests.c.key_id != "")  # who has no key uses nothing
        for row in await self._database.rows(calls.order_by(requests.c.at.desc()).limit(NEWEST)):
            group = groups[_group(row, by)]
            group["requests"] += 1
            group["errors"] += row["status"] >= 400 or row["job"] == Status.FAILED
            group["cancelled"] += row["job"] == Status.CANCELLED
            group["times"] += [row["ms"]] if row["status"] == 200 else []
        return [_line(name, group) for name, group in sorted(groups.items())]


def _with_jobs() -> sa.Select[Any]:
    columns = (requests.c.id, requests.c.at, requests.c.key_id, requests.c.method, requests.c.route, requests.c.status, requests.c.ms,
               requests.c.model, requests.c.job_id, requests.c.error)  # fmt: skip
    # a job that had ended before the call came is one whose picture was here already
    cached = sa.and_(jobs.c.status == Status.FINISHED, jobs.c.ended_at <= requests.c.at)
    outcome = sa.case((cached, CACHED), else_=jobs.c.status).label("outcome")
    ran = (jobs.c.steps_run.label("steps"), jobs.c.queue_seconds, jobs.c.inference_seconds)
    run = [sa.case((cached, sa.null()), else_=column).label(column.name) for column in ran]
    error = sa.case((jobs.c.status == Status.FAILED, jobs.c.error), else_=sa.null()).label("job_error")
    return sa.select(*columns, outcome, error, *run).outerjoin(jobs, jobs.c.id == requests.c.job_id)


def _group(row: Any, by: str) -> str:
    if by == "day":
        return datetime.fromtimestamp(row["at"], UTC).date().isoformat()
    return row["key_id"] if by == "key" else row["model"]


def _line(name: str, group: dict[str, Any]) -> dict[str, Any]:
    times = sorted(group.pop("times"))
    at = {part: times[min(len(times) - 1, int(part * len(times)))] if times else None for part in (0.5, 0.95)}
    return {"group": name, **group, "p50_ms": at[0.5], "p95_ms": at[0.95]}

"""Rows of jobs, of what came with them and of what became of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from darkroom.store.access import limits_of
from darkroom.store.database import Database
from darkroom.store.schema import allowances, api_keys, gateways, idempotency, inputs, jobs, outbox, pictures, usage
from darkroom.types import ENDED, Fault, Job, Limits, Lora, Params, PictureRow, Quota, Status

UNFINISHED = (Status.QUEUED.value, Status.RUNNING.value)
CANDIDATES = 500  # waiting jobs that one claim looks at
DAY = 86_400
MINUTE = 60
STARRED = sa.select(pictures.c.job_id).where(pictures.c.starred)  # jobs with a picture that somebody wants to keep
RACES = 3  # times that a request may lose its idempotency key to another gateway between two looks


@dataclass(frozen=True)
class Full:
    """A job that was not taken: what is full, and the seconds until there should be room (None where the caller knows better)."""

    what: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Entry:
    """What became of a job at the door: `job` is the new one, or with `joined` the one that its idempotency key names; None where
    `full` says why not, or where `other_body`: the key came with another body before."""

    job: Job | None
    joined: bool = False
    other_body: bool = False
    full: Full | None = None
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A job that this gateway holds now, and the share of the machine that its key has."""

    job: Job
    weight: float


class _Raced(Exception):
    """Another gateway wrote the same idempotency key meanwhile; nothing was written here."""


class JobStore:
    """What `jobs/` keeps."""

    def __init__(self, database: Database):
        self._database = database

    # at the door

    async def accept(
        self, job: Job, parameters: dict[str, Any], most: int, most_of_key: int, limits: Limits,
        image: bytes | None = None, key: str = "", body_hash: str = "", kept_since: float = 0.0,
    ) -> Entry:  # fmt: skip
        """Take a job, all or nothing: join the one that the idempotency key names, else hold it against the bounds (jobs at
        once, of all keys and of this one, and the key's limits) and write it down with its init picture."""
        for _ in range(RACES):
            try:
                return await self._accept(job, parameters, most, most_of_key, limits, image, key, body_hash, kept_since)
            except _Raced:
                continue
        return Entry(None, full=Full("others send requests with the same Idempotency-Key", 1.0))

    async def _accept(
        self, job: Job, parameters: dict[str, Any], most: int, most_of_key: int, limits: Limits,
        image: bytes | None, key: str, body_hash: str, kept_since: float,
    ) -> Entry:  # fmt: skip
        async with self._database.write() as connection:
            # requests of one key come one after the other here, so that what is counted below holds until this is written
            await connection.execute(sa.select(api_keys.c.public_id).where(api_keys.c.public_id == job.key_id).with_for_update())
            if key:
                entry = await self._joined(connection, job.key_id, key, body_hash, kept_since)
                if entry is not None:
                    return entry
            full = await self._full(connection, job, most, most_of_key, limits)
            quotas, over = await self._spend(connection, job, limits, full is None)
            if full or over:
                return Entry(None, full=full or over, quotas=quotas)
            await connection.execute(jobs.insert().values(_row(job, parameters)))
            if image is not None:
                await connection.execute(inputs.insert().values(job_id=job.id, content=image))
            if key:
                row = {"key_id": job.key_id, "key": key, "body_hash": body_hash, "job_id": job.id, "created_at": job.created_at}
                if not await self._put_key(connection, row):
                    raise _Raced
            return Entry(job, quotas=quotas)

    async def _joined(self, connection: AsyncConnection, key_id: str, key: str, body_hash: str, kept_since: float) -> Entry | None:
        """The job that an idempotency key names. A key that is old, or whose job came to nothing, is free again."""
        named = sa.select(idempotency.c.body_hash, idempotency.c.created_at.label("named_at"), jobs).join(jobs, jobs.c.id == idempotency.c.job_id)
        found = (await connection.execute(named.where(idempotency.c.key_id == key_id, idempotency.c.key == key))).mappings().first()
        if found is None:
            return None
        failed = found["status"] in (Status.CANCELLED, Status.FAILED) and (found["error_status"] or 500) >= 500
        if found["named_at"] < kept_since or failed or await self._is_emptied(connection, found):
            await connection.execute(idempotency.delete().where(idempotency.c.key_id == key_id, idempotency.c.key == key))
            return None
        if found["body_hash"] != body_hash:
            return Entry(None, other_body=True)
        return Entry(_job(found), joined=True)

    async def _is_emptied(self, connection: AsyncConnection, found: Any) -> bool:
        """Whether a finished job has lost pictures since."""
        if found["status"] != Status.FINISHED:
            return False
        return (await connection.execute(sa.select(sa.func.count()).where(pictures.c.job_id == found["id"]))).scalar_one() < found["n"]

    async def _put_key(self, connection: AsyncConnection, row: dict[str, Any]) -> bool:
        put = _insert(connection, idempotency).values(row).on_conflict_do_nothing().returning(idempotency.c.key)
        return (await connection.execute(put)).first() is not None

    async def _full(self, connection: AsyncConnection, job: Job, most: int, most_of_key: int, limits: Limits) -> Full | None:
        mine = sa.func.coalesce(sa.func.sum(sa.case((jobs.c.key_id == job.key_id, 1), else_=0)), 0)
        count, of_key = (await connection.execute(sa.select(sa.func.count(), mine).where(jobs.c.status.in_(UNFINISHED)))).one()
        if limits.queued and of_key >= limits.queued:
            return Full(f"this key may have {limits.queued} jobs waiting or running at once, and has them")
        if count >= most:
            return Full(f"the queue is full: it holds {most} jobs")
        if of_key >= most_of_key:
            return Full(f"the queue has no more room for this key: it may fill {most_of_key} of {most} places")
        return None

    async def _spend(self, connection: AsyncConnection, job: Job, limits: Limits, spend: bool) -> tuple[tuple[Quota, ...], Full | None]:
        """What is left of the key's limits after this job; takes from them unless one is reached."""
        quotas: list[Quota] = []
        over: Full | None = None
        if limits.pixel_steps_per_day:
            quota, missing = await self._day(connection, job, limits.pixel_steps_per_day)
            quotas.append(quota)
            over = Full(f"this key may use {limits.pixel_steps_per_day} pixel-steps a day, and has {quota.remaining} left", quota.reset) if missing else None
        if limits.pictures_per_minute:
            quota, wait = await self._minute(connection, job, limits.pictures_per_minute, spend and over is None)
            quotas.append(quota)
            if wait and over is None:
                over = Full(f"this key may make {limits.pictures_per_minute} pictures a minute", wait)
        return tuple(quotas), over

    async def _day(self, connection: AsyncConnection, job: Job, limit: int) -> tuple[Quota, bool]:
        """Used since midnight (UTC), and asked for by what has not ended."""
        midnight = job.created_at // DAY * DAY
        used = sa.select(sa.func.coalesce(sa.func.sum(usage.c.pixel_steps), 0)).where(usage.c.key_id == job.key_id, usage.c.at >= midnight)
        spent = int((await connection.execute(used)).scalar_one())
        open_jobs = await connection.execute(sa.select(jobs).where(jobs.c.key_id == job.key_id, jobs.c.status.in_(UNFINISHED)))
        left = limit - spent - sum(_job(row).pixel_steps for row in open_jobs.mappings())
        missing = job.pixel_steps > left
        return Quota("pixel-steps", limit, DAY, max(0, left - (0 if missing else job.pixel_steps)), midnight + DAY - job.created_at), missing

    async def _minute(self, connection: AsyncConnection, job: Job, limit: int, spend: bool) -> tuple[Quota, float]:
        """GCRA (ITU-T I.371): `full_at` moves on by a minute / limit a picture, and may be no more than a minute ahead. Returns
        the seconds to wait, 0 where the job passes."""
        each, now = MINUTE / limit, job.created_at
        row = sa.select(allowances.c.full_at).where(allowances.c.key_id == job.key_id, allowances.c.name == "pictures").with_for_update()
        known = (await connection.execute(row)).scalar_one_or_none()
        full_at = max(known or 0.0, now)
        after = full_at + each * job.n
        wait = max(0.0, after - now - MINUTE)
        if not wait and spend:
            full_at = after
            put = _insert(connection, allowances).values(key_id=job.key_id, name="pictures", full_at=after)
            await connection.execute(put.on_conflict_do_update(index_elements=["key_id", "name"], set_={"full_at": after}))
        return Quota("pictures", limit, MINUTE, int((MINUTE - (full_at - now)) / each + 1e-9), full_at - now), wait

    # at work

    async def claim(
        self, owner: str, now: float, until: float, room: int, room_of_key: int, default: Limits, models: Collection[str] = (),
        in_hand: Collection[str] = (),
    ) -> list[Claim]:  # fmt: skip
        """Take up to `room` waiting jobs of these models (none named: of all), for `until`: whose key has the fewest in hand comes
        first, then who came first. A lease that ran out is as if there were none, but for jobs in hand. Jobs with a client
        attached are for the gateway that the client speaks to."""
        weights: dict[str, float] = {}
        for row in await self._database.rows(_ranked(owner, now, room_of_key, models, in_hand)):  # beside the writer: most looks find nothing
            limits = limits_of(row["limits"]) or default
            if row["turn"] <= min(room_of_key, limits.concurrent or room_of_key) and len(weights) < room:
                weights[row["id"]] = limits.weight
        if not weights:
            return []
        async with self._database.write() as connection:
            mine = sa.select(jobs.c.id).where(jobs.c.id.in_(list(weights)), _claimable(owner, now)).with_for_update(skip_locked=True)
            take = jobs.update().where(jobs.c.id.in_(mine)).values(lease_owner=owner, lease_until=until, status=Status.QUEUED.value).returning(jobs)
            rows = {row["id"]: row for row in (await connection.execute(take)).mappings()}
            return [Claim(_job(rows[id_]), weight) for id_, weight in weights.items() if id_ in rows]

    async def input(self, job_id: str) -> bytes | None:
        """The init picture that was kept with a job, as it was given to `accept`."""
        rows = await self._database.rows(sa.select(inputs.c.content).where(inputs.c.job_id == job_id))
        return rows[0]["content"] if rows else None

    async def begin(self, job_id: str, owner: str, now: float) -> None:
        """The nets have begun with it."""
        held = (jobs.c.id == job_id, jobs.c.lease_owner == owner, jobs.c.status == Status.QUEUED.value)
        async with self._database.write() as connection:
            await connection.execute(jobs.update().where(*held).values(status=Status.RUNNING.value, started_at=now, start_by=None))

    async def note_attempts(self, job_id: str, attempts: int) -> None:
        async with self._database.write() as connection:
            await connection.execute(jobs.update().where(jobs.c.id == job_id).values(attempts=attempts))

    async def end(
        self, job: Job, made: Sequence[PictureRow] = (), owner: str | None = None, news: dict[str, Any] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Write the end of a job: its pictures, its line in the ledger, its news for the outbox, in one transaction; `parameters`
        where they are to say less from now on. With an owner only while that one holds it. False where it has ended before,
        or is another's by now: then nothing is written."""
        columns = _end_columns(job) | ({} if parameters is None else {"parameters": parameters})
        where = [jobs.c.id == job.id, jobs.c.status.in_(UNFINISHED)]
        where += [jobs.c.lease_owner == owner] if owner is not None else []
        async with self._database.write() as connection:
            if (await connection.execute(jobs.update().where(*where).values(columns))).rowcount != 1:
                return False
            await connection.execute(inputs.delete().where(inputs.c.job_id == job.id))
            for picture in made:
                await connection.execute(pictures.insert().values(asdict(picture)))
            if job.status == Status.FINISHED:
                await connection.execute(usage.insert().values(_used(job)))
            if news is not None:
                await connection.execute(outbox.insert().values(news))
            return True

    async def heartbeat(self, owner: str, now: float, until: float) -> tuple[set[str], set[str]]:
        """Hold on to what this gateway has: ids of its jobs, and of those that somebody wants stopped."""
        async with self._database.write() as connection:
            seen = gateways.update().where(gateways.c.id == owner).values(seen_at=now)
            if (await connection.execute(seen)).rowcount == 0:
                await connection.execute(gateways.insert().values(id=owner, seen_at=now))
            held = jobs.update().where(jobs.c.lease_owner == owner, jobs.c.status.in_(UNFINISHED)).values(lease_until=until)
            rows = (await connection.execute(held.returning(jobs.c.id, jobs.c.cancel_asked))).all()
            return {row.id for row in rows}, {row.id for row in rows if row.cancel_asked}

    async def release(self, owner: str, job_ids: Collection[str] | None = None) -> int:
        """Let go of jobs (all of the owner's where none are named), as if they had never been claimed."""
        where = [jobs.c.lease_owner == owner, jobs.c.status.in_(UNFINISHED)] + ([] if job_ids is None else [jobs.c.id.in_(job_ids)])
        free = {"lease_owner": None, "lease_until": None, "status": Status.QUEUED.value, "started_at": None}
        async with self._database.write() as connection:
            return (await connection.execute(jobs.update().where(*where).values(free))).rowcount

    async def lost(self, now: float, silent_since: float, owner: str, models: Collection[str] = ()) -> tuple[list[Job], list[Job], list[Job]]:
        """Jobs that nobody will begin any more: whose client hung on a gateway that is gone, whose time to start is over, and, where
        the owner is the only gateway, whose model is none of these."""
        alive = sa.select(gateways.c.id).where(gateways.c.seen_at >= silent_since)
        free = sa.or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
        orphans = sa.select(jobs).where(jobs.c.status.in_(UNFINISHED), jobs.c.attached, free, jobs.c.home.not_in(alive))
        late = sa.select(jobs).where(jobs.c.status.in_(UNFINISHED), jobs.c.start_by < now, free)
        others = sa.select(gateways.c.id).where(gateways.c.seen_at >= silent_since, gateways.c.id != owner)
        strange = sa.select(jobs).where(jobs.c.status.in_(UNFINISHED), jobs.c.model.not_in(list(models)), free, ~others.exists())
        queries = (orphans, late, strange if models else strange.where(sa.false()))
        first, second, third = [[_job(row) for row in await self._database.rows(query)] for query in queries]
        return first, second, third

    async def left_behind(self, owner: str) -> list[Job]:
        """Unfinished jobs of clients that hung on an earlier life of this gateway."""
        rows = await self._database.rows(sa.select(jobs).where(jobs.c.status.in_(UNFINISHED), jobs.c.attached, jobs.c.home == owner))
        return [_job(row) for row in rows]

    async def ask_cancel(self, job_id: str, now: float) -> bool:
        """Ask whoever holds the job to stop it. False where nobody does: then the caller may end it."""
        held = (jobs.c.id == job_id, jobs.c.status.in_(UNFINISHED), jobs.c.lease_until >= now)
        async with self._database.write() as connection:
            return (await connection.execute(jobs.update().where(*held).values(cancel_asked=True))).rowcount == 1

    # to look at

    async def find(self, job_id: str, service_id: str | None = None) -> Job | None:
        query = sa.select(jobs).where(jobs.c.id == job_id)
        rows = await self._database.rows(query if service_id is None else query.where(jobs.c.service_id == service_id))
        return _job(rows[0]) if rows else None

    async def some(self, job_ids: Iterable[str]) -> list[Job]:
        return [_job(row) for row in await self._database.rows(sa.select(jobs).where(jobs.c.id.in_(list(job_ids))))]

    async def page(
        self, service_id: str, limit: int, before: tuple[float, str] | None = None, statuses: Sequence[str] = (), model: str = "",
        since: float | None = None, until: float | None = None,
    ) -> list[Job]:  # fmt: skip
        """Newest first; `before` is created_at and id of the last one seen, `since` is included and `until` is not."""
        query = sa.select(jobs).where(jobs.c.service_id == service_id)
        if before is not None:
            when, id_ = before
            query = query.where(sa.or_(jobs.c.created_at < when, sa.and_(jobs.c.created_at == when, jobs.c.id < id_)))
        if statuses:
            query = query.where(jobs.c.status.in_(statuses))
        if model:
            query = query.where(jobs.c.model == model)
        if since is not None:
            query = query.where(jobs.c.created_at >= since)
        if until is not None:
            query = query.where(jobs.c.created_at < until)
        rows = await self._database.rows(query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit))
        return [_job(row) for row in rows]

    async def waiting(self, now: float, limit: int) -> list[tuple[Job, Limits | None]]:
        """Jobs that no gateway holds, oldest first, with the limits of their keys."""
        free = sa.or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
        query = sa.select(jobs, api_keys.c.limits).join(api_keys, api_keys.c.public_id == jobs.c.key_id)
        query = query.where(jobs.c.status.in_(UNFINISHED), free).order_by(jobs.c.created_at, jobs.c.id).limit(limit)
        return [(_job(row), limits_of(row["limits"])) for row in await self._database.rows(query)]

    async def count_unfinished(self) -> int:
        rows = await self._database.rows(sa.select(sa.func.count().label("count")).where(jobs.c.status.in_(UNFINISHED)))
        return int(rows[0]["count"])

    async def like(self, service_id: str, fingerprint: str, with_prompt: bool) -> Job | None:
        """A finished job with this fingerprint whose pictures are all here."""
        query = sa.select(jobs).where(
            jobs.c.fingerprint == fingerprint, jobs.c.service_id == service_id, jobs.c.status == Status.FINISHED.value,
            jobs.c.with_prompt == with_prompt, jobs.c.keep,
            sa.select(sa.func.count()).where(pictures.c.job_id == jobs.c.id).scalar_subquery() == jobs.c.n,
        )  # fmt: skip
        rows = await self._database.rows(query.order_by(jobs.c.created_at.desc()).limit(1))
        return _job(rows[0]) if rows else None

    async def pictures_of(self, job_ids: Sequence[str]) -> list[PictureRow]:
        """Pictures of these jobs, each job's in their order."""
        query = sa.select(pictures).where(pictures.c.job_id.in_(list(job_ids))).order_by(pictures.c.job_id, pictures.c.place)
        return [PictureRow(**row) for row in await self._database.rows(query)]

    async def pictures(self, service_id: str, limit: int = 100) -> list[PictureRow]:
        """Newest first."""
        query = sa.select(pictures).where(pictures.c.service_id == service_id).order_by(pictures.c.created_at.desc()).limit(limit)
        return [PictureRow(**row) for row in await self._database.rows(query)]

    async def used(self, job_ids: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Lines of the ledger."""
        query = sa.select(usage) if job_ids is None else sa.select(usage).where(usage.c.job_id.in_(job_ids))
        return [dict(row) for row in await self._database.rows(query.order_by(usage.c.at))]

    # to clear away

    async def delete(self, job_ids: Sequence[str]) -> list[str]:
        """Remove ended jobs with their pictures' rows; the keys of the files that nobody names any more."""
        async with self._database.write() as connection:
            ended = sa.select(jobs.c.id).where(jobs.c.id.in_(list(job_ids)), jobs.c.status.in_([status.value for status in ENDED]))
            gone = [row.id for row in await connection.execute(ended)]
            keys = await connection.execute(pictures.delete().where(pictures.c.job_id.in_(gone)).returning(pictures.c.key))
            files = [row.key for row in keys]
            await connection.execute(idempotency.delete().where(idempotency.c.job_id.in_(gone)))
            await connection.execute(inputs.delete().where(inputs.c.job_id.in_(gone)))
            await connection.execute(jobs.delete().where(jobs.c.id.in_(gone)))
            return files

    async def drop_picture(self, picture: PictureRow) -> None:
        """Remove the row of a picture that was not to be kept; what was asked goes with the last one of its job."""
        async with self._database.write() as connection:
            if (await connection.execute(pictures.delete().where(pictures.c.id == picture.id))).rowcount == 0:
                return
            left = (await connection.execute(sa.select(sa.func.count()).where(pictures.c.job_id == picture.job_id))).scalar_one()
            await connection.execute(idempotency.delete().where(idempotency.c.job_id == picture.job_id))
            if not left:
                await connection.execute(jobs.update().where(jobs.c.id == picture.job_id).values(parameters={}, fingerprint=""))

    async def older(self, before: float, limit: int) -> list[str]:
        """Ended jobs that came before an instant, without a picture that has a star, oldest first."""
        query = sa.select(jobs.c.id).where(jobs.c.created_at < before, jobs.c.status.in_([status.value for status in ENDED]), jobs.c.id.not_in(STARRED))
        return [row["id"] for row in await self._database.rows(query.order_by(jobs.c.created_at).limit(limit))]

    async def not_kept(self, before: float, limit: int) -> list[PictureRow]:
        """Pictures that were not to be kept, of jobs that ended before an instant, that nobody has fetched."""
        query = sa.select(pictures).join(jobs, jobs.c.id == pictures.c.job_id).where(~jobs.c.keep, jobs.c.ended_at < before)
        return [PictureRow(**row) for row in await self._database.rows(query.limit(limit))]

    async def picture_bytes(self) -> int:
        rows = await self._database.rows(sa.select(sa.func.coalesce(sa.func.sum(pictures.c.bytes), 0).label("bytes")))
        return int(rows[0]["bytes"])

    async def oldest_pictures(self, limit: int) -> list[PictureRow]:
        """Of jobs without a picture that has a star."""
        query = sa.select(pictures).where(pictures.c.job_id.not_in(STARRED)).order_by(pictures.c.created_at).limit(limit)
        return [PictureRow(**row) for row in await self._database.rows(query)]

    async def forget_keys(self, before: float) -> None:
        """Idempotency keys that came before an instant, and gateways not seen since."""
        async with self._database.write() as connection:
            await connection.execute(idempotency.delete().where(idempotency.c.created_at < before))
            await connection.execute(gateways.delete().where(gateways.c.seen_at < before))


def _insert(connection: AsyncConnection, table: sa.Table) -> Any:
    """Both databases speak ON CONFLICT, each by its own class."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as of_sqlite

        return of_sqlite(table)
    from sqlalchemy.dialects.postgresql import insert as of_postgresql

    return of_postgresql(table)


def _claimable(owner: str, now: float) -> sa.ColumnElement[bool]:
    return sa.and_(
        jobs.c.status.in_(UNFINISHED), sa.or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now),
        sa.or_(~jobs.c.attached, jobs.c.home == owner), sa.or_(jobs.c.start_by.is_(None), jobs.c.start_by >= now),
    )  # fmt: skip


def _ranked(owner: str, now: float, room_of_key: int, models: Collection[str], in_hand: Collection[str]) -> sa.Select[Any]:
    """Waiting jobs of keys that have room, each with its turn: how many of its key's would be in hand if it were taken."""
    counted = sa.select(jobs.c.key_id, sa.func.count().label("count")).where(jobs.c.status.in_(UNFINISHED), jobs.c.lease_until >= now)
    held = counted.group_by(jobs.c.key_id).subquery()
    count = sa.func.coalesce(held.c.count, 0)
    turn = (sa.func.row_number().over(partition_by=jobs.c.key_id, order_by=(jobs.c.created_at, jobs.c.id)) + count).label("turn")
    query = sa.select(jobs.c.id, jobs.c.created_at, api_keys.c.limits, turn).join(api_keys, api_keys.c.public_id == jobs.c.key_id)
    waiting: Any = query.outerjoin(held, held.c.key_id == jobs.c.key_id).where(_claimable(owner, now), count < room_of_key)
    waiting = waiting.where(jobs.c.model.in_(list(models))) if models else waiting
    waiting = waiting.where(jobs.c.id.not_in(list(in_hand))) if in_hand else waiting
    waiting = waiting.subquery()
    chosen = sa.select(waiting).where(waiting.c.turn <= room_of_key)
    return chosen.order_by(waiting.c.turn, waiting.c.created_at, waiting.c.id).limit(CANDIDATES)


def _row(job: Job, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": job.id, "service_id": job.service_id, "key_id": job.key_id, "status": job.status.value, "model": job.params.model,
        "parameters": parameters, "created_at": job.created_at, "n": job.n, "attached": job.attached, "keep": job.keep,
        "with_prompt": job.with_prompt, "preview_every": job.params.preview_every, "webhook_url": job.webhook_url, "start_by": job.start_by,
        "fingerprint": job.fingerprint, "home": job.home,
    }  # fmt: skip


def _end_columns(job: Job) -> dict[str, Any]:
    fault = job.fault
    return {
        "status": job.status.value, "ended_at": job.ended_at or time.time(), "steps_run": job.steps_run, "queue_seconds": job.queue_seconds,
        "inference_seconds": job.inference_seconds, "notes": list(job.notes), "lease_owner": None, "lease_until": None,
        "error": fault and fault.message, "error_name": fault and fault.name, "error_status": fault and fault.status,
        "retry_after": fault and fault.retry_after,
    }  # fmt: skip


def _used(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id, "service_id": job.service_id, "key_id": job.key_id, "model": job.params.model, "at": job.ended_at or time.time(),
        "pictures": job.n, "pixel_steps": job.pixel_steps, "inference_seconds": job.inference_seconds or 0.0,
    }  # fmt: skip


def _job(row: Any) -> Job:
    fault = Fault(row["error_name"] or "server_error", row["error"], row["error_status"] or 500, row["retry_after"]) if row["error"] is not None else None
    return Job(
        row["id"], row["service_id"], row["key_id"], _params(row), Status(row["status"]), row["created_at"], row["n"], row["attached"], row["keep"],
        row["with_prompt"], row["webhook_url"], row["start_by"], row["fingerprint"], row["home"], row["attempts"], row["started_at"], row["ended_at"],
        row["steps_run"], row["queue_seconds"], row["inference_seconds"], tuple(row["notes"] or ()), fault,
    )  # fmt: skip


def _params(row: Any) -> Params:
    """What was asked, without the init picture, from how it is shown (`picture.described`)."""
    said = row["parameters"]
    strength = said.get("control_strength")
    return Params(
        row["model"], said.get("prompt", ""), said.get("negative_prompt", ""), said.get("steps", 0), said.get("width", 0), said.get("height", 0),
        said.get("cfg_scale", 0.0), said.get("seed", 0), None, None if strength is None else Decimal(repr(strength)),
        tuple(Lora(lora["name"], lora["scale"]) for lora in said.get("loras", ())), row["preview_every"],
    )  # fmt: skip

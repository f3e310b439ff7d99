"""The calls of the door: take a job, wait for it, watch it, stop it, find it, delete it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from darkroom.errors import DarkroomError, Invalid, NotFound, PictureDamaged, TooMany, Unavailable
from darkroom.jobs.ended import Ended, JobCancelled, NotFinished, error_of, fault_of
from darkroom.jobs.outlook import Outlook
from darkroom.jobs.runs import Gallery, Runs
from darkroom.jobs.watches import News, Watches
from darkroom.picture import described
from darkroom.types import ApiKey, Job, Limits, Params, PictureRow, Quota, Status, Waiting

log = structlog.get_logger("jobs")

TICK = 1.0  # seconds between two looks after jobs that are watched and do not run here
KEY_KEPT = 86_400.0  # seconds that an Idempotency-Key is kept
NOT_KEPT = 3_600.0  # seconds that a picture which was not to be kept waits to be fetched
SHARE_OF_KEY = 0.75  # of the queue that one key may fill
SWEEP = 60.0  # seconds between two times of clearing away
AT_ONCE = 500  # rows that are cleared away in one transaction


class OtherBody(Invalid):
    """An Idempotency-Key came again with another body."""

    name = "idempotency_key_reused"


class Rows(Protocol):
    """Where jobs are kept; see `store/jobs.py`."""

    async def accept(
        self, job: Job, parameters: dict[str, Any], most: int, most_of_key: int, limits: Limits,
        image: bytes | None = None, key: str = "", body_hash: str = "", kept_since: float = 0.0,
    ) -> Any: ...  # fmt: skip
    async def find(self, job_id: str, service_id: str | None = None) -> Job | None: ...
    async def some(self, job_ids: Sequence[str]) -> list[Job]: ...
    async def page(
        self, service_id: str, limit: int, before: tuple[float, str] | None = None, statuses: Sequence[str] = (), model: str = "",
        since: float | None = None, until: float | None = None,
    ) -> list[Job]: ...  # fmt: skip
    async def count_unfinished(self) -> int: ...
    async def like(self, service_id: str, fingerprint: str, with_prompt: bool) -> Job | None: ...
    async def ask_cancel(self, job_id: str, now: float) -> bool: ...
    async def pictures_of(self, job_ids: Sequence[str]) -> list[PictureRow]: ...
    async def drop_picture(self, picture: PictureRow) -> None: ...
    async def delete(self, job_ids: Sequence[str]) -> list[str]: ...
    async def older(self, before: float, limit: int) -> list[str]: ...
    async def not_kept(self, before: float, limit: int) -> list[PictureRow]: ...
    async def picture_bytes(self) -> int: ...
    async def oldest_pictures(self, limit: int) -> list[PictureRow]: ...
    async def forget_keys(self, before: float) -> None: ...


@dataclass(frozen=True)
class Asked:
    """What a request asks for beside its Params. attached: its client waits on the line. cacheable: an equal picture that is
    here may be given instead. loras_version: what the names of LoRAs stand for now. timeout: seconds by which it must begin."""

    params: Params
    n: int = 1
    attached: bool = True
    keep: bool = True
    with_prompt: bool = True
    webhook_url: str = ""
    timeout: float | None = None
    idempotency_key: str = ""
    body_hash: str = ""
    cacheable: bool = False
    loras_version: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taken:
    """A job that was taken, or found: `joined` by its idempotency key, `hit` in the result cache."""

    job: Job
    joined: bool = False
    hit: bool = False
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True)
class Keeping:
    """How long pictures and jobs are kept: days, and bytes of pictures in all; 0 means for ever."""

    days: float
    bytes: float


class Jobs:
    """Jobs of all services on this server. A key sees those of its own service alone; another's is NotFound."""

    def __init__(
        self, rows: Rows, gallery: Gallery, runs: Runs, watches: Watches, outlook: Outlook, max_queue: int, limits: Limits, keeping: Keeping,
        versions: Mapping[str, str],
    ):  # fmt: skip
        """versions: by model, what its pictures depend on beside what is asked."""
        self._rows, self._gallery, self._runs, self._watches, self._outlook = rows, gallery, runs, watches, outlook
        self._max_queue, self._limits, self._keeping, self._versions = max_queue, limits, keeping, versions

    # at the door

    @asynccontextmanager
    async def taking(self, key: ApiKey, asked: Asked) -> AsyncIterator[Taken]:
        """A job that is written down, and whose news are kept as long as the context lasts. Raises TooMany, OtherBody."""
        job = self._job(key, asked)
        with self._watches.held(job.id):
            yield await self._take(job, key, asked)

    def _job(self, key: ApiKey, asked: Asked) -> Job:
        now = round(time.time(), 6)  # as exactly as it is shown
        return Job(
            f"job-{secrets.token_hex(12)}", key.service_id, key.public_id, replace(asked.params, image=None), Status.QUEUED, now, asked.n,
            asked.attached and not asked.idempotency_key, asked.keep, asked.with_prompt, asked.webhook_url,
            None if asked.timeout is None else now + asked.timeout, self._fingerprint(asked), self._runs.owner,
        )  # fmt: skip

    async def _take(self, job: Job, key: ApiKey, asked: Asked) -> Taken:
        if asked.cacheable and not asked.idempotency_key and not asked.webhook_url and job.fingerprint:
            known = await self._rows.like(job.service_id, job.fingerprint, job.with_prompt)
            if known is not None and await self._has_files(known):
                return Taken(known, hit=True)
        image, kept = asked.params.image, None
        if image is not None and not job.attached:
            kept = await asyncio.to_thread(zlib.compress, image, 1)
        _check_size(job, key.limits or self._limits)
        if image is not None and job.attached:
            self._runs.hold(job.id, image)
        try:
            entry = await self._rows.accept(
                job, described(job.params, None), self._max_queue, max(1, int(self._max_queue * SHARE_OF_KEY)), key.limits or self._limits,
                kept, asked.idempotency_key, asked.body_hash, job.created_at - KEY_KEPT,
            )  # fmt: skip
        except BaseException:  # also when the client leaves meanwhile
            self._runs.drop(job.id)
            raise
        if entry.job is None or entry.joined:
            self._runs.drop(job.id)
        if entry.other_body:
            raise OtherBody("the header Idempotency-Key came with another body before; use a new key for a new request")
        if entry.full is not None:
            error = TooMany(entry.full.what, retry_after=entry.full.retry_after or self.retry_after())
            error.quotas = entry.quotas
            raise error
        if not entry.joined:
            self._outlook.add(entry.job.id)
            self._runs.poke()
        return Taken(entry.job, entry.joined, quotas=entry.quotas)

    async def _has_files(self, job: Job) -> bool:
        try:
            await self.pngs(Ended(job))
        except (NotFound, PictureDamaged) as error:
            log.warning("pictures of a job are made anew", job=job.id, error=str(error))
            return False
        return True

    def retry_after(self) -> int:
        """Seconds until a place in the queue should be free, from measured step times."""
        return self._runs.retry_after()

    def _fingerprint(self, asked: Asked) -> str:
        """Equal for what gives equal pictures; empty where they are not to be kept."""
        if not asked.keep or not asked.cacheable:
            return ""
        params = replace(asked.params, image=None, preview_every=0)
        image = hashlib.sha256(asked.params.image).hexdigest() if asked.params.image is not None else ""
        what = [repr(params), image, asked.n, asked.loras_version, self._versions.get(params.model, "")]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    # waiting and watching

    async def result(self, job: Job, seconds: float | None = None) -> Ended | None:
        """How the job ended; None where it has not after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                async for news in self.watch(job):
                    if news is not None and isinstance(news.event, Ended):
                        return news.event
        except TimeoutError:
            return None
        raise Unavailable("the server is shutting down; ask for the job again", name="shutting_down", retry_after=5)

    async def watch(self, job: Job, last_id: str = "", idle: float | None = None) -> AsyncIterator[News | None]:
        """News of a job after `last_id`, the last of which is its Ended, and None whenever nothing came for `idle` seconds; ends
        before that where the server ends."""
        with self._watches.held(job.id) as watch:
            if not watch.ended and job.id not in self._runs:
                await self._look_after([job.id])
            async for news in watch.after(last_id, idle):
                yield news

    def close(self) -> None:
        """The server ends: nothing new is begun, and whoever watches is let go."""
        self._runs.stop_claiming()
        self._watches.close()

    async def outlook(self, jobs: Sequence[Job], roughly: bool = False) -> dict[str, Waiting]:
        """Positions and times of those that have not begun; roughly: the newest as if they came last."""
        if all(job.ended for job in jobs):
            return {}
        return await self._outlook.waiting(roughly)

    def progress(self, job: Job) -> dict[str, int] | None:
        """Steps done of those to do, over all pictures, of a job that runs here."""
        steps = None if job.ended else self._watches.steps(job.id)
        return steps and {"step": steps[0], "of": steps[1] * job.n}

    async def seconds_left(self, job_id: str) -> float | None:
        return await self._outlook.seconds_left(job_id)

    async def pngs(self, ended: Ended) -> Ended:
        """With the pictures at hand. Raises the job's own error where it failed, NotFound where they are gone, PictureDamaged."""
        if ended.job.fault is not None:
            raise error_of(ended.job.fault)
        if ended.pngs:
            return ended
        rows = ended.pictures or tuple(await self._rows.pictures_of([ended.job.id]))
        if len(rows) < ended.job.n:
            raise NotFound("the pictures of this job are not kept any more")
        try:
            return Ended(ended.job, rows, tuple([await asyncio.to_thread(self._gallery.get, row) for row in rows]))
        except FileNotFoundError as error:
            raise NotFound("the pictures of this job are not kept any more") from error

    async def delivered(self, ended: Ended) -> None:
        """The client has these pictures: those that were not to be kept go. The file goes first: were this broken off between the two,
        the row would be left for the next sweep, but a file without a row for ever."""
        if ended.job.keep:
            return
        for row in ended.pictures:
            if row.key:
                await asyncio.to_thread(self._gallery.delete, row.key)
                await self._rows.drop_picture(row)

    # looking

    async def find(self, service_id: str, job_id: str) -> Job:
        """Raises NotFound."""
        job = await self._rows.find(job_id, service_id)
        if job is None:
            raise NotFound(f"there is no job {job_id[:60]}")
        return job

    async def depth(self) -> int:
        """Jobs that wait or run, of all services."""
        return await self._rows.count_unfinished()

    @property
    def in_hand(self) -> int:
        """Jobs that this gateway has given to its Worker."""
        return len(self._runs)

    async def picture_bytes(self) -> int:
        """What all pictures take on the disk."""
        return await self._rows.picture_bytes()

    async def page(self, service_id: str, limit: int, before: tuple[float, str] | None = None, **filters: Any) -> list[Job]:
        """Newest first."""
        return await self._rows.page(service_id, limit, before, **filters)

    async def pictures(self, jobs: Sequence[Job]) -> dict[str, list[PictureRow]]:
        """Of finished jobs, by id."""
        rows: dict[str, list[PictureRow]] = {job.id: [] for job in jobs}
        for row in await self._rows.pictures_of([job.id for job in jobs if job.status == Status.FINISHED]):
            rows[row.job_id].append(row)
        return rows

    async def picture(self, job: Job, place: int) -> Ended:
        """One picture of a job. Raises NotFinished, NotFound, or the job's own error."""
        if not job.ended:
            raise NotFinished(f"the job is {job.status.value}; its picture comes when it is finished")
        if job.fault is not None:
            raise error_of(job.fault)
        rows = [row for row in await self._rows.pictures_of([job.id]) if row.place == place]
        if not rows:
            raise NotFound(f"the job has no picture {place}, or it is not kept any more")
        return await self.pngs(Ended(replace(job, n=1), tuple(rows)))

    # stopping and deleting

    async def cancel(self, job: Job) -> Job:
        """Stop a job: at once while it waits, at the next step while it runs. One that has ended stays as it is."""
        why = JobCancelled("the job was cancelled by its owner")
        if not job.ended and not self._runs.stop(job.id, why) and not await self._rows.ask_cancel(job.id, time.time()):
            await self._runs.end(replace(job, status=Status.CANCELLED, fault=fault_of(why)))
        elif not job.ended:
            await self.result(job, seconds=10.0)
        return await self._rows.find(job.id) or job

    async def left(self, job: Job) -> None:
        """The client that was attached to it is gone."""
        why = JobCancelled("the client left")
        if job.attached and not self._runs.stop(job.id, why):
            await self._runs.end(replace(job, status=Status.CANCELLED, fault=fault_of(why)))

    async def delete(self, job: Job) -> None:
        """Remove an ended job and its pictures. Raises NotFinished."""
        if not job.ended:
            raise NotFinished(f"the job is {job.status.value}; cancel it first, or wait for its end")
        await self._remove([job.id])

    async def _remove(self, job_ids: Sequence[str]) -> None:
        for key in await self._rows.delete(job_ids):
            await asyncio.to_thread(self._gallery.delete, key)

    # beside the requests

    async def run(self) -> None:
        """Look after what is watched, and clear away what is old, until cancelled."""
        await asyncio.gather(self._ticking(), self._sweeping())

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                watched = self._watches.open_ids()
                if watched:
                    await self._look_after([job_id for job_id in watched if job_id not in self._runs])
                    await self._tell_waiting(watched)
            except DarkroomError as error:
                log.warning("watched jobs could not be looked after", error=str(error))
            except Exception:
                log.exception("watched jobs could not be looked after")

    async def _look_after(self, job_ids: Sequence[str]) -> None:
        """Tell the end of jobs that do not run here."""
        for start in range(0, len(job_ids), AT_ONCE):
            for job in await self._rows.some(job_ids[start : start + AT_ONCE]):
                if job.ended:
                    self._watches.publish(job.id, Ended(job))

    async def _tell_waiting(self, job_ids: Sequence[str]) -> None:
        waiting = await self._outlook.waiting()
        for job_id in job_ids:
            if job_id in waiting:
                self._watches.publish(job_id, waiting[job_id])

    async def _sweeping(self) -> None:
        while True:
            try:
                await self.sweep(time.time())
            except (DarkroomError, OSError) as error:
                log.warning("old jobs could not be cleared away", error=str(error))
            except Exception:
                log.exception("old jobs could not be cleared away")
            await asyncio.sleep(SWEEP)

    async def sweep(self, now: float) -> None:
        """Clear away: jobs that are too old, the oldest pictures' jobs while all take too many bytes, what was not to be kept. What has
        a star stays."""
        while self._keeping.days and (old := await self._rows.older(now - self._keeping.days * 86_400, AT_ONCE)):
            await self._remove(old)
        while self._keeping.bytes and (over := await self._rows.picture_bytes() - self._keeping.bytes) > 0:
            job_ids: dict[str, None] = {}
            oldest = await self._rows.oldest_pictures(AT_ONCE)
            if not oldest:
                break  # what is left has a star
            for row in oldest:
                if over > 0:
                    job_ids[row.job_id] = None
                over -= row.bytes
            await self._remove(list(job_ids))
        for row in await self._rows.not_kept(now - NOT_KEPT, AT_ONCE):
            await self.delivered(Ended(replace(await self.find(row.service_id, row.job_id)), (row,)))
        await self._rows.forget_keys(now - KEY_KEPT)


def _check_size(job: Job, limits: Limits) -> None:
    """What is larger than a limit would wait for ever. Raises Invalid."""
    if limits.pictures_per_minute and job.n > limits.pictures_per_minute:
        raise Invalid(f"n must be at most {limits.pictures_per_minute}, the pictures that this key may make a minute, got {job.n}", name="invalid_n")
    if limits.pixel_steps_per_day and job.pixel_steps > limits.pixel_steps_per_day:
        line = f"width x height x steps x n must be at most {limits.pixel_steps_per_day}, what this key may use a day, got {job.pixel_steps}"
        raise Invalid(line, name="invalid_request")

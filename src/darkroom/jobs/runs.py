"""Carrying jobs out: claims those that wait, holds on to them while they run, writes their end.

Several gateways may do so on one database. A job is its claimer's while its lease lasts, a heartbeat renews the leases of
all, and an end is written only by who still holds it: so each job ends once, whoever dies when.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import structlog

from darkroom.errors import DarkroomError, Unavailable
from darkroom.jobs.ended import DeadlineExceeded, Ended, JobCancelled, StorageFull, error_of, fault_of
from darkroom.jobs.notes import notes_on, without_words
from darkroom.jobs.watches import Watches
from darkroom.picture import described, to_png
from darkroom.types import (
    MAX_SEED,
    Began,
    Event,
    Failed,
    Fault,
    Finished,
    Job,
    Limits,
    Loading,
    ModelCard,
    Params,
    PictureRow,
    Preview,
    Progress,
    Retrying,
    Status,
)  # fmt: skip

log = structlog.get_logger("jobs")
T = TypeVar("T")

IN_HAND = 64  # jobs that a gateway holds at once: enough to fill every batch and to let short ones go first
IN_HAND_OF_KEY = 48  # of these for one key, so that another's first job never waits for a place
WORDS = 500  # characters of a prompt that pictures are searched by
POLL = 1.0  # seconds between two looks for jobs that other gateways left, or took in
LEFT_BEHIND = "the server ended while this job ran, and its client was gone"
STOPPED = "shutting_down"  # what a Worker says of a job that it will not do any more


class Rows(Protocol):
    """Where jobs are kept; see `store/jobs.py`."""

    async def claim(
        self, owner: str, now: float, until: float, room: int, room_of_key: int, default: Limits, models: Collection[str] = (),
        in_hand: Collection[str] = (),
    ) -> list[Any]: ...  # fmt: skip
    async def find(self, job_id: str, service_id: str | None = None) -> Job | None: ...
    async def input(self, job_id: str) -> bytes | None: ...
    async def begin(self, job_id: str, owner: str, now: float) -> None: ...
    async def note_attempts(self, job_id: str, attempts: int) -> None: ...
    async def end(
        self, job: Job, made: Sequence[PictureRow] = (), owner: str | None = None, news: dict[str, Any] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> bool: ...  # fmt: skip
    async def heartbeat(self, owner: str, now: float, until: float) -> tuple[set[str], set[str]]: ...
    async def release(self, owner: str, job_ids: Sequence[str] | None = None) -> int: ...
    async def lost(
        self, now: float, silent_since: float, owner: str, models: Collection[str] = ()
    ) -> tuple[list[Job], list[Job], list[Job]]: ...  # fmt: skip
    async def left_behind(self, owner: str) -> list[Job]: ...


class Gallery(Protocol):
    """Where picture files are kept."""

    def put(self, name: str, content: bytes) -> str: ...
    def get(self, picture: PictureRow) -> bytes: ...
    def delete(self, key: str) -> None: ...
    def remove(self, name: str) -> None: ...


class Worker(Protocol):
    """What a Job needs of a Worker."""

    def submit(self, job_id: str, params: Params, party: str = "", weight: float = 1.0, attempts: int = 0) -> AsyncIterator[Event]: ...
    def cancel(self, job_id: str) -> None: ...
    def backlog_seconds(self) -> float: ...


@dataclass
class _Run:
    """A job in hand: whether the nets have begun with it, and why it was stopped, where it was."""

    job: Job
    since: float
    begun: bool = False
    why: DarkroomError | None = None
    lost: bool = False


class _Released(Exception):
    """The job is somebody else's, or waits again: nothing is to be written here."""


class Runs:
    """The jobs that this gateway has in hand. `news` makes the outbox' line of an ended job that wants to tell."""

    def __init__(
        self, rows: Rows, gallery: Gallery, worker: Worker, watches: Watches, cards: Mapping[str, ModelCard], owner: str,
        lease: float, limits: Limits, news: Callable[[Job, Sequence[PictureRow]], dict[str, Any] | None] = lambda job, pictures: None,
        told: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self._rows, self._gallery, self._worker, self._watches, self._cards = rows, gallery, worker, watches, cards
        self.owner, self._lease, self._limits, self._news, self._told = owner, lease, limits, news, told
        self._runs: dict[str, _Run] = {}
        self._images: dict[str, bytes] = {}  # of jobs whose client is attached: they need not survive this process
        self._wake = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._runs

    def retry_after(self) -> int:
        """Seconds until a place should be free, from measured step times."""
        return max(1, round(self._worker.backlog_seconds() / max(len(self._runs), 1)))

    async def recover(self) -> None:
        """After a start: what an earlier life of this gateway held waits again; what hung on a client of it is failed."""
        await self._rows.release(self.owner)
        left = await self._rows.left_behind(self.owner)
        for job in left:
            await self.end(replace(job, status=Status.FAILED, fault=Fault("shutting_down", LEFT_BEHIND, 503)))
        if left:
            log.warning("jobs of an earlier run were failed", count=len(left))

    async def run(self) -> None:
        """Claim and carry out until cancelled."""
        await asyncio.gather(self._claiming(), self._beating())

    def poke(self) -> None:
        """A job may be there to claim."""
        self._wake.set()

    def hold(self, job_id: str, image: bytes) -> None:
        """The init picture of a job that is about to be accepted, and ends with this process anyway."""
        self._images[job_id] = image

    def drop(self, job_id: str) -> None:
        """The job was not taken."""
        self._images.pop(job_id, None)

    def stop_claiming(self) -> None:
        """Take nothing new: the server is about to close."""
        self._stopping = True

    async def close(self) -> None:
        """Wait for the jobs in hand, which the Worker has ended by now."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self, job_id: str, why: DarkroomError) -> bool:
        """Stop a job at its next step. False where it is not in hand."""
        run = self._runs.get(job_id)
        if run is None:
            return False
        run.why = run.why or why
        for place in range(run.job.n):
            self._worker.cancel(_sample_id(run.job, place))
        return True

    # the loops

    async def _claiming(self) -> None:
        cleared = 0.0
        while True:
            self._wake.clear()
            try:
                if not self._stopping:
                    await self._claim()
                    if time.monotonic() - cleared > POLL:
                        cleared = time.monotonic()
                        await self._clear_lost()
            except Unavailable as error:
                log.warning("no jobs could be claimed", error=str(error))
            except Exception:
                log.exception("no jobs could be claimed")  # the next look may do better; without one, none would ever run
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL)

    async def _claim(self) -> None:
        room = IN_HAND - len(self._runs)
        if room <= 0:
            return
        now = time.time()
        for claim in await self._rows.claim(
            self.owner, now, now + self._lease, room, IN_HAND_OF_KEY, self._limits, list(self._cards), list(self._runs)
        ):  # fmt: skip
            self._runs[claim.job.id] = _Run(claim.job, time.time())
            task = asyncio.create_task(self._carry_out(self._runs[claim.job.id], claim.weight))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _clear_lost(self) -> None:
        """End what nobody will begin any more."""
        now = time.time()
        orphans, late, strange = await self._rows.lost(now, now - 3 * self._lease, self.owner, list(self._cards))
        for job in orphans:
            if job.home != self.owner:
                await self.end(replace(job, status=Status.FAILED, fault=Fault("shutting_down", LEFT_BEHIND, 503)))
        for job in strange:
            fault = Fault("model_unavailable", f"{job.params.model} is not served any more", 503)
            await self.end(replace(job, status=Status.FAILED, fault=fault))
        for job in late:
            await self.end(replace(job, status=Status.FAILED, fault=fault_of(_too_late(job))))

    async def _beating(self) -> None:
        while True:
            try:
                now = time.time()
                held, cancelled = await self._rows.heartbeat(self.owner, now, now + self._lease)
                for job_id in cancelled:
                    self.stop(job_id, JobCancelled("the job was cancelled"))
                for job_id in [job_id for job_id, run in self._runs.items() if job_id not in held and run.since < now]:
                    self._runs[job_id].lost = True
                    self.stop(job_id, JobCancelled("another gateway has taken the job over"))
            except Unavailable as error:
                log.warning("the leases could not be renewed", error=str(error))
            except Exception:
                log.exception("the leases could not be renewed")
            await asyncio.sleep(min(self._lease / 5, 2.0))

    # one job

    async def _carry_out(self, run: _Run, weight: float) -> None:
        job = run.job
        timer = self._start_clock(run)
        with self._watches.held(job.id):
            try:
                image = await self._image(job)
                await self._make(run, replace(job.params, image=image), weight)
            except asyncio.CancelledError:
                raise
            except _Released:
                await self._insist(lambda: self._rows.release(self.owner, [job.id]))
            except JobCancelled as error:
                await self.end(replace(run.job, status=Status.CANCELLED, fault=fault_of(error)), owner=self.owner)
            except Exception as error:
                if not isinstance(error, DarkroomError):
                    log.exception("a job failed by a fault of ours", job=job.id)
                await self.end(replace(run.job, status=Status.FAILED, fault=fault_of(error)), owner=self.owner)
            finally:
                timer.cancel()
                if self._runs.get(job.id) is run:
                    del self._runs[job.id]
                self._wake.set()

    def _start_clock(self, run: _Run) -> asyncio.Handle:
        loop = asyncio.get_running_loop()
        if run.job.start_by is None:
            return loop.call_soon(lambda: None)

        def late() -> None:
            if not run.begun:
                self.stop(run.job.id, _too_late(run.job))

        return loop.call_later(max(0.0, run.job.start_by - time.time()), late)

    async def _image(self, job: Job) -> bytes | None:
        if job.params.control_strength is None or job.id in self._images:
            return self._images.get(job.id)
        packed = await self._insist(lambda: self._rows.input(job.id))
        if packed is None:
            raise Unavailable("the init picture of this job is gone")
        return await asyncio.to_thread(zlib.decompress, packed)

    async def _make(self, run: _Run, params: Params, weight: float) -> None:
        """All pictures of a job, side by side; each is on the disk before the job says finished."""
        job = run.job
        tasks = [asyncio.create_task(self._picture(run, params, place, weight)) for place in range(job.n)]
        try:
            made = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        rows, pngs, finished = zip(*made, strict=True)
        notes = notes_on if job.keep and job.with_prompt else without_words
        card = self._cards.get(params.model)
        ended = replace(
            run.job, status=Status.FINISHED, steps_run=finished[0].steps_run, queue_seconds=min(one.queue_seconds for one in finished),
            inference_seconds=max(one.inference_seconds for one in finished),
            notes=notes(card, params, finished[0]) if card else (),
        )  # fmt: skip
        told = notes_on(card, params, finished[0]) if card else ()  # whoever waits on the line hears it in full
        await self.end(ended, tuple(row for row in rows if row.key), pngs, self.owner, told)

    async def _picture(self, run: _Run, params: Params, place: int, weight: float) -> tuple[PictureRow, bytes, Finished]:
        job = run.job
        params = replace(params, seed=seed_at(job, place))
        finished = await self._sample(run, params, place, weight)
        png = await asyncio.to_thread(to_png, finished.pixels, params, finished.steps_run, job.with_prompt)
        shown = described(params, finished.steps_run, job.with_prompt and job.keep)
        key = "" if not job.keep and job.attached else await in_thread(self._keep, _file_name(job, place), png)
        row = PictureRow(
            f"pic-{job.id.removeprefix('job-')}-{place}", job.id, job.service_id, key, finished.width, finished.height, len(png),
            hashlib.sha256(png).hexdigest(), shown, time.time(), place, params.model, job.key_id, params.seed,
            params.prompt[:WORDS].lower() if job.with_prompt and job.keep else "",
        )  # fmt: skip
        return row, png, replace(finished, pixels=b"")

    def _keep(self, name: str, png: bytes) -> str:
        """One name a picture, so that one which is made again after a death replaces the file of the first time."""
        try:
            return self._gallery.put(name, png)
        except OSError as error:
            log.error("a picture could not be written", name=name, error=str(error))
            raise StorageFull(f"the picture could not be written down: {error.strerror}", retry_after=60) from error

    async def _sample(self, run: _Run, params: Params, place: int, weight: float) -> Finished:
        job = run.job
        if run.why is None:
            async with aclosing(self._worker.submit(_sample_id(job, place), params, job.key_id, weight, job.attempts)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Finished):
                        return event
                    if isinstance(event, Failed):
                        raise _Released if event.name == STOPPED and not job.attached else error_of(
                            Fault(event.name, event.message, event.status, event.retry_after)
                        )
                    await self._hear(run, event, place)
        if run.lost:
            raise _Released
        raise run.why or JobCancelled("the job was cancelled by the server", retry_after=1)

    async def _hear(self, run: _Run, event: Event, place: int) -> None:
        job_id = run.job.id
        match event:
            case Began() if not run.begun:
                run.begun, now = True, time.time()
                run.job = replace(run.job, started_at=now)
                await self._insist(lambda: self._rows.begin(job_id, self.owner, now))
            case Retrying(_, attempts):
                await self._insist(lambda: self._rows.note_attempts(job_id, attempts))
            case Loading() | Progress() | Preview():
                self._watches.publish(job_id, replace(event, job_id=job_id), place)

    async def end(
        self, job: Job, pictures: tuple[PictureRow, ...] = (), pngs: tuple[bytes, ...] = (), owner: str | None = None,
        told: tuple[str, ...] = (),
    ) -> bool:  # fmt: skip
        """Write the end of a job down, then tell it, with the notes `told` to whoever waits for it. False where it had ended, or is
        another gateway's by now."""
        job = replace(job, ended_at=time.time())
        self._images.pop(job.id, None)
        without_prompt = described(job.params, job.steps_run, False) if not (job.with_prompt and job.keep) else None
        less = {} if not job.keep and not pictures else without_prompt
        written = await self._insist(lambda: self._rows.end(job, pictures, owner, self._news(job, pictures), less))
        if not written:
            await self._discard(job.id, pictures)
            return False
        if job.status != Status.FINISHED:
            await self._discard_made(job)
        self._watches.publish(job.id, Ended(replace(job, notes=told or job.notes), pictures, pngs))
        self._told()
        return True

    async def _discard_made(self, job: Job) -> None:
        """Remove what was written of a job that has ended without its pictures, by whoever began it."""
        try:
            for place in range(job.n):
                await asyncio.to_thread(self._gallery.remove, _file_name(job, place))
        except OSError as error:  # its end is written down, and must be told
            log.error("files of a job without pictures could not be removed", job=job.id, error=str(error))

    async def _discard(self, job_id: str, pictures: tuple[PictureRow, ...]) -> None:
        """Remove the files of an end that came too late, unless who was quicker has made the same ones."""
        there = await self._insist(lambda: self._rows.find(job_id))
        if there is None or (there.ended and there.status != Status.FINISHED):
            for picture in pictures:
                await asyncio.to_thread(self._gallery.delete, picture.key)

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Do it until the database takes it: what is known of a job must not be lost because somebody holds the file."""
        while True:
            try:
                return await write()
            except Unavailable as error:
                log.warning("the database is busy; once more", error=str(error))
                await asyncio.sleep(1.0)


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Do it in a thread. A cancel waits for its end, since a thread cannot be stopped: whoever clears up afterwards finds all that
    it has written."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _file_name(job: Job, place: int) -> str:
    return f"{job.id}-{place}"


def seed_at(job: Job, place: int) -> int:
    """The seed of a job's picture: seed, seed + 1, ...; after the largest comes 1."""
    return (job.params.seed + place - 1) % MAX_SEED + 1


def _sample_id(job: Job, place: int) -> str:
    return f"{job.id}.{place}"


def _too_late(job: Job) -> DeadlineExceeded:
    seconds = (job.start_by or 0) - job.created_at
    return DeadlineExceeded(f"the job could not begin within the {seconds:g} s that X-Timeout-Seconds gave it", retry_after=None)

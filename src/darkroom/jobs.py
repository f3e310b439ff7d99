"""Use cases of a Job. The only place where a Job changes its status; each accepted one ends exactly once."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from darkroom.errors import DarkroomError, TooMany, Unavailable
from darkroom.picture import described, to_png
from darkroom.types import ApiKey, Event, Failed, Finished, Job, ModelCard, Params, PictureRow, Progress, Status

log = structlog.get_logger("jobs")

LEFT_BEHIND = "the server ended while this job ran, and its client was gone"


class JobCancelled(Unavailable):
    """The Job was stopped before its end."""

    name = "cancelled"


class Rows(Protocol):
    """Where jobs and pictures are kept."""

    async def add(self, job: Job, parameters: dict[str, Any]) -> None: ...
    async def begin(self, job_id: str) -> None: ...
    async def end(self, job_id: str, status: Status, picture: PictureRow | None = None, **columns: Any) -> None: ...
    async def fail_unfinished(self, why: str) -> int: ...


class Gallery(Protocol):
    """Where picture files are kept."""

    def put(self, name: str, content: bytes) -> str: ...


class Runs(Protocol):
    """What a Job needs of a Worker."""

    def submit(self, job_id: str, params: Params) -> AsyncIterator[Event]: ...
    def cancel(self, job_id: str) -> None: ...
    def backlog_seconds(self) -> float: ...


@dataclass(frozen=True)
class Made:
    """A finished Job: its picture as PNG, and how it went."""

    job: Job
    png: bytes
    finished: Finished
    notes: tuple[str, ...]


class Jobs:
    """Takes Params, gives pictures; bounded in how many it holds."""

    def __init__(self, rows: Rows, gallery: Gallery, worker: Runs, max_queue: int):
        self._rows, self._gallery, self._worker, self._max_queue = rows, gallery, worker, max_queue
        self._open = 0
        self._left: set[str] = set()  # open jobs whose caller is gone

    async def recover(self) -> None:
        """After a start: what an earlier process left behind is failed, with the reason."""
        count = await self._rows.fail_unfinished(LEFT_BEHIND)
        if count:
            log.warning("jobs of an earlier run were failed", count=count)

    async def make(self, key: ApiKey, card: ModelCard, params: Params, with_prompt: bool = True) -> Made:
        """Run one Job to its picture. Cancelling this call cancels the Job, and ends once the Job has ended.

        Raises TooMany where the queue is full, and a DarkroomError with the status of the failure where the Job fails.
        """
        if self._open >= self._max_queue:
            raise TooMany(f"the queue is full: it holds {self._max_queue} jobs", retry_after=self.retry_after())
        job = Job(f"job-{secrets.token_hex(12)}", key.service_id, key.public_id, params, Status.QUEUED, time.time())
        self._open += 1
        # a task of its own, that nobody cancels: whoever leaves, the rows of a Job are written to their end
        work = asyncio.ensure_future(self._work(job, card, with_prompt))
        work.add_done_callback(self._closed)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._left.add(job.id)
            self._worker.cancel(job.id)
            await asyncio.wait({work})
            raise

    def _closed(self, work: asyncio.Future[Made]) -> None:
        self._open -= 1
        work.exception()  # so that one which nobody awaits any more is not reported as lost

    def retry_after(self) -> int:
        """Seconds until a place in the queue should be free, from measured step times."""
        return max(1, math.ceil(self._worker.backlog_seconds() / max(self._open, 1)))

    async def _work(self, job: Job, card: ModelCard, with_prompt: bool) -> Made:
        try:
            await self._rows.add(job, described(job.params, None, with_prompt))
            try:
                made, picture = await self._picture(job, card, with_prompt)
                finished = made.finished
                await self._rows.end(
                    job.id, Status.FINISHED, picture, steps_run=finished.steps_run,
                    queue_seconds=finished.queue_seconds, inference_seconds=finished.inference_seconds,
                )  # fmt: skip
                return made
            except JobCancelled as error:
                await self._rows.end(job.id, Status.CANCELLED, error=str(error))
                raise
            except Exception as error:
                await self._rows.end(job.id, Status.FAILED, error=str(error)[:500])
                raise
        finally:
            self._left.discard(job.id)

    async def _picture(self, job: Job, card: ModelCard, with_prompt: bool) -> tuple[Made, PictureRow]:
        finished = await self._run(job)
        png = await asyncio.to_thread(to_png, finished.pixels, job.params, finished.steps_run, with_prompt)
        picture = await asyncio.to_thread(self._keep, job, png, finished, with_prompt)
        return Made(job, png, finished, notes_on(card, job.params, finished)), picture

    async def _run(self, job: Job) -> Finished:
        if job.id not in self._left:
            async with aclosing(self._worker.submit(job.id, job.params)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Finished):
                        return event
                    if isinstance(event, Failed):
                        raise _error(event)
                    if isinstance(event, Progress) and event.step == 1:
                        await self._rows.begin(job.id)
        raise JobCancelled("the client left" if job.id in self._left else "the job was cancelled by the server", retry_after=1)

    def _keep(self, job: Job, png: bytes, finished: Finished, with_prompt: bool) -> PictureRow:
        picture_id = f"pic-{secrets.token_hex(12)}"
        key = self._gallery.put(picture_id, png)
        return PictureRow(
            picture_id, job.id, job.service_id, key, finished.width, finished.height, len(png),
            hashlib.sha256(png).hexdigest(), described(job.params, finished.steps_run, with_prompt), time.time(),
        )  # fmt: skip


def notes_on(card: ModelCard, params: Params, finished: Finished) -> tuple[str, ...]:
    """What a person should know of how the model took the prompt."""
    unknown = [word for word in re.findall(r"\w+", params.prompt.lower()) if word not in card.words] if card.words else []
    hint = [f"{card.name} does not know {', '.join(dict.fromkeys(unknown))}. {card.hint}"[:600]] if unknown else []
    return (*hint, *([finished.note] if finished.note else []))


def _error(failed: Failed) -> DarkroomError:
    error = DarkroomError(failed.message, name=failed.name, retry_after=failed.retry_after)
    error.status = failed.status
    return error

"""What stays behind of jobs that do not end well: in memory and on a slow disk. The rows and the worker are stand-ins whose timing a
test decides; the jobs, their runs and the gallery are real."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from darkroom.errors import Unavailable
from darkroom.gallery.local import LocalGallery
from darkroom.jobs import Asked, Jobs, Runs, Watches
from darkroom.jobs.ended import JobCancelled
from darkroom.jobs.jobs import Keeping
from darkroom.types import ApiKey, Began, Cancelled, Event, Finished, Job, Limits, Params, Status

SIDE = 128


class SlowDisk(LocalGallery):
    """Says when it begins to write, and writes when it is told to."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.begun, self.may = threading.Event(), threading.Event()

    def put(self, name: str, content: bytes) -> str:
        self.begun.set()
        assert self.may.wait(10)
        return super().put(name, content)


@dataclass
class Claim:
    job: Job
    weight: float = 1.0


@dataclass
class Rows:
    """One job to claim, and how it ended."""

    job: Job | None = None
    fault: Exception | None = None
    ended: asyncio.Future[Status] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def claim(self, *args: Any) -> list[Claim]:
        job, self.job = self.job, None
        return [Claim(job)] if job else []

    async def accept(self, *args: Any) -> None:
        assert self.fault is not None
        raise self.fault

    async def begin(self, *args: Any) -> None: ...

    async def lost(self, *args: Any) -> tuple[list[Job], list[Job], list[Job]]:
        return [], [], []

    async def heartbeat(self, *args: Any) -> tuple[set[str], set[str]]:
        return {"job-abc"}, set()

    async def end(self, job: Job, *args: Any) -> bool:
        self.ended.set_result(job.status)
        return True


class FirstOnly:
    """A worker that makes a job's first picture at once, and the others never."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def submit(self, job_id: str, params: Params, *args: Any) -> AsyncIterator[Event]:
        yield Began(job_id)
        if job_id.endswith(".0"):
            yield Finished(job_id, bytes(SIDE * SIDE * 3), SIDE, SIDE, 1, 0.0, 0.0)
            return
        await self.stopped.wait()
        yield Cancelled(job_id)

    def cancel(self, job_id: str) -> None:
        self.stopped.set()

    def backlog_seconds(self) -> float:
        return 0.0


async def test_a_job_that_is_cancelled_while_a_picture_is_written_leaves_no_file(tmp_path: Path) -> None:
    job = Job("job-abc", "s", "k", Params("m", "p", width=SIDE, height=SIDE), Status.QUEUED, 0.0, 2)
    rows, disk, worker = Rows(job), SlowDisk(tmp_path), FirstOnly()
    runs = Runs(rows, disk, worker, Watches(), {}, "gw", 60, Limits())
    running = asyncio.create_task(runs.run())
    assert await asyncio.to_thread(disk.begun.wait, 10)
    assert runs.stop("job-abc", JobCancelled("cancelled"))
    await asyncio.sleep(0)  # the cancel reaches the write that is under way
    disk.may.set()
    assert await asyncio.wait_for(rows.ended, 10) == Status.CANCELLED
    await runs.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    running.cancel()


class Picture(bytes):
    """Bytes that say when they leave the memory; no weak reference may point to them."""

    gone = 0

    def __del__(self) -> None:
        type(self).gone += 1


class Outlook:
    def add(self, job_id: str) -> None: ...


@pytest.mark.parametrize("fault", [Unavailable("the database is busy"), asyncio.CancelledError()])
async def test_the_picture_of_a_request_that_was_not_accepted_is_let_go_of(fault: Exception) -> None:
    rows = Rows(fault=fault)
    runs = Runs(rows, None, None, Watches(), {}, "gw", 60, Limits())
    jobs = Jobs(rows, None, runs, Watches(), Outlook(), 10, Limits(), Keeping(0, 0), {})
    key = ApiKey("k", "s", "n", "", "o", "client", (), 0.0)

    async def refused() -> None:
        image = Picture(SIDE * SIDE * 3)
        params = Params("m", "p", width=SIDE, height=SIDE, image=image, control_strength=Decimal("0.3"))
        with pytest.raises(type(fault)):
            async with jobs.taking(key, Asked(params)):
                raise AssertionError("it was accepted")

    before = Picture.gone
    await refused()
    fault.__traceback__ = None  # its frames are this test's
    gc.collect()
    assert Picture.gone == before + 1

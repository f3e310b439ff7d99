"""How long the waiting jobs will wait: their positions, and when they should begin and be finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from darkroom.types import Forecast, Job, Limits, Params, Waiting

FRESH = 0.5  # seconds that an outlook is good for: a thousand watchers ask for one
COSTS = 4  # times its own cost that it is good for where jobs came since: so looking takes a fifth of the time at most
AHEAD = 64  # waiting jobs that the schedule is played through for; for the rest their work is added up


class Rows(Protocol):
    """Where waiting jobs are found."""

    async def waiting(self, now: float, limit: int) -> list[tuple[Job, Limits | None]]: ...


class Worker(Protocol):
    """Who knows how long steps take."""

    def forecast(self, others: Sequence[tuple[str, Params, str, float]]) -> dict[str, Forecast]: ...


class Outlook:
    """What waits, as it looked at most FRESH seconds ago."""

    def __init__(self, rows: Rows, worker: Worker, limits: Limits, most: int):
        self._rows, self._worker, self._limits, self._most = rows, worker, limits, most
        self._at = 0.0
        self._waiting: dict[str, Waiting] = {}
        self._running: dict[str, Forecast] = {}
        self._came, self._cost = False, 0.0  # whether jobs came since the last look, and the seconds that one takes
        self._end = self._each = 0.0  # seconds until all is done, and those of a job in the mean

    async def waiting(self, roughly: bool = False) -> dict[str, Waiting]:
        """By id, every job of this gateway's worker, or of nobody's, that has not begun; roughly: those that came since the last
        look stand at the end."""
        await self._look(FRESH if roughly or not self._came else COSTS * self._cost)
        return self._waiting

    async def seconds_left(self, job_id: str) -> float | None:
        """Until the pictures of a running job are there; None where it does not run here."""
        await self._look(FRESH)
        forecast = self._running.get(job_id)
        return forecast.finish if forecast else None

    def add(self, job_id: str) -> None:
        """A job came: until the next look it is the last."""
        self._came = True
        self._waiting[job_id] = Waiting(job_id, len(self._waiting) + 1, self._end, self._end + self._each)

    async def _look(self, good_for: float) -> None:
        if time.monotonic() - self._at < good_for:
            return
        began = self._at = time.monotonic()
        self._came = False
        free = await self._rows.waiting(time.time(), self._most)
        others = [
            (f"{job.id}.{place}", job.params, job.key_id, (limits or self._limits).weight) for job, limits in free for place in range(job.n)
        ]  # fmt: skip
        played = _by_job(self._worker.forecast(others[:AHEAD]))
        self._running = {job_id: one for job_id, one in played.items() if one.start <= 0}
        ahead = sorted(((one.start, job_id) for job_id, one in played.items() if one.start > 0))
        line = [(job_id, played[job_id]) for _, job_id in ahead]
        line += self._rest([job for job, _ in free if job.id not in played], played)
        self._cost = time.monotonic() - began
        self._waiting = {job_id: Waiting(job_id, i + 1, one.start, one.finish) for i, (job_id, one) in enumerate(line)}

    def _rest(self, jobs: Sequence[Job], played: dict[str, Forecast]) -> list[tuple[str, Forecast]]:
        """Beyond what was played through: one after the other, each as long as the mean of those."""
        end = max((one.finish for one in played.values()), default=0.0)
        self._each = each = end / max(len(played), 1)
        self._end = end + len(jobs) * each
        return [(job.id, Forecast(end + i * each, end + (i + 1) * each)) for i, job in enumerate(jobs)]


def _by_job(samples: dict[str, Any]) -> dict[str, Forecast]:
    """From pictures to jobs: a job begins with its first picture, and is finished with its last."""
    jobs: dict[str, Forecast] = {}
    for sample_id, one in samples.items():
        job_id = sample_id.rpartition(".")[0]
        known = jobs.get(job_id, one)
        jobs[job_id] = Forecast(min(known.start, one.start), max(known.finish, one.finish))
    return jobs

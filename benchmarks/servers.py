"""Ways to serve, in virtual time: the real Scheduler, and what others do."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from curves import BATCH, MAX_ROWS, Curve, Kind

from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.scheduler import Scheduler
from darkroom.types import Params

TIMER = 3.0  # seconds: sdxl_batcher_time_limit of MLPerf's closed/NVIDIA for one GPU


@dataclass(frozen=True)
class Job:
    at: float
    kind: Kind
    party: str = ""


class Turn(NamedTuple):
    """What a server does next: so many seconds of work, after which these jobs have their pictures."""

    seconds: float
    done: Sequence[Job]


class Server(Protocol):
    """A way to serve. `work` is None where nothing is to be done before `wakes`."""

    def add(self, job: Job) -> None: ...
    def work(self, now: float) -> Turn | None: ...
    def wakes(self) -> float: ...


class Ours:
    """The Scheduler, and decodes between the steps as the Engine takes them."""

    def __init__(self, curve: Curve):
        self._curve, self._scheduler = curve, Scheduler(curve, MAX_ROWS)
        self._jobs: dict[str, Job] = {}
        self._finishing: deque[Sample] = deque()
        self._come = 0

    def add(self, job: Job) -> None:
        name, key = str(self._come), BatchKey("m", job.kind.side, job.kind.side)
        self._come += 1
        self._jobs[name] = job
        self._scheduler.add(Sample(name, NOTHING, key, job.kind.steps, job.kind.rows, job.at, party=job.party))

    def work(self, now: float) -> Turn | None:
        batch, seconds = self._scheduler.schedule(now), 0.0
        if batch is not None:
            for sample in batch.samples:
                sample.state = True
            seconds = self._curve.step_seconds(batch.key, batch.rows)
            self._finishing += self._scheduler.settle(batch, seconds)
        elif not self._finishing:
            return None
        done = self._decoded(seconds)
        return Turn(seconds + sum(self._curve.decode_seconds(job.kind.side) for job in done), done)

    def wakes(self) -> float:
        return math.inf

    def _decoded(self, step_seconds: float) -> list[Job]:
        """As Engine._most_to_decode: while others run, no more than fit into a step's time, one at least."""
        if not self._finishing:
            return []
        most, key = MAX_ROWS // 2, self._finishing[0].key
        if len(self._scheduler):
            most = max(1, min(most, int(step_seconds / self._curve.decode_seconds(key.height))))
        group = [sample for sample in self._finishing if sample.key == key][:most]
        self._finishing = deque(sample for sample in self._finishing if sample not in group)
        return [self._jobs.pop(sample.id) for sample in group]


class Static:
    """First come, first served: the oldest job and up to `most` of its exact kind, from first step to last picture. With a timer
    a batch that is not full waits until its oldest is so old."""

    def __init__(self, curve: Curve, most: int = BATCH, timer: float = 0.0):
        self._curve, self._most, self._timer = curve, most, timer
        self._queues: defaultdict[Kind, deque[Job]] = defaultdict(deque)

    def add(self, job: Job) -> None:
        self._queues[job.kind].append(job)

    def work(self, now: float) -> Turn | None:
        ready = [queue for queue in self._queues.values() if queue and (len(queue) >= self._most or self._due(queue) <= now)]
        if not ready:
            return None
        queue = min(ready, key=lambda queue: queue[0].at)
        batch = [queue.popleft() for _ in range(min(self._most, len(queue)))]
        return Turn(self._curve.job_seconds(batch[0].kind, len(batch)), batch)

    def wakes(self) -> float:
        return min((self._due(queue) for queue in self._queues.values() if queue), default=math.inf)

    def _due(self, queue: deque[Job]) -> float:
        return queue[0].at + self._timer


class HardKey:
    """Continuous batching, first come, first served, where only the exact kind of those that run may join: another at the head
    of the line waits, and all behind it."""

    def __init__(self, curve: Curve):
        self._curve = curve
        self._queue: deque[Job] = deque()
        self._running: list[tuple[Job, int]] = []  # and its steps left

    def add(self, job: Job) -> None:
        self._queue.append(job)

    def work(self, now: float) -> Turn | None:
        while self._queue and len(self._running) < BATCH and (not self._running or self._queue[0].kind == self._running[0][0].kind):
            job = self._queue.popleft()
            self._running.append((job, job.kind.steps))
        if not self._running:
            return None
        kind = self._running[0][0].kind
        done = [job for job, left in self._running if left == 1]
        seconds = self._curve.seconds(kind.side, len(self._running) * kind.rows) + len(done) * self._curve.decode_seconds(kind.side)
        self._running = [(job, left - 1) for job, left in self._running if left > 1]
        return Turn(seconds, done)

    def wakes(self) -> float:
        return math.inf


NOTHING = Params("m", "")
SERVERS: dict[str, Callable[[Curve], Server]] = {
    "ours": Ours,
    "one at a time": lambda curve: Static(curve, most=1),
    "static batch 8": Static,
    "static batch 8, timer 3 s": lambda curve: Static(curve, timer=TIMER),
    "continuous, hard key": HardKey,
}

"""When jobs will begin and end: the real Scheduler, run ahead over Samples without nets. No torch.

It knows what the cost model knows. What a model takes to load, a prompt to encode or a picture to be written is left out,
and so is whoever comes later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from darkroom.engine.cost import CostModel, Frozen
from darkroom.engine.sample import Batch, BatchKey, Sample
from darkroom.engine.scheduler import Scheduler
from darkroom.types import Forecast, Params

LEAP = 4  # a batch takes this part of its leader's remaining steps at a time: few questions to the Scheduler, small errors


@dataclass(frozen=True)
class Ahead:
    """A job that is to be made: `steps` are left of it, `begun` says that some are done; `waited` so many seconds unserved."""

    id: str
    key: BatchKey
    rows: int
    steps: int
    party: str = ""
    weight: float = 1.0
    waited: float = 0.0
    begun: bool = False

    def sample(self, place: int) -> Sample:
        """`place` in the line tells apart those that came together."""
        nothing = Params(self.key.model, "")
        arrived = place * 1e-6 - self.waited
        return Sample(
            self.id, nothing, self.key, self.steps, self.rows, arrived, party=self.party, weight=self.weight, state=self.begun or None
        )  # fmt: skip


def forecast(jobs: Iterable[Ahead], cost: CostModel, max_rows: int = 16, exact: bool = False) -> dict[str, Forecast]:
    """Seconds from now until each job's first step begins (0 where it has) and until its picture, by id. Jobs in the order
    in which they came."""
    run = _Run(Frozen(cost), max_rows, exact)
    for place, job in enumerate(jobs):
        run.add(job, place)
    return run.to_its_end()


class _Run:
    """A Scheduler, the Samples in it, and the time."""

    def __init__(self, cost: Frozen, max_rows: int, exact: bool):
        self._cost, self._scheduler, self._now = cost, Scheduler(cost, max_rows, exact), 0.0
        self._starts: dict[str, float] = {}
        self._ends: dict[str, float] = {}

    def add(self, job: Ahead, place: int) -> None:
        if job.begun or not job.steps:
            self._starts[job.id] = 0.0
        if job.steps:
            self._scheduler.add(job.sample(place))
        else:
            self._decode(job.id, job.key)

    def to_its_end(self) -> dict[str, Forecast]:
        while batch := self._scheduler.schedule(self._now):
            self._step(batch)
        return {job_id: Forecast(self._starts[job_id], end) for job_id, end in self._ends.items()}

    def _step(self, batch: Batch) -> None:
        steps, seconds = self._leap(batch), self._cost.step_seconds(batch.key, batch.rows)
        for sample in batch.samples:
            self._starts.setdefault(sample.id, self._now)
            sample.state = True
        for _ in range(steps):
            self._now += seconds
            for sample in self._scheduler.settle(batch, seconds):
                self._decode(sample.id, sample.key)

    @staticmethod
    def _leap(batch: Batch) -> int:
        """How many steps the batch takes before the Scheduler is asked again: one after which a newcomer may join, else more."""
        if not all(sample.prepared for sample in batch.samples):
            return 1
        return max(1, min(batch.samples[0].remaining // LEAP, *(sample.remaining for sample in batch.samples)))

    def _decode(self, job_id: str, key: BatchKey) -> None:
        self._now += self._cost.decode_seconds(key)
        self._ends[job_id] = self._now

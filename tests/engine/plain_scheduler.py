"""The scheduler's rule written down plainly: every Sample is scored and sorted at each step. What the real one is held against."""

from __future__ import annotations

from darkroom.engine.cost import Costs
from darkroom.engine.sample import Batch, Sample
from darkroom.engine.scheduler import AGEING, GAIN, NEWCOMERS, TURN


class PlainScheduler:
    def __init__(self, cost: Costs, max_rows: int = 16, exact: bool = False):
        self.cost, self.max_rows, self.exact = cost, max_rows, exact
        self.here: dict[str, Sample] = {}
        self.v: dict[str, float] = {}
        self.since: dict[str, float] = {}
        self.floor = self.now = self.turn_left = 0.0
        self.turn = ""

    def add(self, sample: Sample) -> None:
        if sample.party not in self.parties():
            self.v[sample.party] = max(self.floor, self.v.get(sample.party, 0.0))
            self.since[sample.party] = sample.arrived
        self.here[sample.id] = sample

    def cancel(self, sample_id: str) -> None:
        if self.here.pop(sample_id, None):
            self.forget()

    def schedule(self, now: float) -> Batch | None:
        if not self.here:
            return None
        self.now = now
        order = sorted(self.here.values(), key=self.score)
        leader = self.leader([s for s in order if self.turn_left > 0 and s.key.model == self.turn] or order)
        if leader.key.model != self.turn or self.turn_left <= 0:
            self.turn, self.turn_left = leader.key.model, TURN * self.cost.step_seconds(leader.key, leader.rows)
        return Batch(tuple(self.grown(leader, [s for s in order if s is not leader and s.key == leader.key and not s.alone])))

    def settle(self, batch: Batch, seconds: float) -> list[Sample]:
        self.cost.observe_step(batch.key, batch.rows, seconds)
        self.turn_left -= seconds
        for sample in batch.samples:
            sample.step += 1
            sample.served += seconds
            self.v[sample.party] += seconds * sample.rows / batch.rows / sample.weight
        done = [s for s in batch.samples if s.remaining == 0]
        for sample in done:
            del self.here[sample.id]
            self.since[sample.party] = self.now
        self.forget()
        return done

    def parties(self) -> set[str]:
        return {sample.party for sample in self.here.values()}

    def forget(self) -> None:
        self.floor = min((self.v[party] for party in self.parties()), default=self.floor)
        for party in set(self.v) - self.parties():
            if self.v[party] <= self.floor:
                del self.v[party]

    def work(self, sample: Sample) -> float:
        return sample.remaining * self.cost.step_seconds(sample.key, sample.rows) + (self.v[sample.party] - self.floor)

    def score(self, sample: Sample) -> tuple[float, float, float, str]:
        """Without - AGEING * now, which is the same for all; so ties are the same to the last bit."""
        since = sample.arrived + sample.served
        return self.work(sample) + AGEING * since, since, sample.arrived, sample.id

    def leader(self, order: list[Sample]) -> Sample:
        firsts = {sample.party: sample for sample in reversed(order)}
        return min(firsts.values(), key=lambda s: (self.work(s) - AGEING * (self.now - self.since[s.party]), self.score(s)))

    def grown(self, leader: Sample, others: list[Sample]) -> list[Sample]:
        if self.exact or leader.alone:
            return [leader]
        best, chosen, members = 1.0, [leader], [leader]
        for sample in others:
            if not sample.prepared and sum(not s.prepared for s in members) >= NEWCOMERS:
                continue
            members = [*members, sample]
            rows = sum(s.rows for s in members)
            if rows > self.max_rows or len(members) - 1 > 2 * len(chosen):
                break
            share = self.cost.step_seconds(leader.key, rows) / sum(self.cost.step_seconds(leader.key, s.rows) for s in members)
            if share < best * (1 - GAIN * (len(members) / len(chosen) - 1)):
                best, chosen = share, members
        return chosen

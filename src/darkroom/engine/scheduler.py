"""Which Samples step next. No torch: its rules are tested in microseconds, by simulation.

The order is shortest remaining work first, with ageing: the Sample with the least

    score = remaining seconds - AGEING * seconds it waited without being served

leads, and its size takes this turn. A Sample that has waited remaining / AGEING seconds is ahead of every newcomer, so
each waits for no more than that and what was in line by then. The others of the leader's key join it while the
measured time per picture falls; where a bigger batch gains nothing, the leader steps alone and finishes first.
A model keeps its turn for several steps, since changing the weights that a cache or a bus is full of has its price.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from darkroom.engine.cost import CostModel
from darkroom.engine.sample import Batch, BatchKey, Sample

# Seconds of remaining work that a second of waiting outweighs. By simulation at 0.8 of capacity, 0.25 is close to first come,
# first served (mean latency 0.73 of it); 0.05 has nearly all of what pure shortest-remaining-first gains (0.59 against 0.58).
AGEING = 0.05
GAIN = 0.06  # a batch grows only where it saves this share of its members' time: less is the noise of the measurement
TURN = 4  # steps of its leader, by measured cost, that a model's turn lasts while it has Samples
NEWCOMERS = 1  # Samples of a batch that may still need their text and image encoded: more would hold up the others


class Scheduler:
    """Holds every Sample from its arrival to its last step. `max_rows` bounds one pass; exact mode steps Samples singly."""

    def __init__(self, cost: CostModel, max_rows: int = 16, exact: bool = False):
        self._cost = cost
        self._max_rows = max_rows
        self._exact = exact
        self._samples: dict[str, Sample] = {}
        self._turn, self._turn_left = "", 0.0  # whose turn it is, and for how many seconds more

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self) -> Collection[Sample]:
        return self._samples.values()

    def add(self, sample: Sample) -> None:
        assert sample.id not in self._samples, f"sample {sample.id} is here already"
        assert sample.steps > 0, "a sample without steps needs no scheduling"
        self._samples[sample.id] = sample

    def cancel(self, sample_id: str) -> Sample | None:
        """Take a Sample out, whatever it does; None where it is not here (any more)."""
        return self._samples.pop(sample_id, None)

    def schedule(self, now: float) -> Batch | None:
        """The Samples that take the next step; None where there are none."""
        if not self._samples:
            return None
        remaining = {}  # the cost of a step is the same for all with the same key and rows
        for sample in self._samples.values():
            if (sample.key, sample.rows) not in remaining:
                remaining[sample.key, sample.rows] = self._cost.step_seconds(sample.key, sample.rows)
        order = sorted(self._samples.values(), key=lambda s: _score(s, remaining[s.key, s.rows], now))
        leader = self._leader(order, remaining)
        if self._exact or leader.alone:
            return Batch((leader,))
        return Batch(tuple(self._grow(leader, [s for s in order if s is not leader and s.key == leader.key and not s.alone])))

    def settle(self, batch: Batch, seconds: float) -> list[Sample]:
        """The batch has stepped in `seconds`: advance, learn, and let go of those that are through."""
        self._cost.observe_step(batch.key, batch.rows, seconds)
        self._turn_left -= seconds
        done = []
        for sample in batch.samples:
            sample.step += 1
            sample.served += seconds
            if sample.remaining == 0 and self._samples.pop(sample.id, None) is not None:
                done.append(sample)
        return done

    def _leader(self, order: list[Sample], step_seconds: Mapping[tuple[BatchKey, int], float]) -> Sample:
        """The first, of the model whose turn it is; of any, where that turn is over or has nobody left."""
        theirs = (sample for sample in order if sample.key.model == self._turn)
        leader = (next(theirs, None) if self._turn_left > 0 else None) or order[0]
        if leader.key.model != self._turn or self._turn_left <= 0:
            self._turn, self._turn_left = leader.key.model, TURN * step_seconds[leader.key, leader.rows]
        return leader

    def _grow(self, leader: Sample, others: list[Sample]) -> list[Sample]:
        """The leader and whoever lowers the batch's time against what its members would take singly (for equal Samples:
        the time per picture)."""
        best, chosen = 1.0, [leader]
        members, rows, newcomers = [leader], leader.rows, int(not leader.prepared)
        for sample in others:
            if rows + sample.rows > self._max_rows:
                break
            if not sample.prepared and newcomers >= NEWCOMERS:
                continue
            members, rows = [*members, sample], rows + sample.rows
            newcomers += not sample.prepared
            share = self._cost.step_seconds(leader.key, rows) / sum(self._cost.step_seconds(leader.key, s.rows) for s in members)
            if share < best * (1 - GAIN):
                best, chosen = share, members
            elif len(members) > 2 * len(chosen):
                break  # twice the batch and still no gain: stop looking
        return chosen


def _score(sample: Sample, step_seconds: float, now: float) -> tuple[float, float, str]:
    waited = max(0.0, now - sample.arrived - sample.served)
    return sample.remaining * step_seconds - AGEING * waited, sample.arrived, sample.id

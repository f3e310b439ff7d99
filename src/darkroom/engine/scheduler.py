"""Which Samples step next. No torch: its rules are tested in microseconds, by simulation.

The order is shortest remaining work first, with ageing: of one party, the Sample with the least

    score = remaining seconds - AGEING * seconds it waited without being served

is its candidate to lead, whose size then takes this turn. A Sample that has waited remaining / AGEING seconds is ahead of every newcomer, so
each waits for no more than that and what was in line by then. The others of the leader's key join it while the
measured time per picture falls; where a bigger batch gains nothing, the leader steps alone and finishes first.
A model keeps its turn for several steps, since changing the weights that a cache or a bus is full of has its price.

Parties (whoever Samples are for) share the machine's time: each has a virtual time v, the seconds that it was given divided
by its weight, and of all candidates the one with the least

    claim = remaining seconds + v - least v of the parties here - AGEING * seconds since its party last had one through

leads. So a flood of one party holds up another's job by about a job, and no stream of newcomers holds up a party for ever.
A party that comes starts at the least v of those here or, where nobody is, of the last that were: idle time earns nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from darkroom.engine.cost import Costs
from darkroom.engine.sample import Batch, BatchKey, Sample

# Seconds of remaining work that a second of waiting outweighs. By simulation at 0.8 of capacity, 0.25 is close to first come,
# first served (mean latency 0.73 of it); 0.05 has nearly all of what pure shortest-remaining-first gains (0.59 against 0.58).
AGEING = 0.05
GAIN = 0.06  # a batch grows only where it saves this share of its members' time: less is the noise of the measurement
TURN = 4  # steps of its leader, by measured cost, that a model's turn lasts while it has Samples
NEWCOMERS = 1  # Samples of a batch that may still need their text and image encoded: more would hold up the others


@dataclass
class _Party:
    """v: seconds of machine time it was given, by weight. since: when it last had a Sample through, or came."""

    v: float
    since: float


class Scheduler:
    """Holds every Sample from its arrival to its last step. `max_rows` bounds one pass; exact mode steps Samples singly."""

    def __init__(self, cost: Costs, max_rows: int = 16, exact: bool = False):
        self._cost = cost
        self._max_rows = max_rows
        self._exact = exact
        self._samples: dict[str, Sample] = {}
        self._parties: dict[str, _Party] = {}  # those with Samples here, and those that were ahead of them when they left
        self._now = 0.0  # of the last schedule
        self._floor = 0.0  # the least v of the parties with Samples here, or of the last that had some
        self._turn, self._turn_left = "", 0.0  # whose turn it is, and for how many seconds more

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self) -> Collection[Sample]:
        return self._samples.values()

    def add(self, sample: Sample) -> None:
        assert sample.id not in self._samples, f"sample {sample.id} is here already"
        assert sample.steps > 0, "a sample without steps needs no scheduling"
        assert sample.weight > 0, "a party without weight would never be served"
        if all(other.party != sample.party for other in self._samples.values()):
            before = self._parties.get(sample.party)
            self._parties[sample.party] = _Party(max(self._floor, before.v if before else 0.0), sample.arrived)
        self._samples[sample.id] = sample

    def cancel(self, sample_id: str) -> Sample | None:
        """Take a Sample out, whatever it does; None where it is not here (any more)."""
        sample = self._samples.pop(sample_id, None)
        self._forget()
        return sample

    def schedule(self, now: float) -> Batch | None:
        """The Samples that take the next step; None where there are none."""
        if not self._samples:
            return None
        remaining = self._remaining()
        order = sorted(self._samples.values(), key=lambda s: self._score(s, remaining[s.id], now))
        leader = self._leader(order, remaining, now)
        others = [] if self._exact or leader.alone else [s for s in order if s is not leader and s.key == leader.key and not s.alone]
        self._now = now
        return Batch(tuple(self._grow(leader, others)))

    def settle(self, batch: Batch, seconds: float) -> list[Sample]:
        """The batch has stepped in `seconds`: advance, learn, charge the parties by rows, and let go of those that are through."""
        self._cost.observe_step(batch.key, batch.rows, seconds)
        self._turn_left -= seconds
        done = []
        for sample in batch.samples:
            sample.step += 1
            sample.served += seconds
            self._parties[sample.party].v += seconds * sample.rows / batch.rows / sample.weight
            if sample.remaining == 0 and self._samples.pop(sample.id, None) is not None:
                self._parties[sample.party].since = self._now
                done.append(sample)
        self._forget()
        return done

    def _forget(self) -> None:
        """Let go of parties that left and have no more time behind them than a newcomer is given; the others keep theirs, so
        that nobody gains by leaving for a moment."""
        here = {sample.party for sample in self._samples.values()}
        self._floor = min((self._parties[name].v for name in here), default=self._floor)
        self._parties = {name: party for name, party in self._parties.items() if name in here or party.v > self._floor}

    def _remaining(self) -> dict[str, float]:
        """Seconds that each Sample would still take alone, without its decode."""
        known: dict[tuple[BatchKey, int], float] = {}  # the cost of a step is the same for all with the same key and rows
        remaining = {}
        for sample in self._samples.values():
            kind = sample.key, sample.rows
            seconds = known.get(kind)
            if seconds is None:
                seconds = known[kind] = self._cost.step_seconds(*kind)
            remaining[sample.id] = sample.remaining * seconds
        return remaining

    def _lag(self, sample: Sample) -> float:
        """Seconds by which the Sample's party is ahead of the one that was given least."""
        return self._parties[sample.party].v - self._floor

    def _score(self, sample: Sample, remaining: float, now: float) -> tuple[float, float, str]:
        waited = max(0.0, now - sample.arrived - sample.served)
        return remaining + self._lag(sample) - AGEING * waited, sample.arrived, sample.id

    def _claim(self, sample: Sample, remaining: float, now: float) -> float:
        return remaining + self._lag(sample) - AGEING * max(0.0, now - self._parties[sample.party].since)

    def _leader(self, order: list[Sample], remaining: Mapping[str, float], now: float) -> Sample:
        """The one with the best claim, of the model whose turn it is; of any, where that turn is over or has nobody left."""
        theirs = [sample for sample in order if sample.key.model == self._turn] if self._turn_left > 0 else []
        leader = min(_candidates(theirs or order), key=lambda s: self._claim(s, remaining[s.id], now))
        if leader.key.model != self._turn or self._turn_left <= 0:
            self._turn, self._turn_left = leader.key.model, TURN * remaining[leader.id] / leader.remaining
        return leader

    def _grow(self, leader: Sample, others: list[Sample]) -> list[Sample]:
        """The leader and whoever lowers the batch's time against what its members would take singly (for equal Samples:
        the time per picture)."""
        best, chosen = 1.0, [leader]
        members, rows, newcomers = [leader], leader.rows, int(not leader.prepared)
        singly = self._cost.step_seconds(leader.key, leader.rows)
        for sample in others:
            if rows + sample.rows > self._max_rows:
                break
            if not sample.prepared and newcomers >= NEWCOMERS:
                continue
            members, rows = [*members, sample], rows + sample.rows
            newcomers += not sample.prepared
            singly += self._cost.step_seconds(leader.key, sample.rows)
            share = self._cost.step_seconds(leader.key, rows) / singly
            if share < best * (1 - GAIN):
                best, chosen = share, members
            elif len(members) > 2 * len(chosen):
                break  # twice the batch and still no gain: stop looking
        return chosen


def _candidates(order: Iterable[Sample]) -> Iterable[Sample]:
    """The first of each party."""
    first: dict[str, Sample] = {}
    for sample in order:
        first.setdefault(sample.party, sample)
    return first.values()

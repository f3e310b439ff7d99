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

A step takes no longer because more Samples wait. What they waited is now - arrived - served, and now is the same for all; so those
with the same party, key, rows and remaining steps keep their order for good, by arrived + served. They stand in one line, and only
heads of lines are compared, of which there are as many as there are kinds of Samples.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from darkroom.engine.cost import Costs
from darkroom.engine.sample import Batch, BatchKey, Sample

# Seconds of remaining work that a second of waiting outweighs. By simulation at 0.8 of capacity, 0.25 is close to first come,
# first served (mean latency 0.73 of it); 0.05 has nearly all of what pure shortest-remaining-first gains (0.59 against 0.58).
AGEING = 0.05
# A batch that doubles must save this share of its members' time, one that grows by a part of itself that part of the share: less is
# the noise of the measurement. The same share for every further Sample, which is what it was, stopped at 7 pictures of 8 on a curve
# that still fell by 3 %, and by simulation at 0.97 of capacity the line then grew without end.
GAIN = 0.06
TURN = 4  # steps of its leader, by measured cost, that a model's turn lasts while it has Samples
NEWCOMERS = 1  # Samples of a batch that may still need their text and image encoded: more would hold up the others


@dataclass
class _Party:
    """v: seconds of machine time it was given, by weight. since: when it last had a Sample through, or came. here: its Samples."""

    v: float
    since: float
    here: int = 0


class _Line(NamedTuple):
    """What the Samples of a line have in common, beside key and rows."""

    party: str
    remaining: int
    prepared: bool
    alone: bool


class _Place(NamedTuple):
    """A Sample's place in its line. No two have one id, so Samples themselves are never compared."""

    since: float  # arrived + served
    arrived: float
    id: str
    sample: Sample


# The head of a line, by score: score, place, work. Work is its remaining seconds and what its party is ahead of the one that was
# given least; scores leave out - AGEING * now, which all have alike. A plain tuple: a step makes as many as there are lines.
_Head = tuple[float, _Place, float]


class Scheduler:
    """Holds every Sample from its arrival to its last step. `max_rows` bounds one pass; exact mode steps Samples singly.

    Others may change a Sample only while it is in the batch that was scheduled last.
    """

    def __init__(self, cost: Costs, max_rows: int = 16, exact: bool = False):
        self._cost = cost
        self._max_rows = max_rows
        self._exact = exact
        self._samples: dict[str, Sample] = {}
        self._lines: defaultdict[tuple[BatchKey, int], defaultdict[_Line, list[_Place]]] = defaultdict(lambda: defaultdict(list))  # by key and rows
        self._loose: dict[str, Sample] = {}  # in no line: they came, or were in a batch, since the last schedule
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
        party = self._parties.get(sample.party)
        if party is None or not party.here:
            party = self._parties[sample.party] = _Party(max(self._floor, party.v if party else 0.0), sample.arrived)
        party.here += 1
        self._samples[sample.id] = self._loose[sample.id] = sample

    def cancel(self, sample_id: str) -> Sample | None:
        """Take a Sample out, whatever it does; None where it is not here (any more)."""
        sample = self._samples.get(sample_id)
        if sample is not None:
            if sample_id not in self._loose:
                self._take_out(sample)
            self._let_go(sample)
            self._forget()
        return sample

    def schedule(self, now: float) -> Batch | None:
        """The Samples that take the next step; None where there are none. `now` is never before the last one, nor before
        their arrival."""
        if not self._samples:
            return None
        self._now = now
        if len(self._samples) == len(self._loose) == 1:  # nobody to choose from
            (leader,) = self._loose.values()
            self._take_turn(leader)
            return Batch((leader,))
        for sample in self._loose.values():
            insort(self._lines[sample.key, sample.rows][_line(sample)], _place(sample))
        leader = self._leader()
        chosen = self._grow(leader, () if self._exact or leader.alone else self._others(leader))
        for sample in chosen:
            self._take_out(sample)
        self._loose = {sample.id: sample for sample in chosen}
        return Batch(tuple(chosen))

    def settle(self, batch: Batch, seconds: float) -> list[Sample]:
        """The batch has stepped in `seconds`: advance, learn, charge the parties by rows, and let go of those that are through."""
        self._cost.observe_step(batch.key, batch.rows, seconds)
        self._turn_left -= seconds
        done = []
        for sample in batch.samples:
            sample.step += 1
            sample.served += seconds
            self._parties[sample.party].v += seconds * sample.rows / batch.rows / sample.weight
            if sample.remaining == 0 and self._samples.get(sample.id) is sample:
                self._let_go(sample)
                self._parties[sample.party].since = self._now
                done.append(sample)
        self._forget()
        return done

    def _let_go(self, sample: Sample) -> None:
        """Of a Sample that stands in no line."""
        del self._samples[sample.id]
        self._loose.pop(sample.id, None)
        self._parties[sample.party].here -= 1

    def _forget(self) -> None:
        """Let go of parties that left and have no more time behind them than a newcomer is given; the others keep theirs, so
        that nobody gains by leaving for a moment."""
        self._floor = min((party.v for party in self._parties.values() if party.here), default=self._floor)
        self._parties = {name: party for name, party in self._parties.items() if party.here or party.v > self._floor}

    def _take_out(self, sample: Sample) -> None:
        lines, line = self._lines[sample.key, sample.rows], _line(sample)
        places = lines[line]
        del places[bisect_left(places, _place(sample))]
        if not places:
            del lines[line]
        if not lines:
            del self._lines[sample.key, sample.rows]

    def _leader(self) -> Sample:
        """The one with the best claim, of the model whose turn it is; of any, where that turn is over or has nobody left."""
        firsts = self._firsts(self._turn) if self._turn_left > 0 else {}
        firsts = firsts or self._firsts()
        _, place, _ = min(firsts.values(), key=self._claim)
        self._take_turn(place.sample)
        return place.sample

    def _take_turn(self, leader: Sample) -> None:
        if leader.key.model != self._turn or self._turn_left <= 0:
            self._turn, self._turn_left = leader.key.model, TURN * self._cost.step_seconds(leader.key, leader.rows)

    def _firsts(self, model: str | None = None) -> dict[str, _Head]:
        """The candidate of each party, of one model or of any."""
        firsts: dict[str, _Head] = {}
        lag = self._lag()
        for (key, rows), lines in self._lines.items():
            if model is not None and key.model != model:
                continue
            seconds = self._cost.step_seconds(key, rows)
            for (party, remaining, _, _), places in lines.items():
                work = remaining * seconds + lag[party]
                head = work + AGEING * places[0].since, places[0], work
                if party not in firsts or head < firsts[party]:
                    firsts[party] = head
        return firsts

    def _claim(self, first: _Head) -> tuple[float, _Head]:
        _, place, work = first
        return work - AGEING * (self._now - self._parties[place.sample.party].since), first

    def _lag(self) -> dict[str, float]:
        """Seconds by which each party is ahead of the one that was given least."""
        return {name: party.v - self._floor for name, party in self._parties.items()}

    def _others(self, leader: Sample) -> Iterator[Sample]:
        """Who may join the leader, by score; of newcomers no more than may be in a batch."""
        ready = self._ranked(leader, True)
        new = islice(self._ranked(leader, False), NEWCOMERS - int(not leader.prepared))
        return (place.sample for _, place in heapq.merge(ready, new))

    def _ranked(self, leader: Sample, prepared: bool) -> Iterator[tuple[float, _Place]]:
        """The others of the leader's key by score; a merge of their lines as far as it is asked for."""
        lag, heads = self._lag(), []
        for (key, rows), lines in self._lines.items():
            if key == leader.key:
                seconds = self._cost.step_seconds(key, rows)
                for (party, remaining, ready, alone), places in lines.items():
                    if ready == prepared and not alone:
                        work = remaining * seconds + lag[party]
                        heads.append((work + AGEING * places[0].since, places[0], work, 0, places))
        heapq.heapify(heads)
        while heads:
            score, place, work, i, places = heads[0]
            if place.sample is not leader:
                yield score, place
            if i + 1 < len(places):
                heapq.heapreplace(heads, (work + AGEING * places[i + 1].since, places[i + 1], work, i + 1, places))
            else:
                heapq.heappop(heads)

    def _grow(self, leader: Sample, others: Iterable[Sample]) -> list[Sample]:
        """The leader and whoever lowers the batch's time against what its members would take singly (for equal Samples:
        the time per picture)."""
        best, chosen = 1.0, [leader]
        members, rows = [leader], leader.rows
        singly = self._cost.step_seconds(leader.key, leader.rows)
        for sample in others:
            if rows + sample.rows > self._max_rows:
                break
            members, rows = [*members, sample], rows + sample.rows
            singly += self._cost.step_seconds(leader.key, sample.rows)
            share = self._cost.step_seconds(leader.key, rows) / singly
            if share < best * (1 - GAIN * (len(members) / len(chosen) - 1)):
                best, chosen = share, members
            elif len(members) > 2 * len(chosen):
                break  # twice the batch and still no gain: stop looking
        return chosen


def _line(sample: Sample) -> _Line:
    return _Line(sample.party, sample.remaining, sample.prepared, sample.alone)


def _place(sample: Sample) -> _Place:
    return _Place(sample.arrived + sample.served, sample.arrived, sample.id, sample)

"""The scheduler's rules by simulation: virtual time, a given cost curve, arrivals in any order. No nets, no torch."""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.engine.cost import CostModel, size_name
from darkroom.engine.sample import Batch, BatchKey, Sample
from darkroom.engine.scheduler import AGEING, Scheduler
from darkroom.types import Params

from .plain_scheduler import PlainScheduler

Curve = Callable[[BatchKey, int], float]


def flat(key: BatchKey, rows: int) -> float:
    """Batching is free: a pass takes the same time whatever its rows (a GPU far from full)."""
    return key.height * key.width / 64 * 2e-5


def linear(key: BatchKey, rows: int) -> float:
    """Batching gains nothing (a CPU)."""
    return flat(key, 1) * rows


def knee(key: BatchKey, rows: int) -> float:
    """Free up to 6 rows, linear beyond."""
    return flat(key, 1) * max(6, rows)


CURVES: dict[str, Curve] = {"flat": flat, "linear": linear, "knee": knee}


@dataclass(frozen=True)
class Arrival:
    at: float
    side: int
    steps: int
    rows: int
    party: str = ""
    weight: float = 1.0

    def sample(self, name: str) -> Sample:
        key = BatchKey("m", self.side, self.side)
        return Sample(name, Params("m", "p"), key, self.steps, self.rows, self.at, party=self.party, weight=self.weight)


@dataclass
class Run:
    """What came of a simulation: when each job ended, and every batch that stepped."""

    ended: dict[str, float]
    batches: list[tuple[float, tuple[str, ...], int]]
    samples: dict[str, Sample]

    def latency(self, name: str) -> float:
        return self.ended[name] - self.samples[name].arrived

    def mean(self) -> float:
        return statistics.mean(self.latency(name) for name in self.ended)


def learnt(curve: Curve, arrivals: list[Arrival]) -> CostModel:
    """Every row count of every size measured."""
    cost = CostModel()
    for side in {a.side for a in arrivals}:
        key = BatchKey("m", side, side)
        cost.load({size_name(key): {str(rows): curve(key, rows) for rows in range(1, 17)}})
    return cost


def simulate(arrivals: list[Arrival], curve: Curve, cancel: dict[str, float] | None = None, exact: bool = False, known: bool = False) -> Run:
    """Drive the real Scheduler and CostModel in virtual time until everything has ended."""
    cost = learnt(curve, arrivals) if known else CostModel()
    scheduler, now = Scheduler(cost, max_rows=16, exact=exact), 0.0
    samples = {str(i): a.sample(str(i)) for i, a in enumerate(arrivals)}
    waiting, run = sorted(samples.values(), key=lambda s: s.arrived), Run({}, [], samples)
    cancels = dict(cancel or {})
    while waiting or len(scheduler):
        if not len(scheduler):
            now = max(now, waiting[0].arrived)
        while waiting and waiting[0].arrived <= now:
            scheduler.add(waiting.pop(0))
        for name in [n for n, at in cancels.items() if at <= now]:
            del cancels[name]
            if scheduler.cancel(name):
                run.ended[name] = now
        batch = scheduler.schedule(now)
        if batch is None:
            continue
        now = _step(scheduler, batch, curve, now, run)
    return run


def _step(scheduler: Scheduler, batch: Batch, curve: Curve, now: float, run: Run) -> float:
    for sample in batch.samples:
        sample.state = "prepared"
    seconds = curve(batch.key, batch.rows)
    run.batches.append((now, tuple(s.id for s in batch.samples), batch.rows))
    for sample in scheduler.settle(batch, seconds):
        assert sample.id not in run.ended, "a job ended twice"
        run.ended[sample.id] = now + seconds
    return now + seconds


arrival = st.builds(Arrival, st.floats(0, 5), st.sampled_from([128, 256, 384]), st.integers(1, 50), st.sampled_from([1, 2]))
curves = st.sampled_from(sorted(CURVES))


@settings(max_examples=60, deadline=None)
@given(st.lists(arrival, min_size=1, max_size=25), curves, st.booleans())
def test_every_job_ends_once_and_caps_are_kept(arrivals: list[Arrival], curve: str, exact: bool) -> None:
    run = simulate(arrivals, CURVES[curve], exact=exact)
    assert set(run.ended) == set(run.samples)
    for _, members, rows in run.batches:
        assert rows <= 16
        assert len({run.samples[m].key for m in members}) == 1
        assert not exact or len(members) == 1
    steps = {name: sum(name in members for _, members, _ in run.batches) for name in run.samples}
    assert steps == {name: sample.steps for name, sample in run.samples.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(arrival, min_size=2, max_size=25), curves)
def test_nobody_starves(arrivals: list[Arrival], curve: str) -> None:
    """Whatever arrives: from remaining / AGEING seconds of waiting on, only what was in line by then can still go before."""
    run = simulate(arrivals, CURVES[curve], known=True)
    dearest = max(CURVES[curve](s.key, 16) for s in run.samples.values())
    for name, sample in run.samples.items():
        own = sample.steps * CURVES[curve](sample.key, sample.rows)
        senior = sample.arrived + own / AGEING
        in_line = sum(s.steps * CURVES[curve](s.key, s.rows) for s in run.samples.values() if s.arrived <= senior)
        assert run.ended[name] <= senior + 2 * in_line / (1 - AGEING) + own + dearest


@settings(max_examples=40, deadline=None)
@given(st.lists(arrival, min_size=2, max_size=15), st.dictionaries(st.integers(0, 14).map(str), st.floats(0, 6), max_size=8), curves)
def test_a_cancelled_job_never_steps_again(arrivals: list[Arrival], cancel: dict[str, float], curve: str) -> None:
    run = simulate(arrivals, CURVES[curve], cancel)
    assert set(run.ended) == set(run.samples)
    for start, members, _ in run.batches:
        assert all(start < run.ended[member] for member in members)


def test_a_batch_grows_where_it_gains_and_only_there() -> None:
    jobs = [Arrival(0, 256, 20, 2) for _ in range(8)]
    assert max(len(m) for _, m, _ in simulate(jobs, flat, known=True).batches) == 8
    assert max(len(m) for _, m, _ in simulate(jobs, knee, known=True).batches) == 3
    assert max(len(m) for _, m, _ in simulate(jobs, linear, known=True).batches) == 1


def test_what_gains_is_found_without_being_told() -> None:
    jobs = [Arrival(0, 256, 50, 2) for _ in range(8)]
    alone = simulate(jobs, linear)
    together = simulate(jobs, flat)
    assert sum(len(m) > 1 for _, m, _ in alone.batches) < 0.1 * len(alone.batches)
    assert statistics.mean(len(m) for _, m, _ in together.batches) > 4


def test_short_jobs_pass_long_ones_where_batching_gains_nothing() -> None:
    run = simulate([Arrival(0, 256, 50, 2), Arrival(0.01, 256, 10, 2)], linear, known=True)
    assert run.ended["1"] < run.ended["0"]


def test_a_long_job_gets_its_turn_under_a_flood_of_short_ones() -> None:
    step = linear(BatchKey("m", 256, 256), 2)
    flood = [Arrival(i * 10 * step, 256, 10, 2) for i in range(400)]
    run = simulate([Arrival(0, 256, 50, 2), *flood], linear, known=True)
    assert run.ended["0"] < 50 * step / AGEING + 60 * step


def test_a_blocked_size_does_not_block_another() -> None:
    run = simulate([Arrival(0, 384, 50, 2)] * 4 + [Arrival(0.01, 128, 10, 1)], linear, known=True)
    assert run.ended["4"] == min(run.ended.values())


def test_at_most_one_newcomer_joins_a_step() -> None:
    cost = CostModel()
    scheduler = Scheduler(cost)
    key = BatchKey("m", 128, 128)
    cost.load({size_name(key): {str(rows): 0.01 for rows in range(1, 17)}})
    for i in range(5):
        scheduler.add(Sample(str(i), Params("m", "p"), key, 10, 2, 0.0))
    sizes = []
    for turn in range(5):
        batch = scheduler.schedule(0.1)
        assert batch is not None
        assert sum(not s.prepared for s in batch.samples) <= 1
        for sample in batch.samples:
            sample.state = "prepared"
        scheduler.settle(batch, 0.01)
        sizes.append(len(batch.samples))
        assert turn + 1 == sizes[-1]


def test_mean_latency_is_well_below_first_come_first_served() -> None:
    rng, at, arrivals = random.Random(5), 0.0, []
    work = [(rng.choice([256, 384]), rng.choice([10, 20, 30, 50]), rng.choice([1, 2])) for _ in range(400)]
    seconds = [steps * linear(BatchKey("m", side, side), rows) for side, steps, rows in work]
    for side, steps, rows in work:
        at += rng.expovariate(0.8 / statistics.mean(seconds))
        arrivals.append(Arrival(at, side, steps, rows))
    free, waits = 0.0, []
    for a, s in zip(arrivals, seconds, strict=True):
        free = max(free, a.at) + s
        waits.append(free - a.at)
    assert simulate(arrivals, linear, known=True).mean() <= 0.7 * statistics.mean(waits)


STEP = linear(BatchKey("m", 256, 256), 2)


def given_to(run: Run, party: str, until: float) -> float:
    """Seconds of machine time that a party got by then, each batch's split by rows."""
    seconds = 0.0
    for (start, members, rows), (end, *_) in itertools.pairwise([*run.batches, (max(run.ended.values()), (), 0)]):
        if start < until:
            seconds += (end - start) * sum(run.samples[m].rows for m in members if run.samples[m].party == party) / rows
    return seconds


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_a_flood_of_one_party_holds_up_anothers_job_by_about_a_job(curve: str) -> None:
    flood = [Arrival(0, 256, 30, 2, "flood") for _ in range(60)]
    run = simulate([*flood, Arrival(2.0, 256, 30, 2, "one")], CURVES[curve], known=True)
    job = 30 * CURVES[curve](BatchKey("m", 256, 256), max(rows for _, _, rows in run.batches))
    assert run.latency("60") <= 2.1 * job  # its own, and what ran when it came


@pytest.mark.parametrize("curve", sorted(CURVES))
@pytest.mark.parametrize("weight", [1.0, 2.0, 0.25])
def test_flooding_parties_get_time_by_weight(curve: str, weight: float) -> None:
    run = simulate([Arrival(0, 256, 20, 2, party, w) for _ in range(60) for party, w in (("a", weight), ("b", 1.0))], CURVES[curve], known=True)
    until = min(max(run.ended[name] for name in run.ended if run.samples[name].party == party) for party in "ab")
    job = 20 * CURVES[curve](BatchKey("m", 256, 256), 16)
    assert given_to(run, "a", until) == pytest.approx(weight * given_to(run, "b", until), rel=0.1, abs=2 * job * max(1.0, weight))


def test_a_short_job_of_another_party_passes_a_long_one() -> None:
    run = simulate([Arrival(0, 256, 50, 2, "long"), Arrival(0.01, 256, 10, 2, "short")], linear, known=True)
    assert run.latency("1") < 11 * STEP + 0.01


def test_a_stream_of_new_parties_does_not_starve_an_old_one() -> None:
    stream = [Arrival(i * 10 * STEP, 256, 10, 2, f"new {i}") for i in range(1500)]
    run = simulate([Arrival(0, 256, 50, 2, "old"), *stream], linear, known=True)
    assert run.latency("0") < 60 * STEP / AGEING


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(arrival, st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 4.0])), min_size=1, max_size=25), curves)
def test_with_any_parties_every_job_ends_once(arrivals: list[tuple[Arrival, str, float]], curve: str) -> None:
    run = simulate([replace(a, party=party, weight=weight) for a, party, weight in arrivals], CURVES[curve])
    assert set(run.ended) == set(run.samples)


def test_leaving_for_a_moment_earns_nothing_and_nobody_is_kept_for_ever() -> None:
    scheduler, key = Scheduler(CostModel(), exact=True), BatchKey("m", 256, 256)

    def come(name: str, party: str, steps: int = 10) -> None:
        scheduler.add(Sample(name, Params("m", "p"), key, steps, 1, 0.0, party=party))

    come("a", "greedy")
    come("b", "modest", steps=1000)
    for _ in range(10):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.settle(batch, 1.0)
    assert {s.id for s in scheduler.samples()} == {"b"}
    come("a again", "greedy")
    come("c", "fresh", steps=11)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert batch.samples[0].id == "c"
    for i in range(100):  # parties that come and go leave nothing behind
        come(f"d{i}", f"passing {i}")
        scheduler.cancel(f"d{i}")
    assert set(scheduler._parties) == {"greedy", "modest", "fresh"}


@pytest.mark.parametrize("module", ["scheduler", "cost", "sample", "messages", "forecast"])
def test_the_scheduler_imports_no_torch(module: str) -> None:
    code = f"import sys, darkroom.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Lockstep:
    """The real scheduler and the plain one, each with Samples and costs of its own, told and asked the same."""

    def __init__(self, exact: bool, seed: int):
        self.real, self.plain = Scheduler(CostModel(), 12, exact), PlainScheduler(CostModel(), 12, exact)
        self.random, self.now, self.come = random.Random(seed), 0.0, 0

    def add(self, arrival: Arrival, model: str, after: float) -> None:
        self.now += after
        for scheduler in (self.real, self.plain):
            sample = replace(arrival, at=self.now).sample(str(self.come))
            scheduler.add(replace(sample, key=replace(sample.key, model=model)))
        self.come += 1

    def cancel(self, name: str) -> None:
        self.real.cancel(name)
        self.plain.cancel(name)

    def step(self, curve: Curve) -> None:
        """Schedule, prepare, then settle; now and then one cannot be prepared or the pass fails, as in the engine."""
        batches = self.real.schedule(self.now), self.plain.schedule(self.now)
        names, plainly = ([s.id for s in batch.samples] if batch else [] for batch in batches)
        assert names == plainly
        seconds = self.random.uniform(0.8, 1.2) * curve(batches[0].key, batches[0].rows) if batches[0] else 1.0
        luck = self.random.random()
        for scheduler, batch in zip((self.real, self.plain), batches, strict=True):
            if batch and luck > 0.1:
                self.carry_out(scheduler, batch, seconds, unfit=luck < 0.15, fails=0.15 < luck < 0.3)
        self.now += seconds

    @staticmethod
    def carry_out(scheduler: Scheduler | PlainScheduler, batch: Batch, seconds: float, unfit: bool, fails: bool) -> None:
        new = [s for s in batch.samples if not s.prepared]
        for sample in new:
            sample.state = None if unfit else "prepared"
            if unfit:
                scheduler.cancel(sample.id)
        batch = Batch(tuple(s for s in batch.samples if s.prepared))
        if fails:
            for sample in batch.samples:
                sample.alone = True
        elif batch.samples:
            scheduler.settle(batch, seconds)


job = st.builds(
    Arrival, st.just(0.0), st.sampled_from([128, 256]), st.integers(1, 12), st.sampled_from([1, 2]), st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 3.0])
)
comes = st.tuples(st.just("come"), job, st.sampled_from("mmn"), st.sampled_from([0.0, 0.0, 0.1, 10.0]))
goes = st.tuples(st.just("go"), st.integers(0, 30).map(str))
stepped = st.tuples(st.just("step"), st.integers(1, 5))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(comes, comes, comes, goes, stepped), min_size=20, max_size=80), curves, st.booleans(), st.integers(0, 999))
def test_lines_choose_as_sorting_all_would(news: list, curve: str, exact: bool, seed: int) -> None:
    both = Lockstep(exact, seed)
    for what, *of in news:
        if what == "come":
            both.add(*of)
        elif what == "go":
            both.cancel(*of)
        else:
            for _ in range(*of):
                both.step(CURVES[curve])
    while len(both.real):
        both.step(CURVES[curve])
    assert not both.plain.here


class Effort:
    """What the scheduler did: ids compared (the last word between Samples that came together), Samples looked at, costs asked for."""

    def __init__(self) -> None:
        self.compared = self.looked = self.asked = 0

    def id(self, i: int) -> str:
        effort = self

        class Id(str):
            def __lt__(self, other: str) -> bool:
                effort.compared += 1
                return str.__lt__(self, other)

        return Id(i)

    def sample(self, sample: Sample) -> Sample:
        effort = self

        class Watched(Sample):
            def __getattribute__(self, name: str) -> object:
                effort.looked += 1
                return super().__getattribute__(name)

        return Watched(**vars(sample))

    def cost(self) -> CostModel:
        effort = self

        class Asked(CostModel):
            def step_seconds(self, key: BatchKey, rows: int) -> float:
                effort.asked += 1
                return super().step_seconds(key, rows)

        return Asked()


def effort_of_steps(count: int, turns: int = 50) -> Effort:
    """With so many jobs, of 36 kinds, that came together."""
    effort = Effort()
    scheduler = Scheduler(effort.cost())
    for i in range(count):
        sample = Arrival(0.0, (128, 256, 384)[i % 3], (10, 20)[i // 3 % 2], 1 + i // 6 % 2, "abc"[i // 12 % 3]).sample("")
        scheduler.add(effort.sample(replace(sample, id=effort.id(i))))
    scheduler.schedule(0.0)  # which has all of them to put in line
    effort.compared = effort.looked = effort.asked = 0
    for turn in range(turns):
        batch = scheduler.schedule(0.01 * turn)
        assert batch is not None
        for sample in batch.samples:
            sample.state = "prepared"
        scheduler.settle(batch, 0.01)
        scheduler.cancel(str(count - 1 - turn))
    return effort


def test_a_step_takes_no_longer_because_more_jobs_wait() -> None:
    few, many = effort_of_steps(500), effort_of_steps(10_000)
    assert 0 < many.compared <= 3 * few.compared  # the search for a place in a line grows with the line's logarithm
    assert 0 < many.looked <= 1.1 * few.looked
    assert 0 < many.asked <= 1.1 * few.asked
    assert many.asked <= 50 * (6 + 2 * 16)

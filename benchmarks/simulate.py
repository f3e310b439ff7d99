"""`python benchmarks/simulate.py`: the real Scheduler in virtual time, beside other ways to serve. Prints Markdown tables.

Nets are stood in for by curves: seconds of a pass by size and rows, and of a decode. Jobs arrive by Poisson at a load, the share of
the capacity that a curve has where every job runs in the best batch of its own kind. Nothing else takes time: no text encoding, no
HTTP. `--plots FOLDER` also draws the tables as SVG (needs matplotlib: the extra `bench`).
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from darkroom.engine.cost import CostModel
from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.scheduler import Scheduler
from darkroom.types import Params

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
SHORT_LOADS = (0.5, 0.8, 1.1)
MAX_ROWS = 16
BATCH = MAX_ROWS // 2  # pictures of a static batch: MLPerf's 8
TIMER = 3.0  # seconds: sdxl_batcher_time_limit of MLPerf's closed/NVIDIA for one GPU
MLPERF_RATE, MLPERF_CAPACITY = 1.97, 2.04  # samples a second and GPU, Server and Offline, v4.1, 8 x H100
MLPERF_P50, MLPERF_P99 = 8.4, 16.8  # their latencies at that rate


class Kind(NamedTuple):
    """What a static batch must have in common."""

    side: int
    steps: int
    rows: int


@dataclass(frozen=True)
class Job:
    at: float
    kind: Kind
    party: str = ""


class Curve:
    """Seconds of a pass by side and rows, on straight lines between measured points; nothing is learnt (a `Costs` of the Scheduler)."""

    def __init__(self, name: str, source: str, points: Mapping[int, Mapping[int, float]], decode: Mapping[int, float]):
        self.name, self.source, self._decode = name, source, decode
        self._steps = {side: [_on_lines(by, rows) for rows in range(MAX_ROWS + 1)] for side, by in points.items()}

    def step_seconds(self, key: BatchKey, rows: int) -> float:
        return self._steps[key.height][rows]

    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Let it be."""

    def seconds(self, side: int, rows: int) -> float:
        return self._steps[side][rows]

    def decode_seconds(self, side: int) -> float:
        return self._decode[side]

    def job_seconds(self, kind: Kind, together: int) -> float:
        """Of a batch of so many equal jobs, from its first step to its last picture."""
        return kind.steps * self.seconds(kind.side, together * kind.rows) + together * self.decode_seconds(kind.side)

    def capacity(self, kinds: Sequence[Kind]) -> float:
        """Jobs a second, where each runs in the best batch of its kind."""
        return 1 / statistics.mean(min(self.job_seconds(kind, n) / n for n in range(1, BATCH + 1)) for kind in kinds)


def _on_lines(points: Mapping[int, float], rows: int) -> float:
    """Between two points; before the first on along the line of the first two, but no less than half of it (one row of a measured
    two); past the last in proportion, since no gain is known there."""
    known = sorted(points)
    if rows > known[-1]:
        return points[known[-1]] * rows / known[-1]
    i = max(1, bisect.bisect_left(known, rows))
    left, right = known[i - 1], known[i]
    value = points[left] + (points[right] - points[left]) * (rows - left) / (right - left)
    return max(value, points[known[0]] / 2)


SDUSS = "sduss (MiRaCLeXeoN/sduss, exp/profile; arXiv 2501.09253), H100, guidance on; 50 steps assumed; decode 127 ms at 1024x1024 (HF, sdxl-tensorrt)"
H100_DECODE = {side: 0.127 * (side / 1024) ** 2 for side in (512, 768, 1024)}


def sduss(name: str, points: Mapping[int, Mapping[int, float]]) -> Curve:
    """From seconds of a whole denoising by pictures in the batch."""
    return Curve(name, SDUSS, {side: {2 * n: seconds / 50 for n, seconds in by.items()} for side, by in points.items()}, H100_DECODE)


def machine(costs: Mapping[str, Mapping[str, float]], model: str, source: str) -> Curve:
    """From a costs.json that a server has written."""
    sizes = {int(name.rsplit(" ", 1)[1]): by for name, by in costs.items() if name.split(" ")[0] == model}
    points = {side: {int(rows): seconds for rows, seconds in by.items() if rows != "decode"} for side, by in sizes.items()}
    whole = {side for side, by in points.items() if len(by) > 1 and "decode" in sizes[side]}
    return Curve("2 CPU cores, " + model, source, {side: points[side] for side in whole}, {side: sizes[side]["decode"] for side in whole})


# Least of 9 steps each of the running code, fp32, 2 cores (AMD EPYC, AVX-512).
MEASURED = {
    "demo-xl 256 256": {"1": 0.0131, "2": 0.017, "4": 0.024, "8": 0.0411, "16": 0.0667, "decode": 0.0224},
    "demo-xl 384 384": {"1": 0.0171, "2": 0.0248, "4": 0.0398, "8": 0.07, "16": 0.1499, "decode": 0.0333},
    "demo-xl 512 512": {"1": 0.0238, "2": 0.037, "4": 0.0648, "8": 0.14, "16": 0.2666, "decode": 0.061},
}
CPU = machine(MEASURED, "demo-xl", "measured with the running code, least of 9 steps")
SDXL = sduss("H100, SDXL", {
    512: {1: 2.03, 3: 2.40, 6: 3.45, 8: 4.0, 12: 5.05},  # middles of the published ranges
    768: {2: 2.5, 4: 3.5, 6: 4.65},
    1024: {2: 3.32, 4: 5.01},
})  # fmt: skip
SD35 = sduss("H100, SD 3.5 medium", {512: {2: 2.84, 3: 3.4, 4: 3.85, 8: 6.21, 12: 8.9}, 1024: {1: 4.2, 2: 6.7, 3: 9.05, 4: 11.7}})


MLPERF = Kind(1024, 20, 2)


def scaled(name: str, curve: Curve) -> Curve:
    """The shape of a curve at 1024x1024, with MLPerf's Offline rate as its capacity."""
    scale = curve.capacity([MLPERF]) / MLPERF_CAPACITY
    return Curve(name, curve.source, {1024: {rows: scale * curve.seconds(1024, rows) for rows in range(1, MAX_ROWS + 1)}}, {1024: scale * H100_DECODE[1024]})


# How the measured system's time grows with its batch was not published. sduss has points for 2 and 4 pictures (its 5 were slower by
# the picture than 4), so the first shape gains nothing past 4; the second goes on along the line of the two up to 8.
SHAPES = [
    scaled("capacity reached with 4 pictures in flight", SDXL),
    scaled("capacity reached with 8", sduss("", {1024: {2: 3.32, 4: 5.01, 8: 8.39}})),
]


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


@dataclass
class Run:
    """Seconds from arrival to picture of each job, in order of the pictures, and when the last came."""

    latencies: list[float] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    end: float = 0.0

    @property
    def mean(self) -> float:
        return statistics.mean(self.latencies)

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return len(self.jobs) / self.end

    def percentile(self, p: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, math.ceil(p / 100 * len(self.latencies)) - 1)]


def simulate(server: Server, jobs: Sequence[Job]) -> Run:
    """All jobs to their pictures, in virtual time."""
    run, now, come = Run(), 0.0, 0
    while len(run.jobs) < len(jobs):
        while come < len(jobs) and jobs[come].at <= now:
            server.add(jobs[come])
            come += 1
        turn = server.work(now)
        if turn is None:
            now = min(server.wakes(), jobs[come].at if come < len(jobs) else math.inf)
            continue
        now += turn.seconds
        run.jobs += turn.done
        run.latencies += [now - job.at for job in turn.done]
    run.end = now
    return run


def poisson(kinds: Sequence[Kind], rate: float, count: int, seed: int) -> list[Job]:
    """So many jobs a second in the mean, of these kinds in equal parts."""
    rng, at, jobs = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        jobs.append(Job(at, rng.choice(kinds)))
    return jobs


def mixed(*sides: int) -> list[Kind]:
    return [Kind(side, steps, rows) for side in sides for steps in (10, 20, 30, 50) for rows in (1, 2)]


class Work(NamedTuple):
    name: str
    curve: Curve
    kinds: Sequence[Kind]


def all_work(cpu: Curve) -> list[Work]:
    equal = [(cpu, 256), (SDXL, 512), (SDXL, 768), (SDXL, 1024), (SD35, 512), (SD35, 1024)]
    return [
        *(Work(f"{curve.name}, {side}x{side}, 30 steps, cfg on", curve, [Kind(side, 30, 2)]) for curve, side in equal),
        Work(f"{cpu.name}, mixed (256 to 512 px, 10 to 50 steps, cfg on and off)", cpu, mixed(256, 384, 512)),
        Work(f"{SDXL.name}, mixed (512 to 1024 px, 10 to 50 steps, cfg on and off)", SDXL, mixed(512, 768, 1024)),
        Work(f"{SD35.name}, mixed (512 and 1024 px, 10 to 50 steps, cfg on and off)", SD35, mixed(512, 1024)),
    ]


Curves = dict[str, dict[float, Run]]  # by server and load


def over_loads(work: Work, loads: Sequence[float], count: int) -> Curves:
    rate = work.curve.capacity(work.kinds)
    jobs = {load: poisson(work.kinds, load * rate, count, seed=7) for load in loads}
    return {name: {load: simulate(make(work.curve), jobs[load]) for load in loads} for name, make in SERVERS.items()}


def table(work: Work, runs: Curves) -> str:
    """Mean, p50, p95 and p99 in seconds and pictures a second; below, our mean against static batches."""
    lines = [f"### {work.name}", "", f"Capacity {work.curve.capacity(work.kinds):.2f} pictures a second. Source: {work.curve.source}.", ""]
    lines += ["| load | served by | mean s | p50 s | p95 s | p99 s | pictures a second | mean, of static batch 8 |", "|---|---|---|---|---|---|---|---|"]
    for load in runs["ours"]:
        static = runs["static batch 8"][load].mean
        for name, by in runs.items():
            run = by[load]
            numbers = " | ".join(f"{value:.2f}" for value in (run.mean, *map(run.percentile, (50, 95, 99)), run.throughput, run.mean / static))
            lines.append(f"| {load} | {name} | {numbers} |")
    return "\n".join(lines) + "\n"


def mlperf_table(curve: Curve, count: int, seeds: int) -> str:
    """At MLPerf's Server load for one H100."""
    lines = [f"### MLPerf's Server load, {curve.name}", ""]
    lines += [f"{MLPERF_RATE} a second of {MLPERF_CAPACITY}, 1024x1024, 20 steps, guidance on: medians of {seeds} seeds of {count:,} jobs.", ""]
    lines += ["| served by | mean s | p50 s | p95 s | p99 s | p50 by seed |", "|---|---|---|---|---|---|"]
    for name, make in SERVERS.items():
        if name == "one at a time":
            continue  # about 1 a second: the line only grows
        runs = [simulate(make(curve), poisson([MLPERF], MLPERF_RATE, count, seed)) for seed in range(seeds)]
        values = [[run.mean, *map(run.percentile, (50, 95, 99))] for run in runs]
        medians = " | ".join(f"{statistics.median(column):.2f}" for column in zip(*values, strict=True))
        lines.append(f"| {name} | {medians} | {', '.join(f'{row[1]:.2f}' for row in values)} |")
    lines.append(f"| 8 x H100, published (p50, p99) |  | {MLPERF_P50} |  | {MLPERF_P99} |  |")
    return "\n".join(lines) + "\n"


def overhead(queued: int, turns: int) -> list[float]:
    """Milliseconds of schedule and settle a step, with so many mixed jobs of 5 parties queued and a CostModel that learns."""
    rng, cost, now = random.Random(1), CostModel(), 0.0
    scheduler, names = Scheduler(cost), iter(range(queued + 100 * turns))
    for side in (256, 384, 512):
        for rows in range(1, MAX_ROWS + 1):
            cost.observe_step(BatchKey("m", side, side), rows, CPU.seconds(side, rows))

    def come() -> None:
        side = rng.choice((256, 384, 512))
        key = BatchKey("m", side, side)
        scheduler.add(Sample(str(next(names)), NOTHING, key, rng.randint(10, 50), rng.randint(1, 2), now, party=rng.choice("abcde")))

    for _ in range(queued):
        come()
    spent = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        batch = scheduler.schedule(now)
        middle = time.perf_counter()
        assert batch is not None
        for sample in batch.samples:
            sample.state = True
        seconds = CPU.step_seconds(batch.key, batch.rows) * rng.uniform(0.9, 1.1)
        now += seconds
        again = time.perf_counter()
        done = scheduler.settle(batch, seconds)
        spent.append((time.perf_counter() - again + middle - start) * 1000)
        for _ in done:
            come()
    return spent[1:]  # the first puts all that wait in line


def overhead_table(turns: int) -> str:
    lines = ["### The scheduler's own time a step", "", "| jobs queued | median ms | p99 ms |", "|---|---|---|"]
    for queued in (10, 1000, 10_000):
        spent = overhead(queued, turns)
        lines.append(f"| {queued:,} | {statistics.median(spent):.2f} | {statistics.quantiles(spent, n=100)[-1]:.2f} |")
    return "\n".join(lines) + "\n"


OURS, OTHERS = {"linewidth": 2.2, "zorder": 3}, {"linewidth": 1.2}


def plot(folder: Path, file: str, panels: Sequence[tuple[Work, Curves]]) -> None:
    """Mean latency over load, a panel for each work."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "darkroom", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    rows = math.ceil(len(panels) / 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(13, 3.6 * rows + 0.7), squeeze=False)
    for axis, (work, runs) in zip(axes.flat, panels, strict=True):
        for (name, by), style in zip(runs.items(), ("o-", "v:", "s--", "^-.", "D--"), strict=True):
            axis.plot(list(by), [run.mean for run in by.values()], style, label=name, markersize=4, **(OURS if name == "ours" else OTHERS))
        axis.set(yscale="log", xlabel="load (share of capacity)", ylabel="mean latency (s)")
        axis.set_title(work.name.split(" (")[0].replace(", 30 steps, cfg on", ""), fontsize=10)
        axis.grid(True, which="major", alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(SERVERS), frameon=False)
    figure.tight_layout(rect=(0, 0.9 / figure.get_figheight() * 0.5, 1, 1))
    figure.savefig(folder / file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "overhead", "mlperf", "loads"], help="which tables")
    parser.add_argument("--short", action="store_true", help="few jobs and loads: a minute in all")
    parser.add_argument("--jobs", type=int, default=2000, help="of each run over loads")
    parser.add_argument("--costs", type=Path, help="a costs.json that a server has written, for this machine's curve")
    parser.add_argument("--model", default="demo-xl", help="whose costs in it")
    parser.add_argument("--plots", type=Path, help="a folder for the SVG plots")
    args = parser.parse_args()
    cpu = machine(json.loads(args.costs.read_text()), args.model, "its costs.json") if args.costs else CPU
    if args.what in ("all", "overhead"):
        print(overhead_table(200 if args.short else 2000))
    if args.what in ("all", "mlperf"):
        for curve in SHAPES:
            print(mlperf_table(curve, *((5000, 3) if args.short else (100_000, 5))))
    if args.what in ("all", "loads"):
        works = all_work(cpu)
        done = [(work, over_loads(work, *((SHORT_LOADS, 300) if args.short else (LOADS, args.jobs)))) for work in works]
        for work, runs in done:
            print(table(work, runs))
        if args.plots:
            plot(args.plots, "equal.svg", [(work, runs) for work, runs in done if len(work.kinds) == 1])
            plot(args.plots, "mixed.svg", [(work, runs) for work, runs in done if len(work.kinds) > 1])


if __name__ == "__main__":
    main()

"""`python benchmarks/simulate.py`: the real Scheduler in virtual time, beside other ways to serve. Prints Markdown tables.

Nets are stood in for by curves: seconds of a pass by size and rows, and of a decode. Jobs arrive by Poisson at a load, the share of
the capacity that a curve has where every job runs in the best batch of its own kind. Nothing else takes time: no text encoding, no
HTTP. `--plots FOLDER` also draws the tables as SVG (needs matplotlib: the extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from curves import CPU, MAX_ROWS, MLPERF, MLPERF_CAPACITY, SD35, SDXL, SHAPES, Curve, Kind, machine
from servers import NOTHING, SERVERS, Job, Server

from darkroom.engine.cost import CostModel
from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.scheduler import Scheduler

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
SHORT_LOADS = (0.5, 0.8, 1.1)
MLPERF_RATE = 1.97  # samples a second and GPU, Server, v4.1, 8 x H100
MLPERF_P50, MLPERF_P99 = 8.4, 16.8  # their latencies at that rate


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
        cost.load({f"m {side} {side}": {str(rows): CPU.seconds(side, rows) for rows in range(1, MAX_ROWS + 1)}})

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

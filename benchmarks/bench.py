"""Our server against its peers, on the same checkpoints, in one run: `make bench`, and with --full `make bench-full`.

Prints Markdown. Peers take turns round by round; docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import checkpoints
import loads
import machine
import outside
import peers
import report

EAGER, COMPILED, GENAI, PLAIN, OURS, SDCPP = "diffusers", "diffusers, compiled", "OpenVINO GenAI", "plain server", "darkroom", "stable-diffusion.cpp"
CALLS = {EAGER: "eager", COMPILED: "compiled", GENAI: "genai", SDCPP: "sdcpp"}
ALL = [OURS, PLAIN, EAGER, COMPILED, GENAI]
MIXED_SIDES = (256, 384)


@dataclass(frozen=True)
class Work:
    """A checkpoint and what is asked of it: sides and steps of one client's pictures, in how many rounds, and who draws."""

    model: str
    sides: tuple[int, ...]
    names: list[str]
    steps: int = 30
    rounds: int = 5
    warm: int = 2  # calls that are not counted, the first of which has the picture that is compared
    closed: int = 0  # pictures of each of 8 clients at 256 px
    poisson: tuple[float, ...] = ()
    seconds: float = 60  # for which jobs arrive in each round of such a load
    load_rounds: int = 2


QUICK = [
    Work("demo-xl", (256, 512), [OURS, PLAIN, EAGER, GENAI], closed=2, poisson=(0.8,), seconds=40),  # for all of it to keep to 20 minutes
    Work("demo-3.5", (512,), [OURS, EAGER, GENAI], rounds=3),
    Work("half-xl", (512,), [OURS, EAGER, GENAI], steps=3, rounds=2, warm=1),
]
FULL = [
    Work("demo-xl", (256, 512, 768), ALL, closed=4, poisson=(0.5, 0.8, 1.1)),
    Work("demo-3.5", (256, 512, 768), ALL, closed=4, poisson=(0.5, 0.8, 1.1)),
    Work("half-xl", (256, 512), ALL, steps=3, rounds=3, warm=1),
]
TINY = [
    Work("demo-xl", (256,), ALL, steps=10, rounds=2, closed=1, poisson=(0.8,), seconds=10, load_rounds=1),
    Work("demo-3.5", (256,), [OURS, EAGER, GENAI], steps=10, rounds=2),
    Work("half-xl", (128,), [OURS, EAGER, GENAI], steps=1, rounds=1, warm=1),
]


@dataclass
class Bench:
    """One run: where its files lie, how it is asked, and the figures by which goals are judged."""

    folder: Path  # checkpoints and conversions
    scratch: Path  # all else, fresh in every run
    threads: int
    flags: list[str]
    gemm: list[dict[str, float]] = field(default_factory=list)
    goals: list[list[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.scratch / "errors.txt"

    def peak(self, who: str) -> float:
        """The best rate of the run, FLOP/s."""
        return max(rates[who] for rates in self.gemm)

    def start(self, name: str, model: str) -> peers.Peer:
        folder = checkpoints.at(model, self.folder)
        if name == OURS:
            return peers.ours(folder, self.scratch / f"data-{model}", self.threads, self.flags, self.log)
        if name == PLAIN:
            return peers.plain(folder, self.threads, self.log)
        own = {GENAI: self.converted, SDCPP: lambda model: checkpoints.single_file(folder)}.get(name)
        return peers.call(name, CALLS[name], own(model) if own else folder, self.threads, self.log)

    def converted(self, model: str) -> Path:
        target = self.folder / f"genai-{model}"
        if not (target / "vae_decoder").exists() or not any(target.glob("[ut]*/openvino_model.bin")):
            command = [sys.executable, "-W", "ignore", str(peers.HERE / "genai.py"), str(checkpoints.at(model, self.folder)), str(target)]
            with self.log.open("a") as errors:
                subprocess.run(command, check=True, stdout=errors, stderr=errors)
        return target

    def goal(self, name: str, what: str, bound: float, value: float, least: bool = False) -> None:
        reached = value >= bound if least else value <= bound
        self.goals.append([name, what, f"{'at least' if least else 'at most'} {bound:g}", f"{value:.3g}", "yes" if reached else "**no**"])

    def measure(self, work: Work) -> None:
        running = [self.start(name, work.model) for name in work.names]
        try:
            for side in work.sides:
                self.one_client(work, running, side)
            if work.closed:
                self.closed_loop(work, [peer for peer in running if peer.name in (OURS, PLAIN, GENAI)])
            for load in work.poisson:
                self.poisson(work, [peer for peer in running if peer.name in (OURS, PLAIN)], load)
            report.table(f"{work.model}: peak memory", ["", "MB of the process tree"], [[peer.name, f"{peers.peak(peer):.0f}"] for peer in running])
        finally:
            peers.stop(running)

    def one_client(self, work: Work, running: list[peers.Peer], side: int) -> None:
        same = loads.body(side, work.steps) | {"picture": True}
        first = {peer.name: peer.ask(picture_for(peer, same)) for peer in running}
        loads.one_client(running, side, work.steps, work.warm - 1)
        before = machine.gemm_rates(self.threads)
        found = loads.one_client(running, side, work.steps, work.rounds)
        self.gemm += [before, machine.gemm_rates(self.threads)]
        reference = statistics.median(found[EAGER])
        rows = []
        for name, seconds in found.items():
            row = [name, report.spread(seconds), f"{statistics.median(seconds) / reference:.2f}", f"{report.psnr(first[name].png, first[EAGER].png):.1f}"]
            rows.append([*row, f"{first[name].seconds:.1f}", *self.flops(work, side, statistics.median(seconds))])
        head = ["", "s", "ratio to diffusers", "PSNR dB", "first call s", "GFLOP/s", "of torch.mm", "of OpenVINO's product"]
        report.table(f"{work.model}, one client, {side}x{side}, {work.steps} steps, cfg 7 ({work.rounds} rounds)", head[: len(rows[0])], rows)
        if OURS in found:
            self.judge_one_client(work, side, found)

    def flops(self, work: Work, side: int, seconds: float) -> list[str]:
        """Of the denoiser's two rows a step over all of a picture's time, so a little less than it reaches."""
        folder = checkpoints.at(work.model, self.folder)
        if not (folder / "unet").exists():
            return []
        rate = 2 * work.steps * machine.unet_flops(folder, side) / seconds
        return [f"{rate / 1e9:.0f}", f"{rate / self.peak(machine.TORCH):.0%}", f"{rate / self.peak(machine.ONEDNN):.0%}"]

    def judge_one_client(self, work: Work, side: int, found: dict[str, list[float]]) -> None:
        middle = {name: statistics.median(seconds) for name, seconds in found.items()}
        if side != 512:
            return
        if work.model in ("demo-xl", "half-xl"):
            self.goal("P1", f"{work.model}: time over diffusers'", 0.80 if work.model == "demo-xl" else 0.85, middle[OURS] / middle[EAGER])
            self.goal("P3", f"{work.model}: time over OpenVINO GenAI's", 1.05, middle[OURS] / middle[GENAI])
        if work.model == "half-xl":
            rate = 2 * work.steps * machine.unet_flops(checkpoints.at(work.model, self.folder), side) / middle[OURS]
            for who in (machine.TORCH, machine.ONEDNN):
                self.goal("P5", f"half-xl: FLOP/s over {who}", 0.75, rate / self.peak(who), least=True)

    def closed_loop(self, work: Work, running: list[peers.Peer]) -> None:
        loads.closed_loop(running[:1], 256, 10, 8, 1, 1)  # the first batches of a size
        found = loads.closed_loop(running, 256, work.steps, 8, work.closed, work.load_rounds)
        report.of_runs(f"{work.model}, 8 clients in a closed loop, 256x256, {work.steps} steps, cfg 7 ({work.load_rounds} rounds of {8 * work.closed})", found)
        server = next(peer for peer in running if peer.name == OURS)
        alone = report.spread(server.first_preview(loads.body(256, work.steps)) for _ in range(5))
        with loads.ThreadPoolExecutor(8) as pool:
            crowd = report.spread(pool.map(server.first_preview, [loads.body(256, work.steps) for _ in range(16)]))
        report.table(f"{work.model}: seconds to darkroom's first preview", ["alone", "8 clients"], [[alone, crowd]])
        if work.model == "demo-xl":
            rates = {name: report.middle(runs, lambda run: run.a_minute) for name, runs in found.items()}
            self.goal("P2", "demo-xl, 8 clients: throughput over the plain server's", 1.4, rates[OURS] / rates[PLAIN], least=True)
            self.goal("P3", "demo-xl, 8 clients: throughput over OpenVINO GenAI's", 1, rates[OURS] / rates[GENAI], least=True)

    def poisson(self, work: Work, running: list[peers.Peer], load: float) -> None:
        server = next(peer for peer in running if peer.name == PLAIN)
        for peer in running:
            loads.mean_cost(peer, MIXED_SIDES)  # the first of each size and cfg
        cost = loads.mean_cost(server, MIXED_SIDES)
        found = loads.poisson(running, MIXED_SIDES, work.seconds, load, cost, work.load_rounds)
        numbers = ", ".join(str(len(run.latencies)) for run in found[PLAIN])
        title = f"{work.model}, mixed jobs arriving by Poisson for {work.seconds:g} s at {load} of the plain server's capacity ({numbers} jobs)"
        report.of_runs(title, found, {"p95 of 10 steps s": report.p95_of_tens})
        if work.model == "demo-xl" and load == 0.8:
            for what, figure, bound in (("mean latency", report.mean, 0.4), ("p95 of the 10-step jobs", report.p95_of_tens, 0.25)):
                value = report.middle(found[OURS], figure) / report.middle(found[PLAIN], figure)
                self.goal("P2", f"demo-xl, Poisson at 0.8: {what} over the plain server's", bound, value)

    def starts(self, times: int) -> None:
        found = machine.starts(checkpoints.at("demo-xl", self.folder), self.scratch, self.threads, self.flags, self.log, times)
        gateway, picture = [start.gateway for start in found], [start.picture for start in found]
        rows = [["/healthz answers", report.spread(gateway)], ["first picture, 256x256, 10 steps", report.spread(picture)]]
        report.table(f"Start with a data folder that is there ({times} times)", ["", "s"], rows)
        self.goal("P6", "s to the gateway's answer", 1, statistics.median(gateway))
        self.goal("P6", "s to the first picture", 5, statistics.median(picture))

    def outside_nets(self) -> None:
        found = {side: outside.measure(self.folder, side, self.threads) for side in outside.SIDES}
        rows = [[f"{side}x{side}, {what}", f"{1000 * seconds:.2f}", f"{1000 * rest:.2f}", f"{rest / seconds:.1%}"]
                for side, one in found.items()
                for what, seconds, rest in (("a step", one.step, one.step_outside), ("a picture, by step", one.picture, one.picture_outside))]  # fmt: skip
        report.table("demo-xl in process, one client: what the engine takes outside the nets", ["", "ms", "ms outside", "part"], rows)
        for side, one in found.items():
            self.goal("P7", f"demo-xl {side}x{side}: part of a step outside the nets", 0.02, one.step_outside / one.step)

    def full_size(self, steps: tuple[int, int] = (1, 3)) -> None:
        """One peer after the other, for the memory; the difference of two pictures leaves text and VAE out."""
        seconds, memory, rows = {}, {}, []
        for name in (SDCPP, EAGER, OURS):
            peer = self.start(name, "full-xl")
            try:
                peer.ask(loads.body(512, steps[0]))
                few, more = (peer.ask(loads.body(512, number)).seconds for number in steps)
                seconds[name], memory[name] = (more - few) / (steps[1] - steps[0]), peers.peak(peer)
            finally:
                peers.stop([peer])
            self.gemm.append(machine.gemm_rates(self.threads))
            rate = 2 * machine.unet_flops(checkpoints.at("full-xl", self.folder), 512) / seconds[name]
            rows.append([name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds[SDCPP]:.2f}", f"{rate / 1e9:.0f}", f"{memory[name]:.0f}"])
        report.table("full-xl, 512x512, cfg 7", ["", "s a step", "ratio to stable-diffusion.cpp", "GFLOP/s", "peak MB"], rows)
        self.goal("P4", "full-xl: s a step over stable-diffusion.cpp's", 0.7, seconds[OURS] / seconds[SDCPP])


def picture_for(peer: peers.Peer, body: dict) -> dict:
    """Only calls have to be told that the picture is wanted."""
    return body if isinstance(peer, peers.Call) else {field: value for field, value in body.items() if field != "picture"}


def numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(",") if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes and loads, and SDXL at full size; hours")
    parser.add_argument("--tiny", action="store_true", help="a few small pictures, to see that all of it runs")
    parser.add_argument("--only", default="", help="models, starts, outside, with commas between; all where absent")
    parser.add_argument("--sides", type=numbers(int), help="pixels, with commas between, in place of those of the plan")
    parser.add_argument("--loads", type=numbers(float), help="of Poisson, as parts of the plain server's capacity, likewise")
    parser.add_argument("--rounds", type=int, help="likewise, of pictures and of loads")
    parser.add_argument("--seconds", type=float, help="likewise, for which jobs arrive in each round of a load of Poisson")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every peer")
    parser.add_argument("--flags", default="", help="further flags of `darkroom serve`")
    parser.add_argument("--folder", type=Path, help="where checkpoints and conversions are kept; a folder that is deleted afterwards where absent")
    options = parser.parse_args()
    plan = FULL if options.full else TINY if options.tiny else QUICK
    changes: dict[str, Any] = {"sides": options.sides, "rounds": options.rounds, "poisson": options.loads, "load_rounds": options.rounds}
    changes |= {"seconds": options.seconds}
    changes = {name: value for name, value in changes.items() if value is not None}
    wanted = options.only.split(",") if options.only else ["demo-xl", "demo-3.5", "half-xl", "full-xl", "starts", "outside"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench, began = Bench(folder, Path(temporary), options.threads, shlex.split(options.flags)), time.perf_counter()
        for work in plan:
            if work.model in wanted:
                bench.measure(replace(work, **changes))
        if "starts" in wanted:
            bench.starts(1 if options.tiny else 3)
        if "outside" in wanted:
            bench.outside_nets()
        if options.full and "full-xl" in wanted:
            bench.full_size()
        if bench.gemm:
            rows = [[who, report.spread((rates[who] / 1e9 for rates in bench.gemm), 0)] for who in bench.gemm[0]]
            report.table("fp32 products of 3072 x 3072 in this run; the greatest counts as the peak", ["", "GFLOP/s"], rows)
        report.table("Goals", ["", "what", "bound", "measured", "reached"], sorted(bench.goals))
        print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes with {options.threads} threads.")


if __name__ == "__main__":
    main()

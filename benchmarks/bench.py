"""Our server against diffusers in a loop and against a plain FastAPI server, same checkpoint, same run: `make bench`.

Prints Markdown tables of ratios. All seeds are distinct, and the pictures of the peers are compared (PSNR), so that
nobody wins by doing less. Peers take turns, round by round; medians are reported.
"""

from __future__ import annotations

import argparse
import io
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from darkroom.models.catalogue import resolve

PROMPTS = ["a red apple on a blue background", "a cat", "a large green star on a white background", "a house and a tree on a yellow background"]
FOLDER = str(resolve("demo-xl", Path(tempfile.gettempdir())).path)


@dataclass
class Peer:
    """A running server, how to reach it, and the process whose tree's memory counts."""

    name: str
    url: str
    process: subprocess.Popen
    headers: dict[str, str]

    def ask(self, body: dict) -> tuple[float, bytes]:
        """Seconds and the PNG of one request."""
        start = time.perf_counter()
        reply = httpx.post(f"{self.url}/v1/images/generate", json=body, headers=self.headers, timeout=3600)
        reply.raise_for_status()
        return time.perf_counter() - start, reply.content

    def peak_megabytes(self) -> float:
        """The high-water marks of the process and its children, added."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False).stdout
        pids = [self.process.pid, *map(int, children.split())]
        lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
        return sum(int(line.split()[1]) for line in lines) / 1024


def body(i: int, steps: int = 30, side: int = 256, cfg: float = 7.0) -> dict:
    return {"prompt": PROMPTS[i % len(PROMPTS)], "steps": steps, "width": side, "height": side, "cfg_scale": cfg, "seed": 1000 + i}


def start_ours(data_dir: str) -> Peer:
    command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", "0", "--data-dir", data_dir, "--model", "demo-xl", "--max-queue", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    values = dict(process.stdout.readline().strip().split("=", 1) for _ in range(3))
    return Peer("darkroom", values["SERVICE_ID"], process, {"Authorization": f"Bearer {values['API_KEY']}"})


def start_plain() -> Peer:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("plain_server.py")), FOLDER, str(port)], stderr=subprocess.DEVNULL)
    peer = Peer("plain server", f"http://127.0.0.1:{port}", process, {})
    for _ in range(600):
        try:
            httpx.get(f"{peer.url}/openapi.json")
            return peer
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the plain server did not start")


def bare_pipeline() -> Callable[[dict], float]:
    """diffusers called in a loop, in a process of its own as the servers are."""
    code = (
        "import sys, json, time, torch\nfrom diffusers import StableDiffusionXLPipeline\n"
        f"pipe = StableDiffusionXLPipeline.from_pretrained({FOLDER!r}, dtype=torch.float32, add_watermarker=False)\n"
        "pipe.set_progress_bar_config(disable=True)\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n    b = json.loads(line); start = time.perf_counter()\n"
        "    pipe(b['prompt'], num_inference_steps=b['steps'], width=b['width'], height=b['height'], guidance_scale=b['cfg_scale'],\n"
        "         generator=torch.Generator().manual_seed(b['seed']))\n    print(time.perf_counter() - start, flush=True)\n"
    )
    import json

    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    stdout.readline()

    def ask(body: dict) -> float:
        stdin.write(json.dumps(body) + "\n")
        stdin.flush()
        return float(stdout.readline())

    return ask


def one_client(ours: Peer, plain: Peer, rounds: int, side: int) -> None:
    bare = bare_pipeline()
    work = {"darkroom": lambda b: ours.ask(b)[0], "plain server": lambda b: plain.ask(b)[0], "bare pipeline": bare}
    times: dict[str, list[float]] = {name: [] for name in work}
    for ask in work.values():
        ask(body(0, side=side))
    for i in range(rounds):
        for name, ask in work.items():
            times[name].append(ask(body(i + 1, side=side)))
    reference = statistics.median(times["bare pipeline"])
    print(f"\n### One client, {side}x{side}, 30 steps, cfg 7 ({rounds} rounds)\n")
    print("| | median s | min s | max s | ratio to the bare pipeline |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {middle / reference:.2f} |", flush=True)


def closed_loop(ours: Peer, plain: Peer, clients: int, each: int, side: int) -> None:
    print(f"\n### {clients} clients in a closed loop, {side}x{side}, 30 steps, cfg 7\n")
    print("| | pictures a minute | mean s | ratio of throughput |\n|---|---|---|---|")
    rates = {}
    for peer in (plain, ours):
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(chain.from_iterable(pool.map(lambda c, p=peer: client(p, 100 + c * each, each, side), range(clients))))
        rates[peer.name] = 60 * clients * each / (time.perf_counter() - start)
        ratio = rates[peer.name] / rates["plain server"]
        print(f"| {peer.name} | {rates[peer.name]:.1f} | {statistics.mean(seconds):.2f} | {ratio:.2f} |", flush=True)


def client(peer: Peer, first: int, count: int, side: int) -> list[float]:
    """One client of a closed loop: asks again as soon as it is answered. Latencies in order."""
    return [peer.ask(body(first + i, side=side))[0] for i in range(count)]


def poisson(ours: Peer, plain: Peer, count: int, load: float) -> None:
    rng = random.Random(7)
    jobs = [body(1000 + i, rng.choice([10, 20, 30, 50]), rng.choice([256, 384]), rng.choice([1.0, 7.0])) for i in range(count)]
    costs = {(s, d, c): plain.ask(body(5, s, d, c))[0] for s in (10,) for d in (256, 384) for c in (1.0, 7.0)}
    mean = statistics.mean(costs[10, j["width"], j["cfg_scale"]] * j["steps"] / 10 for j in jobs)
    gaps = [rng.expovariate(load / mean) for _ in jobs]
    print(f"\n### {count} jobs arriving by Poisson at {load} of the plain server's capacity\n")
    print("256 and 384 px, 10 to 50 steps, cfg on and off, all seeds distinct.\n")
    print("| | mean s | p95 s | p95 of 10-step jobs s | pictures a minute | peak MB |\n|---|---|---|---|---|---|")
    rows = {}
    for peer in (plain, ours):
        rows[peer.name] = figures(*arrive(peer, jobs, gaps), jobs)
        print(f"| {peer.name} | " + " | ".join(f"{value:.2f}" for value in rows[peer.name]) + f" | {peer.peak_megabytes():.0f} |", flush=True)
    ratios = [a / b for a, b in zip(rows["darkroom"], rows["plain server"], strict=True)]
    print("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " | |", flush=True)


def arrive(peer: Peer, jobs: list[dict], gaps: list[float]) -> tuple[list[float], float]:
    """Send each job at its instant; latencies in order, and the seconds in all."""
    latencies = [0.0] * len(jobs)

    def send(i: int) -> None:
        latencies[i] = peer.ask(jobs[i])[0]

    threads, start = [], time.perf_counter()
    for i, gap in enumerate(gaps):
        time.sleep(gap)
        threads.append(threading.Thread(target=send, args=(i,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return latencies, time.perf_counter() - start


def figures(latencies: list[float], seconds: float, jobs: list[dict]) -> list[float]:
    tens = [t for t, j in zip(latencies, jobs, strict=True) if j["steps"] == 10]
    return [statistics.mean(latencies), float(np.quantile(latencies, 0.95)), float(np.quantile(tens, 0.95)), 60 * len(jobs) / seconds]


def same_pictures(ours: Peer, plain: Peer) -> None:
    a, b = (np.asarray(Image.open(io.BytesIO(peer.ask(body(3, steps=10))[1]))).astype(float) for peer in (ours, plain))
    error = np.mean((a - b) ** 2)
    print(f"\nPictures of both servers agree to {10 * np.log10(255**2 / error) if error else float('inf'):.1f} dB PSNR.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=3, help="pictures of each client in the closed loop")
    parser.add_argument("--jobs", type=int, default=120)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        plain, ours = start_plain(), start_ours(data_dir)
        try:
            same_pictures(ours, plain)
            one_client(ours, plain, options.rounds, options.side)
            closed_loop(ours, plain, 8, options.each, options.side)
            poisson(ours, plain, options.jobs, 0.8)
        finally:
            for peer in (plain, ours):
                peer.process.terminate()
                peer.process.wait()


if __name__ == "__main__":
    main()

"""`python benchmarks/jobs.py`: what the job layer adds to a request, and how many jobs it takes in a second.

The added latency is that of a whole request over HTTP less what the engine took for its picture and for the wait before it
(X-Inference-Ms, X-Queue-Ms), beside the same figure of `GET /healthz`, which has no job.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from ready import until_settled

COUNT = 100
BODY = {"prompt": "a red apple on a blue background", "steps": 10, "width": 128, "height": 128, "cfg_scale": 1}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", "0", "--model", "demo-xl", "--max-queue", "4000", "--data-dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(3)]
        base, key = (re.findall(r"=(\S+)", line)[0] for line in lines[:2])
        try:
            until_settled(base)
            measure(base, base.rpartition("/")[0], {"Authorization": f"Bearer {key}", "Cache-Control": "no-cache"}, Path(folder))
        finally:
            server.kill()


def measure(base: str, host: str, headers: dict[str, str], folder: Path) -> None:
    session = requests.Session()
    session.headers.update(headers)

    def post(**more: str) -> tuple[float, requests.Response]:
        began = time.perf_counter()
        reply = session.post(f"{base}/v1/images/generate", json=BODY, headers=more, timeout=120)
        return (time.perf_counter() - began) * 1000, reply

    for _ in range(20):
        post()
    bare = statistics.median(timed(lambda: session.get(f"{host}/healthz", timeout=10)) for _ in range(COUNT))
    added = []
    for _ in range(COUNT):
        ms, reply = post()
        assert reply.status_code == 200, reply.text
        added.append(ms - int(reply.headers["X-Inference-Ms"]) - int(reply.headers["X-Queue-Ms"]))
    print(f"GET /healthz {bare:.1f} ms; a picture's request less queue and inference: median {statistics.median(added):.1f} ms, "
          f"p95 {statistics.quantiles(added, n=20)[-1]:.1f} ms ({COUNT} requests)")  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        began = time.perf_counter()
        codes = list(pool.map(lambda i: post(Prefer="respond-async")[1].status_code, range(1000)))
        seconds = time.perf_counter() - began
    print(f"jobs accepted: {codes.count(202) / seconds:.0f} a second (8 clients, {len(codes)} jobs, {codes.count(202)} taken, the engine at work beside)")


def timed(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()

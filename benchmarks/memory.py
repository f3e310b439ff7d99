"""`python benchmarks/memory.py`: loads by memory map cold and warm, the memory of one demo served and of both, the time to switch models.

Linux only: memory is read from /proc, and a cold load asks the kernel to forget the files' pages first.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from ready import until_settled

ROUNDS = 5
DEMO = Path(__file__).parent.parent / "src" / "darkroom" / "demo"
LOAD = """
import sys, time
import torch, diffusers, transformers
from darkroom.engine.load import load_family
from darkroom.models.cards import card_at
from pathlib import Path
card = card_at(Path(sys.argv[1]))
began = time.perf_counter()
load_family(card, "cpu", sys.argv[2])
print(time.perf_counter() - began, [line.split()[1] for line in open("/proc/self/io") if line.startswith("read_bytes")][0])
"""


def load_seconds(folder: Path, dtype: str, cold: bool) -> tuple[float, int]:
    """Seconds of one load in a fresh process, its imports done, and the bytes that it read from the disk."""
    if cold:
        for file in folder.rglob("*.safetensors"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    out = subprocess.run([sys.executable, "-c", LOAD, str(folder), dtype], capture_output=True, text=True, check=True)
    seconds, read = out.stdout.split()
    return float(seconds), int(read)


def serve(data: str, *flags: str) -> tuple[subprocess.Popen, str, str]:
    """A server and its two values."""
    command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", "0", "--data-dir", data, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    return process, *(line.strip().split("=", 1)[1] for line in lines[:2])


def draw(base: str, key: str, model: str, seed: int) -> float:
    """Seconds of a picture of 256 x 256 and 10 steps."""
    body = {"model": model, "prompt": "a cat", "steps": 10, "width": 256, "height": 256, "seed": seed}
    began = time.perf_counter()
    requests.post(f"{base}/v1/images/generate", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=300).raise_for_status()
    return time.perf_counter() - began


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process and its children, in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
    return own / 1024 + sum(peak_mb(int(child)) for child in children)


def served(models: list[str], *flags: str) -> tuple[float, dict[str, float]]:
    """Peak memory in MB after pictures of every model in turn, and the median seconds of each model's pictures."""
    with tempfile.TemporaryDirectory() as data:
        process, base, key = serve(data, "--model", ",".join(models), *flags)
        for i, model in enumerate(models):
            draw(base, key, model, 1000 + i)
        until_settled(base)
        times: dict[str, list[float]] = {model: [] for model in models}
        for i in range(ROUNDS):
            for model in models:
                times[model].append(draw(base, key, model, i + 1))
        peak = peak_mb(process.pid)
        process.terminate()
        process.wait(60)
    return peak, {model: statistics.median(found) for model, found in times.items()}


def main() -> None:
    """Print the tables."""
    print("| load | cold, s | read, MB | warm, s | files, MB |\n|---|---|---|---|---|")
    folders = [Path(name) for name in sys.argv[1:]] or [DEMO / "demo-xl", DEMO / "demo-3.5"]
    for folder in folders:
        for dtype in ("float32", "float16"):
            load_seconds(folder, dtype, cold=False)  # configs and libraries come into the page cache
            cold, warm = ([load_seconds(folder, dtype, cold=c) for _ in range(ROUNDS)] for c in (True, False))
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
            seconds = [statistics.median(s for s, _ in found) for found in (cold, warm)]
            print(f"| {folder.name}, {dtype} | {seconds[0]:.2f} | {statistics.median(r for _, r in cold) / 1e6:.0f} | {seconds[1]:.2f} | {size:.0f} |")
    print("\n| served | peak, MB | median s of a picture |\n|---|---|---|")
    names = ["demo-xl", "demo-3.5"]
    for models, flags in ([names[:1], []], [names[1:], []], [names, []], [names, ["--memory-budget", "0.07"]]):
        peak, times = served(models, *flags)
        print(f"| {' and '.join(models)} {' '.join(flags)} | {peak:.0f} | {', '.join(f'{m} {s:.2f}' for m, s in times.items())} |", flush=True)


if __name__ == "__main__":
    main()

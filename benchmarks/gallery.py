"""`python benchmarks/gallery.py`: the gallery of a service with 100,000 pictures, over HTTP: first page, a page far down, search.

The rows are real and stand for no files: what is timed is the look for them.
"""

from __future__ import annotations

import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

COUNT = 100_000
ROUNDS = 9
THINGS = ("puppy dog", "cat", "apple", "tree", "house", "heart", "car", "rocket", "panda", "fox", "owl", "crown", "cloud", "pizza")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "pink", "gray")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", "0", "--model", "demo-xl", "--no-preload", "--data-dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert server.stdout is not None
        block = ""
        while "Documentation" not in block:
            block += server.stdout.readline()
        try:
            base, service = re.findall(r"SERVICE_ID=(\S+)/(\S+)", block)[0]
            fill(Path(folder) / "darkroom.sqlite", service)
            measure(base, service, re.findall(r"#link=(\S+)", block)[0])
        finally:
            server.kill()


def fill(path: Path, service: str) -> None:
    """A job and a picture COUNT times, a second apart."""
    rng, now = random.Random(1), time.time()
    with sqlite3.connect(path) as rows:
        key = rows.execute("select public_id from api_keys").fetchone()[0]
        for i in range(COUNT):
            prompt, at = f"a {rng.choice(THINGS)} on a {rng.choice(COLOURS)} background {'with a needle' if i == 77 else ''}", now - i
            parameters = f'{{"prompt": "{prompt}", "steps": 30, "cfg_scale": 7.0, "width": 512, "height": 512}}'
            job = (f"job-{i}", service, key, "finished", "demo-xl", parameters, at)
            rows.execute("insert into jobs (id, service_id, key_id, status, model, parameters, created_at) values (?,?,?,?,?,?,?)", job)
            picture = (f"pic-{i}", f"job-{i}", service, f"aa/{i}.png", 512, 512, 400_000, "0" * 64, parameters, at, "demo-xl", key, i, prompt)
            rows.execute(
                "insert into pictures (id, job_id, service_id, key, width, height, bytes, sha256, parameters, created_at, model, key_id, seed, words) "
                "values (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", picture,
            )  # fmt: skip


def measure(base: str, service: str, link: str) -> None:
    person = requests.Session()
    assert person.post(f"{base}/console/sign-in", json={"link": link}, timeout=30).status_code == 200

    def page(name: str, query: str, least: int) -> str:
        times, reply = [], {}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            reply = person.get(f"{base}/console/pictures?service_id={service}&limit=60{query}", timeout=60).json()
            times.append((time.perf_counter() - began) * 1000)
        assert len(reply["data"]) >= least, reply
        print(f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} | {len(reply['data'])} |", flush=True)
        return reply["next"] or ""

    print(f"| {COUNT} pictures | median ms | max ms | found |\n|---|---|---|---|")
    following = page("first page of 60", "", 60)
    page("the page after it", f"&before={following}", 60)
    page("search for two words that are common", "&prompt=panda blue", 60)
    page("search for a word that one prompt has", "&prompt=needle", 1)
    page("search for words that none has", "&prompt=walrus", 0)
    page("search by seed", "&seed=99999", 1)


if __name__ == "__main__":
    main()

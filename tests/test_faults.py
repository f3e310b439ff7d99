"""Jobs survive what kills processes, fills disks and holds databases. Real processes, killed for real."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from PIL import Image

from tests.conftest import Server, start
from tests.http.sse import told
from tests.http.test_generate import errors, pixels
from tests.http.test_jobs import LATER, LONG, cancel, get, running
from tests.http.test_replies import ended
from tests.store.conftest import new_database, postgres

__all__ = ["postgres"]
COUNT = 200
QUICK = {"prompt": "a red apple on a blue background", "steps": 10, "width": 128, "height": 128, "cfg_scale": 1}


def rows(data_dir: Path, query: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / 'darkroom.sqlite'}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def worker_of(server: Server) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return next((child for child in psutil.Process(server.process.pid).children() if "darkroom.worker.child" in child.cmdline()), None)
    return None


class Life:
    """A server that is killed and started again on the same port and folder; `headers` and `host` stay the same."""

    def __init__(self, data_dir: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data_dir = data_dir
        self.server = self.begin()
        self.headers, self.host = self.server.headers(), self.server.host

    def begin(self) -> Server:
        return start(self.data_dir, "--port", str(self.port), "--model", "demo-xl")

    def again(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self.server = self.begin()

    def submit(self, i: int) -> str:
        """One job, however often it must be asked for; the key makes sure that it is one."""
        for _ in range(120):
            with contextlib.suppress(requests.RequestException, ValueError):
                headers = self.headers | LATER | {"Idempotency-Key": f"job-{i}"}
                reply = requests.post(f"{self.host}/v1/images/generate", json=QUICK | {"seed": i + 1}, headers=headers, timeout=10)
                if reply.status_code == 202:
                    return reply.json()["id"]
            time.sleep(0.25)
        raise AssertionError(f"job {i} was never taken")


def test_no_accepted_job_is_lost_while_gateway_and_worker_are_killed(tmp_path: Path) -> None:
    rng, life = random.Random(4), Life(tmp_path / "data")
    with ThreadPoolExecutor(4) as pool:
        submitted = pool.map(life.submit, range(COUNT))
        for kind in ["worker", "gateway", "worker", "both", "gateway", "worker"]:
            time.sleep(rng.uniform(0.5, 3.0))
            worker = worker_of(life.server)
            if kind in ("worker", "both") and worker is not None:
                worker.kill()
            if kind in ("gateway", "both"):
                life.again()
        ids = list(submitted)
    assert len(set(ids)) == COUNT
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and rows(life.data_dir, "select count(*) from jobs where status in ('queued', 'running')") != [(0,)]:
        time.sleep(0.5)
    how = dict(rows(life.data_dir, "select status, count(*) from jobs group by status"))
    print("ends:", how)
    assert set(how) <= {"finished", "failed"}
    assert sum(how.values()) == COUNT
    assert how["finished"] >= 0.95 * COUNT
    assert rows(life.data_dir, "select count(*) from jobs where status = 'failed' and error is null") == [(0,)]
    assert rows(life.data_dir, "select count(*), count(distinct job_id) from pictures") == [(how["finished"],) * 2]
    assert rows(life.data_dir, "select count(*) from usage") == [(how["finished"],)]
    keys = {key for (key,) in rows(life.data_dir, "select key from pictures")}
    files = {str(file.relative_to(life.data_dir / "pictures")) for file in (life.data_dir / "pictures").rglob("*.png")}
    assert files == keys
    for i in rng.sample(range(COUNT), 5):  # the same seed gave the same picture, whoever died over it
        kept = requests.get(f"{life.host}/v1/jobs/{ids[i]}/image", headers=life.headers, timeout=30)
        if kept.status_code == 200:
            fresh = requests.post(
                f"{life.host}/v1/images/generate", json=QUICK | {"seed": i + 1}, headers=life.headers | {"Cache-Control": "no-cache"}, timeout=60
            )
            assert abs(pixels(kept) - pixels(fresh)).max() <= 2
    life.server.stop()


def test_a_server_that_ends_in_good_order_goes_on_where_it_was(tmp_path: Path) -> None:
    life = Life(tmp_path / "data")
    jobs = [life.server.generate(headers=LATER, steps=50, width=256, height=256).json()["id"] for _ in range(3)]
    star = life.server.generate(seed=7)
    jobs.append(life.server.control(star.content, headers=LATER, steps="50", seed="8").json()["id"])  # its init picture waits with it
    running(life.server, jobs[0])
    sync = ThreadPoolExecutor(1).submit(life.server.generate, **LONG)
    time.sleep(0.5)
    began = time.monotonic()
    assert life.server.stop() == 0
    assert time.monotonic() - began < 12
    assert errors(sync.result(), 503)["name"] == "shutting_down"
    assert sync.result().headers["Retry-After"] == "5"
    life.server = life.begin()
    life.server.key = life.headers["Authorization"].split()[1]
    assert [ended(life.server, job_id)["status"] for job_id in jobs] == ["finished"] * 4
    statuses = dict(rows(life.data_dir, "select status, count(*) from jobs group by status"))
    assert statuses == {"finished": 5, "failed": 1}
    ((why,),) = rows(life.data_dir, "select error from jobs where status = 'failed'")
    assert "shutting down" in why
    assert rows(life.data_dir, "select count(*) from inputs") == [(0,)]
    undisturbed = pixels(life.server.control(star.content, steps="50", seed="8"))
    assert abs(pixels(get(life.server, f"/{jobs[3]}/image")) - undisturbed).max() <= 2
    life.server.stop()


def test_a_stopped_worker_holds_up_neither_gateway_nor_its_end_and_is_replaced(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_WORKER_TIMEOUT="18")
    server.generate()
    picture = io.BytesIO()
    noise = random.Random(0).randbytes(1024 * 1024 * 3)
    Image.frombytes("RGB", (1024, 1024), noise).save(picture, "PNG", compress_level=0)
    for again in (True, False):
        worker = worker_of(server)
        assert worker is not None
        worker.suspend()
        jobs = [server.control(picture.getvalue(), headers=LATER, control_strength="0.9").json()["id"] for _ in range(3)]
        with requests.Session() as session:
            session.get(f"{server.host}/healthz", timeout=5)
            took = []
            for _ in range(20):
                began = time.monotonic()
                assert session.get(f"{server.host}/healthz", timeout=5).status_code == 200
                took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.05
        if again:
            assert _until(lambda: requests.get(f"{server.host}/readyz", timeout=5).json()["status"] == "stalled", 15)
            ready = requests.get(f"{server.host}/readyz", timeout=5)
            assert ready.status_code == 503
            assert "does not answer" in ready.json()["error"]
            assert [ended(server, job_id)["status"] for job_id in jobs] == ["finished"] * 3
            assert not worker.is_running()
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 25
    assert not worker.is_running()


def _until(what: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_ends_a_server_in_order_and_without_a_trace(tmp_path: Path, sign: signal.Signals, code: int, early: bool) -> None:
    server = start(tmp_path / "data", "--model", "demo-xl")
    worker = worker_of(server)
    if not early:  # else while its worker still imports
        server.generate()
    assert server.stop(sign) == code
    assert worker is not None
    assert not worker.is_running()
    assert not list((tmp_path / "data").glob("darkroom.sqlite-*"))
    said = server.log.read_text()
    assert "Traceback" not in said
    assert "Task was destroyed" not in said


def test_a_client_that_hung_on_a_dead_gateway_is_not_worked_for(tmp_path: Path) -> None:
    life = Life(tmp_path / "data")
    with ThreadPoolExecutor(1) as pool:
        sync = pool.submit(life.server.generate, **LONG)
        while not rows(life.data_dir, "select 1 from jobs"):
            time.sleep(0.05)
        life.again()
        with pytest.raises(requests.RequestException):
            sync.result()
    why = "the server ended while this job ran, and its client was gone"
    assert rows(life.data_dir, "select status, error_name, error from jobs") == [("failed", "shutting_down", why)]
    life.server.stop()


def test_a_job_whose_model_is_not_served_any_more_is_failed_with_the_reason(tmp_path: Path) -> None:
    server = start(tmp_path / "data", "--model", "demo-xl,demo-3.5")
    job_id = server.generate(model="demo-3.5", steps=50, width=512, height=512, headers=LATER).json()["id"]
    server.process.kill()
    server.process.wait()
    again = start(tmp_path / "data", "--model", "demo-xl")
    again.key = server.key
    assert ended(again, job_id)["error"]["name"] == "model_unavailable"
    again.stop()


def test_a_server_that_ends_tells_who_still_sends(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    address = urlsplit(server.host)
    body = b'{"prompt": "a cat"}'
    with socket.create_connection((address.hostname, address.port), timeout=30) as slow:
        head = f"POST /v1/images/generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:5])
        time.sleep(0.5)
        server.process.terminate()
        time.sleep(0.5)
        slow.sendall(body[5:])
        answer = b""
        while got := slow.recv(4096):
            answer += got
            if b"shutting_down" in answer:
                break
    assert b" 503 " in answer.split(b"\r\n")[0]
    assert b"shutting_down" in answer
    server.process.wait(30)


def test_what_is_too_old_or_too_much_is_cleared_away(tmp_path: Path) -> None:
    def begun(**bounds: str) -> Server:
        server = start(tmp_path / "data", "--model", "demo-xl", **bounds)
        server.key = key or server.key
        return server

    key = ""
    server = begun()
    key = server.key
    jobs = [server.generate(seed=i + 1, cfg_scale=1).headers["X-Job-Id"] for i in range(4)]
    sizes = dict(rows(tmp_path / "data", "select job_id, bytes from pictures"))
    server.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "darkroom.sqlite")) as connection:
        connection.execute("update jobs set created_at = created_at - 3 * 86400 where id = ?", [jobs[0]])
        connection.commit()
    room = (sizes[jobs[2]] + sizes[jobs[3]] + 100) / 1e9
    server = begun(DARKROOM_KEEP_DAYS="2", DARKROOM_KEEP_GB=f"{room:.9f}")
    for _ in range(100):
        left = [job["id"] for job in get(server, "?limit=9").json()["data"]]
        if len(left) == 2:
            break
        time.sleep(0.1)
    assert left == [jobs[3], jobs[2]]
    assert len(list((tmp_path / "data" / "pictures").rglob("*.png"))) == 2
    assert rows(tmp_path / "data", "select count(*) from usage") == [(4,)]
    server.stop()


def test_a_full_folder_for_temporary_files_is_told_and_harms_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()

    def wrapped(command: list[str]) -> list[str]:
        mount = f"mount -t tmpfs -o size=400k tmpfs {tmp_path / 'tmp'} && exec \"$@\""
        return ["unshare", "-rm", "sh", "-c", mount, "sh", *command]

    server = start(tmp_path / "data", "--model", "demo-xl", wrap=wrapped, TMPDIR=str(tmp_path / "tmp"))
    try:
        noise, picture = random.Random(0).randbytes(1024 * 1024 * 3), io.BytesIO()
        Image.frombytes("RGB", (1024, 1024), noise).save(picture, "PNG")
        answer = errors(server.control(picture.getvalue()), 503)
        assert answer["name"] == "storage_full"
        assert "No space left" in answer["errors"][0]
        pixels(server.generate())
        small = io.BytesIO()
        Image.new("RGB", (128, 128), "red").save(small, "PNG")
        pixels(server.control(small.getvalue()))
    finally:
        server.process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, Callable[[list[str]], list[str]]]:
    """A data folder whose pictures lie on a file system of 400 KB, mounted for the server alone."""
    data_dir = tmp_path / "data"
    (data_dir / "pictures").mkdir(parents=True)
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here (unshare -rm)")

    def wrapped(command: list[str]) -> list[str]:
        mount = f"mount -t tmpfs -o size=400k tmpfs {data_dir / 'pictures'} && exec \"$@\""
        return ["unshare", "-rm", "sh", "-c", mount, "sh", *command]

    return data_dir, wrapped


def test_a_full_disk_fails_its_job_with_the_reason_and_nothing_else(small_disk: Any) -> None:
    data_dir, wrapped = small_disk
    server = start(data_dir, wrap=wrapped)
    try:
        kept, full = [], None
        for i in range(40):
            reply = server.generate(seed=i + 1, width=256, height=256)
            if reply.status_code != 200:
                full = reply
                break
            kept.append(reply.headers["X-Job-Id"])
        assert kept
        assert full is not None
        assert errors(full, 503)["name"] == "storage_full"
        assert requests.get(f"{server.host}/healthz", timeout=10).status_code == 200
        job = ended(server, server.generate(width=256, height=256, headers=LATER).json()["id"])
        assert (job["status"], job["error"]["name"]) == ("failed", "storage_full")
        assert rows(data_dir, "select count(*) from usage") == [(len(kept),)]
        for job_id in kept[:2]:
            assert requests.delete(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=10).status_code == 204
        pixels(server.generate(width=256, height=256))
    finally:
        server.process.kill()


def test_a_database_that_is_held_for_5_s_delays_and_loses_nothing(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    pixels(server.generate())
    holder = sqlite3.connect(server.data_dir / "darkroom.sqlite", isolation_level=None)
    running_job = server.generate(headers=LATER, **LONG).json()["id"]
    holder.execute("begin immediate")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.generate), pool.submit(server.generate, headers=LATER), pool.submit(get, server, f"/{running_job}")]
        time.sleep(5)
        assert not asked[0].done()
        assert asked[2].result().status_code == 200  # reading goes on
        assert requests.get(f"{server.host}/healthz", timeout=5).status_code == 200
        holder.execute("rollback")
        pixels(asked[0].result())
        assert ended(server, asked[1].result().json()["id"])["status"] == "finished"
    assert ended(server, running_job)["status"] == "finished"


def test_a_slow_reader_of_events_holds_nobody_up(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    job_id = server.generate(headers=LATER, preview_every=1, steps=50, n=4).json()["id"]
    address = urlsplit(server.host)
    with socket.create_connection((address.hostname, address.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode())
        for _ in range(3):
            assert slow.recv(1)
            with requests.get(f"{server.host}/v1/jobs/{job_id}/events", headers=server.headers(), stream=True, timeout=30) as quick:
                assert next(told(quick)).event
            pixels(server.generate())
            time.sleep(1)
        assert ended(server, job_id)["status"] == "finished"


def test_a_thousand_idle_streams_are_cheap(serve: Callable[..., Server]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = serve("--model", "demo-xl", DARKROOM_KEY_CONCURRENT="1")
    jobs = [server.generate(headers=LATER, steps=50, width=1024, height=1024).json()["id"] for _ in range(21)]
    running(server, jobs[0])
    gateway, address = psutil.Process(server.process.pid), urlsplit(server.host)
    before = gateway.memory_info().rss
    streams = []
    for i in range(1000):
        stream = socket.create_connection((address.hostname, address.port), timeout=60)
        request = f"GET /v1/jobs/{jobs[1 + i % 20]}/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\n\r\n"
        stream.sendall(request.encode())
        streams.append(stream)
    for stream in streams:
        content = b""
        while b"event: queued" not in content:
            got = stream.recv(4096)
            assert got, content
            content += got
    each = gateway.memory_info().rss - before
    print(f"1000 streams: {each / 1e6:.0f} MB")
    assert each < 200e6
    assert get(server, "?limit=1").status_code == 200
    for job_id in jobs[::-1]:
        cancel(server, job_id)
    for stream in streams:
        content = b""
        while b"event: cancelled" not in content:
            got = stream.recv(65536)
            assert got, content
            content = content[-100:] + got
        stream.close()


def test_another_gateway_takes_over_what_a_dead_one_held(tmp_path: Path, postgres: Any) -> None:
    shared = {"DARKROOM_DATABASE_URL": new_database(postgres), "DARKROOM_SHARED_DIR": str(tmp_path / "shared"), "DARKROOM_LEASE_SECONDS": "3"}
    first = start(tmp_path / "one", "--model", "demo-xl", **shared)
    second = start(tmp_path / "two", "--model", "demo-xl", **shared)
    try:
        second.key = first.key  # a key is good at every gateway
        jobs = [first.generate(headers=LATER, steps=50, width=256, height=256).json()["id"] for _ in range(6)]
        running(second, jobs[0])
        first.process.kill()
        assert [ended(second, job_id)["status"] for job_id in jobs] == ["finished"] * 6
        for job_id in jobs[:2]:
            assert requests.get(f"{second.host}/v1/jobs/{job_id}/image", headers=second.headers(), timeout=30).status_code == 200
        assert {job["id"] for job in get(second, "?limit=100").json()["data"]} == set(jobs)
    finally:
        for one in (first, second):
            one.process.kill()
            one.process.wait()


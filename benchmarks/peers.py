"""Who is measured: our server, a plain server, and calls in processes of their own. All draw with the same number of threads."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from memory import peak_mb
from ready import until_settled

HERE = Path(__file__).parent
WAIT = 1800  # seconds for a start or an answer; a conversion at the first start takes minutes
# One for all, with a connection a request: to make a client takes 20 to 40 ms of the processor, which no server is to be charged with.
HTTP = httpx.Client(timeout=WAIT, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass(frozen=True)
class Answer:
    seconds: float
    png: bytes


class Peer(Protocol):
    """Somebody who draws. `ask` may be called from several threads."""

    name: str
    process: subprocess.Popen

    def ask(self, body: dict) -> Answer: ...


class Server:
    """A server over HTTP."""

    def __init__(self, name: str, process: subprocess.Popen, base: str, headers: dict[str, str]) -> None:
        self.name, self.process, self._url, self._headers = name, process, f"{base}/v1/images/generate", headers

    def ask(self, body: dict) -> Answer:
        start = time.perf_counter()
        reply = HTTP.post(self._url, json=body, headers=self._headers)
        reply.raise_for_status()
        return Answer(time.perf_counter() - start, reply.content)

    def first_preview(self, body: dict) -> float:
        """Seconds to the first preview of a stream of events, which is then read to its end."""
        start, found = time.perf_counter(), 0.0
        headers = self._headers | {"Accept": "text/event-stream"}
        with HTTP.stream("POST", self._url, json=body | {"preview_every": 1}, headers=headers) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if line == "event: preview" and not found:
                    found = time.perf_counter() - start
        assert found, "no preview came"
        return found


class Call:
    """A process that draws for one line of JSON at a time (called.py); who comes meanwhile waits at the lock."""

    def __init__(self, name: str, process: subprocess.Popen) -> None:
        self.name, self.process, self._lock = name, process, threading.Lock()

    def ask(self, body: dict) -> Answer:
        start = time.perf_counter()
        with self._lock:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(body) + "\n")
            self.process.stdin.flush()
            line = read_line(self.process, self.name)
        return Answer(time.perf_counter() - start, base64.b64decode(line))


def read_line(process: subprocess.Popen, name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended with {process.wait()}")
    return line.strip()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def spawn(command: list[str], log: Path, **more: object) -> subprocess.Popen:
    with log.open("a") as errors:
        return subprocess.Popen([sys.executable, *command], stderr=errors, text=True, **more)  # type: ignore[call-overload]


def ours(model: Path, data_dir: Path, threads: int, flags: list[str], log: Path) -> Server:
    """Our server, its two values read from what it prints, once the backend of its model is chosen."""
    command = ["-m", "darkroom.cli", "serve", "--port", "0", "--data-dir", str(data_dir), "--model", str(model), "--threads", str(threads), *flags]
    process = spawn(command, log, stdout=subprocess.PIPE)
    values = dict(read_line(process, "darkroom").split("=", 1) for _ in range(2))
    headers = {"Authorization": f"Bearer {values['API_KEY']}", "Cache-Control": "no-cache"}
    until_settled(values["SERVICE_ID"])
    return Server("darkroom", process, values["SERVICE_ID"], headers)


def plain(model: Path, threads: int, log: Path) -> Server:
    port = free_port()
    process = spawn([str(HERE / "plain_server.py"), str(model), str(port), str(threads)], log)
    until_answered(process, f"http://127.0.0.1:{port}/openapi.json")
    return Server("plain server", process, f"http://127.0.0.1:{port}", {})


def call(name: str, kind: str, folder: Path, threads: int, log: Path) -> Call:
    """A peer of called.py; its caches of compiled code lie beside the log, so each run compiles anew."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(log.parent / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [str(HERE / "called.py"), kind, str(folder), str(threads)]
    process = spawn(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    read_line(process, name)
    return Call(name, process)


def until_answered(process: subprocess.Popen, address: str) -> None:
    """Waits for a 200, asking every 20 ms."""
    for _ in range(WAIT * 50):
        try:
            if HTTP.get(address, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            if process.poll() is not None:
                raise SystemExit(f"the process behind {address} ended with {process.returncode}") from None
        time.sleep(0.02)
    raise SystemExit(f"{address} did not answer")


def stop(peers: list[Peer]) -> None:
    for peer in peers:
        peer.process.terminate()
    for peer in peers:
        peer.process.wait(60)


def peak(peer: Peer) -> float:
    """MB: the high-water marks of the peer's process and its children, added."""
    return peak_mb(peer.process.pid)

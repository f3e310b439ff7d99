"""A real server, started as an operator starts it, with the checkpoint in the box."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

SMALL = {"prompt": "a red apple on a blue background", "steps": 10, "width": 128, "height": 128}

# Files that take longest. They come first, so that no process is left with one of them when the others are through.
LONGEST = (
    "test_faults.py", "worker/test_local.py", "engine/test_graphs.py", "http/test_jobs.py", "test_cli.py", "http/test_access.py", "http/test_models.py",
    "web/test_pages.py", "http/test_bounds.py", "engine/test_parity.py", "test_readme.py", "engine/test_sigmas.py", "http/test_loras.py", "models/test_pull.py",
)  # fmt: skip

EAGER = {"DARKROOM_BACKEND": "eager"}  # for a model of a test's own, which would first be converted and measured, where this is not about graphs
IN_THE_BOX = "demo-xl", "demo-3.5"
CHOOSE = """
import sys
from pathlib import Path
from darkroom.engine.backend import Backends
from darkroom.engine.hardware import use_threads
from darkroom.engine.load import load_family
from darkroom.models.catalogue import resolve

backends = Backends("auto", Path(sys.argv[1]), 10**10, threads=use_threads(0))
for card in (resolve(name, Path("data")) for name in sys.argv[2:]):
    backends.accelerate(load_family(card, "cpu", "float32"), card)
"""

FRESH = {"Cache-Control": "no-cache"}  # tests are about pictures that are made, unless they say otherwise


@dataclass
class Server:
    """A running `darkroom serve`: the block that it printed, and how to speak to it."""

    service_id: str
    key: str
    model: str
    block: list[str]
    data_dir: Path
    log: Path
    process: subprocess.Popen = field(repr=False)

    @property
    def host(self) -> str:
        return self.service_id.rpartition("/")[0]

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self.key}"}

    def generate(self, headers: dict[str, str] | None = None, base: str | None = None, **fields: Any) -> requests.Response:
        """POST .../generate of a small picture, with other fields laid over; a field of None is left out."""
        body = {name: value for name, value in (SMALL | fields).items() if value is not None}
        return requests.post(f"{base or self.service_id}/v1/images/generate", json=body, headers=self.headers() | FRESH | (headers or {}), timeout=120)

    def control(self, image: bytes | None, headers: dict[str, str] | None = None, **fields: Any) -> requests.Response:
        """POST .../control, 10 steps; a field of None is left out."""
        data = {"prompt": "a red apple", "steps": "10"} | fields
        files: dict[str, Any] = {} if image is None else {"image": ("any.bin", image, "application/octet-stream")}
        files |= {name: (None, value) for name, value in data.items() if value is not None}
        return requests.post(f"{self.service_id}/v1/images/control", files=files, headers=self.headers() | FRESH | (headers or {}), timeout=120)

    def cli(self, *words: str) -> subprocess.CompletedProcess:
        """A command of `darkroom` on this server's data folder."""
        return cli(*words, "--data-dir", str(self.data_dir))

    def log_address(self) -> str:
        """Where the server listens, whatever it shows as its public address."""
        return re.findall(r"listening.*?url=(\S+)", self.log.read_text())[0]

    def logged(self, text: str) -> bool:
        """Whether the log says so, now or within some seconds: a line is written after its reply has left."""
        deadline = time.monotonic() + 10
        while text not in self.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        return text in self.log.read_text()

    def kill_worker(self) -> None:
        """End the process that has the nets, as a fault of a driver would."""
        words = ["pgrep", "-P", str(self.process.pid), "-f", "worker.child"]
        found = subprocess.run(words, capture_output=True, text=True, check=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sign)
        return self.process.wait(30)


def pytest_configure(config: pytest.Config) -> None:
    """Graphs of the models are made once a run of the tests and kept for the next one, whatever data folder a server has."""
    os.environ.setdefault("DARKROOM_GRAPHS_DIR", str(config.cache.mkdir("graphs")))  # type: ignore[union-attr]
    # where servers note that they run: what the tester's own server noted stays out of it
    os.environ["XDG_STATE_HOME"] = str(config.cache.mkdir("state"))  # type: ignore[union-attr]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = [Path(__file__).parent / name for name in LONGEST]
    assert all(file.exists() for file in files), LONGEST
    items.sort(key=lambda item: files.index(item.path) if item.path in files else len(files))


@pytest.fixture(scope="session", autouse=True)
def as_installed() -> None:
    """Not at the configuration: processes that run tests inherit what was set there, and they need what the others lack."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent / "as_installed"), os.environ.get("PYTHONPATH", ""))))


@pytest.fixture(scope="session", autouse=True)
def chosen_backends(as_installed: None) -> None:
    """The models in the box are converted and measured before the tests, once for all runs: no test meets a change of the
    backend unless it is about that."""
    from darkroom.engine.backend import graphs_folder, read_choice
    from darkroom.models.catalogue import resolve

    cards = [resolve(name, Path("data")) for name in IN_THE_BOX]
    root = Path(os.environ["DARKROOM_GRAPHS_DIR"])
    if any(read_choice(graphs_folder(root, card)) is None for card in cards):
        subprocess.run([sys.executable, "-c", CHOOSE, str(root), *IN_THE_BOX], check=True, timeout=600)


def cli(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "darkroom.cli", *words], capture_output=True, text=True, timeout=200, env=os.environ | environment, check=False
    )


def start(
    data_dir: Path, *flags: str, folder: Path | None = None, wrap: Callable[[list[str]], list[str]] = list, **environment: str
) -> Server:  # fmt: skip
    """Start a server (in `folder`, its command line within another's by `wrap`) and read its block; fails with its log where none comes."""
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    with log.open("w") as errors:
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", "0", "--data-dir", str(data_dir), *flags]
        process = subprocess.Popen(wrap(command), stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment, cwd=folder)
    assert process.stdout is not None
    block: list[str] = []
    for line in process.stdout:
        block.append(line.rstrip("\n"))
        if line.startswith("Documentation"):
            break
    assert len(block) > 3, log.read_text()
    values = dict(line.split("=", 1) for line in block[:3])
    return Server(values["SERVICE_ID"], values["API_KEY"], values["MODEL"], block, data_dir, log, process)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    running = start(tmp_path_factory.mktemp("data"))
    yield running
    running.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own, and ends them."""
    running: list[Server] = []

    def begin(*flags: str, data_dir: Path | None = None, folder: Path | None = None, **environment: str) -> Server:
        running.append(start(data_dir or tmp_path / "data", *flags, folder=folder, **environment))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()

"""A new model in a real worker: its first picture comes at once, its backend is chosen later."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from darkroom.engine.backend import Choice, graphs_folder, read_choice
from darkroom.settings import Settings
from darkroom.types import Finished, ModelCard, Params
from darkroom.worker.local import LocalWorker
from tests.engine.conftest import make_checkpoint, psnr

PARAMS = Params(model="tiny", prompt="a cat", steps=10, width=128, height=128, cfg=4.0, seed=3)
SECONDS = 180  # on a busy machine


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return ModelCard("tiny", "sdxl", path=str(folder), default_side=128)


@asynccontextmanager
async def new(card: ModelCard, data_dir: Path, prepare: bool = True) -> AsyncIterator[LocalWorker]:
    """A worker that knows nothing of the model yet."""
    worker = LocalWorker([card], Settings(data_dir=data_dir, graphs_dir=data_dir / "graphs"), prepare)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.close()


def choice_of(card: ModelCard, data_dir: Path) -> Choice | None:
    return read_choice(graphs_folder(data_dir / "graphs", card))


async def picture(worker: LocalWorker, name: str, params: Params = PARAMS) -> np.ndarray:
    last = [event async for event in worker.submit(name, params)][-1]
    assert isinstance(last, Finished), last
    return np.frombuffer(last.pixels, np.uint8).reshape(last.height, last.width, 3)


def children(parent: int, module: str) -> list[int]:
    """Processes that this one started to run a module of ours."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if parent_of(pid) == parent and module.encode() in command_of(pid)]


def parent_of(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


def command_of(pid: int) -> list[bytes]:
    """Empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not met():
            await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_the_first_picture_waits_for_nothing_and_later_ones_agree(
    card: ModelCard, tmp_path: Path
) -> None:
    async with new(card, tmp_path) as worker:
        first = await picture(worker, "first")
        assert choice_of(card, tmp_path) is None
        assert worker.state().preparing == ("tiny",)
        await until(lambda: not worker.state().preparing)
        choice = choice_of(card, tmp_path)
        assert choice is not None
        assert "against" in choice.why
        assert psnr(await picture(worker, "later"), first) >= 50


@pytest.mark.asyncio
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("killed", [True, False])
async def test_a_conversion_ends_with_its_worker(card: ModelCard, tmp_path: Path, killed: bool) -> None:
    async with new(card, tmp_path) as worker:
        (child,) = children(os.getpid(), "darkroom.worker.child")
        await until(lambda: children(child, "darkroom.engine.convert"))
        (conversion,) = children(child, "darkroom.engine.convert")
        if killed:
            os.kill(child, signal.SIGKILL)
        else:
            await worker.close()
        await until(lambda: not any(command_of(conversion)))
        assert choice_of(card, tmp_path) is None, "it is tried again"


@pytest.mark.asyncio
async def test_a_worker_for_one_picture_stays_with_pytorch(card: ModelCard, tmp_path: Path) -> None:
    async with new(card, tmp_path, prepare=False) as worker:
        await picture(worker, "only")
        assert worker.state().preparing == ()
        assert not (tmp_path / "graphs").exists()


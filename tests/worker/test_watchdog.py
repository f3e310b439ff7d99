"""A worker that hangs is told from one that works, and is ended. Real processes, stopped for real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from darkroom.models.catalogue import resolve
from darkroom.settings import Settings
from darkroom.types import Event, Finished, Params, Progress, Retrying
from darkroom.worker.local import LocalWorker
from darkroom.worker.watchdog import DOUBT, TICKS, Beat, Watchdog

PARAMS = Params(model="demo-xl", prompt="a cat", steps=50, width=256, height=256, cfg=1.0, seed=3)
WORKS = "while True: pass"
WAITS = "import time; time.sleep(60)"


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    one = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.5)  # its own start takes the processor
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def ticks(watchdog: Watchdog, count: int, busy: bool = True, loading: bool = False) -> None:
    for _ in range(count):
        time.sleep(0.12)
        watchdog.tick(busy, loading)


def test_a_process_that_says_nothing_and_uses_no_time_hangs() -> None:
    with process(WAITS) as one:
        watchdog = Watchdog(one.pid)
        ticks(watchdog, DOUBT + 1)
        assert watchdog.in_doubt
        assert not watchdog.hangs
        watchdog.hear("a word")
        ticks(watchdog, 1)
        assert not watchdog.in_doubt
        ticks(watchdog, TICKS + 1)
        assert watchdog.hangs


def test_a_process_that_works_may_be_silent_until_it_is_stopped() -> None:
    with process(WORKS) as one:
        watchdog = Watchdog(one.pid)
        ticks(watchdog, TICKS + 3)
        assert not watchdog.in_doubt
        one.send_signal(signal.SIGSTOP)
        ticks(watchdog, TICKS + 2)
        assert watchdog.hangs


@pytest.mark.parametrize(
    ("turns", "cpu", "busy", "loading", "hangs"),
    [
        (0, 0.0, True, False, True),  # jobs in hand, nothing done, nothing under way: its threads wait for each other
        (1, 0.0, True, False, False),  # steps
        (0, 1.0, True, False, False),  # one step that takes long
        (0, 0.0, False, False, False),  # nothing to do
        (0, 0.0, True, True, False),  # jobs wait for a model that comes from a slow disk
    ],
)
def test_a_process_that_beats_but_does_nothing_of_what_it_has_in_hand_hangs(
    turns: int, cpu: float, busy: bool, loading: bool, hangs: bool
) -> None:
    with process(WAITS) as one:
        watchdog = Watchdog(one.pid)
        for tick in range(TICKS + 2):
            watchdog.hear(Beat(turns * tick, cpu * tick))
            watchdog.tick(busy, loading)
        assert watchdog.hangs == hangs


def test_a_tick_without_a_new_beat_says_nothing_of_a_deadlock() -> None:
    with process(WAITS) as one:
        watchdog = Watchdog(one.pid)
        for tick in range(2 * TICKS + 4):
            if tick % 2 == 0:
                watchdog.hear(Beat(7, 1.0))
            watchdog.tick(True, False)
        assert watchdog.hangs


async def test_a_stopped_worker_is_told_ended_and_its_job_done_by_the_next(tmp_path: Path) -> None:
    worker = LocalWorker([resolve("demo-xl", tmp_path)], Settings(data_dir=tmp_path, worker_timeout=4.5))
    await worker.start()
    try:
        events: list[Event] = []
        stopped: psutil.Process | None = None
        async with aclosing(worker.submit("a", PARAMS)) as news:
            async for event in news:
                events.append(event)
                if isinstance(event, Progress) and stopped is None:
                    stopped = next(child for child in psutil.Process().children() if "darkroom.worker.child" in child.cmdline())
                    os.kill(stopped.pid, signal.SIGSTOP)
                    while worker.state().status != "stalled":
                        await asyncio.sleep(0.05)
                    assert "does not answer" in worker.state().error
        assert Retrying("a", 1) in events
        assert isinstance(events[-1], Finished)
        assert worker.state().status == "ready"
        assert stopped is not None
        assert not stopped.is_running()
    finally:
        await worker.close()


async def test_what_is_sent_to_a_stopped_worker_holds_up_nobody(tmp_path: Path) -> None:
    worker = LocalWorker([resolve("demo-xl", tmp_path)], Settings(data_dir=tmp_path))
    await worker.start()
    try:
        async with aclosing(worker.submit("a", replace(PARAMS, steps=10))) as news:
            assert isinstance([event async for event in news][-1], Finished)
        child = next(child for child in psutil.Process().children() if "darkroom.worker.child" in child.cmdline())
        child.suspend()
        image = bytes(2048 * 2048 * 3)
        waiting = [worker.submit(f"b{i}", replace(PARAMS, width=2048, height=2048, image=image)) for i in range(3)]
        tasks = [asyncio.ensure_future(anext(one)) for one in waiting]  # type: ignore[arg-type]
        worst = 0.0
        for _ in range(40):
            began = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - began)
        assert worst < 0.5, "the loop stood still"
        for task in tasks:
            task.cancel()
        child.kill()
    finally:
        await worker.close()

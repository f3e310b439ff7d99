"""The worker process: faults, cancellation, its end. A real child with the real demo checkpoint; it is killed for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from darkroom.models.catalogue import resolve
from darkroom.settings import Settings
from darkroom.types import FINAL, Began, Cancelled, Event, Failed, Finished, ModelCard, Params, Preview, Progress, Retrying
from darkroom.worker.local import MAX_LOAD_DEATHS, LocalWorker

SHARED = pytest.mark.asyncio(loop_scope="module")  # tests that ask no more of a worker than its settings as they are; it is a new child whenever one has died
PARAMS = Params(model="demo-xl", prompt="a cat", steps=10, width=128, height=128, cfg=1.0, seed=3)


@asynccontextmanager
async def working(data_dir: Path, card: ModelCard | None = None, **settings: object) -> AsyncIterator[LocalWorker]:
    worker = LocalWorker([card or resolve("demo-xl", data_dir)], Settings(data_dir=data_dir, **settings))
    await worker.start()
    try:
        yield worker
    finally:
        await worker.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalWorker]:
    async with working(tmp_path_factory.mktemp("data")) as one:
        yield one


async def outcome(worker: LocalWorker, name: str, params: Params = PARAMS, kill_at: int | None = None) -> Event:
    """The last event of a job; with kill_at the child is killed once the job is told to have reached that step, however often it does."""
    return (await story(worker, name, params, kill_at))[-1]


async def story(worker: LocalWorker, name: str, params: Params = PARAMS, kill_at: int | None = None, attempts: int = 0) -> list[Event]:
    """All events of a job; kill_at as in `outcome`."""
    seen: list[Event] = []
    async with aclosing(worker.submit(name, params, attempts=attempts)) as events:
        async for event in events:
            seen.append(event)
            if isinstance(event, Progress) and kill_at is not None and event.step >= kill_at:
                os.kill(child_of(worker), signal.SIGKILL)
    return seen


def child_of(worker: LocalWorker) -> int:
    process = worker._process
    assert process is not None
    return process.pid


@SHARED
async def test_jobs_end_and_progress_counts(worker: LocalWorker) -> None:
    async with aclosing(worker.submit("a", replace(PARAMS, preview_every=4))) as events:
        seen = [event async for event in events]
    steps = [event.step for event in seen if isinstance(event, Progress)]
    assert [type(event) for event in seen].index(Began) < [type(event) for event in seen].index(Progress)
    assert steps == sorted(set(steps))
    assert 1 <= len(steps) <= 10
    assert [event.step for event in seen if isinstance(event, Preview)] == [4, 8]
    assert isinstance(seen[-1], Finished)
    assert len(seen[-1].pixels) == 128 * 128 * 3
    assert worker.state().status == "ready"
    assert worker.backlog_seconds() == 0


@SHARED
async def test_a_job_that_kills_its_worker_takes_no_other_along(worker: LocalWorker) -> None:
    await outcome(worker, "warm")
    killer = outcome(worker, "killer", replace(PARAMS, steps=50), kill_at=1)
    others = [outcome(worker, f"other {i}", replace(PARAMS, seed=10 + i, steps=20)) for i in range(4)]
    ended = await asyncio.gather(killer, *others)
    assert isinstance(ended[0], Failed)
    assert ended[0].name == "worker_died"
    assert all(isinstance(event, Finished) for event in ended[1:])
    assert isinstance(await outcome(worker, "after"), Finished)


async def test_a_job_is_tried_as_often_as_the_setting_says_and_told_so(tmp_path: Path) -> None:
    async with working(tmp_path, max_attempts=3) as worker:
        seen = await story(worker, "killer", replace(PARAMS, steps=50), kill_at=1)
        turns = [event for event in seen if isinstance(event, (Began, Retrying, *FINAL))]
        assert turns[:-1] == [Began("killer"), Retrying("killer", 1), Began("killer"), Retrying("killer", 2), Began("killer")]
        assert isinstance(turns[-1], Failed)
        assert turns[-1].name == "worker_died"
        assert "died 3 times" in turns[-1].message


async def test_deaths_that_an_earlier_process_saw_count(tmp_path: Path) -> None:
    async with working(tmp_path, max_attempts=2) as worker:
        seen = await story(worker, "again", replace(PARAMS, steps=50), kill_at=1, attempts=1)
        assert isinstance(seen[-1], Failed)
        assert not any(isinstance(event, Retrying) for event in seen)
        assert isinstance((await story(worker, "well", attempts=1))[-1], Finished)
        assert [type(event) for event in await story(worker, "spent", attempts=2)] == [Failed]


@SHARED
async def test_one_who_left_does_not_keep_the_other_suspect_from_its_turn(worker: LocalWorker) -> None:
    """Both are in the nets' hands when the child dies, which was stopped before it could hear that one has left."""
    await outcome(worker, "warm")
    stays = asyncio.ensure_future(outcome(worker, "stays", replace(PARAMS, steps=50)))
    while not worker._jobs["stays"].step if "stays" in worker._jobs else True:
        await asyncio.sleep(0.005)
    async with aclosing(worker.submit("left", replace(PARAMS, steps=10))) as events:
        async for event in events:
            if isinstance(event, Progress):
                os.kill(child_of(worker), signal.SIGSTOP)
                break
    assert not stays.done()
    os.kill(child_of(worker), signal.SIGKILL)
    assert isinstance(await asyncio.wait_for(stays, 60), Finished)


@SHARED
async def test_a_worker_that_dies_once_costs_no_job(worker: LocalWorker) -> None:
    await outcome(worker, "warm")
    alone = await outcome(worker, "reference", replace(PARAMS, steps=30))
    job = asyncio.ensure_future(outcome(worker, "job", replace(PARAMS, steps=30)))
    while not worker._jobs["job"].step if "job" in worker._jobs else True:
        await asyncio.sleep(0.005)
    os.kill(child_of(worker), signal.SIGKILL)
    again = await job
    assert isinstance(alone, Finished)
    assert isinstance(again, Finished)
    assert again.pixels == alone.pixels


@SHARED
async def test_a_job_whose_client_left_is_not_tried_again(worker: LocalWorker) -> None:
    """The child is stopped first, so that it cannot hear of the cancellation before it dies."""
    await outcome(worker, "warm")
    child = child_of(worker)
    async with aclosing(worker.submit("left", replace(PARAMS, steps=50, width=512, height=512))) as events:
        async for event in events:
            if isinstance(event, Progress):
                os.kill(child, signal.SIGSTOP)
                break
    os.kill(child, signal.SIGKILL)
    assert isinstance(await outcome(worker, "next"), Finished)
    assert "left" not in worker._jobs
    assert child_of(worker) != child


async def test_jobs_wait_while_the_model_loads_and_costs_are_kept(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        assert worker.state().status == "loading"
        began = time.monotonic()
        event = await outcome(worker, "early")
        assert isinstance(event, Finished)
        assert event.queue_seconds + event.inference_seconds == pytest.approx(time.monotonic() - began, abs=0.5)
        assert event.queue_seconds > event.inference_seconds
    assert json.loads((tmp_path / "costs.json").read_text())


@SHARED
async def test_cancel_takes_effect_at_the_next_step(worker: LocalWorker) -> None:
    seen: list[Event] = []
    async with aclosing(worker.submit("a", replace(PARAMS, steps=50, width=512, height=512))) as events:
        async for event in events:
            seen.append(event)
            if isinstance(event, Progress):
                worker.cancel("a")
    assert isinstance(seen[-1], Cancelled)
    assert sum(isinstance(event, Progress) for event in seen) <= 2, "it went on"


@SHARED
async def test_leaving_the_events_cancels_the_job(worker: LocalWorker) -> None:
    async with aclosing(worker.submit("a", replace(PARAMS, steps=50, width=256, height=256))) as events:
        async for event in events:
            if isinstance(event, Progress):
                break
    assert isinstance(await outcome(worker, "b"), Finished)
    assert "a" not in worker._jobs


async def test_missing_weights_name_the_command_that_brings_them(tmp_path: Path) -> None:
    card = resolve("stable-diffusion-xl-base-1.0", tmp_path)
    async with working(tmp_path, card) as worker:
        event = await outcome(worker, "a", replace(PARAMS, model=card.name))
    assert isinstance(event, Failed)
    assert event.status == 503
    assert "darkroom models pull stable-diffusion-xl-base-1.0" in event.message


async def test_a_broken_checkpoint_is_a_clear_failure_and_not_a_loop(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    async with working(tmp_path, replace(resolve("demo-xl", tmp_path), path=str(tmp_path))) as worker:
        event = await outcome(worker, "a")
        assert isinstance(event, Failed)
        assert event.status == 503
        assert "could not be loaded" in event.message
        assert worker.state().status == "failed"


async def test_why_no_model_can_be_loaded_stands_in_the_log(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with working(tmp_path, replace(resolve("demo-xl", tmp_path), path=None)):
            assert [(line["log_level"], "are not here" in line["error"]) for line in lines] == [("error", True)]


async def test_a_worker_that_is_to_load_nothing_yet_is_ready_and_stays_so(tmp_path: Path) -> None:
    async with working(tmp_path, preload=False, load_timeout=3) as worker:
        began = time.monotonic()
        while worker.state().status != "ready":
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.05)
        child = child_of(worker)
        await asyncio.sleep(4)  # longer than a load may take
        assert worker.state().status == "ready"
        assert child_of(worker) == child


async def test_a_model_that_was_given_up_is_told_as_failed_and_tried_again_without_a_job(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        for _ in range(MAX_LOAD_DEATHS):
            while not worker.state().loading:
                await asyncio.sleep(0.005)
            child = child_of(worker)
            os.kill(child, signal.SIGKILL)
            while worker._process is not None and worker._process.pid == child:
                await asyncio.sleep(0.005)
        async with asyncio.timeout(60):
            while worker.state().status != "failed":
                await asyncio.sleep(0.05)
            assert f"ended {MAX_LOAD_DEATHS} times while it loaded the model" in worker.state().error
            while worker.state().loaded != ("demo-xl",):
                await asyncio.sleep(0.2)
        assert worker.state().status == "ready"


async def test_a_load_that_takes_too_long_is_told_as_that_and_not_as_a_death(tmp_path: Path) -> None:
    async with working(tmp_path, load_timeout=0.2) as worker:
        first = await outcome(worker, "a")
        while worker._process is not None:
            await asyncio.sleep(0.01)
        second = await outcome(worker, "b")
        for event in (first, second):
            assert isinstance(event, Failed)
            assert "was not loaded after 0.2 s" in event.message


@SHARED
async def test_a_forecast_holds_the_workers_own_jobs_and_others_after_them(worker: LocalWorker) -> None:
    kept = replace(PARAMS, control_strength=Decimal("0.9"), steps=50)  # no image: the steps follow from the strength alone
    await outcome(worker, "warm")
    async with aclosing(worker.submit("mine", replace(PARAMS, steps=50))) as events:
        async for event in events:
            if isinstance(event, Progress):
                told = worker.forecast([("next", replace(PARAMS, steps=50), "", 1.0), ("kept", kept, "other", 1.0), ("mine", PARAMS, "", 1.0)])
                break
    assert told["mine"].start == 0 < told["mine"].finish <= told["next"].finish
    assert told["kept"].finish < told["next"].finish
    assert all(one.start < one.finish for one in told.values())


async def test_who_is_stopped_while_the_child_imports_does_not_wait_for_it(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        process = worker._process
        while not worker._hears:  # its first message comes before it imports torch
            await asyncio.sleep(0.01)
    assert process is not None
    assert process.returncode == 0
    await asyncio.sleep(0.2)  # until its last message is read
    assert worker.state().device == "", "it went on until it had an engine"

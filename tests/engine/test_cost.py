"""The cost model: medians, estimates of what was not measured, and its file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from darkroom.engine.cost import HOPE, STALE, CostModel, size_name
from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.scheduler import Scheduler
from darkroom.types import Params

KEY = BatchKey("m", 256, 256)


def warm(*rows: int, key: BatchKey = KEY) -> CostModel:
    """A model that has seen the first pass of each of these row counts, which it does not learn from."""
    cost = CostModel()
    for count in rows:
        cost.observe_step(key, count, 60.0)
    return cost


@pytest.mark.parametrize("extra", [0.0, 0.3, 2.0, 60.0])
def test_slow_first_passes_do_not_switch_batching_off(extra: float) -> None:
    """Eight clients in a closed loop on a machine where 16 rows cost little more than two, whatever its first passes took."""
    cost = CostModel()
    scheduler = Scheduler(cost, 16)
    passes: Counter[int] = Counter()
    chosen: Counter[int] = Counter()
    now, made = 0.0, 0

    def add(count: int) -> None:
        nonlocal made
        for _ in range(count):
            made += 1
            sample = Sample(f"s{made}", Params("m", "p", seed=made), KEY, 30, 2, arrived=now)
            sample.state = True
            scheduler.add(sample)

    add(1)
    for turn in range(1000):
        if turn == 30:
            add(8)
        batch = scheduler.schedule(now)
        if batch is None:
            add(1)
            continue
        passes[batch.rows] += 1
        seconds = 0.05 + 0.005 * batch.rows + (extra if passes[batch.rows] == 1 else 0.0)
        now += seconds
        ended = scheduler.settle(batch, seconds)
        if turn >= 30:
            add(len(ended))
            chosen[batch.rows] += turn >= 300
    assert chosen[16] > 0.9 * chosen.total()


def test_a_hiccup_does_not_move_the_median() -> None:
    cost = warm(2)
    for seconds in (0.1, 0.1, 5.0, 0.1):
        cost.observe_step(KEY, 2, seconds)
    assert cost.step_seconds(KEY, 2) == pytest.approx(0.1)


def test_unmeasured_rows_look_a_little_better_so_that_they_are_tried() -> None:
    cost = warm(2)
    cost.observe_step(KEY, 2, 0.1)
    assert cost.step_seconds(KEY, 4) == pytest.approx(0.1 * (1 + HOPE))
    assert cost.step_seconds(KEY, 1) == pytest.approx(0.05)


def test_an_unmeasured_size_is_scaled_by_its_pixels() -> None:
    cost = warm(1)
    cost.observe_step(KEY, 1, 0.1)
    assert cost.step_seconds(BatchKey("m", 512, 512), 1) == pytest.approx(0.4)


def test_what_was_long_not_measured_is_tried_again() -> None:
    cost = warm(2, 4)
    for _ in range(9):
        cost.observe_step(KEY, 4, 9.0)
    for _ in range(STALE + 1):
        cost.observe_step(KEY, 2, 0.1)
    assert cost.step_seconds(KEY, 4) < 0.2
    for _ in range(2):
        cost.observe_step(KEY, 4, 0.15)
    assert cost.step_seconds(KEY, 4) == pytest.approx(0.15)  # what was known before it was tried again is forgotten


def test_the_table_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    cost = CostModel(path)
    for _ in range(2):
        cost.observe_step(KEY, 2, 0.25)
        cost.observe_decode(KEY, 2, 0.5)
    cost.save()
    again = CostModel(path)
    assert again.step_seconds(KEY, 2) == pytest.approx(0.25)
    assert again.decode_seconds(KEY) == pytest.approx(0.25)
    assert again.job_seconds(KEY, 2, 10) == pytest.approx(2.75)


def test_a_spoilt_table_costs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"m 256 256": [1, 2')
    assert CostModel(path).step_seconds(KEY, 1) > 0


def test_a_table_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    cost = CostModel(tmp_path / "gone" / "costs.json")
    cost.load({size_name(KEY): {"1": 0.1}})
    cost.save()
    assert cost.step_seconds(KEY, 1) == pytest.approx(0.1)


def test_a_model_that_runs_on_another_backend_is_learnt_anew() -> None:
    other = BatchKey("m two", 256, 256)
    cost = CostModel()
    for key in (KEY, other):
        for _ in range(2):
            cost.observe_step(key, 2, 1.0)
            cost.observe_decode(key, 1, 1.0)
    cost.forget("m")
    assert list(cost.table()) == [size_name(other)]
    cost.observe_step(KEY, 2, 60.0)
    assert cost.step_seconds(KEY, 2) < 60, "its first pass may hold seconds of compiling"

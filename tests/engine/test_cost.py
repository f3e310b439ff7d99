"""The cost model: medians, estimates of what was not measured, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom.engine.cost import HOPE, STALE, CostModel
from darkroom.engine.sample import BatchKey

KEY = BatchKey("m", 256, 256)


def test_a_hiccup_does_not_move_the_median() -> None:
    cost = CostModel()
    for seconds in (0.1, 0.1, 5.0, 0.1):
        cost.observe_step(KEY, 2, seconds)
    assert cost.step_seconds(KEY, 2) == pytest.approx(0.1)


def test_unmeasured_rows_look_a_little_better_so_that_they_are_tried() -> None:
    cost = CostModel()
    cost.observe_step(KEY, 2, 0.1)
    assert cost.step_seconds(KEY, 4) == pytest.approx(0.1 * (1 + HOPE))
    assert cost.step_seconds(KEY, 1) == pytest.approx(0.05)


def test_an_unmeasured_size_is_scaled_by_its_pixels() -> None:
    cost = CostModel()
    cost.observe_step(KEY, 1, 0.1)
    assert cost.step_seconds(BatchKey("m", 512, 512), 1) == pytest.approx(0.4)


def test_what_was_long_not_measured_is_tried_again() -> None:
    cost = CostModel()
    cost.observe_step(KEY, 4, 9.0)
    for _ in range(STALE + 1):
        cost.observe_step(KEY, 2, 0.1)
    assert cost.step_seconds(KEY, 4) < 0.2


def test_the_table_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    cost = CostModel(path)
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
    cost.observe_step(KEY, 1, 0.1)
    cost.save()
    assert cost.step_seconds(KEY, 1) == pytest.approx(0.1)

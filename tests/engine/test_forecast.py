"""Forecasts against what then happens, in virtual time with the same costs."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.engine.cost import CostModel
from darkroom.engine.forecast import Ahead, forecast
from darkroom.engine.sample import BatchKey
from darkroom.types import Forecast

from .test_scheduler import CURVES, Arrival, arrival, learnt, simulate


def costs(curve: str, arrivals: list[Arrival]) -> CostModel:
    """Costs as the simulation has them, where a decode takes no time."""
    cost = learnt(CURVES[curve], arrivals)
    for a in arrivals:
        cost.load({f"m {a.side} {a.side}": {"decode": 0.0}})
    return cost


def ahead(arrivals: list[Arrival]) -> list[Ahead]:
    return [Ahead(str(i), BatchKey("m", a.side, a.side), a.rows, a.steps, a.party, a.weight) for i, a in enumerate(arrivals)]


many = st.builds(
    Arrival, st.just(0.0), st.sampled_from([128, 256, 384]), st.integers(1, 50), st.sampled_from([1, 2]), st.sampled_from("abc"), st.sampled_from([0.5, 1, 2])
)


@settings(max_examples=40, deadline=None)
@given(st.lists(many, min_size=5, max_size=40), st.sampled_from(sorted(CURVES)), st.booleans())
def test_what_is_forecast_is_what_happens_whatever_comes(arrivals: list[Arrival], curve: str, exact: bool) -> None:
    """A leap over a quarter of a long job's steps moves the ends of short ones beside it: by 0.1 of their time in the worst of 1,500 lines."""
    assert max(errors(arrivals, curve, exact)) <= 0.35


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("curve", sorted(CURVES))
def test_what_is_forecast_is_what_happens(curve: str, exact: bool) -> None:
    """Within 5 % in lines as they come."""
    rng = random.Random(5)
    lines = [[any_job(rng) for _ in range(rng.randint(5, 40))] for _ in range(15)]
    assert all(statistics.median(kind) <= 0.05 for kind in zip(*(errors(line, curve, exact) for line in lines), strict=True))


def any_job(rng: random.Random) -> Arrival:
    return Arrival(0.0, rng.choice([128, 256, 384]), rng.randint(1, 50), rng.choice([1, 2]), rng.choice("abc"), rng.choice([0.5, 1, 2]))


def errors(arrivals: list[Arrival], curve: str, exact: bool) -> tuple[float, float]:
    """Median errors of the ends, of each end, and of the starts, of the time that all take. Jobs came one after the other, as a forecast
    takes them: two that have equal claims go in that order."""
    run = simulate([replace(a, at=i * 1e-6 - 1) for i, a in enumerate(arrivals)], CURVES[curve], exact=exact, known=True)
    told = forecast([replace(job, waited=1.0) for job in ahead(arrivals)], costs(curve, arrivals), exact=exact)
    begins = {name: next(start for start, members, _ in run.batches if name in members) for name in run.ended}
    assert set(told) == set(run.ended)
    finish = statistics.median(abs(told[name].finish / end - 1) for name, end in run.ended.items())
    whole = max(run.ended.values())
    return finish, statistics.median(abs(told[name].start - begin) for name, begin in begins.items()) / whole


@given(st.lists(arrival, min_size=1, max_size=30), st.sampled_from(sorted(CURVES)))
@settings(max_examples=30, deadline=None)
def test_the_work_ahead_ends_when_it_is_done(arrivals: list[Arrival], curve: str) -> None:
    """Nothing is lost or done twice: without batches the last picture comes when the sum of all is through."""
    told = forecast(ahead(arrivals), costs(curve, arrivals), exact=True)
    total = sum(a.steps * CURVES[curve](BatchKey("m", a.side, a.side), a.rows) for a in arrivals)
    assert max(f.finish for f in told.values()) == pytest.approx(total)


def test_who_has_begun_starts_at_0_and_a_decode_counts() -> None:
    key, cost = BatchKey("m", 256, 256), CostModel()
    cost.load({"m 256 256": {"2": 1.0, "decode": 3.0}})
    told = forecast([Ahead("runs", key, 2, 5, begun=True), Ahead("waits", key, 2, 10), Ahead("kept", key, 2, 0)], cost, exact=True)
    assert told == {"kept": Forecast(0.0, 3.0), "runs": Forecast(0.0, 11.0), "waits": Forecast(11.0, 24.0)}


@pytest.mark.parametrize("curve", ["flat", "linear"])
def test_a_forecast_asks_for_each_time_once(curve: str) -> None:
    arrivals = [Arrival(0.0, (128, 256, 384)[i % 3], 10 + i % 41, 1 + i % 2, "abc"[i % 3]) for i in range(64)]
    cost, asked = costs(curve, arrivals), []
    step_seconds = cost.step_seconds
    cost.step_seconds = lambda key, rows: asked.append((key, rows)) or step_seconds(key, rows)  # only looks on
    assert len(forecast(ahead(arrivals), cost)) == 64
    assert len(asked) == len(set(asked))

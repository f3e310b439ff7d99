"""Models that come into memory and leave it: real nets, small, within a budget that holds one of them or two."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from darkroom.engine import residents as residents_module
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.load import bytes_needed, load_family
from darkroom.engine.messages import Cancel, Submit
from darkroom.engine.residents import Residents, Source
from darkroom.engine.runner import Runner
from darkroom.types import FINAL, Cancelled, Event, Failed, Finished, Loading, ModelCard

from .conftest import apart
from .test_parity import params

SMALL = {"steps": 10, "width": 128, "height": 128}


def source(card: ModelCard) -> Source:
    return Source(lambda: bytes_needed(card, "cpu", "float32"), lambda tell: Runner(load_family(card, "cpu", "float32", tell)))


@pytest.fixture
def size(checkpoint: Path) -> int:
    return bytes_needed(ModelCard("a", "sdxl", str(checkpoint)), "cpu", "float32")


@pytest.fixture
def build(checkpoint: Path) -> Callable[..., Engine]:
    """An engine of models a, b and c, with the same weights, none in memory yet."""

    def make(budget: int | None, **paths: str) -> Engine:
        cards = [ModelCard(name, "sdxl", paths.get(name, str(checkpoint))) for name in "abc"]
        return Engine(Residents({card.name: source(card) for card in cards}, budget), CostModel())

    return make


def run(engine: Engine, until: Callable[[list[Event]], bool] | None = None, seconds: float = 60) -> list[Event]:
    """Step until nothing is left (or `until` says so); all events."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    open_jobs: set[str] = set()
    while time.monotonic() < deadline:
        new = engine.step()
        events += new
        open_jobs |= {event.job_id for event in new}
        open_jobs -= {event.job_id for event in events if isinstance(event, FINAL)}
        if until(events) if until else not open_jobs and not engine.busy:
            return events
        time.sleep(0.002)
    raise AssertionError(f"not done after {seconds} s: {open_jobs}")


def ends(events: list[Event]) -> dict[str, Event]:
    return {event.job_id: event for event in events if isinstance(event, FINAL)}


def test_what_is_needed_is_what_is_taken(build: Callable[..., Engine], size: int) -> None:
    engine = build(None)
    engine.put(Submit("1", params(model="a", **SMALL)))
    run(engine)
    assert engine.residents.loaded["a"] == pytest.approx(size, rel=0.05)


def test_a_job_waits_for_its_model_and_says_how_much_of_it_is_there(build: Callable[..., Engine]) -> None:
    engine = build(None)
    engine.put(Submit("1", params(model="a", **SMALL)))
    events = run(engine)
    parts = [event.part for event in events if isinstance(event, Loading)]
    assert parts[0] == 0
    assert parts == sorted(parts)
    assert parts[-1] == 1
    assert isinstance(ends(events)["1"], Finished)


def test_the_least_recently_used_idle_model_leaves(build: Callable[..., Engine], size: int) -> None:
    engine = build(int(2.2 * size))
    for i, model in enumerate("abab"):
        engine.put(Submit(str(i), params(model=model, **SMALL)))
        run(engine)
    assert set(engine.residents.loaded) == {"a", "b"}
    engine.put(Submit("a again", params(model="a", **SMALL)))
    run(engine)
    engine.put(Submit("c", params(model="c", **SMALL)))
    run(engine)
    assert set(engine.residents.loaded) == {"a", "c"}
    assert sum(engine.residents.loaded.values()) <= 2.2 * size


def test_a_busy_model_is_not_thrown_out_and_the_other_gets_its_turn(build: Callable[..., Engine], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents_module, "PATIENCE", 0.2)
    engine = build(int(1.5 * size))
    engine.put(Submit("0", params(model="a", **SMALL)))
    run(engine)
    engine.put(Submit("b", params(model="b", **SMALL)))
    fed = 0

    def stop(events: list[Event]) -> bool:
        nonlocal fed
        if "b" not in ends(events) and fed < 400:  # a flood for the model that is in memory
            fed += 1
            engine.put(Submit(f"a{fed}", params(model="a", **SMALL)))
        return "b" in ends(events)

    events = run(engine, stop)
    assert isinstance(ends(events)["b"], Finished)
    events += run(engine, lambda new: len(ends(events)) + len(ends(new)) >= fed + 1, 120)
    assert all(isinstance(event, Finished) for event in ends(events).values())


def test_a_model_beyond_the_budget_and_a_broken_one_fail_alone(build: Callable[..., Engine], size: int, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    engine = build(int(1.5 * size), b=str(tmp_path))
    engine.put(Submit("a", params(model="a", **SMALL)))
    engine.put(Submit("b", params(model="b", **SMALL)))
    found = ends(run(engine))
    assert isinstance(found["a"], Finished)
    failed = found["b"]
    assert isinstance(failed, Failed)
    assert (failed.name, failed.status) == ("model_unavailable", 503)
    assert str(tmp_path) not in failed.message
    tight = build(int(0.5 * size))
    tight.put(Submit("a", params(model="a", **SMALL)))
    failed = ends(run(tight))["a"]
    assert isinstance(failed, Failed)
    assert "memory_budget" in failed.message


def test_cancelled_while_its_model_loads(build: Callable[..., Engine]) -> None:
    engine = build(None)
    engine.put(Submit("1", params(model="a", **SMALL)))
    engine.put(Cancel("1"))
    assert isinstance(ends(run(engine))["1"], Cancelled)


def test_preloading_fills_the_room_and_throws_nothing_out(build: Callable[..., Engine], size: int) -> None:
    engine = build(int(2.5 * size))
    engine.residents.preload("abc")
    run(engine, lambda events: set(engine.residents.loaded) == {"a", "b"} and not engine.busy)


def test_pictures_of_two_models_side_by_side_are_each_their_own(build: Callable[..., Engine]) -> None:
    engine = build(None)
    wanted = {f"{model}{seed}": params(model=model, seed=seed, **SMALL) for model in "ab" for seed in (1, 2)}
    for name, one in wanted.items():
        engine.put(Submit(name, one))
    found = ends(run(engine))
    pictures = {name: event.pixels for name, event in found.items() if isinstance(event, Finished)}
    for seed in (1, 2):
        one, other = (np.frombuffer(pictures[f"{model}{seed}"], np.uint8) for model in "ab")
        assert apart(one, other) <= 2
    assert apart(np.frombuffer(pictures["a1"], np.uint8), np.frombuffer(pictures["a2"], np.uint8)) > 20

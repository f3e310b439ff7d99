"""Previews: they look like what comes, cost the picture nothing, and fail alone."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.engine import preview
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.load import load_family
from darkroom.engine.messages import Submit
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.models.catalogue import resolve
from darkroom.types import FINAL, Event, Finished, Params, Preview, Progress

from .conftest import Lab, photo, psnr
from .test_parity import params

PROMPTS = ["a red circle on a white background", "a cat", "a blue square on a yellow background", "a red apple on a blue background"]
LIKE = 13.0  # dB that the last preview is near its picture at least; 14.5 to 22.6 were measured
CLOSER = 4.0  # dB that it is nearer to its own picture than to any other's; 6 was the least


def stories(engine: Engine, *wanted: Params) -> list[list[Event]]:
    """The events of each, all given at once."""
    told: list[list[Event]] = [[] for _ in wanted]
    for i, one in enumerate(wanted):
        engine.put(Submit(str(i), one))
    while not all(events and isinstance(events[-1], FINAL) for events in told):
        for event in engine.step():
            told[int(event.job_id)].append(event)
    return told


def picture(events: list[Event]) -> np.ndarray:
    finished = events[-1]
    assert isinstance(finished, Finished), finished
    return np.frombuffer(finished.pixels, np.uint8).reshape(finished.height, finished.width, 3)


def shown(event: Preview) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.jpeg), formats=("JPEG",)))


@pytest.mark.parametrize("model", ["demo-xl", "demo-3.5"])
def test_the_last_preview_looks_like_its_picture_and_no_other(model: str, tmp_path: Path) -> None:
    card = resolve(model, tmp_path)
    engine = Engine(Residents.of({model: Runner(load_family(card, "cpu", "float32"))}), CostModel())
    told = stories(engine, *(Params(model, prompt, steps=16, width=256, height=256, cfg=card.default_cfg, seed=3, preview_every=5) for prompt in PROMPTS))
    pictures = [picture(events) for events in told]
    for i, events in enumerate(told):
        last = shown([event for event in events if isinstance(event, Preview)][-1])
        likeness = [psnr(last, one) for one in pictures]
        assert likeness[i] >= LIKE
        assert all(likeness[i] >= other + CLOSER for k, other in enumerate(likeness) if k != i)


def test_previews_come_after_every_nth_step_and_not_after_the_last(lab: Lab) -> None:
    (events,) = stories(lab.engine(), params(steps=12, preview_every=4))
    at = [i for i, event in enumerate(events) if isinstance(event, Preview)]
    assert [events[i].step for i in at] == [4, 8]
    assert all(events[i - 1] == Progress("0", events[i].step, 12) for i in at)


@pytest.mark.parametrize("exact", [False, True])
def test_previews_change_nothing_of_any_picture(lab: Lab, exact: bool) -> None:
    wanted = [
        params(seed=1), params(seed=2, cfg=1.0), params(seed=3, steps=15),
        params(seed=4, image=photo(128, 128), control_strength=Decimal("0.5")),
    ]  # fmt: skip
    without = [picture(events) for events in stories(lab.engine(exact), *wanted)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    told = stories(lab.engine(exact), *(replace(one, preview_every=i) for i, one in enumerate(wanted)))
    assert [sum(isinstance(event, Preview) for event in events) > 0 for events in told] == [False, True, True, True]
    assert all(np.array_equal(picture(events), one) for events, one in zip(told, without, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("width", "height", "size"), [(128, 64, (128, 64)), (256, 256, (256, 256)), (1024, 512, (256, 128)), (4096, 64, (256, 4))])
def test_a_preview_is_small_and_never_larger_than_the_picture(width: int, height: int, size: tuple[int, int]) -> None:
    jpeg = preview.to_jpeg(torch.randn(1, 4, height // 8, width // 8), torch.randn(5, 3), width, height)
    assert Image.open(io.BytesIO(jpeg)).size == size


def test_numbers_that_are_not_finite_make_a_preview_all_the_same() -> None:
    assert preview.to_jpeg(torch.full((1, 4, 8, 8), float("nan")), torch.randn(5, 3), 64, 64)


def test_a_preview_that_cannot_be_made_costs_nobody_the_job(lab: Lab) -> None:
    engine = lab.engine()
    engine.residents.runner("tiny")._colours = torch.zeros(2, 2)  # fits no latents
    (events,) = stories(engine, params(preview_every=1))
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(event, Preview) for event in events)

"""Decoding takes no more memory than there is room for: few pictures at a time, and a large one in tiles."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.engine.backend import Fast
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.load import load_family
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.engine.sample import BatchKey, Sample
from darkroom.models.catalogue import resolve
from darkroom.types import Params

from .conftest import Lab, photo, psnr
from .test_parity import params
from .test_preview import picture, stories

SIDE = 128
LARGE = 512


class Counted:
    """A pass, and how many rows each of its calls had."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.rows = module, []

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(z))
        return self.module(z)


@pytest.mark.parametrize(("room", "calls"), [(1, [1, 1, 1, 1, 1]), (2.5, [2, 2, 1]), (100, [5])])
def test_no_more_pictures_together_than_there_is_room_for(lab: Lab, room: float, calls: list[int]) -> None:
    decode = Counted(lab.family.passes()["decode"].module)
    fast = Fast(lab.family.through({"decode": decode}), apart=False)
    runner = Runner(lab.family, fast=fast, decode_room=int(room * SIDE * SIDE * lab.family.decode_bytes()))
    samples = [Sample(str(i), params(seed=i, width=SIDE, height=SIDE), BatchKey("tiny", SIDE, SIDE), 8, 2, 0.0) for i in range(1, 6)]
    for sample in samples:
        runner.prepare(sample, lab.family.plan(sample.params))
    pictures, reference = runner.decode(samples), Runner(lab.family).decode(samples)
    assert decode.rows == calls
    for ours, whole in zip(pictures, reference, strict=True):
        assert np.abs(ours.astype(int) - whole).max() <= 2


@pytest.mark.parametrize("model", ["demo-xl", "demo-3.5"])
def test_a_picture_that_there_is_no_room_for_is_decoded_in_tiles(model: str, tmp_path: Path) -> None:
    family = load_family(resolve(model, tmp_path), "cpu", "float32")
    image = np.frombuffer(photo(LARGE, LARGE - 128), np.uint8).reshape(LARGE - 128, LARGE, 3)
    kept = Params(model, "a cat", width=LARGE, height=LARGE - 128, image=image.tobytes(), control_strength=Decimal(1))
    whole, tiled = (round_trip(Runner(family, decode_room=room), kept) for room in (None, 256 * 256 * family.decode_bytes()))
    assert tiled.shape == image.shape
    assert not np.array_equal(whole, tiled)  # there were tiles
    assert psnr(whole, tiled) >= 30


def round_trip(runner: Runner, kept: Params) -> np.ndarray:
    """What becomes of a picture that no step changes."""
    (events,) = stories(Engine(Residents.of({kept.model: runner}), CostModel()), kept)
    return picture(events)

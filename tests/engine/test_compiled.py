"""torch.compile with batches filled up to few numbers of rows. Traced by torch._dynamo, run by eager kernels: the machine code
that inductor makes for a GPU cannot be tested here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from darkroom.engine.backend import Fast
from darkroom.engine.compiled import Compiled, filled_rows
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner

from .conftest import Lab, apart, psnr
from .sd3_lab import SD35_MEDIUM, SD3Lab, make_sd3
from .test_parity import params, strangers


@pytest.fixture(params=["sdxl", "sd3"])
def labs(request: pytest.FixtureRequest, lab: Lab, tmp_path: Any) -> Lab:
    return lab if request.param == "sdxl" else SD3Lab(make_sd3(tmp_path / "tiny", t5=False, **SD35_MEDIUM))


def test_pictures_agree_with_the_reference_alone_and_in_company(labs: Lab) -> None:
    name, module = labs.family.denoiser()
    rows: list[int] = []

    def count(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> None:
        rows.append(len(tensors[0]))

    hook = module.register_forward_pre_hook(count)
    ticks = iter(range(10**9))
    fast = Fast(labs.family.through({name: Compiled(module, labs.family.device, backend="eager")}), apart=False)
    engine = Engine(Residents.of({"tiny": Runner(labs.family, labs.loras, fast=fast)}), CostModel(), clock=lambda: next(ticks) * 0.01)
    wanted = params()
    crowd = labs.ours((2, wanted), *strangers(128, 128), engine=engine)
    hook.remove()
    (reference,) = labs.ours((0, wanted))
    assert psnr(crowd[0], reference) >= 60
    assert apart(crowd[0], reference) <= 2
    assert max(rows) > 4
    assert {filled_rows(number) for number in rows} == set(rows), "a batch was not filled up"


@pytest.mark.parametrize(("rows", "filled"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 12), (13, 16), (17, 24), (64, 64), (65, 65)])
def test_rows_are_filled_up_to_few_numbers(rows: int, filled: int) -> None:
    assert filled_rows(rows) == filled

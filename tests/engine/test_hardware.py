"""Which numbers a card computes in, by what it is; no card is needed to ask."""

from __future__ import annotations

import pytest
import torch

from darkroom.engine.hardware import dtype_by_capability, to_device


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), torch.float16),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_cards_before_ampere_compute_in_fp16(capability: tuple[int, int], dtype: torch.dtype) -> None:
    assert dtype_by_capability(capability) == dtype


def test_a_copy_is_whole_once_it_is_given() -> None:
    tensor = torch.arange(10)
    assert torch.equal(to_device(tensor, torch.device("cpu")), torch.arange(10))

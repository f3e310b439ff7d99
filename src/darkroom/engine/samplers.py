"""Numerical methods. Each is a pure function from a noise schedule to a table of coefficients, made once a Sample on the
host; `step` is the one step that all of them share, vectorised over rows, so a batch may mix methods and positions.

Everything is in the variance-exploding form x = z + sigma * noise (k-diffusion's), whatever form the paper uses; only
flow matching stays in its own, x = (1 - sigma) * z + sigma * noise, for which Euler's step has the same coefficients.
With `out` what the net answered to x * C_IN at timestep T, guided:

    out      = unconditional + CFG * (conditional - unconditional)
    denoised = C_SKIP * x + C_OUT * out
    x'       = A * x + B * denoised + C * denoised of the step before + D * fresh noise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch

T, C_IN, C_SKIP, C_OUT, A, B, C, D, CFG = range(9)  # all but the last are a table's columns
WIDTH = CFG + 1


def euler(sigmas: np.ndarray) -> np.ndarray:
    """A..D [n, 4] of Euler's method (Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn) over n+1 sigmas."""
    ratio = sigmas[1:] / sigmas[:-1]
    zero = np.zeros_like(ratio)
    return np.stack([ratio, 1 - ratio, zero, zero], axis=1)


def euler_ancestral(sigmas: np.ndarray) -> np.ndarray:
    """A..D [n, 4] of ancestral sampling with Euler steps (k-diffusion's sample_euler_ancestral, eta = 1)."""
    now, later = sigmas[:-1], sigmas[1:]
    up = np.sqrt(later**2 * (now**2 - later**2) / now**2)
    ratio = np.sqrt(later**2 - up**2) / now
    return np.stack([ratio, 1 - ratio, np.zeros_like(ratio), up], axis=1)


def dpmpp_2m(sigmas: np.ndarray, first_order_end: bool, heun: bool = False) -> np.ndarray:
    """A..D [n, 4] of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). The first step is of first order,
    and so is the last where `first_order_end`; `heun` takes the paper's other second-order correction."""
    table = euler(sigmas)  # in this form the first-order step is Euler's
    n = len(sigmas) - 1
    for i in range(1, n - 1 if first_order_end else n):
        h, h_before = np.log(sigmas[i] / sigmas[i + 1]), np.log(sigmas[i - 1] / sigmas[i])
        decay = np.expm1(-h)
        weight = (decay / h + 1 if heun else -0.5 * decay) * h / h_before
        table[i, 1] += weight
        table[i, 2] -= weight
    return table


def preconditioning(sigmas: np.ndarray, prediction_type: str) -> np.ndarray:
    """C_IN, C_SKIP, C_OUT [n, 3] at n sigmas for a net that predicts `epsilon`, `v_prediction` (arXiv 2202.00512) or `flow`, the
    velocity noise - z of flow matching (arXiv 2210.02747)."""
    if prediction_type == "flow":
        return np.stack([np.ones_like(sigmas), np.ones_like(sigmas), -sigmas], axis=1)
    root = np.sqrt(sigmas**2 + 1)
    if prediction_type == "epsilon":
        return np.stack([1 / root, np.ones_like(sigmas), -sigmas], axis=1)
    assert prediction_type == "v_prediction", prediction_type
    return np.stack([1 / root, 1 / root**2, -sigmas / root], axis=1)


def step(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], latents: torch.Tensor, coefficients: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """One step of n rows, without D's noise, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    latents [2, n, c, h, w]: x, and the denoised of the step before; those after it are returned. coefficients [n, 9]: of each row's
    Sample, the row of its table, and its CFG. pairs [2, n] as `pairing` gives them. denoise takes x * C_IN and T of n rows, fp32, and
    gives fp32.
    """
    x, before = latents[0], latents[1]
    t, c_in, c_skip, c_out, a, b, c, _, cfg = coefficients.view(-1, WIDTH, 1, 1, 1).unbind(1)
    out = denoise(x * c_in, t.flatten())
    out = torch.lerp(out.index_select(0, pairs[0]), out.index_select(0, pairs[1]), cfg)
    denoised = c_out * out + c_skip * x
    return torch.stack([a * x + b * denoised + c * before, denoised])


def bare(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients [n, 9] of the same T and C_IN with which both tensors that a step returns are what denoise gave, where `pairing` has each
    row a Sample of its own."""
    out = torch.zeros_like(coefficients)
    out[:, :C_SKIP] = coefficients[:, :C_SKIP]
    out[:, C_OUT] = out[:, B] = 1.0
    return out


def pairing(rows: Sequence[int]) -> torch.Tensor:
    """The unconditional and the conditional row [2, n] of each row's Sample, for Samples of 2 rows (with guidance) and of 1 (without:
    both are the one it has, from which CFG then leads nowhere) that lie one after the other.

    A guided Sample's two rows so get the same outcome. They carry it both, for the shapes of a pass then depend on nothing but n,
    and few shapes come often enough to be worth a graph of their own.
    """
    ends = list(accumulate(rows))
    return torch.tensor([[end - count for end, count in zip(ends, rows, strict=True) for _ in range(count)],
                         [end - 1 for end, count in zip(ends, rows, strict=True) for _ in range(count)]])  # fmt: skip

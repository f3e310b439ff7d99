"""Numerical methods. Each is a pure function from a noise schedule to a table of coefficients, made once a Sample on the
host; `advance` is the one step that all of them share, vectorised over rows, so a batch may mix methods and positions.

Everything is in the variance-exploding form x = z + sigma * noise (k-diffusion's), whatever form the paper uses; only
flow matching stays in its own, x = (1 - sigma) * z + sigma * noise, for which Euler's step has the same coefficients.
With `out` what the net answered to x * C_IN at timestep T:

    denoised = C_SKIP * x + C_OUT * out
    x'       = A * x + B * denoised + C * denoised of the step before + D * fresh noise
"""

from __future__ import annotations

import numpy as np
import torch

T, C_IN, C_SKIP, C_OUT, A, B, C, D = range(8)


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


def advance(
    x: torch.Tensor, out: torch.Tensor, coefficients: tuple[torch.Tensor, ...], before: torch.Tensor | None, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of every row: (x', denoised), both fp32 [n, c, h, w]; in the places of x and of out.

    coefficients as `columns` gives them; before and noise may be None where no row has C or D.
    """
    denoised = out.mul_(coefficients[C_OUT]).addcmul_(x, coefficients[C_SKIP])
    x.mul_(coefficients[A]).addcmul_(denoised, coefficients[B])
    if before is not None:
        x.addcmul_(before, coefficients[C])
    if noise is not None:
        x.addcmul_(noise, coefficients[D])
    return x, denoised


def columns(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The coefficients of each row [n, 8] such that each of the eight [n, 1, 1, 1] is laid over pictures."""
    return rows.view(-1, 8, 1, 1, 1).unbind(1)

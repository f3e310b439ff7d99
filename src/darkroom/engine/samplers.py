"""Numerical methods. Each is a pure function from a noise schedule to a table of coefficients, made once a Sample on the
host; `step` is the one step that all of them share, vectorised over Samples, so a batch may mix methods and positions.

Everything is in the variance-exploding form x = z + sigma * noise (k-diffusion's), whatever form the paper uses; only
flow matching stays in its own, x = (1 - sigma) * z + sigma * noise, for which Euler's step has the same coefficients.
With `out` what the net answered to x * C_IN at timestep T, guided:

    out      = unconditional + CFG * (conditional - unconditional)
    denoised = C_SKIP * x + C_OUT * out
    x'       = A * x + B * denoised + C * denoised of the step before + D * fresh noise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

T, C_IN, C_SKIP, C_OUT, A, B, C, D, CFG = range(9)  # all but the last are a table's columns
WIDTH = 9


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
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], latents: torch.Tensor, coefficients: torch.Tensor, rows: torch.Tensor,
    pairs: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """One step of n Samples, without D's noise, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    latents [2, n, c, h, w]: x, and the denoised of the step before; those after it are returned. coefficients [n, 9]: a row of each
    Sample's table, and its CFG. rows and pairs as `pairing` gives them. denoise takes rows of x * C_IN and of T, fp32, and gives fp32.
    """
    x, before = latents[0], latents[1]
    t, c_in, c_skip, c_out, a, b, c, _, cfg = coefficients.view(-1, WIDTH, 1, 1, 1).unbind(1)
    out = denoise((x * c_in).index_select(0, rows), t.flatten().index_select(0, rows))
    out = torch.lerp(out.index_select(0, pairs[0]), out.index_select(0, pairs[1]), cfg)
    denoised = c_out * out + c_skip * x
    return torch.stack([a * x + b * denoised + c * before, denoised])


def bare(t: torch.Tensor, c_in: torch.Tensor) -> torch.Tensor:
    """Coefficients [n, 9] with which both x' and denoised are what the net predicts, where guided the mean of its two predictions:
    to hold a net by. t and c_in [n]."""
    coefficients = torch.zeros(len(t), WIDTH)
    coefficients[:, T], coefficients[:, C_IN] = t, c_in
    coefficients[:, [C_OUT, B]], coefficients[:, CFG] = 1.0, 0.5
    return coefficients


def pairing(guided: Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a pass for n Samples, of which some are guided: the unconditional rows of these, then a conditional row of every Sample.

    rows [r]: which Sample each row is of. pairs [2, n]: the unconditional and the conditional row of each Sample; without guidance
    both are the one it has, from which CFG then leads nowhere.
    """
    first = [i for i, is_guided in enumerate(guided) if is_guided]
    conditional = [len(first) + i for i in range(len(guided))]
    unconditional = [first.index(i) if is_guided else conditional[i] for i, is_guided in enumerate(guided)]
    return torch.tensor([*first, *range(len(guided))]), torch.tensor([unconditional, conditional])

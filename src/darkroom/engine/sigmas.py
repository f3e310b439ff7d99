"""What a checkpoint's scheduler_config.json asks for, honoured or refused by name; never replaced in silence.

diffusers computes timesteps and sigmas (a private scheduler for each call, so no state is shared); the numerical
method is ours (`samplers.py`).
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from darkroom.engine import samplers
from darkroom.errors import Unsupported

CLASSES = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler")
# Left over from other scheduler classes in published SDXL configs; none of ours reads them, so these values change nothing.
INERT: dict[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "clip_sample_range": (1.0,),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (True, False),
    "sample_max_value": (1.0,),
    "thresholding": (False,),
    "dynamic_thresholding_ratio": (0.995,),
    "interpolation_type": ("linear",),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "final_sigmas_type": ("zero",),
    "timestep_type": ("discrete",),
    "variance_type": (None,),
}
ALLOWED: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "heun"),
    "thresholding": (False,),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "variance_type": (None,),
    "timestep_type": ("discrete",),
}


class SigmaSchedule:
    """The noise schedule and the numerical method of one checkpoint. Raises Unsupported, naming field and value."""

    def __init__(self, config: dict[str, Any]):
        self.name = config.get("_class_name", "")
        if self.name not in CLASSES:
            raise Unsupported(f"scheduler/scheduler_config.json: _class_name must be one of {', '.join(CLASSES)}, got {self.name!r}")
        kind = getattr(diffusers, self.name)
        known = set(inspect.signature(kind.__init__).parameters)
        self.config = {k: v for k, v in config.items() if k in known}
        _refuse(config, known)
        self.prediction_type = self.config.get("prediction_type", "epsilon")
        self._make = functools.partial(kind.from_config, self.config)
        self._cached = functools.lru_cache(maxsize=64)(self._steps)
        try:
            self._make().set_timesteps(10)
        except (ValueError, NotImplementedError, ImportError) as error:
            raise Unsupported(f"scheduler/scheduler_config.json: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> SigmaSchedule:
        """From a diffusers folder."""
        return cls(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))

    def plan(self, steps: int, start: int = 0) -> tuple[np.ndarray, float]:
        """Coefficients [n, 8] of the steps from `start` on, and the scale of pure noise at the very first.

        diffusers may plan one step more than asked (trailing, 61 steps); then so do we.
        An image starts at z + sigma * noise with `start_sigma(steps, start)`.
        """
        timesteps, sigmas, noise_scale = self._cached(steps)
        table = np.zeros((len(timesteps) - start, 8))
        table[:, samplers.T] = timesteps[start:]
        table[:, samplers.C_IN : samplers.C_OUT + 1] = samplers.preconditioning(sigmas[start:-1], self.prediction_type)
        table[:, samplers.A :] = self._method(sigmas[start:], steps)
        return table.astype(np.float32), noise_scale

    def start_sigma(self, steps: int, start: int) -> float:
        """The noise level at which an image joins, at index `start` of `steps`."""
        return float(self._cached(steps)[1][start])

    def _steps(self, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
        scheduler = self._make()
        scheduler.set_timesteps(steps)
        timesteps, sigmas = scheduler.timesteps.double().numpy(), scheduler.sigmas.double().numpy()
        sigmas = sigmas[: len(timesteps) + 1]  # log_linear plans one more that no step reaches
        if self.name == "DPMSolverMultistepScheduler":  # it starts from unit noise in the variance-preserving form
            return timesteps, sigmas, float(np.sqrt(sigmas[0] ** 2 + 1))
        return timesteps, sigmas, float(scheduler.init_noise_sigma)

    def _method(self, sigmas: np.ndarray, steps: int) -> np.ndarray:
        if self.name == "EulerDiscreteScheduler":
            return samplers.euler(sigmas)
        if self.name == "EulerAncestralDiscreteScheduler":
            return samplers.euler_ancestral(sigmas)
        return self._dpm(sigmas, steps)

    def _dpm(self, sigmas: np.ndarray, steps: int) -> np.ndarray:
        config = self._make().config
        if config.solver_order == 1:
            return samplers.euler(sigmas)
        short = config.lower_order_final and steps < 15  # of the whole schedule, also where an image starts later in it
        first_order_end = config.euler_at_final or short or config.final_sigmas_type == "zero"
        return samplers.dpmpp_2m(sigmas, first_order_end, heun=config.solver_type == "heun")


def _refuse(config: dict[str, Any], known: set[str]) -> None:
    where = "scheduler/scheduler_config.json"
    for field, value in config.items():
        if field.startswith("_"):
            continue
        if field not in known and value not in INERT.get(field, ()):
            raise Unsupported(f"{where}: {field} = {value!r} means nothing to {config['_class_name']}, so it cannot be honoured")
        if field in known and field in ALLOWED and value not in ALLOWED[field]:
            raise Unsupported(f"{where}: {field} must be one of {ALLOWED[field]}, got {value!r}")

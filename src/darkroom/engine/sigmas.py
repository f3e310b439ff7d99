"""What a checkpoint's scheduler_config.json asks for, honoured or refused by name; never replaced in silence.

diffusers computes timesteps and sigmas (a private scheduler for each call, so no state is shared); the numerical
method is ours (`samplers.py`).
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from darkroom.engine import samplers
from darkroom.errors import Unsupported

WHERE = "scheduler/scheduler_config.json"
CLASSES = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler")
FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler",)
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
FLOW_ALLOWED: dict[str, tuple[Any, ...]] = {
    "use_beta_sigmas": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),  # diffusers draws its noise from the global generator, so no seed fixes it
    "shift_terminal": (None, 0),  # divides by zero where one step is asked for
    "time_shift_type": ("exponential", "linear"),
}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas")
FLOW_TOKENS = (64, 16384)  # a picture's patches of 16 x 16 pixels: 128 x 128 pixels to 2048 x 2048


class SigmaSchedule:
    """The noise schedule and the numerical method of one checkpoint. Raises Unsupported, naming field and value."""

    def __init__(self, config: dict[str, Any]):
        kind, self.config = _honoured(config, CLASSES, ALLOWED)
        self.name = kind.__name__
        self.prediction_type = self.config.get("prediction_type", "epsilon")
        self._make = functools.partial(kind.from_config, self.config)
        self._cached = functools.lru_cache(maxsize=64)(self._steps)
        try:
            self._make().set_timesteps(10)
        except (ValueError, NotImplementedError, ImportError) as error:
            raise Unsupported(f"{WHERE}: {error}") from error

    @classmethod
    def read(cls, folder: Path, said: Mapping[str, Any]) -> SigmaSchedule:
        """From a diffusers folder. `said` is what a single file says of its prediction: it stands above the config of a model that
        predicts epsilon, for that is the one which every file is opened with. Raises Unsupported."""
        config = _read(folder)
        if said.get("prediction_type") == "epsilon" and config.get("prediction_type") == "v_prediction":
            line = "scheduler_config.json: prediction_type = 'v_prediction', and the file itself says epsilon (modelspec.prediction_type)"
            raise Unsupported(line)
        return cls({**config, **said})

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


class FlowSchedule:
    """The noise schedule of a flow-matching checkpoint (Esser et al. 2024, arXiv 2403.03206), stepped by Euler's method.

    Here x = (1 - sigma) * z + sigma * noise. `tokens` is the number of patches of the picture: with dynamic shifting, the
    bigger the picture, the longer the schedule stays at high noise. Raises Unsupported, naming field and value.
    """

    def __init__(self, config: dict[str, Any]):
        kind, self.config = _honoured(config, FLOW_CLASSES, FLOW_ALLOWED)
        self._make = functools.partial(kind.from_config, self.config)
        self._cached = functools.lru_cache(maxsize=256)(self._steps)
        for tokens in FLOW_TOKENS:
            self._try(tokens)

    @classmethod
    def read(cls, folder: Path) -> FlowSchedule:
        """From a diffusers folder."""
        return cls(_read(folder))

    def plan(self, steps: int, tokens: int, start: int = 0) -> np.ndarray:
        """Coefficients [steps - start, 8] of the steps from `start` on. Timesteps are fp32, not whole numbers."""
        timesteps, sigmas = self._cached(steps, tokens)
        table = np.zeros((steps - start, 8))
        table[:, samplers.T] = timesteps[start:]
        table[:, samplers.C_IN : samplers.C_OUT + 1] = samplers.preconditioning(sigmas[start:-1], "flow")
        table[:, samplers.A :] = samplers.euler(sigmas[start:])
        return table.astype(np.float32)

    def start_sigma(self, steps: int, tokens: int, start: int) -> float:
        """The noise level at which an image joins, at index `start` of `steps`."""
        return float(self._cached(steps, tokens)[1][start])

    def _steps(self, steps: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        scheduler = self._make()
        config = scheduler.config
        if config.use_dynamic_shifting:
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            scheduler.set_timesteps(steps, mu=tokens * slope + config.base_shift - slope * config.base_image_seq_len)
        else:
            scheduler.set_timesteps(steps)
        return scheduler.timesteps.double().numpy(), scheduler.sigmas.double().numpy()

    def _try(self, tokens: int) -> None:
        try:
            sigmas = self._steps(10, tokens)[1]
        except (ArithmeticError, ImportError, NotImplementedError, TypeError, ValueError) as error:
            raise Unsupported(f"{WHERE}: {self._shifts()}: {error}") from error
        if not (np.diff(sigmas) < 0).all() or not sigmas[0] <= 1:  # also where one is not a number
            raise Unsupported(f"{WHERE}: {self._shifts()} gives noise levels that do not fall from 1 to 0")

    def _shifts(self) -> str:
        """The fields that shape the schedule, as an error shows them."""
        dynamic = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")
        fields = dynamic if self.config.get("use_dynamic_shifting") else ("shift", "num_train_timesteps")
        return ", ".join(f"{field} = {self.config[field]!r}" for field in (*fields, *SPACINGS) if field in self.config)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def _honoured(config: dict[str, Any], classes: tuple[str, ...], allowed: dict[str, tuple[Any, ...]]) -> tuple[Any, dict[str, Any]]:
    """The scheduler class that a config names, and the fields that it reads. Raises Unsupported for what cannot be honoured."""
    name = config.get("_class_name", "")
    if name not in classes:
        raise Unsupported(f"{WHERE}: _class_name must be one of {', '.join(classes)}, got {name!r}")
    kind = getattr(diffusers, name)
    known = set(inspect.signature(kind.__init__).parameters)
    for field, value in config.items():
        if field.startswith("_"):
            continue
        if field not in known and value not in INERT.get(field, ()):
            raise Unsupported(f"{WHERE}: {field} = {value!r} means nothing to {name}, so it cannot be honoured")
        if field in known and field in allowed and value not in allowed[field]:
            raise Unsupported(f"{WHERE}: {field} must be one of {allowed[field]}, got {value!r}")
    return kind, {k: v for k, v in config.items() if k in known}

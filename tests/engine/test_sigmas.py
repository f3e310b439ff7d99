"""Every scheduler_config.json is honoured as diffusers honours it, or refused by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from darkroom.engine.sigmas import SigmaSchedule
from darkroom.errors import Unsupported

from .conftest import SDXL_SCHEDULER, Lab, photo, with_scheduler
from .test_parity import check, params

EULER = "EulerDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
BASE = {k: SDXL_SCHEDULER[k] for k in ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "steps_offset")}
CONFIGS = {
    "euler linspace": dict(_class_name=EULER, timestep_spacing="linspace"),
    "euler trailing v zero-snr": dict(_class_name=EULER, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "euler karras": dict(_class_name=EULER, timestep_spacing="leading", use_karras_sigmas=True),
    "euler exponential": dict(_class_name=EULER, timestep_spacing="trailing", use_exponential_sigmas=True),
    "euler log_linear, last sigma kept": dict(_class_name=EULER, interpolation_type="log_linear", final_sigmas_type="sigma_min"),
    "ancestral trailing": dict(_class_name=ANCESTRAL, timestep_spacing="trailing"),
    "ancestral leading v": dict(_class_name=ANCESTRAL, timestep_spacing="leading", prediction_type="v_prediction"),
    "dpm++ 2m": dict(_class_name=DPM, timestep_spacing="leading"),
    "dpm++ 2m karras": dict(_class_name=DPM, use_karras_sigmas=True),
    "dpm++ 2m heun v": dict(_class_name=DPM, solver_type="heun", prediction_type="v_prediction", timestep_spacing="trailing"),
    "dpm++ first order, euler at the end": dict(_class_name=DPM, solver_order=1, euler_at_final=True),
    "dpm++ 2m, last sigma kept": dict(_class_name=DPM, final_sigmas_type="sigma_min"),
    "dpm++ 2m lu": dict(_class_name=DPM, use_lu_lambdas=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parity_of_every_sampler(checkpoint: Path, tmp_path: Path, config: dict) -> None:
    lab = Lab(with_scheduler(checkpoint, tmp_path, BASE | config))
    check(lab, params(steps=12))
    check(lab, params(steps=20), in_company=False)
    check(lab, params(steps=16, image=photo(128, 128), control_strength=Decimal("0.35")))


@pytest.mark.parametrize("steps", [1, 4])
def test_few_steps_without_guidance(checkpoint: Path, tmp_path: Path, steps: int) -> None:
    """As sdxl-turbo is run."""
    lab = Lab(with_scheduler(checkpoint, tmp_path, BASE | CONFIGS["ancestral trailing"]))
    check(lab, params(steps=steps, cfg=0.0), in_company=steps == 4)


@pytest.mark.parametrize(
    "bad",
    [
        {"_class_name": "DDIMScheduler"},
        {"_class_name": EULER, "prediction_type": "sample"},
        {"_class_name": EULER, "timestep_spacing": "sideways"},
        {"_class_name": EULER, "timestep_type": "continuous"},
        {"_class_name": EULER, "clip_sample": True},
        {"_class_name": EULER, "a_field_of_next_year": 3},
        {"_class_name": EULER, "use_beta_sigmas": True},
        {"_class_name": EULER, "beta_schedule": "cubic"},
        {"_class_name": EULER, "use_karras_sigmas": True, "use_exponential_sigmas": True},
        {"_class_name": ANCESTRAL, "use_karras_sigmas": True},
        {"_class_name": DPM, "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": DPM, "solver_order": 3},
        {"_class_name": DPM, "thresholding": True},
        {"_class_name": DPM, "use_flow_sigmas": True},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_honoured_is_refused_by_name(bad: dict) -> None:
    field = list(bad)[-1]
    with pytest.raises(Unsupported, match=field):
        SigmaSchedule(BASE | bad)


def test_the_published_sdxl_config_is_taken() -> None:
    table, scale = SigmaSchedule(dict(SDXL_SCHEDULER)).plan(30)
    assert table.shape == (30, 8)
    assert table[0, 0] == 958
    assert scale == pytest.approx(float((1 + SigmaSchedule(dict(SDXL_SCHEDULER)).start_sigma(30, 0) ** 2) ** 0.5), rel=1e-5)

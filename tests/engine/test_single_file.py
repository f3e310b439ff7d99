"""One .safetensors file in the original layout gives the pictures of the diffusers folder that it was made of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from darkroom.engine.load import load_family
from darkroom.engine.sdxl import SDXL
from darkroom.errors import ModelUnavailable, Unsupported
from darkroom.models.catalogue import resolve
from darkroom.types import Params
from tests.conftest import EAGER, Server, cli
from tests.engine.conftest import SDXL_SCHEDULER, Lab, apart, make_checkpoint, photo, psnr, with_scheduler
from tests.engine.original import write_original

# Nobody listens on port 9: a step to the hub would be an error.
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with encoders of unequal width, as SDXL's are."""
    return make_checkpoint(tmp_path_factory.mktemp("diffusers") / "painter", widths=(32, 64))


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """painter.safetensors, and beside it the folder painter/ with configs and tokenizers but no weights."""
    home = folder.parent / "single"
    shutil.copytree(folder, home / "painter", ignore=shutil.ignore_patterns("*.safetensors"))
    return write_original(folder, home / "painter.safetensors")


def spoilt(single: Path, home: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of the file with other tensors, its configs beside it."""
    shutil.copytree(single.with_suffix(""), home / "spoilt")
    save_file(change(load_file(single)), home / "spoilt.safetensors")
    return home / "spoilt.safetensors"


def open_file(file: Path):
    return load_family(resolve(str(file), file.parent), "cpu", "float32")


def test_pictures_from_the_file_are_those_from_the_folder(folder: Path, single: Path) -> None:
    lab = Lab(folder)
    text = Params("tiny", "a red apple", "blurry", 10, 128, 64, 5.0, 3)
    image = Params("tiny", "a blue cat", "", 10, 64, 64, 1.0, 4, photo(64, 64), Decimal("0.4"))
    expected = lab.ours((0, text), (0, image), exact=True)
    family = open_file(single)
    assert isinstance(family, SDXL)
    assert family.schedule.config == lab.family.schedule.config
    for ours, theirs in ((family.unet, lab.family.unet), (family.vae, lab.family.vae), *zip(family._encoders, lab.family._encoders, strict=True)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    lab.family = family
    for ours, theirs in zip(lab.ours((0, text), (0, image), exact=True), expected, strict=True):
        assert apart(ours, theirs) <= 1  # equal weights at other addresses: another alignment may take another kernel
    assert len(np.unique(expected[0])) > 30  # a picture, not one colour


def test_generate_from_a_single_file_without_a_hub(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    small = ("--width", "128", "--height", "128", "--steps", "10", "--data-dir", str(tmp_path / "data"))
    done = cli("generate", "a cat", "--model", str(single), "-o", str(out), *small, **NO_HUB | EAGER)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert Image.open(out).size == (128, 128)


def test_a_file_cut_off_is_refused(single: Path, tmp_path: Path) -> None:
    content = single.read_bytes()
    for kept in (0, 5, 1000, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:kept])
        with pytest.raises(ModelUnavailable, match=r"^cut\.safetensors is broken or cut off"):
            open_file(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("lacking", ["model.diffusion_model.label_emb", "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1."])
def test_a_file_that_is_not_sdxl_is_refused_with_the_key_that_it_lacks(single: Path, tmp_path: Path, lacking: str) -> None:
    file = spoilt(single, tmp_path, lambda weights: {name: weight for name, weight in weights.items() if not name.startswith(lacking)})
    with pytest.raises(Unsupported, match=rf"^spoilt\.safetensors is not an SDXL checkpoint in the original layout: it has no {lacking}"):
        open_file(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.diffusion_model.middle_block.0.in_layers.2.weight", "spoilt.safetensors: weights"),
        ("model.diffusion_model.label_emb.0.2.bias", "spoilt.safetensors: weights"),
        ("first_stage_model.post_quant_conv.bias", "spoilt.safetensors: weights"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "text_encoder: 1 weights are missing, the first is"),
        ("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight", "text_encoder_2: 3 weights are missing, the first is"),
    ],
)
def test_a_single_missing_weight_is_refused(single: Path, tmp_path: Path, name: str, said: str) -> None:
    file = spoilt(single, tmp_path, lambda weights: {key: weight for key, weight in weights.items() if key != name})
    with pytest.raises(Unsupported, match=rf"^{said}"):
        open_file(file)


def test_a_folder_with_a_missing_weight_is_refused_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "gap")
    file = tmp_path / "gap" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if name != "quant_conv.bias"}, file, {"format": "pt"})
    with pytest.raises(Unsupported, match=r"^vae: 1 weights are missing, the first is quant_conv\.bias"):
        open_file(tmp_path / "gap")


def test_weights_that_do_not_fit_the_configs_are_refused_without_a_path(single: Path, tmp_path: Path) -> None:
    file = spoilt(single, tmp_path, lambda weights: weights)
    config = tmp_path / "spoilt" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 48]}))
    with pytest.raises(ModelUnavailable, match=r"while the files of spoilt were read; the log says more$"):
        open_file(file)


def test_errors_of_a_file_reach_http_in_one_line_without_a_path(serve: Callable[..., Server], single: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(single.read_bytes()[:1000])
    server = serve("--model", str(file), **NO_HUB)
    answer = server.generate(model="cut")
    assert answer.status_code == 503
    assert "cut.safetensors is broken or cut off" in answer.text
    for text in (answer.text, requests.get(f"{server.host}/readyz", timeout=10).text):
        assert str(tmp_path) not in text
        assert "Traceback" not in text
    assert "Traceback" not in server.log.read_text()


def test_without_configs_and_without_a_hub_the_error_says_what_to_put_where(single: Path, tmp_path: Path) -> None:
    shutil.copy(single, tmp_path / "alone.safetensors")
    done = cli(
        "generate", "a cat", "--model", str(tmp_path / "alone.safetensors"), "--data-dir", str(tmp_path), HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1"
    )
    assert done.returncode == 1
    assert "put those of stabilityai/stable-diffusion-xl-base-1.0 beside it in a folder named alone" in done.stderr
    assert "Traceback" not in done.stderr


UNKNOWN = [
    ("edm_mean", "an EDM model"),
    ("edm_vpred.sigma_max", "an EDM model"),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.scale_weight", "scaled fp8"),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight_scale", "scaled fp8"),
    ("model.diffusion_model.scaled_fp8", "scaled fp8"),
    ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight_scale", "may be a kind"),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight.absmax", "bitsandbytes"),
    ("model.diffusion_model.input_blocks.99.0.in_layers.2.weight", "may be a kind"),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.gate", "may be a kind"),
    ("first_stage_model.decoder.mid.block_9.conv1.weight", "may be a kind"),
    ("conditioner.embedders.0.transformer.text_model.encoder.layers.9.mlp.fc1.bias", "may be a kind"),
    ("conditioner.embedders.2.model.weight", "may be a kind"),
    ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight", "may be a kind"),
    ("control_model.input_blocks.0.0.weight", "a ControlNet"),
    ("something", "may be a kind"),
]
HARMLESS = [
    "model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay", "denoiser.sigmas", "denoiser.log_sigmas", "alphas_cumprod",
    "alphas_cumprod_prev", "betas", "sqrt_one_minus_alphas_cumprod", "posterior_variance", "log_one_minus_alphas_cumprod", "logvar",
    "global_step", "first_stage_model.loss.perceptual_loss.lin0.weight", "conditioner.embedders.0.logit_scale",
    "conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.text_projection",
    "conditioner.embedders.1.model.attn_mask",
]  # fmt: skip


@pytest.mark.parametrize(("name", "meaning"), UNKNOWN)
def test_a_tensor_that_no_net_takes_is_refused_by_name(single: Path, tmp_path: Path, name: str, meaning: str) -> None:
    file = spoilt(single, tmp_path, lambda weights: weights | {name: torch.ones(2)})
    with pytest.raises(Unsupported, match=f"{re.escape(name)}: .*{meaning}"):
        open_file(file)


def test_what_changes_no_picture_is_let_be(single: Path, tmp_path: Path) -> None:
    file = spoilt(single, tmp_path, lambda weights: weights | {name: torch.ones(2) for name in HARMLESS})
    assert isinstance(open_file(file), SDXL)


def test_a_folder_with_a_tensor_that_its_net_does_not_take_is_refused_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "more")
    file = tmp_path / "more" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"down_blocks.0.resnets.0.gate": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(Unsupported, match=r"^unet: 1 tensors mean nothing to its nets, one is down_blocks\.0\.resnets\.0\.gate"):
        open_file(tmp_path / "more")


def test_adding_a_model_of_an_unknown_kind_is_refused(single: Path, tmp_path: Path) -> None:
    file = spoilt(single, tmp_path, lambda weights: weights | {"edm_std": torch.ones(1, 4, 1, 1)})
    done = cli("models", "add", "playground", str(file), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "edm_std: an EDM model" in done.stderr


def said(single: Path, home: Path, metadata: dict[str, str], *marks: str, **scheduler: object) -> Path:
    """The file with metadata and empty tensors of these names, and with other fields in the scheduler's config beside it."""
    shutil.copytree(single.with_suffix(""), home / "said")
    save_file(load_file(single) | {mark: torch.tensor([]) for mark in marks}, home / "said.safetensors", metadata)
    config = home / "said" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | scheduler))
    return home / "said.safetensors"


V, ZERO_SNR = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("metadata", "marks", "beside", "meant"),
    [
        ({}, ("v_pred",), {}, V),
        ({}, ("v_pred", "ztsnr"), {}, V | ZERO_SNR),
        ({"modelspec.prediction_type": "v"}, (), {}, V),
        ({"modelspec.prediction_type": "v_prediction"}, ("ztsnr",), {}, V | ZERO_SNR),
        ({"modelspec.prediction_type": "v"}, ("v_pred",), V, V),
        ({}, (), V | ZERO_SNR, V | ZERO_SNR),
        ({"modelspec.prediction_type": "epsilon"}, (), {}, {}),
        ({"modelspec.title": "painter"}, (), {}, {}),
    ],
)
def test_a_file_is_sampled_as_it_says(
    folder: Path, single: Path, tmp_path: Path, metadata: dict[str, str], marks: tuple[str, ...], beside: dict, meant: dict
) -> None:
    """In parity with diffusers' own pipeline of the folder with the scheduler that the file means."""
    family = open_file(said(single, tmp_path, metadata, *marks, **beside))
    (tmp_path / "meant").mkdir()
    lab = Lab(with_scheduler(folder, tmp_path / "meant", SDXL_SCHEDULER | meant))
    assert {name: family.schedule.config[name] for name in meant} == meant
    params = Params("tiny", "a red apple", "blurry", 10, 128, 64, 5.0, 3)
    expected = lab.diffusers(params)
    lab.family = family
    (ours,) = lab.ours((0, params), exact=True)
    assert psnr(ours, expected) >= 60


@pytest.mark.parametrize(
    ("metadata", "marks", "beside", "line"),
    [
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), {}, "v_pred says v-prediction, and modelspec.prediction_type says epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, (), V, "prediction_type = 'v_prediction', and the file itself says epsilon"),
        ({"modelspec.prediction_type": "x0"}, (), {}, "must be one of epsilon, v, v_prediction, got 'x0'"),
        ({}, ("ztsnr",), {}, "zero terminal SNR"),
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_refused(
    single: Path, tmp_path: Path, metadata: dict[str, str], marks: tuple[str, ...], beside: dict, line: str
) -> None:
    with pytest.raises(Unsupported, match=line):
        open_file(said(single, tmp_path, metadata, *marks, **beside))

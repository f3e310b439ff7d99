"""One .safetensors file in the original layout gives the pictures of the diffusers folder that it was made of."""

from __future__ import annotations

import json
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
from tests.engine.conftest import Lab, apart, make_checkpoint, photo
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

"""SD 3.x against diffusers' own pipelines: same weights, same seed, fp32 on the CPU, as 8-bit pictures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from darkroom.engine.load import load_family
from darkroom.engine.runner import Runner
from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.sd3 import SD3
from darkroom.engine.sigmas import FlowSchedule
from darkroom.errors import Unsupported
from darkroom.models.catalogue import resolve
from darkroom.types import ModelCard, Params

from . import test_parity
from .conftest import apart, photo, psnr
from .sd3_lab import DYNAMIC, SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, STATIC, SD3Lab, make_sd3, original_layout
from .test_parity import params

CPU = torch.device("cpu")
SIZES = [(128, 128), (256, 192), (192, 320), (512, 512)]
# each model with each kind of shift, with and without T5
KINDS: dict[str, dict[str, Any]] = {
    "SD 3 medium, static": dict(scheduler=STATIC, t5=True, **SD3_MEDIUM),
    "SD 3 medium, no T5, dynamic": dict(scheduler=DYNAMIC, t5=False, **SD3_MEDIUM),
    "SD 3.5 medium, dynamic": dict(scheduler=DYNAMIC, t5=True, **SD35_MEDIUM),
    "SD 3.5 medium, no T5, static": dict(scheduler=STATIC, t5=False, **SD35_MEDIUM),
    "SD 3.5 large, dynamic and linear": dict(scheduler=DYNAMIC | {"time_shift_type": "linear"}, t5=True, **SD35_LARGE),
    "SD 3.5 large, karras": dict(scheduler=STATIC | {"use_karras_sigmas": True}, t5=True, **SD35_LARGE),
}


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 3.5 medium as it is published: dual attention, T5, a static shift of 3."""
    return make_sd3(tmp_path_factory.mktemp("sd35-medium"), **SD35_MEDIUM)


@pytest.fixture(scope="module")
def lab(medium: Path) -> SD3Lab:
    return SD3Lab(medium)


def image_params(width: int = 128, height: int = 128, strength: str = "0.65", **changes: object) -> Params:
    return params(width=width, height=height, image=photo(width, height), control_strength=1 - Decimal(strength), **changes)


def strangers(width: int, height: int) -> list[tuple[int, Params]]:
    """Five others of the same size that join and leave while the sixth runs."""
    image = photo(width, height, seed=3)
    return [
        (0, params(width=width, height=height, seed=21, steps=3, cfg=1.0)),
        (0, params(width=width, height=height, seed=22, steps=6, prompt="a cat", cfg=3.0)),
        (2, params(width=width, height=height, seed=23, steps=6, image=image, control_strength=Decimal("0.3"))),
        (3, params(width=width, height=height, seed=24, steps=4, negative_prompt="a dog", cfg=12.0)),
        (4, params(width=width, height=height, seed=25, steps=5, image=image, control_strength=Decimal("0.2"), cfg=0.0)),
    ]


def check(lab: SD3Lab, wanted: Params, in_company: bool = True) -> None:
    test_parity.check(lab, wanted, in_company, strangers)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes(lab: SD3Lab, width: int, height: int) -> None:
    check(lab, params(width=width, height=height, steps=6 if width < 512 else 4), in_company=width < 512)


@pytest.mark.parametrize("cfg", [0.0, 1.0, 1.5, 7.0, 20.0])
@pytest.mark.parametrize("negative_prompt", ["", "a green circle"])
def test_guidance(lab: SD3Lab, cfg: float, negative_prompt: str) -> None:
    check(lab, params(cfg=cfg, negative_prompt=negative_prompt, steps=8), in_company=cfg in (1.0, 20.0))


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
def test_steps(lab: SD3Lab, steps: int) -> None:
    check(lab, params(steps=steps), in_company=steps == 28)


@pytest.mark.parametrize("strength", ["0.01", "0.1", "0.35", "0.5", "0.71", "0.95"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_image_to_image(lab: SD3Lab, strength: str, cfg: float) -> None:
    check(lab, image_params(192, 128, strength, cfg=cfg, negative_prompt="a dog"), in_company=cfg > 1 and float(strength) >= 0.35)


def test_image_to_image_of_another_size(lab: SD3Lab) -> None:
    check(lab, image_params(192, 320, steps=8))


def test_the_largest_size_in_company(lab: SD3Lab) -> None:
    wanted = params(width=512, height=512, steps=3)
    first, second = lab.ours((0, wanted), (1, params(width=512, height=512, seed=21, steps=2, cfg=1.0)))
    assert max(len(batch) for batch in lab.batches) == 2
    assert psnr(first, lab.diffusers(wanted)) >= 60
    assert apart(second, lab.ours((0, params(width=512, height=512, seed=21, steps=2, cfg=1.0)))[0]) <= 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_models_and_shifts(tmp_path: Path, kind: dict[str, Any]) -> None:
    lab = SD3Lab(make_sd3(tmp_path, **kind))
    check(lab, params(width=192, negative_prompt="a green circle", steps=6))
    check(lab, image_params(192, 128, steps=8), in_company=False)


def test_the_nets_listen_to_all_that_is_given(lab: SD3Lab) -> None:
    """Otherwise parity would say little: each of these changes the picture by more than parity allows."""
    wanted = params(steps=8)
    changes = [dict(prompt="a green circle"), dict(cfg=1.0), dict(negative_prompt="a dog"), dict(seed=12), dict(steps=9)]
    first, *others = lab.ours(*[(0, replace(wanted, **change)) for change in [{}, *changes]])
    assert [psnr(first, other) < 55 for other in others] == [True] * len(changes)
    assert 10 < first.std() < 120


def test_exact_mode_is_bit_equal_in_company(lab: SD3Lab) -> None:
    wanted = params(steps=8)
    (alone,) = lab.ours((0, wanted), exact=True)
    crowd = lab.ours((2, wanted), *strangers(128, 128), exact=True)
    assert np.array_equal(alone, crowd[0])


def test_control_strength_0_is_text_to_image_and_1_one_pass_through_the_vae(lab: SD3Lab) -> None:
    nothing, all_of_it = lab.ours((0, image_params(strength="1")), (0, image_params(strength="0")))
    assert psnr(nothing, lab.diffusers(params())) >= 60
    pixels = torch.from_numpy(np.frombuffer(photo(128, 128), np.uint8).reshape(1, 128, 128, 3).copy()).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        round_trip = lab.text_to_image.vae.decode(lab.text_to_image.vae.encode(pixels).latent_dist.mode()).sample
    assert psnr(all_of_it, ((round_trip[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()) >= 60


@pytest.mark.parametrize(
    ("steps", "control", "run"), [(30, "0.35", 20), (30, "0.65", 11), (28, "0.4", 17), (100, "0.71", 29), (50, "0.44", 28), (20, "0.99", 1)]
)
def test_steps_run_are_rounded_up_in_decimal(lab: SD3Lab, steps: int, control: str, run: int) -> None:
    assert len(lab.family.plan(params(steps=steps, image=b"", control_strength=Decimal(control))).table) == run


def test_a_control_strength_just_under_1_runs_one_step(lab: SD3Lab) -> None:
    assert len(lab.family.plan(params(image=b"", control_strength=Decimal("0." + "9" * 40))).table) == 1


def test_an_image_at_full_noise_takes_its_draw_from_the_generator(lab: SD3Lab) -> None:
    plan = lab.family.plan(image_params(strength="0.95", steps=10))
    assert (plan.signal, plan.noise) == (0.0, 1.0)
    assert lab.family.plan(params()).signal is None


def test_timesteps_stay_fractions(lab: SD3Lab) -> None:
    lab.text_to_image.scheduler.set_timesteps(7)
    assert np.array_equal(lab.family.plan(params(steps=7)).table[:, 0], lab.text_to_image.scheduler.timesteps.numpy())
    assert lab.family.plan(params(steps=7)).table[3, 0] % 1


def test_the_empty_prompt_is_encoded_once(lab: SD3Lab) -> None:
    assert lab.family.encode_prompt("", like=lab.family.encode_prompt("a cat")).hidden.any()
    runner, samples = Runner(lab.family), [Sample(str(i), params(seed=i), BatchKey("tiny", 128, 128), 8, 2, 0.0) for i in (1, 2)]
    for sample in samples:
        runner.prepare(sample, lab.family.plan(sample.params))
    assert samples[0].state.negative is samples[1].state.negative


def test_a_long_prompt_says_who_hears_what(lab: SD3Lab, tmp_path: Path) -> None:
    shorter = "red apple " * 45 + "star " + "red " * 20
    note = lab.family.encode_prompt(shorter).note
    assert "only the T5" in note
    assert "cut" not in note
    longer = "red apple " * 127 + "walrus tail"
    assert "longer than 256 tokens and was cut from 'walrus' on" in lab.family.encode_prompt(longer).note
    assert lab.family.encode_prompt("a red apple").note == ""
    for prompt in (shorter, longer):
        check(lab, params(prompt=prompt, steps=2), in_company=False)
    without = SD3.load(make_sd3(tmp_path, t5=False), CPU, torch.float32)
    assert without.encode_prompt("a red apple").note.count("without its T5") == 1
    assert "cut from 'red' on" in without.encode_prompt("red " * 90).note
    assert not without.encode_prompt("a red apple").hidden[:, 77:].any()


@pytest.mark.parametrize(
    "bad",
    [
        {"_class_name": "EulerDiscreteScheduler"},
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        {"shift_terminal": 0.1},
        {"use_beta_sigmas": True},
        {"time_shift_type": "sideways"},
        {"timestep_spacing": "trailing"},
        {"a_field_of_next_year": 3},
        {"shift": 0},
        {"shift": -3.0},
        {"shift": "3"},
        {"use_dynamic_shifting": True, "base_shift": None},
        {"use_dynamic_shifting": True, "max_image_seq_len": 256},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": -1.0},
        {"use_exponential_sigmas": True, "use_karras_sigmas": True},
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_honoured_is_refused_by_name(bad: dict) -> None:
    with pytest.raises(Unsupported, match=list(bad)[-1]):
        FlowSchedule(STATIC | bad)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("transformer/config.json", {"guidance_embeds": True}),
        ("vae/config.json", {"a_field_of_next_year": 1}),
        ("vae/config.json", {"shift_factor": None}),
        ("vae/config.json", {"latents_mean": [0.0] * 16}),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_honoured_is_refused(medium: Path, tmp_path: Path, file: str, change: dict) -> None:
    folder = Path(shutil.copytree(medium, tmp_path / "changed"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(Unsupported, match=f"{file}: {next(iter(change))}"):
        SD3.load(folder, CPU, torch.float32)


def test_a_listed_text_encoder_without_weights_is_refused(medium: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(medium, tmp_path / "changed"))
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(Unsupported, match=r"model_index\.json: text_encoder_3"):
        SD3.load(folder, CPU, torch.float32)


@pytest.mark.parametrize("field", ["in_channels", "joint_attention_dim", "pooled_projection_dim", "patch_size", "qk_norm"])
def test_nets_that_do_not_fit_each_other_are_refused(tmp_path: Path, field: str) -> None:
    change = {"in_channels": 8, "joint_attention_dim": 40, "pooled_projection_dim": 60, "patch_size": 16, "qk_norm": "layer_norm"}[field]
    with pytest.raises(Unsupported, match=f"transformer/config.json: {field}"):
        SD3.load(make_sd3(tmp_path, **{field: change}), CPU, torch.float32)


def test_a_t5_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"text_encoder_3/config\.json: d_model"):
        SD3.load(make_sd3(tmp_path, joint_attention_dim=128), CPU, torch.float32)


def same(a: Any, b: Any) -> bool:
    """Two families have bit-equal weights, and answer alike but for the rounding of memory that is aligned differently."""
    torch.manual_seed(3)
    x, t = torch.randn(1, 16, 16, 16), torch.tensor([700.5])
    for name in ("transformer", "vae"):
        ours, theirs = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.inference_mode():
        texts = [family.encode_prompt("a red apple") for family in (a, b)]
        outs = [family.denoise(x, t, text, torch.tensor([[128.0, 128.0]])) for family, text in zip((a, b), texts, strict=True)]
        pairs = [outs, (a.decode(x), b.decode(x)), (texts[0].hidden, texts[1].hidden), (texts[0].pooled, texts[1].pooled)]
        return texts[0].note == texts[1].note and all(torch.allclose(*pair, atol=1e-5) for pair in pairs)


def load(path: Path) -> Any:
    card = resolve(str(path), path)
    assert card.family == "sd3"
    return load_family(card, "cpu", "float32")


@pytest.mark.parametrize("model", [SD3_MEDIUM, SD35_MEDIUM], ids=["SD 3 medium", "SD 3.5 medium"])
@pytest.mark.parametrize("t5", [True, False])
def test_a_single_file_with_its_text_encoders(tmp_path: Path, model: dict[str, Any], t5: bool) -> None:
    lab = SD3Lab(make_sd3(tmp_path / "one", t5=t5, **model))
    save_file(original_layout(lab.text_to_image), tmp_path / "one.safetensors")
    for weights in (tmp_path / "one").rglob("*.safetensors"):
        weights.unlink()  # only configs and tokenizers stay beside the file
    assert same(load(tmp_path / "one.safetensors"), lab.family)


def test_a_single_file_takes_the_text_encoders_it_lacks_from_the_folder_beside(medium: Path, lab: SD3Lab, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(medium, tmp_path / "one"))
    save_file(original_layout(lab.text_to_image, encoders=False), tmp_path / "one.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert same(load(tmp_path / "one.safetensors"), lab.family)
    shutil.rmtree(folder / "text_encoder_3")
    assert "without its T5" in load(tmp_path / "one.safetensors").encode_prompt("a cat").note
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(Unsupported, match="holds no text_encoder_2"):
        load(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.scale_weight", "scaled fp8"),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight_scale", "scaled fp8"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn3.qkv.weight", "may be a kind"),
        ("model.diffusion_model.controlnet_blocks.0.weight", "a ControlNet"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.40.mlp.fc1.weight", "may be a kind"),
        ("first_stage_model.decoder.extra.weight", "may be a kind"),
    ],
)
def test_a_tensor_of_a_single_file_that_no_net_takes_is_refused_by_name(
    medium: Path, lab: SD3Lab, tmp_path: Path, name: str, meaning: str
) -> None:
    shutil.copytree(medium, tmp_path / "one")
    save_file(original_layout(lab.text_to_image) | {name: torch.ones(2)}, tmp_path / "one.safetensors")
    with pytest.raises(Unsupported, match=f"{re.escape(name)}: .*{meaning}"):
        load(tmp_path / "one.safetensors")


def test_what_of_a_single_file_changes_no_picture_is_let_be(medium: Path, lab: SD3Lab, tmp_path: Path) -> None:
    shutil.copytree(medium, tmp_path / "one")
    more = ("text_encoders.clip_g.logit_scale", "text_encoders.clip_l.transformer.text_model.embeddings.position_ids")
    more += ("text_encoders.t5xxl.spiece_model", "model_ema.decay", "text_encoders.clip_l.logit_scale")
    weights = original_layout(lab.text_to_image) | {name: torch.ones(2) for name in more}
    save_file(weights, tmp_path / "one.safetensors")
    assert same(load(tmp_path / "one.safetensors"), lab.family)


def test_files_of_the_fp16_variant_are_opened_whole_or_in_shards(medium: Path, lab: SD3Lab, tmp_path: Path) -> None:
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        shards = {"max_shard_size": "20KB"} if component in ("transformer", "text_encoder_3") else {}
        getattr(lab.text_to_image, component).save_pretrained(tmp_path / component, variant="fp16", **shards)
    assert len(list((tmp_path / "text_encoder_3").glob("*.fp16-*-of-*.safetensors"))) > 1
    for item in medium.iterdir():
        if not (tmp_path / item.name).exists():
            (tmp_path / item.name).symlink_to(item)
    assert same(load(tmp_path), lab.family)


def test_half_precision_stays_half_and_finite(medium: Path) -> None:
    family = SD3.load(medium, CPU, torch.bfloat16)
    assert {family.vae.dtype, family.transformer.dtype} == {torch.bfloat16}
    with torch.inference_mode():
        text = family.encode_prompt("a red apple")
        assert text.hidden.dtype == torch.bfloat16
        out = family.denoise(torch.randn(1, 16, 16, 16).bfloat16(), torch.tensor([981.0]), text, torch.tensor([[128.0, 128.0]]))
        assert out.dtype == torch.float32
        assert torch.isfinite(family.decode(out)).all()


def test_a_family_of_another_name_is_refused(medium: Path) -> None:
    with pytest.raises(Unsupported, match="'sdxl', 'sd3'"):
        load_family(ModelCard("x", "sd1", str(medium)), "cpu", "float32")

"""LoRAs against `load_lora_weights` and `set_adapters` of diffusers: same weights, same seed, fp32 on the CPU, as 8-bit pictures."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.engine.family import Text
from darkroom.engine.lora_names import Layer, sdxl_from_kohya
from darkroom.engine.loras import Loras, laid
from darkroom.engine.messages import Submit
from darkroom.engine.runner import Runner
from darkroom.engine.sample import BatchKey, Sample
from darkroom.engine.sdxl import SDXL
from darkroom.errors import Unavailable
from darkroom.types import Event, Failed, Finished, Lora, Params

from .conftest import Lab, apart, photo, psnr
from .lora_lab import ATTENTION, Change, changes, diffusers_spelling, laid_by_diffusers, original_spelling, sd3_original, write_diffusers, write_kohya
from .sd3_lab import DYNAMIC, SD35_MEDIUM, SD3Lab, make_sd3
from .test_engine import drain
from .test_parity import params

SDXL_NETS = ("unet", "text_encoder", "text_encoder_2")
SD3_NETS = ("transformer", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def shelf(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs for SDXL by name: both formats and spellings, alpha other than the rank, text encoders, convolutions."""
    folder = tmp_path_factory.mktemp("loras")
    lab.loras = folder
    pipe, original = lab.text_to_image, original_spelling(lab.text_to_image.unet.config)

    def layers(*nets: str, seed: int, alpha: float, **kind: Any) -> dict:
        return changes(pipe, nets, seed, alpha, **kind)

    every = {"wanted": ".*", "rank": 6, "size": 0.15}
    return {
        "original": write_kohya(layers(*SDXL_NETS, seed=1, alpha=2), folder / "original.safetensors", original),
        "flat": write_kohya(layers(*SDXL_NETS, seed=2, alpha=3), folder / "flat.safetensors", diffusers_spelling),
        "conv": write_kohya(layers("unet", seed=3, alpha=3, **every), folder / "conv.safetensors", original),
        "no-alpha": write_kohya(layers("unet", seed=4, alpha=4), folder / "no-alpha.safetensors", original, alphas=False),
        "text": write_kohya(layers(*SDXL_NETS[1:], seed=5, alpha=1), folder / "text.safetensors", diffusers_spelling),
        "noted": write_diffusers(pipe, layers(*SDXL_NETS, seed=6, alpha=8, size=0.15), folder / "noted.safetensors"),
        "plain": write_diffusers(pipe, layers("unet", seed=7, alpha=2, **every), folder / "plain.safetensors", noted=False),
    }


def with_loras(*loras: tuple[str, float], **changes: Any) -> Params:
    return params(steps=8, loras=tuple(sorted((Lora(*lora) for lora in loras), key=lambda lora: lora.name)), **changes)


def reference(lab: Lab, wanted: Params, files: dict[str, Path]) -> np.ndarray:
    with laid_by_diffusers(lab.text_to_image, wanted.loras, files):
        return lab.diffusers(wanted)


SETS = [
    *[[(name, 0.8)] for name in ("original", "flat", "conv", "no-alpha", "text", "noted", "plain")],
    [("original", 1.0)], [("original", -0.7)], [("noted", 1.6)], [("original", 0.5), ("noted", 0.9)], [("conv", -0.4), ("text", 1.2)],
    [("flat", 0.3), ("plain", 0.3), ("text", 0.3)],
]  # fmt: skip


@pytest.mark.parametrize("loras", SETS, ids=str)
def test_a_set_is_what_diffusers_makes_of_it(lab: Lab, shelf: dict[str, Path], loras: list[tuple[str, float]]) -> None:
    check(lab, with_loras(*loras), shelf)


def check(lab: Lab, wanted: Params, files: dict[str, Path]) -> None:
    """As diffusers has it, and far from what the model makes without."""
    (alone,) = lab.ours((0, wanted))
    assert psnr(alone, reference(lab, wanted, files)) >= 55
    assert psnr(alone, lab.diffusers(replace(wanted, loras=()))) < 45, "the LoRA changed nothing"


@pytest.mark.parametrize("changed", [dict(cfg=1.0), dict(negative_prompt="a dog"), dict(width=192), dict(prompt="a red apple " * 40)], ids=str)
def test_all_kinds_of_pictures(lab: Lab, shelf: dict[str, Path], changed: dict[str, Any]) -> None:
    check(lab, with_loras(("original", 0.8), ("noted", 0.5), **changed), shelf)


def test_image_to_image(lab: Lab, shelf: dict[str, Path]) -> None:
    check(lab, with_loras(("original", 0.8), width=192, image=photo(192, 128), control_strength=Decimal("0.3")), shelf)


def crowd(files: dict[str, Path]) -> list[Params]:
    """Strangers with the same set, with other scales, with other LoRAs, and with none."""
    names = sorted(files)
    sets = [[(names[0], 0.8)], [(names[0], 0.8)], [(names[0], -0.8)], [(names[0], 0.8), (names[1], 0.5)], [(names[1], 1.0)], [], []]
    return [with_loras(*loras, seed=21 + i, cfg=1.0 + i, prompt="a cat" if i % 2 else "a small star") for i, loras in enumerate(sets)]


def check_in_company(lab: Lab, files: dict[str, Path], least: float = 55) -> None:
    """Every picture of the crowd, and that they shared passes with their like alone."""
    wanted = crowd(files)
    pictures = lab.ours(*[(i // 2, one) for i, one in enumerate(wanted)])
    sets = [one.loras for one in wanted]
    assert all(len({sets[int(name)] for name in batch}) == 1 for batch in lab.batches), "a batch held two sets"
    assert max(len(batch) for batch in lab.batches if sets[int(batch[0])]) >= 2, "those with the same set never met"
    assert len({batch[0] for batch in lab.batches[4:10]}) > 1, "they took no turns"
    for one, picture in zip(wanted, pictures, strict=True):
        if one.loras:
            assert psnr(picture, reference(lab, one, files)) >= least
            assert apart(picture, lab.ours((0, one))[0]) <= 2
        else:
            assert psnr(picture, lab.diffusers(one)) >= 60


def weights_of(lab: Lab) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": weight.clone() for name, net in lab.family.nets().items() for key, weight in net.state_dict().items()}


def test_a_crowd_with_other_sets_and_the_base_as_it_was(lab: Lab, shelf: dict[str, Path]) -> None:
    before, (plain,) = weights_of(lab), lab.ours((0, with_loras()))
    check_in_company(lab, {name: shelf[name] for name in ("noted", "original")})
    after = weights_of(lab)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[key]) for key, weight in before.items())
    assert np.array_equal(plain, lab.ours((0, with_loras()))[0])


def test_exact_mode_is_bit_equal_in_company(lab: Lab, shelf: dict[str, Path]) -> None:
    first, *others = crowd({name: shelf[name] for name in ("noted", "original")})
    (alone,) = lab.ours((0, first), exact=True)
    assert np.array_equal(alone, lab.ours((2, first), *[(i, one) for i, one in enumerate(others)], exact=True)[0])


def test_alphas_that_differ_from_layer_to_layer(lab: Lab, shelf: dict[str, Path]) -> None:
    """diffusers itself drops those of attention layers (PEFT warns); so its picture comes from a file that needs none."""
    layers = {name: (down, up, 2.0 if i % 3 else 7.0) for i, (name, (down, up, _)) in enumerate(mixed_ranks(lab).items())}
    file = write_kohya(layers, lab.loras / "mixed.safetensors", original_spelling(lab.text_to_image.unet.config))
    twin = write_diffusers(lab.text_to_image, layers, lab.loras / "twin.safetensors", noted=False)
    assert file.exists()
    check(lab, with_loras(("mixed", 0.8)), {"mixed": twin})


def mixed_ranks(lab: Lab) -> dict[str, Change]:
    small, large = (changes(lab.text_to_image, SDXL_NETS, 31, 2, rank=rank, size=0.15) for rank in (4, 8))
    return {name: (large if i % 2 else small)[name] for i, name in enumerate(small)}


def test_what_peft_notes_of_single_layers(lab: Lab, shelf: dict[str, Path]) -> None:
    """Other ranks and alphas of some, and rank-stabilised scaling."""
    layers = changes(lab.text_to_image, ("unet",), 9, 4, size=0.15)
    layers |= changes(lab.text_to_image, ("unet",), 10, 4, r"mid_block.*attn1\.to_[qv]", rank=8, size=0.15)
    state = {f"{name.removeprefix('unet.')}.lora_{side}.weight": half for name, (*halves, _) in layers.items() for side, half in zip("AB", halves, strict=True)}
    first = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
    note = {
        "r": 4, "lora_alpha": 6, "target_modules": [name.removeprefix("unet.") for name in layers], "use_rslora": True,
        "rank_pattern": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 8, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v": 8},
        "alpha_pattern": {f"^{first}": 16, "attn2.to_v": 1},
    }  # fmt: skip
    lab.text_to_image.save_lora_weights(lab.loras, unet_lora_layers=state, unet_lora_adapter_metadata=note, weight_name="patterns.safetensors")
    check(lab, with_loras(("patterns", 0.8)), {"patterns": lab.loras / "patterns.safetensors"})


def test_every_name_of_the_real_sdxl_finds_its_layer() -> None:
    """The UNet as it is published, without its weights: their names are enough."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20], cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, use_linear_projection=True,
        )  # fmt: skip
    modules = {f"unet.{name}" for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    assert len(modules) > 780
    layer = Layer(torch.zeros(1, 1), torch.zeros(1, 1))
    for spelling in (original_spelling(unet.config), diffusers_spelling):
        assert set(sdxl_from_kohya({spelling(name): layer for name in modules}, {"unet": unet})) == modules


def test_the_older_names_of_diffusers(lab: Lab, shelf: dict[str, Path]) -> None:
    """As its scripts wrote them before PEFT: processors of attention, and linear layers of text encoders."""
    from diffusers import StableDiffusionXLPipeline
    from safetensors.torch import load_file, save_file

    state, _ = StableDiffusionXLPipeline.lora_state_dict(load_file(shelf["no-alpha"]), unet_config=lab.text_to_image.unet.config)
    assert any("attn1.processor.to_out_lora.down" in name for name in state)
    save_file(state, lab.loras / "old.safetensors")
    new, old = lab.ours((0, with_loras(("no-alpha", 0.8))), (0, with_loras(("old", 0.8))))
    assert np.array_equal(new, old)


def replaced(lab: Lab, name: str, source: Path) -> None:
    """Another file under a name, as a person puts it there."""
    draft = lab.loras / "draft"
    draft.write_bytes(source.read_bytes())
    draft.replace(lab.loras / f"{name}.safetensors")


def test_another_file_under_the_same_name_is_another_lora(lab: Lab, shelf: dict[str, Path]) -> None:
    replaced(lab, "changing", shelf["original"])
    engine, wanted = lab.engine(), with_loras(("changing", 0.8))
    engine.put(Submit("old", wanted))
    for _ in range(3):
        engine.step()
    replaced(lab, "changing", shelf["flat"])  # while the first is being made: it keeps what it began with
    engine.put(Submit("new", wanted))
    ended = drain(engine)
    for name, file in (("old", "original"), ("new", "flat")):
        picture = np.frombuffer(ended[name].pixels, np.uint8).reshape(128, 128, 3)
        assert psnr(picture, reference(lab, wanted, {"changing": shelf[file]})) >= 55


def test_a_file_replaced_while_its_sample_waited_says_so(lab: Lab, shelf: dict[str, Path]) -> None:
    replaced(lab, "waiting", shelf["original"])
    loras = Runner(lab.family, lab.loras)._loras
    keys = loras.keys((Lora("waiting", 1.0),))
    replaced(lab, "waiting", shelf["flat"])
    with pytest.raises(Unavailable, match="was replaced while this request waited"):
        loras.fetch(keys)


def failures(lab: Lab, *wanted: Params) -> list[Event]:
    """The final events of Samples that run together with one that has no LoRA, which must be finished."""
    engine = lab.engine()
    engine.put(Submit("good", with_loras()))
    for i, one in enumerate(wanted):
        engine.put(Submit(str(i), one))
    ended = drain(engine)
    assert isinstance(ended.pop("good"), Finished)
    return [ended[str(i)] for i in range(len(wanted))]


def test_a_sample_whose_lora_cannot_be_used_fails_alone(lab: Lab, shelf: dict[str, Path]) -> None:
    pipe, original = lab.text_to_image, original_spelling(lab.text_to_image.unet.config)
    layers = changes(pipe, ("unet",), 8, 4)
    (lab.loras / "broken.safetensors").write_bytes(shelf["plain"].read_bytes()[:-100])
    name, (down, up, alpha) = next(iter(layers.items()))
    write_kohya({name: (down[:, 1:].contiguous(), up, alpha)}, lab.loras / "narrow.safetensors", original)
    write_kohya({name.replace("blocks.1", "blocks.7"): (down, up, alpha)}, lab.loras / "deep.safetensors", diffusers_spelling)
    write_kohya({f"{name}.nonsense": (down, up, alpha)}, lab.loras / "odd.safetensors", diffusers_spelling)
    write_kohya({"x": (down, up, alpha)}, lab.loras / "other.safetensors", lambda _: "lora_unet_joint_blocks_0_x_block_attn_proj")
    bad = {"broken": "cut off", "narrow": "this model needs", "deep": "this model has no layer", "odd": "no layer", "other": "it is for sd3", "gone": "gone"}
    for event, said in zip(failures(lab, *[with_loras((name, 1.0)) for name in bad], with_loras(("original", 1.0))), [*bad.values(), None], strict=True):
        if said is None:
            assert isinstance(event, Finished)
        else:
            assert isinstance(event, Failed)
            assert (event.name, event.status) == ("invalid_loras", 422)
            assert said in event.message
            assert "/" not in event.message


def test_two_spellings_of_one_layer_are_refused(lab: Lab, shelf: dict[str, Path]) -> None:
    layers = changes(lab.text_to_image, ("unet",), 8, 4)
    original = original_spelling(lab.text_to_image.unet.config)
    twice = {original(name): layer for name, layer in layers.items()} | {diffusers_spelling(name): layer for name, layer in layers.items()}
    write_kohya(twice, lab.loras / "twice.safetensors", str)
    (event,) = failures(lab, with_loras(("twice", 1.0)))
    assert isinstance(event, Failed)
    assert "in two spellings" in event.message


def test_loras_leave_memory_by_least_use_and_those_in_use_are_read_once(lab: Lab, shelf: dict[str, Path]) -> None:
    def fetch(runner: Runner, *names: str) -> list[str]:
        """Asks for these one after the other; the names that are kept then, the latest last."""
        for name in names:
            runner._loras.fetch(runner.lora_keys([Lora(name)]))
        return [name for name, _ in runner._loras._kept]

    small = ("original", "flat", "text")
    sizes = {name: (lab.loras / f"{name}.safetensors").stat().st_size for name in (*small, "conv")}
    assert sizes["conv"] > sum(sizes[name] for name in small)
    runner = Runner(lab.family, lab.loras, max_lora_bytes=sizes["conv"])
    assert fetch(runner, *small, "original") == ["flat", "text", "original"]
    assert fetch(runner, "conv") == ["conv"]
    used = runner._loras.fetch(runner.lora_keys([Lora("conv")]))
    assert fetch(runner, "flat") == ["flat"]
    assert runner._loras.fetch(runner.lora_keys([Lora("conv", 0.5)])).loaded[0] is used.loaded[0]
    assert runner.nbytes - Runner(lab.family).nbytes == used.loaded[0].nbytes
    assert fetch(Runner(lab.family, lab.loras, max_lora_bytes=0), *small) == []


def test_a_model_that_leaves_the_memory_takes_its_loras_along(lab: Lab, shelf: dict[str, Path], checkpoint: Path) -> None:
    family = SDXL.load(checkpoint, torch.device("cpu"), torch.float32)
    runner, unet = Runner(family, lab.loras, max_lora_bytes=10**9), weakref.ref(family.unet)
    runner._loras.fetch(runner.lora_keys([Lora("original")]))
    runner.release()
    del family
    gc.collect()
    assert unet() is None


def test_texts_are_encoded_anew_only_for_a_set_that_changes_the_encoders(lab: Lab, shelf: dict[str, Path]) -> None:
    runner = Runner(lab.family, lab.loras)

    def text(*loras: tuple[str, float]) -> Text:
        wanted = with_loras(*loras)
        key = BatchKey("tiny", 128, 128, loras=runner.lora_keys(wanted.loras))
        sample = Sample("a", wanted, key, 8, 2, 0.0)
        runner.prepare(sample, lab.family.plan(wanted))
        return sample.state.text

    assert text() is text(("conv", 1.0))
    assert text(("text", 1.0)) is text(("text", 1.0), ("conv", 0.5))
    assert text() is not text(("text", 1.0))
    assert not torch.equal(text(("text", 1.0)).hidden, text(("text", 0.5)).hidden)


def test_half_precision_stays_half(lab: Lab, shelf: dict[str, Path], checkpoint: Path) -> None:
    family = SDXL.load(checkpoint, torch.device("cpu"), torch.bfloat16)
    loras = Loras(family, lab.loras, 0)
    worn = loras.fetch(loras.keys((Lora("conv", 0.5), Lora("original", 0.5))))
    assert {weight.dtype for lora in worn.loaded for layer in lora.layers.values() for weight in (layer.down, layer.up)} == {torch.bfloat16}
    with torch.inference_mode(), laid(worn.encoders), laid(worn.denoiser):
        text = family.encode_prompt("a cat")
        out = family.denoise(torch.randn(1, 4, 16, 16).bfloat16(), torch.tensor([981.0]), text, torch.tensor([[128.0, 128.0]]))
    assert text.hidden.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> SD3Lab:
    lab = SD3Lab(make_sd3(tmp_path_factory.mktemp("sd3"), scheduler=DYNAMIC, **SD35_MEDIUM))
    lab.loras = tmp_path_factory.mktemp("loras")
    return lab


@pytest.fixture(scope="module")
def sd3_shelf(sd3: SD3Lab) -> dict[str, Path]:
    """LoRAs for SD 3.x. diffusers does not read kohya's names of them, so its picture comes from the same change in its own format."""
    pipe, blocks = sd3.text_to_image, len(sd3.text_to_image.transformer.transformer_blocks)
    aside = sd3.loras.parent / "twins"
    aside.mkdir(exist_ok=True)
    every = rf"{ATTENTION}|transformer_blocks\.\d+\.(ff|norm1).*|norm_out.linear|proj_out|pos_embed.proj|context_embedder|time_text_embed.*"
    kinds: dict[str, dict[str, Change]] = {
        "attention": changes(pipe, SD3_NETS, 1, 2, size=0.1),
        "every": changes(pipe, ("transformer",), 2, 3, wanted=every, size=0.1),
        "text": changes(pipe, SD3_NETS[1:], 3, 3),
    }
    files = {"noted": write_diffusers(pipe, changes(pipe, SD3_NETS, 4, 8, size=0.1), sd3.loras / "noted.safetensors")}
    for name, layers in kinds.items():
        write_kohya(sd3_original(layers, blocks), sd3.loras / f"{name}.safetensors", str)
        files[name] = write_diffusers(pipe, layers, aside / f"{name}.safetensors", noted=False)
    return files


@pytest.mark.parametrize(
    "loras", [[("noted", 0.8)], [("attention", 0.8)], [("every", 1.0)], [("every", -0.5)], [("text", 1.0)], [("every", 0.5), ("noted", 0.9)]], ids=str
)
def test_sd3(sd3: SD3Lab, sd3_shelf: dict[str, Path], loras: list[tuple[str, float]]) -> None:
    check(sd3, with_loras(*loras, negative_prompt="" if len(loras) == 1 else "a dog"), sd3_shelf)


def test_sd3_in_a_crowd_and_the_base_as_it_was(sd3: SD3Lab, sd3_shelf: dict[str, Path]) -> None:
    before = weights_of(sd3)
    check_in_company(sd3, {name: sd3_shelf[name] for name in ("noted", "attention")})
    assert all(torch.equal(weight, before[key]) for key, weight in weights_of(sd3).items())


def test_sd3_without_a_negative_prompt_hears_the_lora_there_too(sd3: SD3Lab, sd3_shelf: dict[str, Path]) -> None:
    """The unconditional of SD 3.x is the empty prompt encoded, so a LoRA of its text encoders changes it."""
    first, second = with_loras(), with_loras(("text", 1.0))
    pictures = sd3.ours((0, first), (1, second))
    assert psnr(pictures[0], sd3.diffusers(first)) >= 60
    assert psnr(pictures[1], reference(sd3, second, sd3_shelf)) >= 55


def test_sd3s_t5_too(sd3: SD3Lab, tmp_path: Path) -> None:
    """kohya trains it on demand; diffusers does not read that, so the weights themselves are changed for its picture."""
    layers = changes(sd3.text_to_image, ("text_encoder_3",), 5, 2, wanted=".*SelfAttention.*|.*DenseReluDense.*")
    write_kohya(layers, sd3.loras / "t5.safetensors", diffusers_spelling)
    wanted = with_loras(("t5", 0.8))
    (picture,) = sd3.ours((0, wanted))
    plain = sd3.diffusers(wanted)
    for name, (down, up, alpha) in layers.items():
        sd3.text_to_image.text_encoder_3.get_submodule(name.partition(".")[2]).weight.data += 0.8 * alpha / len(down) * up @ down
    assert psnr(picture, sd3.diffusers(wanted)) >= 55
    assert psnr(picture, plain) < 45

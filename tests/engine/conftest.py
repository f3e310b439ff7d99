"""Small checkpoints of the real SDXL classes with random weights, and the two ways to make a picture: diffusers' and ours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.messages import Submit
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.engine.sdxl import SDXL
from darkroom.models.catalogue import resolve
from darkroom.types import FINAL, Finished, Params

SDXL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip


def make_checkpoint(folder: Path, widths: tuple[int, int] = (32, 32), **vae: object) -> Path:
    """A diffusers folder: a UNet of 0.5 M parameters with text_time conditioning, two CLIP encoders of these widths, the VAE with 8x downsampling."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    demo = Path(str(resolve("demo-xl", folder).path))
    tokenizer = CLIPTokenizer.from_pretrained(demo / "tokenizer")
    text, text_2 = (
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=width,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
        for width in widths
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1], attention_head_dim=[2, 4], cross_attention_dim=sum(widths), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=widths[1] + 6 * 8, use_linear_projection=True,
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, force_upcast=True,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **vae,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text_2), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler.from_config(SDXL_SCHEDULER), add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


def with_scheduler(checkpoint: Path, folder: Path, config: dict) -> Path:
    """The same weights with another scheduler_config.json."""
    for item in checkpoint.iterdir():
        if item.name != "scheduler" and not (folder / item.name).exists():
            (folder / item.name).symlink_to(item)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", config["_class_name"]]}
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


class Lab:
    """One checkpoint, opened by diffusers and by us; LoRAs come from the folder `loras`."""

    loras = Path("loras")

    def __init__(self, folder: Path):
        self.family, self.text_to_image, self.image_to_image = self.open(folder)
        for pipe in (self.text_to_image, self.image_to_image):
            pipe.set_progress_bar_config(disable=True)

    def open(self, folder: Path) -> tuple[Any, Any, Any]:
        """The family, and diffusers' two pipelines."""
        from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

        pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
        image_to_image = StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
        return SDXL.load(folder, torch.device("cpu"), torch.float32), pipe, image_to_image

    def image_arguments(self, params: Params) -> dict[str, Any]:
        """What the image pipeline takes beyond the text's arguments; SDXL's reads the size from the image."""
        assert params.image is not None
        assert params.control_strength is not None
        image = Image.frombytes("RGB", (params.width, params.height), params.image)
        return {"image": image, "strength": float(1 - params.control_strength)}

    def diffusers(self, params: Params) -> np.ndarray:
        """The pipelines' own picture [h, w, 3] uint8."""
        common = dict(
            prompt=params.prompt, negative_prompt=params.negative_prompt or None, num_inference_steps=params.steps,
            guidance_scale=params.cfg, generator=torch.Generator("cpu").manual_seed(params.seed),
        )  # fmt: skip
        if params.image is None:
            return np.asarray(self.text_to_image(height=params.height, width=params.width, **common).images[0])
        return np.asarray(self.image_to_image(**self.image_arguments(params), **common).images[0])

    def engine(self, exact: bool = False, sizes: Iterable[tuple[int, int]] = ()) -> Engine:
        """An engine whose clock lets every step take as long as any other, so that batches always grow; at once for these sizes
        (height and width), whose costs it knows."""
        ticks, cost = itertools.count(), CostModel()
        cost.load({f"tiny {height} {width}": {str(rows): 0.01 for rows in range(1, 17)} for height, width in sizes})
        return Engine(Residents.of({"tiny": Runner(self.family, self.loras)}), cost, exact=exact, clock=lambda: next(ticks) * 0.01)

    def ours(self, *submissions: tuple[int, Params], exact: bool = False, engine: Engine | None = None) -> list[np.ndarray]:
        """Pictures in order; each Params joins at the turn it is given with. The batches' row counts are kept in `rows`."""
        sizes = {(params.height, params.width) for _, params in submissions}
        engine, results = engine or self.engine(exact, sizes), {}
        watched = Watch(engine.scheduler.schedule)
        engine.scheduler.schedule = watched  # only looks on
        turn = 0
        while len(results) < len(submissions):
            for i, (when, params) in enumerate(submissions):
                if when == turn:
                    engine.put(Submit(str(i), params))
            for event in engine.step():
                if isinstance(event, FINAL):
                    assert isinstance(event, Finished), event
                    results[int(event.job_id)] = np.frombuffer(event.pixels, np.uint8).reshape(event.height, event.width, 3)
            turn += 1
        self.batches = watched.batches
        return [results[i] for i in range(len(submissions))]


class Watch:
    """Notes which Samples each batch held."""

    def __init__(self, schedule: Callable):
        self._schedule, self.batches = schedule, []

    def __call__(self, now: float):
        batch = self._schedule(now)
        if batch:
            self.batches.append([sample.id for sample in batch.samples])
        return batch


@pytest.fixture(scope="session")
def lab(checkpoint: Path) -> Lab:
    return Lab(checkpoint)


def photo(width: int, height: int, seed: int = 0) -> bytes:
    """An init picture: smooth colours with an edge, raw RGB."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(small).copy()
    pixels[: height // 3, : width // 2] = rng.integers(0, 256, 3, dtype=np.uint8)
    return pixels.tobytes()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB; infinite where they are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of any pixel, of 255."""
    return int(np.abs(a.astype(int) - b).max())

"""A peer that is a call and no server, in a process of its own: python called.py KIND FOLDER THREADS

A line of stdin is a request as JSON; the line of stdout that answers it is the picture as base64 of a PNG where the request has
`picture`, else empty. The first line says that it is ready. KIND: eager, compiled (torch.compile), genai, sdcpp.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Draw = Callable[[dict], Image.Image]


def eager(folder: Path, threads: int) -> Draw:
    import torch
    from pipelines import draw, load

    torch.set_num_threads(threads)
    pipe = load(folder)
    return lambda body: draw(pipe, body)


def compiled(folder: Path, threads: int) -> Draw:
    """The denoiser compiled, once for each shape; the rest is eager."""
    import torch
    from pipelines import draw, load

    torch.set_num_threads(threads)
    pipe = load(folder)
    net = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, net, torch.compile(getattr(pipe, net), dynamic=False))
    return lambda body: draw(pipe, body)


def genai(folder: Path, threads: int) -> Draw:
    """`folder` as genai.py writes it. The noise is torch's own for the seed, so pictures can be compared; TaylorSeer, which leaves out
    two passes of SD 3.x's denoiser in three unless told not to, is off."""
    import openvino_genai

    pipe = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY")
    config = pipe.get_generation_config()
    config.taylorseer_config = None
    pipe.set_generation_config(config)

    def draw(body: dict) -> Image.Image:
        generator = openvino_genai.TorchGenerator(body["seed"])
        pixels = pipe.generate(
            body["prompt"], num_inference_steps=body["steps"], width=body["width"], height=body["height"], guidance_scale=body["cfg_scale"], generator=generator
        )
        return Image.fromarray(pixels.data[0].copy())

    return draw


def sdcpp(folder: Path, threads: int) -> Draw:
    """stable-diffusion.cpp on the same fp16 files. Its tokenizer is the real one and its noise its own, so its pictures are others."""
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(model_path=str(folder), n_threads=threads, vae_decode_only=True)

    def draw(body: dict) -> Image.Image:
        return model.generate_image(
            prompt=body["prompt"], sample_steps=body["steps"], width=body["width"], height=body["height"], cfg_scale=body["cfg_scale"],
            seed=body["seed"], sample_method="euler",
        )[0]  # fmt: skip

    return draw


KINDS = {"eager": eager, "compiled": compiled, "genai": genai, "sdcpp": sdcpp}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    draw = KINDS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        body = json.loads(line)
        picture, png = draw(body), io.BytesIO()
        if body.get("picture"):
            picture.save(png, "PNG")
        print(base64.b64encode(png.getvalue()).decode(), file=answers, flush=True)


if __name__ == "__main__":
    main()

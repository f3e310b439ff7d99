"""The peer: what most people write first. diffusers' pipeline behind FastAPI with a lock. python plain_server.py FOLDER PORT"""

from __future__ import annotations

import io
import sys
import threading

import torch
import uvicorn
from diffusers import StableDiffusionXLPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel

pipe = StableDiffusionXLPipeline.from_pretrained(sys.argv[1], dtype=torch.float32, add_watermarker=False)
pipe.set_progress_bar_config(disable=True)
lock = threading.Lock()
app = FastAPI()


class Body(BaseModel):
    prompt: str
    steps: int
    width: int
    height: int
    cfg_scale: float
    seed: int
    model: str = ""


@app.post("/v1/images/generate")
def generate(body: Body) -> Response:
    with lock:
        image = pipe(
            body.prompt, num_inference_steps=body.steps, width=body.width, height=body.height, guidance_scale=body.cfg_scale,
            generator=torch.Generator("cpu").manual_seed(body.seed),
        ).images[0]  # fmt: skip
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return Response(out.getvalue(), media_type="image/png")


uvicorn.run(app, port=int(sys.argv[2]), log_level="error")

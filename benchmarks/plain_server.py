"""The peer: diffusers' pipeline behind FastAPI with a lock. python plain_server.py FOLDER PORT

The pipeline runs in one thread of its own: in FastAPI's pool torch keeps a team of threads for each thread that ever
called it, which makes it about twice as slow on two cores and would flatter us.
"""

from __future__ import annotations

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
import uvicorn
from diffusers import StableDiffusionXLPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel

pipe = StableDiffusionXLPipeline.from_pretrained(sys.argv[1], dtype=torch.float32, add_watermarker=False)
pipe.set_progress_bar_config(disable=True)
lock = asyncio.Lock()
thread = ThreadPoolExecutor(1)
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
async def generate(body: Body) -> Response:
    async with lock:
        png = await asyncio.get_running_loop().run_in_executor(thread, draw, body)
    return Response(png, media_type="image/png")


def draw(body: Body) -> bytes:
    image = pipe(
        body.prompt, num_inference_steps=body.steps, width=body.width, height=body.height, guidance_scale=body.cfg_scale,
        generator=torch.Generator("cpu").manual_seed(body.seed),
    ).images[0]  # fmt: skip
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


uvicorn.run(app, port=int(sys.argv[2]), log_level="error")

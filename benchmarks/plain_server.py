"""The peer: diffusers' pipeline behind FastAPI with a lock. python plain_server.py FOLDER PORT THREADS

The pipeline is loaded and runs in one thread of its own: torch keeps a team of threads for each thread that ever called it,
the main one or those of FastAPI's pool, and two teams on two cores make it up to twice as slow, which would flatter us.
"""

from __future__ import annotations

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Response
from pipelines import draw, load
from pydantic import BaseModel


def loaded() -> Any:
    torch.set_num_threads(int(sys.argv[3]))
    return load(Path(sys.argv[1]))


lock = asyncio.Lock()
thread = ThreadPoolExecutor(1)
pipe = thread.submit(loaded).result()
app = FastAPI()


class Body(BaseModel):
    prompt: str
    steps: int
    width: int
    height: int
    cfg_scale: float
    seed: int


@app.post("/v1/images/generate")
async def generate(body: Body) -> Response:
    async with lock:
        png = await asyncio.get_running_loop().run_in_executor(thread, to_png, body)
    return Response(png, media_type="image/png")


def to_png(body: Body) -> bytes:
    out = io.BytesIO()
    draw(pipe, body.model_dump()).save(out, "PNG", compress_level=1)
    return out.getvalue()


uvicorn.run(app, port=int(sys.argv[2]), log_level="error")

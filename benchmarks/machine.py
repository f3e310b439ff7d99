"""What is measured beside the pictures: the GEMM peak, the FLOPs of a UNet, and how long our server takes to start."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import loads
import numpy as np
import openvino as ov
import peers
import torch
from diffusers import UNet2DConditionModel
from openvino import opset13
from ready import until_settled
from torch.utils.flop_counter import FlopCounterMode

AS_INSTALLED = Path(__file__).parents[1] / "tests" / "as_installed"  # hides what tests and benchmarks alone bring
TORCH, ONEDNN = "torch.mm", "OpenVINO's product by a constant"


def gemm_rates(threads: int, side: int = 3072, times: int = 6) -> dict[str, float]:
    """FLOP/s of the best of several fp32 products of large square matrices, by who multiplies. Torch's own (MKL) is no peak on every
    processor: on AMD's with AVX-512 oneDNN with packed weights, which OpenVINO calls, is about twice as fast."""
    torch.set_num_threads(threads)
    a, b = torch.randn(side, side), torch.randn(side, side)
    given = opset13.parameter([side, side], np.float32)
    model = ov.Model([opset13.matmul(given, opset13.constant(b.numpy()), False, False)], [given])
    request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}).create_infer_request()
    calls = {TORCH: lambda: torch.mm(a, b), ONEDNN: lambda: request.infer([a.numpy()], share_inputs=True, share_outputs=True)}
    return {name: 2 * side**3 / min(timed(call) for _ in range(times)) for name, call in calls.items()}


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def unet_flops(folder: Path, side: int) -> int:
    """FLOPs of one row of a step at a picture's side: products and convolutions, a multiply-add counted as two, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((folder / "unet" / "config.json").read_text()))
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        latent, text = torch.empty(1, 4, side // 8, side // 8), torch.empty(1, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(latent, torch.empty(1), text, added_cond_kwargs=added)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Start:
    """Seconds from the command to its first 200 on /healthz, and to the first picture of who asked as soon as it answered."""

    gateway: float
    picture: float


def starts(model: Path, work: Path, threads: int, flags: list[str], log: Path, times: int) -> list[Start]:
    """Starts as `make run` has installed it, with one data folder, the first of which writes it, so `times` + 1 in all; the later ones are returned."""
    data, port = work / "starts", peers.free_port()
    command = ["-m", "darkroom.cli", "serve", "--port", str(port), "--data-dir", str(data), "--model", str(model), "--threads", str(threads), *flags]
    environment = os.environ | ({} if "int8" in flags else {"PYTHONPATH": str(AS_INSTALLED)})  # who takes int8 has installed more
    found, key = [], ""
    for _ in range(times + 1):
        began = time.perf_counter()
        process = peers.spawn(command, log, stdout=subprocess.PIPE, env=environment)
        peers.until_answered(process, f"http://127.0.0.1:{port}/healthz")
        gateway = time.perf_counter() - began
        printed = [peers.read_line(process, "darkroom").split("=", 1)[1] for _ in range(2)]
        key = key or printed[1]  # told only by the first start
        headers = {"Authorization": f"Bearer {key}", "Cache-Control": "no-cache"}
        body = loads.body(256, 10)
        peers.HTTP.post(f"{printed[0]}/v1/images/generate", json=body, headers=headers).raise_for_status()
        found.append(Start(gateway, time.perf_counter() - began))
        until_settled(printed[0])
        process.terminate()
        process.wait(60)
    return found[1:]

"""OpenVINO's compiled models by the files of their graphs. No torch and no diffusers, so that it may go on while these are imported."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openvino as ov


def options(threads: int) -> dict[str, Any]:
    """f32: bf16 and f16 are slower than f32 without AMX, and give other pictures. Pinned threads would fight PyTorch's. threads: 0
    takes one for each core."""
    chosen = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    return chosen | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def in_streams(threads: int, count: int) -> dict[str, Any]:
    """The same for a graph of which so many requests run at once, each on its part of the threads."""
    return options(threads) | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": count}


def for_any_shape(core: ov.Core, file: Path, threads: int) -> ov.CompiledModel:
    """A graph as it takes any rows and sides. The outcome is kept beside it: a file as large as the weights saves seconds, and by its path
    the graph need not even be read for it. Raises RuntimeError where a file cannot be read."""
    return core.compile_model(file, "CPU", options(threads) | {"CACHE_DIR": str(file.parent / "compiled")})


def fixed_form(file: Path) -> Path:
    """Beside a graph's file that of which graphs for one shape are made, where it is another: what is fast with shapes that are known
    (`norms.py`) is slower to load and to run where they are not."""
    return file.with_name(f"{file.stem}-fixed.xml")


class Begun:
    """The graphs of a folder, compiled on a thread from now on."""

    def __init__(self, folder: Path, threads: int):
        core, pool = ov.Core(), ThreadPoolExecutor(1)
        files = [file for file in folder.glob("*.xml") if not file.stem.endswith("-fixed")]
        self._futures: dict[Path, Future[ov.CompiledModel]] = {file: pool.submit(for_any_shape, core, file, threads) for file in files}
        pool.shutdown(wait=False)

    def take(self, file: Path) -> ov.CompiledModel | None:
        """The one of this file, once it is there; None for another's. Raises what `for_any_shape` does."""
        future = self._futures.pop(file, None)
        return future.result() if future else None

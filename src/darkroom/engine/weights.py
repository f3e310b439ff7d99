"""The files of a component in a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PLAIN = ("*model.safetensors", "*model-*-of-?????.safetensors")  # whole, or in shards beside an index
HALF = ("*.fp16.safetensors", "*.fp16-*-of-?????.safetensors")


def here(folder: Path) -> bool:
    """Whether the weights of this component lie in its folder."""
    return _any(folder, PLAIN + HALF)


def how_to_open(folder: Path) -> dict[str, Any]:
    """Arguments of from_pretrained: by memory map, the plain weights, or the fp16 variant where only that lies there."""
    variant = {"variant": "fp16"} if not _any(folder, PLAIN) and _any(folder, HALF) else {}
    return {"use_safetensors": True, "low_cpu_mem_usage": True, "local_files_only": True, **variant}


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))

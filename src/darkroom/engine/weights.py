"""Files of weights: those of a component in a diffusers folder, and single files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from darkroom.errors import ModelUnavailable, Unsupported

PLAIN = ("*model.safetensors", "*model-*-of-?????.safetensors")  # whole, or in shards beside an index
HALF = ("*.fp16.safetensors", "*.fp16-*-of-?????.safetensors")
SD3_BLOCKS = ("model.diffusion_model.joint_blocks.", "joint_blocks.")  # names that in a single file only SD 3.x's transformer has


def here(folder: Path) -> bool:
    """Whether the weights of this component lie in its folder."""
    return _any(folder, PLAIN + HALF)


def how_to_open(folder: Path) -> dict[str, Any]:
    """Arguments of from_pretrained: by memory map, the plain weights, or the fp16 variant where only that lies there."""
    variant = {"variant": "fp16"} if not _any(folder, PLAIN) and _any(folder, HALF) else {}
    return {"use_safetensors": True, "low_cpu_mem_usage": True, "local_files_only": True, **variant}


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def names_in(file: Path) -> set[str]:
    """The names of the weights in a single file. Raises ModelUnavailable for a broken one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise ModelUnavailable(f"{file.name} is broken or cut off ({error})") from error


def open_single_file(pipeline: Any, names: Iterable[str], file: Path, config: Path, dtype: Any, **known: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline of diffusers from a file in its model's original layout, and those of its nets in `names` that it has.

    `config` is a folder with the configs; `known` are components that are there already. Asks nothing of the hub. Raises
    Unsupported where weights are missing.
    """
    try:
        pipe = pipeline.from_single_file(str(file), config=str(config), dtype=dtype, local_files_only=True, **known)
    except (KeyError, NotImplementedError) as error:  # a name that diffusers looks up, or a weight that stayed without values
        raise Unsupported(f"{file.name}: weights that its configs ask for are missing") from error
    nets = {name: getattr(pipe, name) for name in names if getattr(pipe, name) is not None}
    for name, net in nets.items():
        refuse_gaps(name, [key for key, weight in net.named_parameters() if weight.is_meta])
    return pipe, nets


def refuse_gaps(net: str, lacking: Any) -> None:
    """Without this a weight that a file lacks would be drawn at random, or be there without values. Raises Unsupported."""
    if lacking:
        raise Unsupported(f"{net}: {len(lacking)} weights are missing, the first is {sorted(lacking)[0]}")

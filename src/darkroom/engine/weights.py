"""Files of weights: those of a component in a diffusers folder, and single files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of the files of a model, a folder or a single file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files if file.is_file() for stat in [file.stat()]]


def names_in(file: Path) -> set[str]:
    """The names of the weights in a single file. Raises ModelUnavailable for a broken one."""
    with _opening(file) as weights:
        return set(weights.keys())


@contextmanager
def _opening(file: Path) -> Iterator[Any]:
    """A file of weights by memory map. Raises ModelUnavailable for a broken one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ModelUnavailable(f"{file.name} is broken or cut off ({error})") from error


def count_weights(path: Path) -> int:
    """How many numbers the weights of a diffusers folder or a single file are, by the files' headers alone."""
    if not path.is_dir():
        return _count_in(path)
    return sum(_count_in(file) for folder in path.iterdir() if folder.is_dir() for file in _opened(folder))


def _opened(folder: Path) -> list[Path]:
    """The files that from_pretrained opens in a component's folder."""
    kinds = [[file for pattern in patterns for file in folder.glob(pattern)] for patterns in (PLAIN, HALF)]
    plain = [file for file in kinds[0] if file not in kinds[1]]
    return plain or kinds[1]


def _count_in(file: Path) -> int:
    with _opening(file) as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (not a dict)


def open_nets(folder: Path, kinds: Mapping[str, Any], dtype: Any, tell: Callable[[float], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nets of a diffusers folder by name, and what transformers and diffusers report of each; `tell` is told the part of
    the bytes that is read, 0 to 1."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # `tell` is told
    sizes = {name: sum(file.stat().st_size for file in _opened(folder / name)) for name in kinds}
    nets, reports, done = {}, {}, 0
    for name, kind in kinds.items():
        nets[name], reports[name] = kind.from_pretrained(folder / name, dtype=dtype, output_loading_info=True, **how_to_open(folder / name))
        done += sizes[name]
        tell(done / max(1, sum(sizes.values())))
    return nets, reports


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

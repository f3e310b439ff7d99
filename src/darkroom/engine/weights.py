"""Files of weights: those of a component in a diffusers folder, and single files."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from darkroom.errors import ModelUnavailable, Unsupported
from darkroom.types import ModelCard

PLAIN = ("*model.safetensors", "*model-*-of-?????.safetensors")  # whole, or in shards beside an index
HALF = ("*.fp16.safetensors", "*.fp16-*-of-?????.safetensors")
SMALL = 4 * 2**20  # bytes; vocabularies have 2 MB at most

# Configs and tokenizers for a single file without a folder beside it. SD 3.x's repositories are gated, so theirs must lie there.
CONFIGS = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "sd3": None}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}

# Tensors that no net takes and that change no picture.
HARMLESS = re.compile(
    "|".join(
        (
            r"model_ema\..*",  # weights averaged over the training, beside those that are used
            r"(.*\.)?position_ids",  # 0, 1, 2, ...
            r"(.*\.)?(log_)?sigmas|(.*\.)?alphas_cumprod(_prev)?|betas|(sqrt|log|posterior)_\w+|logvar",  # the noise schedule
            r"v_pred|ztsnr",  # read by prediction_in
            r"(.*\.)?logit_scale|(.*\.)?attn_mask|first_stage_model\.loss\..*|global_step",  # what only a training needs
            # CLIP-L's projection: SDXL does not use it, and SD 3.x's authors ship the identity, which diffusers puts there itself
            r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?|text_projection\.weight",
            r"text_encoders\.clip_l\.(transformer\.)?text_projection(\.weight)?",
            r"(.*\.)?spiece_model",  # T5's tokenizer
        )
    )
)
# What others say of their file.
MEANINGS = [
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"^edm_|(^|\.)edm_vpred", "an EDM model (Playground v2.5, CosXL), whose sampling is not offered"),
        (r"\.(scale_weight|weight_scale|scale_input|input_scale|comfy_quant)$|scaled_fp8$", "scaled fp8, which is not offered: take a file in fp16 or bf16"),
        (r"\.(absmax|quant_map|quant_state\..*|nested_absmax)$", "quantized by bitsandbytes, which is not offered: take a file in fp16 or bf16"),
        (r"^control_model\.|\.controlnet", "a ControlNet, which is not a model by itself"),
        (r"lora_(up|down)\.|lora_[AB]\.", "a LoRA within the file, which is not merged into its weights"),
    )
]
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


def stamps(card: ModelCard) -> list[tuple[str, str]]:
    """Name and state of every file that decides the pictures of a model: those of its folder, also behind links; of a single file
    also those of the folder with its configs. Small files, which configs are, stand for what they hold, large ones for their size
    and their time of change."""
    if card.path is None:
        return []
    path = Path(card.path)
    roots = [path] if path.is_dir() else [path, *_configs_of(path, card.family)]
    return [(f"{number}/{name}", _state(file)) for number, root in enumerate(roots) for name, file in _files_of(root)]


def _configs_of(file: Path, family: str) -> list[Path]:
    """The folder of the configs that a single file is opened with: the one beside it, else what the hub's cache has."""
    beside = file.with_suffix("")
    if (beside / "model_index.json").exists() or CONFIGS.get(family) is None:
        return [beside]
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(CONFIGS[family]), "model_index.json")
    return [Path(cached).parent] if isinstance(cached, str) else []


def _files_of(root: Path) -> Iterator[tuple[str, Path]]:
    """Name below `root` and path of each file, also in linked folders; a link that leads back is followed once."""
    if not root.is_dir():
        if root.exists():
            yield root.name, root
        return
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if name not in (".cache", ".git"))
        if real not in seen:
            yield from ((str((Path(folder) / name).relative_to(root)), Path(folder) / name) for name in sorted(names))
        seen.add(real)


def _state(file: Path) -> str:
    try:
        stat = file.stat()
        if stat.st_size <= SMALL:
            return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # a link to nothing, or a file that may not be read: whoever loads it says so
        return "unreadable"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def names_in(file: Path) -> set[str]:
    """The names of the weights in a single file. Raises ModelUnavailable for a broken one."""
    with _opening(file) as weights:
        return set(weights.keys())


def shapes_in(file: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a single file, by name. Raises ModelUnavailable for a broken one."""
    with _opening(file) as weights:
        return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (not a dict)


def prediction_in(file: Path) -> dict[str, Any]:
    """What an SDXL file says of what its UNet predicts, as fields of a scheduler's config; empty if it says nothing.

    The tensors `v_pred` and `ztsnr` (NoobAI, and what was merged from it) say it by being there; `modelspec.prediction_type` is
    metadata by Stability's ModelSpec. Raises Unsupported for what is unknown or contradicts itself.
    """
    with _opening(file) as weights:
        names, said = set(weights.keys()), (weights.metadata() or {}).get("modelspec.prediction_type")
    if said is not None and said not in PREDICTIONS:
        raise Unsupported(f"{file.name}: modelspec.prediction_type must be one of {', '.join(PREDICTIONS)}, got {said!r}")
    by_metadata = PREDICTIONS.get(said or "")
    if "v_pred" in names and by_metadata == "epsilon":
        raise Unsupported(f"{file.name}: its tensor v_pred says v-prediction, and modelspec.prediction_type says {said}")
    prediction = "v_prediction" if "v_pred" in names else by_metadata
    if "ztsnr" in names and prediction != "v_prediction":
        raise Unsupported(f"{file.name}: its tensor ztsnr asks for zero terminal SNR, which goes with v-prediction alone, and it says none")
    zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in names else {}
    return {"prediction_type": prediction} | zero_snr if prediction else {}


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


def open_single_file(pipeline: Any, kinds: Mapping[str, Any], file: Path, config: Path, dtype: Any, **known: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline of diffusers from a file in its model's original layout, and those of its nets in `kinds` that it has.

    `config` is a folder with the configs; `known` are components that are there already. Asks nothing of the hub. Raises
    Unsupported where weights are missing, or are there that none of the nets takes.
    """
    from darkroom.engine.single_file import check_all_used

    try:
        check_all_used(file, {name: kind for name, kind in kinds.items() if name not in known}, config)
        pipe = pipeline.from_single_file(str(file), config=str(config), dtype=dtype, local_files_only=True, **known)
    except (KeyError, NotImplementedError) as error:  # a name that diffusers looks up, or a weight that stayed without values
        raise Unsupported(f"{file.name}: weights that its configs ask for are missing") from error
    nets = {name: getattr(pipe, name) for name in kinds if getattr(pipe, name) is not None}
    for name, net in nets.items():
        refuse_gaps(name, [key for key, weight in net.named_parameters() if weight.is_meta])
    return pipe, nets


def refuse_gaps(net: str, lacking: Any) -> None:
    """Without this a weight that a file lacks would be drawn at random, or be there without values. Raises Unsupported."""
    if lacking:
        raise Unsupported(f"{net}: {len(lacking)} weights are missing, the first is {sorted(lacking)[0]}")


def refuse_unknown(where: str, names: Iterable[str]) -> None:
    """Raises Unsupported if one of these tensors, which no net takes, is not known to be harmless."""
    unknown = sorted(name for name in names if not HARMLESS.fullmatch(name))
    if not unknown:
        return
    telling = next((name for name in unknown if meaning_of(name)), unknown[0])
    meaning = meaning_of(telling) or "it may be a kind of model that is not offered"
    raise Unsupported(f"{where}: {len(unknown)} tensors mean nothing to its nets, one is {telling}: {meaning}")


def meaning_of(name: str) -> str:
    """What a tensor that no net takes says of its file; "" if that is not known."""
    return next((meaning for pattern, meaning in MEANINGS if pattern.search(name)), "")

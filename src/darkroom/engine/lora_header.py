"""What a LoRA file says of itself at its head, where names and shapes stand as JSON of bounded length. No torch, no pickles."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEAD = 10_000_000  # bytes; that of a LoRA for SDXL with every layer has some 400,000
MAX_ALPHA = 10**6  # ranks and alphas go to some hundreds
FLOATS = ("F64", "F32", "F16", "BF16")
SUFFIX = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KOHYA = re.compile(r"(lora_(?:unet|te|te1|te2|te3)_\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
# PEFT's `x.lora_A.weight`, and diffusers' own older `x.lora.down.weight`, `x_lora.down.weight`, `x.lora_linear_layer.down.weight`
DIFFUSERS = re.compile(r"((?:unet|transformer|text_encoder|text_encoder_2|text_encoder_3)\..+?)([._])lora(?:_linear_layer)?(?:\.(down|up)|_(A|B))\.weight")
NOTED = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings, alpha among them
# SDXL's first block has no attention, and its text is as wide as two encoders side by side
ELDER_NAMES = re.compile(r"lora_te_|lora_unet_(?:down_blocks_0_attentions|input_blocks_1_1)_|unet\.down_blocks\.0\.attentions\.")
ELDER_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
TEXT_INPUT = re.compile(r".*attn2[._](?:processor\.)?to_k(?:\.lora_down|\.lora_A|[._]lora\.down)\.weight")  # [rank, width of the text]
SDXL_NAMES = re.compile(
    r"unet\.|lora_unet_(?:input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks|time_embed|label_emb|add_emb|conv_|out_2)"
)
SD3_NAMES = re.compile(
    r"transformer\.(?:transformer_blocks|pos_embed|time_text_embed|context_embedder|norm_out|proj_out)\."
    r"|lora_unet_(?:joint_blocks|x_embedder|t_embedder|y_embedder|context_embedder|final_layer)_?"
)
FAMILIES = ("sdxl", "sd3")
DOWN, UP, ALPHA = (".down.weight", "lora_A.weight", "lora_down.weight"), (".up.weight", "lora_B.weight", "lora_up.weight"), (".alpha",)

Shape = tuple[int, ...]


class Unfit(Exception):
    """Why a file is no LoRA that can be used, as half a sentence that is fit for a client."""


@dataclass(frozen=True)
class Head:
    """What a LoRA file is: the families whose models it may be for (both, where it changes text encoders alone), its format,
    `kohya` or `diffusers`, its largest rank, and the settings that PEFT noted in it, by net and field."""

    families: tuple[str, ...]
    format: str
    rank: int
    noted: dict[str, Any] = field(default_factory=dict)


def file_of(folder: Path, name: str) -> Path:
    """Where the LoRA of a name lies; a name is never a way out of the folder."""
    assert NAME.fullmatch(name), name
    return folder / f"{name}{SUFFIX}"


def version_of(file: Path) -> str:
    """Tells one file from whatever lies under its name later. Raises OSError."""
    stat = file.stat()
    return f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}"


def read_head(content: BinaryIO, size: int) -> Head:
    """What the file of `size` bytes is. Raises Unfit."""
    shapes, metadata = _read(content, size)
    kind, pattern = ("kohya", KOHYA) if any(name.startswith("lora_") for name in shapes) else ("diffusers", DIFFUSERS)
    foreign = [name for name in shapes if not pattern.fullmatch(name)]
    if foreign:
        raise Unfit(f"it is no LoRA of low-rank layers in the {kind} format: {foreign[0][:100]!a} is none of their names")
    _refuse_elder(shapes)
    downs, ups, alphas = (_sides(shapes, *endings) for endings in (DOWN, UP, ALPHA))
    _check_layers(downs, ups, alphas)
    return Head(_families(list(shapes)), kind, max(down[0] for down in downs.values()), _noted(metadata))


def _read(content: BinaryIO, size: int) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes by name, and the free text beside them."""
    length = int.from_bytes(content.read(8), "little")
    if not 0 < length <= min(MAX_HEAD, size - 8):
        raise Unfit("it is no .safetensors file, or cut off")
    try:
        head = json.loads(content.read(length))
        metadata = head.pop("__metadata__", None) or {}
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in head.items()}
        ends = [entry["data_offsets"][1] for entry in head.values()]
        kinds = {entry["dtype"] for entry in head.values()}
        whole = 8 + length + max(ends, default=0) == size
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise Unfit("its head is broken") from error
    if not whole:
        raise Unfit("it is cut off, or longer than its head says")
    if not shapes:
        raise Unfit("it holds no weights")
    if not kinds <= set(FLOATS):
        raise Unfit(f"its numbers must be of {', '.join(FLOATS)}, not {sorted(map(str, kinds - set(FLOATS)))[0][:20]}")
    return shapes, metadata


def _refuse_elder(shapes: dict[str, Shape]) -> None:
    """LoRAs for Stable Diffusion 1 and 2 have SDXL's names, nearly."""
    widths = {shape[-1] for name, shape in shapes.items() if TEXT_INPUT.fullmatch(name) and shape}
    found = [ELDER_WIDTHS[width] for width in widths & ELDER_WIDTHS.keys()]
    if found or any(ELDER_NAMES.match(name) for name in shapes):
        raise Unfit(f"it is for {found[0] if found else 'Stable Diffusion 1 or 2'}, which is not served here")


def _families(names: list[str]) -> tuple[str, ...]:
    nets = [name for name in names if not name.startswith(("lora_te", "text_encoder"))]
    for family, pattern in (("sdxl", SDXL_NAMES), ("sd3", SD3_NAMES)):
        if nets and all(pattern.match(name) for name in nets):
            return (family,)
    if nets:
        strange = next((name for name in nets if not SDXL_NAMES.match(name) and not SD3_NAMES.match(name)), nets[0])
        raise Unfit(f"it is for a family that is not served here: {strange[:100]!a} is a layer of neither SDXL nor SD 3.x")
    return ("sd3",) if any(name.startswith(("lora_te3", "text_encoder_3")) for name in names) else FAMILIES


def _sides(shapes: dict[str, Shape], *endings: str) -> dict[str, Shape]:
    """The shapes of one side of every layer."""
    return {_layer(name): shape for name, shape in shapes.items() if name.endswith(endings)}


def _check_layers(downs: dict[str, Shape], ups: dict[str, Shape], alphas: dict[str, Shape]) -> None:
    """Every layer has its two halves, and they fit each other."""
    lonely = sorted((downs.keys() ^ ups.keys()) | (alphas.keys() - downs.keys()))
    if lonely:
        raise Unfit(f"half of its layer {lonely[0][:100]!a} is missing")
    for layer, down in downs.items():
        if len(down) not in (2, 4) or len(ups[layer]) != len(down) or min(down + ups[layer]) < 1 or ups[layer][1] != down[0]:
            raise Unfit(f"the halves of its layer {layer[:100]!a} do not fit each other")
    if any(Counter(shape)[1] != len(shape) for shape in alphas.values()):
        raise Unfit("an alpha in it is no single number")


def _layer(name: str) -> str:
    found = KOHYA.fullmatch(name) or DIFFUSERS.fullmatch(name)
    assert found is not None
    return found[1]


def _noted(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        noted = json.loads(metadata.get(NOTED) or "{}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Unfit(f"its note {NOTED} is broken") from error
    if not isinstance(noted, dict):
        raise Unfit(f"its note {NOTED} is broken")
    patterns = [value for name, value in noted.items() if name.endswith(".alpha_pattern") and value]
    if not all(isinstance(pattern, dict) for pattern in patterns):
        raise Unfit(f"an alpha_pattern in its note {NOTED} is no object")
    alphas = [value for name, value in noted.items() if name.endswith(".lora_alpha") and value is not None]
    for alpha in (*alphas, *(other for pattern in patterns for other in pattern.values())):
        if not isinstance(alpha, int | float) or not abs(alpha) <= MAX_ALPHA:
            raise Unfit(f"an alpha in its note {NOTED} is no number up to {MAX_ALPHA}")
    return noted

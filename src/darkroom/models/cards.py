"""What a model on this machine says of itself: a diffusers folder or a single file, read into its ModelCard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from darkroom.engine.weights import SD3_BLOCKS, meaning_of
from darkroom.errors import NotFound, Unsupported
from darkroom.models.licences import stated
from darkroom.types import ModelCard

FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3Img2ImgPipeline": "sd3",
}
MAX_HEAD = 100_000_000  # bytes that safetensors allows its header
LATENT_PIXELS = 8  # a side of the square of pixels that one latent of SD 3.x's autoencoder stands for
STATED = ("name", "default_side", "max_side", "default_steps", "min_steps", "max_steps", "default_cfg", "parameters", "disk_bytes")


def card_at(path: Path) -> ModelCard:
    """The card of a diffusers folder or a .safetensors file. Raises NotFound or Unsupported."""
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise NotFound(f"{path.name} is not a diffusers folder: it has no model_index.json")
        return read_card(path)
    if path.suffix != ".safetensors":
        raise NotFound(f"{path.name} is neither a diffusers folder nor a .safetensors file")
    names = _names_in(path)
    if telling := next(filter(meaning_of, names), None):
        raise Unsupported(f"{path.name} holds {telling}: {meaning_of(telling)}")
    family = "sd3" if any(name.startswith(SD3_BLOCKS) for name in names) else "sdxl"
    return ModelCard(path.stem, family, str(path))


def family_of(folder: Path) -> str:
    """The family of a diffusers folder. Raises Unsupported."""
    index = _said(folder / "model_index.json")
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise Unsupported(f"{folder.name}/model_index.json: _class_name must be one of {', '.join(FAMILIES)}, got {index.get('_class_name')!r}")
    return family


def read_card(folder: Path) -> ModelCard:
    """The card of a diffusers folder; a darkroom.json in it may say more than model_index.json does. Raises Unsupported."""
    family = family_of(folder)
    own = _said(folder / "darkroom.json") if (folder / "darkroom.json").exists() else {}
    try:
        return _card(folder, family, own)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unsupported(f"what {folder.name} says of itself in darkroom.json or transformer/config.json is not understood ({error})") from error


def _card(folder: Path, family: str, own: dict[str, Any]) -> ModelCard:
    language = own.get("language", {})
    fields = _bounds(folder, family) | {field: own[field] for field in STATED if field in own}
    if "license" in own:
        fields["licence"] = stated(own["license"])
    return replace(
        ModelCard(folder.name, family, str(folder)),
        words=frozenset(language.get("words", ())), hint=language.get("hint", ""), examples=tuple(own.get("examples", ())), **fields,
    )  # fmt: skip


def _bounds(folder: Path, family: str) -> dict[str, int]:
    """SD 3.x's transformer knows positions up to pos_embed_max_size patches a side, which may be fewer than a card allows."""
    if family != "sd3":
        return {}
    config = _said(folder / "transformer" / "config.json")
    most = (config.get("pos_embed_max_size") or ModelCard.max_side) * config.get("patch_size", 2) * LATENT_PIXELS
    return {"max_side": min(most // 64 * 64, ModelCard.max_side)}


def _said(file: Path) -> dict[str, Any]:
    """What stands in a JSON file of a model's folder. Raises Unsupported."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Unsupported(f"{file.parent.name}/{file.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise Unsupported(f"{file.parent.name}/{file.name} must hold a JSON object")
    return content


def _names_in(file: Path) -> list[str]:
    """The names of the weights in a single file, which stand as JSON at its head. Of a broken file none: whoever opens it refuses it."""
    try:
        with file.open("rb") as head:
            return list(map(str, json.loads(head.read(min(int.from_bytes(head.read(8), "little"), MAX_HEAD)))))
    except (ValueError, TypeError, RecursionError):
        return []

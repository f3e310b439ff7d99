"""The models known by name, where their weights lie, and how any other is named: a folder, a single file, a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

from darkroom.errors import NotFound, Unsupported
from darkroom.types import ModelCard

DEMO = "demo-xl"
BASE = "stable-diffusion-xl-base-1.0"
BASE_ID = f"stabilityai/{BASE}"
COMPLETE = ".complete"  # written last into a folder that was pulled, as JSON: without it, half a model may lie there
FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3Img2ImgPipeline": "sd3",
}
SD3_BLOCKS = ("model.diffusion_model.joint_blocks.", "joint_blocks.")  # names that only SD 3.x's transformer has
MAX_HEAD = 100_000_000  # bytes that safetensors allows its header
LATENT_PIXELS = 8  # a side of the square of pixels that one latent of SD 3.x's autoencoder stands for
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def known(data_dir: Path) -> list[ModelCard]:
    """Every model known by name, with its path where the weights are on this machine."""
    base = ModelCard(
        BASE, "sdxl", None, hub_id=BASE_ID, default_side=512, max_side=2048,
        license="CreativeML Open RAIL++-M",
        license_url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    )  # fmt: skip
    return [_demo(), _located(base, data_dir)]


def pulled(data_dir: Path) -> list[ModelCard]:
    """Every model that was pulled by its hub id."""
    markers = sorted((data_dir / "models").glob(f"*/{COMPLETE}"))
    hub_ids = [json.loads(marker.read_text())["hub_id"] for marker in markers]
    return [_located(_hub_card(hub_id), data_dir) for hub_id in hub_ids if hub_id != BASE_ID]


def resolve(name: str, data_dir: Path) -> ModelCard:
    """The card of a known name, a diffusers folder, a .safetensors file or a hub id.

    path is None where the weights have to be pulled first. Raises NotFound for anything else, and Unsupported for a
    folder of another kind of model.
    """
    cards = {card.name: card for card in known(data_dir)}
    if name == "auto":
        return cards[BASE] if cards[BASE].path else cards[DEMO]
    if name in cards:
        return cards[name]
    path = Path(name).expanduser()
    if path.exists():
        return _from_path(path.resolve())
    if HUB_ID.fullmatch(name):
        return next((card for card in cards.values() if card.hub_id == name), None) or _located(_hub_card(name), data_dir)
    raise NotFound(f"no model {name!r}: give one of {', '.join(cards)}, a diffusers folder, a .safetensors file or a hub id (owner/name)")


def pull_command(card: ModelCard) -> str:
    """The line that brings the weights of a card."""
    return f"darkroom models pull {asked_by(card)}"


def asked_by(card: ModelCard) -> str:
    """What --model and pull take for this card: names on the hub are unique only with their owner's."""
    return card.name if card.hub_id in (None, BASE_ID) else card.hub_id


def folder_for(card: ModelCard, data_dir: Path) -> Path:
    """Where the weights of a pulled model lie: two owners may give one name, so the owner's is part of it."""
    assert card.hub_id is not None
    return data_dir / "models" / card.hub_id.replace("/", "--")


def family_of(folder: Path) -> str:
    """The family of a diffusers folder. Raises Unsupported."""
    index = json.loads((folder / "model_index.json").read_text())
    family = FAMILIES.get(index.get("_class_name", ""))
    if family is None:
        raise Unsupported(f"{folder.name}/model_index.json: _class_name must be one of {', '.join(FAMILIES)}, got {index.get('_class_name')!r}")
    return family


def read_card(folder: Path) -> ModelCard:
    """The card of a diffusers folder; a darkroom.json in it may say more than model_index.json does."""
    family = family_of(folder)
    own = json.loads((folder / "darkroom.json").read_text()) if (folder / "darkroom.json").exists() else {}
    language = own.get("language", {})
    stated = ("name", "default_side", "max_side", "default_steps", "min_steps", "max_steps", "default_cfg", "license")
    fields = _bounds(folder, family) | {field: own[field] for field in stated if field in own}
    return replace(
        ModelCard(folder.name, family, str(folder)),
        words=frozenset(language.get("words", ())), hint=language.get("hint", ""), examples=tuple(own.get("examples", ())), **fields,
    )  # fmt: skip


def _demo() -> ModelCard:
    folder = Path(str(resources.files("darkroom"))) / "demo" / DEMO
    if not (folder / "model_index.json").exists():
        return ModelCard(DEMO, "sdxl", None, default_side=512, max_side=1024)
    return replace(read_card(folder), name=DEMO)


def _hub_card(hub_id: str) -> ModelCard:
    """The card of a hub id. Its family is known once the weights are here; before that SDXL stands for it."""
    return ModelCard(hub_id.split("/")[1], "sdxl", None, hub_id=hub_id)


def _located(card: ModelCard, data_dir: Path) -> ModelCard:
    """The card with the path of its weights, the family and bounds that lie there, and the licence that the hub states,
    where they were pulled whole."""
    marker = folder_for(card, data_dir) / COMPLETE
    if not marker.exists():
        return card
    here, stated = read_card(marker.parent), json.loads(marker.read_text())["license"]
    return replace(
        card, path=here.path, family=here.family, max_side=min(card.max_side, here.max_side), license=stated if card.license == "unknown" else card.license
    )


def _bounds(folder: Path, family: str) -> dict[str, int]:
    """SD 3.x's transformer knows positions up to pos_embed_max_size patches a side, which may be fewer than a card allows."""
    if family != "sd3":
        return {}
    config = json.loads((folder / "transformer" / "config.json").read_text())
    most = (config.get("pos_embed_max_size") or ModelCard.max_side) * config.get("patch_size", 2) * LATENT_PIXELS
    return {"max_side": min(most // 64 * 64, ModelCard.max_side)}


def _from_path(path: Path) -> ModelCard:
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise NotFound(f"{path.name} is not a diffusers folder: it has no model_index.json")
        return read_card(path)
    if path.suffix != ".safetensors":
        raise NotFound(f"{path.name} is neither a diffusers folder nor a .safetensors file")
    return ModelCard(path.stem, _family_of(path), str(path))


def _family_of(file: Path) -> str:
    """The family of a single file, by the names of its weights, which stand as JSON at its head. A broken file counts as
    SDXL: whoever opens it refuses it."""
    try:
        with file.open("rb") as head:
            names = list(json.loads(head.read(min(int.from_bytes(head.read(8), "little"), MAX_HEAD))))
    except (ValueError, TypeError, RecursionError):
        return "sdxl"
    return "sd3" if any(str(name).startswith(SD3_BLOCKS) for name in names) else "sdxl"

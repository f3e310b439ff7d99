"""From a ModelCard to its Family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darkroom.engine.family import Family
from darkroom.engine.hardware import choose
from darkroom.errors import ModelUnavailable, Unsupported
from darkroom.types import ModelCard

# Configs and tokenizers for a single file without a folder beside it; diffusers tells the SD 3.x models apart by their shapes.
CONFIGS = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "sd3": None}


def load_family(card: ModelCard, device: str, dtype: str) -> Family:
    """The nets of a card, from a diffusers folder or a single file. Raises ModelUnavailable or Unsupported."""
    if card.path is None or not Path(card.path).exists():
        raise ModelUnavailable(f"the weights of {card.name} are not here")
    kind = _kind(card)
    where, number = choose(device, dtype)
    path = Path(card.path)
    if path.is_dir():
        return kind.load(path, where, number)
    return kind.load_single_file(path, _config_for(path, card.family), where, number)


def _kind(card: ModelCard) -> Any:
    """The class of a card's family, imported when it is asked for: each brings its own nets along."""
    if card.family == "sdxl":
        from darkroom.engine.sdxl import SDXL

        return SDXL
    if card.family == "sd3":
        from darkroom.engine.sd3 import SD3

        return SD3
    raise Unsupported(f"{card.name}: models of the family {card.family!r} cannot be served, only {', '.join(map(repr, CONFIGS))}")


def _config_for(file: Path, family: str) -> str | None:
    """The configs and tokenizers that a single file lacks: a folder of the same name beside it, else the family's own from the hub."""
    beside = file.with_suffix("")
    return str(beside) if (beside / "model_index.json").exists() else CONFIGS[family]

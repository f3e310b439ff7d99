"""From a ModelCard to its Family."""

from __future__ import annotations

from pathlib import Path

from darkroom.engine.family import Family
from darkroom.engine.hardware import choose
from darkroom.errors import ModelUnavailable, Unsupported
from darkroom.types import ModelCard

SDXL_CONFIG = "stabilityai/stable-diffusion-xl-base-1.0"


def load_family(card: ModelCard, device: str, dtype: str) -> Family:
    """The nets of a card, from a diffusers folder or a single file. Raises ModelUnavailable or Unsupported."""
    from darkroom.engine.sdxl import SDXL

    if card.path is None or not Path(card.path).exists():
        raise ModelUnavailable(f"the weights of {card.name} are not here")
    if card.family != "sdxl":
        raise Unsupported(f"{card.name}: models of the family {card.family!r} cannot be served, only 'sdxl'")
    where, number = choose(device, dtype)
    path = Path(card.path)
    if path.is_dir():
        return SDXL.load(path, where, number)
    return SDXL.load_single_file(path, _config_for(path), where, number)


def _config_for(file: Path) -> str:
    """The configs and tokenizers that a single file lacks: a folder of the same name beside it, else SDXL's own from the hub."""
    beside = file.with_suffix("")
    return str(beside) if (beside / "model_index.json").exists() else SDXL_CONFIG

"""From a ModelCard to its Family."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from darkroom.engine.family import Family
from darkroom.engine.hardware import choose
from darkroom.engine.weights import CONFIGS, count_weights
from darkroom.errors import DarkroomError, ModelUnavailable, Unsupported
from darkroom.types import ModelCard

log = logging.getLogger(__name__)

CONFIG_FILES = ["model_index.json", "scheduler/*.json", "tokenizer*/*", "text_encoder*/config.json", "unet/config.json", "vae/config.json"]


def bytes_needed(card: ModelCard, device: str, dtype: str) -> int:
    """Bytes that the weights of a card will take, before they are loaded. Raises ModelUnavailable or Unsupported."""
    if card.path is None or not Path(card.path).exists():
        raise ModelUnavailable(f"the weights of {card.name} are not here")
    return count_weights(Path(card.path)) * choose(device, dtype)[1].itemsize


def load_family(card: ModelCard, device: str, dtype: str, tell: Callable[[float], None] = lambda part: None) -> Family:
    """The nets of a card, from a diffusers folder or a single file; `tell` is told how much of them is there, 0 to 1. Raises
    ModelUnavailable or Unsupported."""
    if card.path is None or not Path(card.path).exists():
        raise ModelUnavailable(f"the weights of {card.name} are not here")
    try:
        return _load(card, Path(card.path), device, dtype, tell)
    except DarkroomError:
        raise
    except Exception as error:
        # What the libraries raise names paths of this machine: that is for the log, the class alone is for clients.
        log.error("%s could not be loaded: %s: %s", card.name, type(error).__name__, error)
        raise ModelUnavailable(f"{type(error).__name__} while the files of {card.name} were read; the log says more") from error


def import_families(cards: Iterable[ModelCard]) -> None:
    """Import what these cards will need; what cannot be served is told at its load."""
    for card in cards:
        with suppress(Unsupported):
            _kind(card)


def _load(card: ModelCard, path: Path, device: str, dtype: str, tell: Callable[[float], None]) -> Family:
    kind = _kind(card)
    where, number = choose(device, dtype)
    if path.is_dir():
        return kind.load(path, where, number, tell)
    kind.check_single_file(path)
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


def _config_for(file: Path, family: str) -> Path:
    """The configs and tokenizers that a single file lacks: a folder of the same name beside it, else the family's own from the hub."""
    beside, hub_id = file.with_suffix(""), CONFIGS[family]
    if (beside / "model_index.json").exists():
        return beside
    if hub_id is None:
        raise ModelUnavailable(f"{file.name} holds weights alone: put the configs and tokenizers of its model beside it in a folder named {beside.name}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=CONFIG_FILES))
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError; to us they are one
        log.error("the configs of %s could not be brought: %s: %s", hub_id, type(error).__name__, error)
        raise ModelUnavailable(
            f"{file.name} holds weights alone, and SDXL's configs and tokenizers could not be brought from the hub ({type(error).__name__}): "
            f"put those of {hub_id} beside it in a folder named {beside.name}"
        ) from error

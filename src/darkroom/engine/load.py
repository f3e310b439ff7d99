"""From a ModelCard to its Family."""

from __future__ import annotations

import logging
from pathlib import Path

from darkroom.engine.family import Family
from darkroom.engine.hardware import choose
from darkroom.errors import DarkroomError, ModelUnavailable, Unsupported
from darkroom.types import ModelCard

log = logging.getLogger(__name__)

SDXL_CONFIG = "stabilityai/stable-diffusion-xl-base-1.0"
CONFIG_FILES = ["model_index.json", "scheduler/*.json", "tokenizer*/*", "text_encoder*/config.json", "unet/config.json", "vae/config.json"]


def load_family(card: ModelCard, device: str, dtype: str) -> Family:
    """The nets of a card, from a diffusers folder or a single file. Raises ModelUnavailable or Unsupported."""
    if card.path is None or not Path(card.path).exists():
        raise ModelUnavailable(f"the weights of {card.name} are not here")
    if card.family != "sdxl":
        raise Unsupported(f"{card.name}: models of the family {card.family!r} cannot be served, only 'sdxl'")
    try:
        return _load_sdxl(Path(card.path), device, dtype)
    except DarkroomError:
        raise
    except Exception as error:
        # What the libraries raise names paths of this machine: that is for the log, the class alone is for clients.
        log.error("%s could not be loaded: %s: %s", card.name, type(error).__name__, error)
        raise ModelUnavailable(f"{type(error).__name__} while the files of {card.name} were read; the log says more") from error


def _load_sdxl(path: Path, device: str, dtype: str) -> Family:
    from darkroom.engine.sdxl import SDXL

    where, number = choose(device, dtype)
    if path.is_dir():
        return SDXL.load(path, where, number)
    SDXL.check_single_file(path)
    return SDXL.load_single_file(path, _config_for(path), where, number)


def _config_for(file: Path) -> Path:
    """The configs and tokenizers that a single file lacks: a folder of the same name beside it, else SDXL's own from the hub."""
    beside = file.with_suffix("")
    if (beside / "model_index.json").exists():
        return beside
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(SDXL_CONFIG, allow_patterns=CONFIG_FILES))
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError; to us they are one
        log.error("the configs of %s could not be brought: %s: %s", SDXL_CONFIG, type(error).__name__, error)
        raise ModelUnavailable(
            f"{file.name} holds weights alone, and SDXL's configs and tokenizers could not be brought from the hub ({type(error).__name__}): "
            f"put those of {SDXL_CONFIG} beside it in a folder named {beside.name}"
        ) from error

"""Bringing weights from the hub, with its own progress bar; a model that did not come whole is never taken for one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from darkroom.errors import ModelUnavailable, NotFound
from darkroom.models.catalogue import COMPLETE, folder_for
from darkroom.types import ModelCard

# Hub repositories also hold ONNX, OpenVINO and single-file copies, so what to fetch is named by component.
NETS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIGS = ["model_index.json", "*/*.json", "*/merges.txt", "LICENSE*"]
ROOM = 1.05  # of the bytes still to come, so that the disk is not filled to the last


def pull(card: ModelCard, data_dir: Path) -> ModelCard:
    """Download the weights of a card into data_dir/models and return the card with its path; resumes what a break left.

    Raises NotFound for an unknown hub id and ModelUnavailable where the hub cannot be reached, asks for a licence first,
    or the disk lacks room.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if card.path is not None:
        return card
    if card.hub_id is None:
        raise NotFound(f"{card.name} is not on the hub")
    folder = folder_for(card, data_dir)
    try:
        patterns = _patterns(card.hub_id)
        files = snapshot_download(card.hub_id, local_dir=folder, allow_patterns=patterns, dry_run=True)
        _check_room(sum(file.file_size or 0 for file in files if file.will_download), folder)
        snapshot_download(card.hub_id, local_dir=folder, allow_patterns=patterns)
    except GatedRepoError as error:  # a subclass of RepositoryNotFoundError, so it comes first
        raise ModelUnavailable(f"{card.hub_id} is gated: agree at https://huggingface.co/{card.hub_id} and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no model {card.hub_id}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(f"the hub could not deliver {card.hub_id}: {type(error).__name__}; run the same command again to go on") from error
    (folder / COMPLETE).touch()
    return replace(card, path=str(folder))


def _patterns(hub_id: str) -> list[str]:
    """The files of one dtype: the fp16 variant where the repository has one, since it runs anywhere after a cast."""
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(hub_id)
    half = all(any(name.startswith(f"{net}/") and name.endswith(".fp16.safetensors") for name in names) for net in NETS)
    return CONFIGS + [f"{net}/*{'.fp16' if half else 'model'}.safetensors" for net in NETS]


def _check_room(needed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise ModelUnavailable(f"{needed / 1e9:.1f} GB are to come, and the disk has room for {free / 1e9:.1f} GB")

"""Bringing weights from the hub, with its own progress bar; a model that did not come whole is never taken for one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from darkroom.engine.weights import HALF, PLAIN
from darkroom.errors import ModelUnavailable, NotFound
from darkroom.models.catalogue import COMPLETE, folder_for, read_card
from darkroom.types import ModelCard

# Hub repositories also hold ONNX, OpenVINO and single-file copies, so what to fetch is named by component.
NETS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CONFIGS = ["model_index.json", "*/*.json", "*/merges.txt", "*/spiece.model", "LICENSE*"]
ROOM = 1.05  # of the bytes still to come, so that the disk is not filled to the last


def pull(card: ModelCard, data_dir: Path) -> ModelCard:
    """Download the weights of a card into data_dir/models and return the card with its path; resumes what a break left.

    Raises NotFound for an unknown hub id and ModelUnavailable where the hub cannot be reached, asks for a licence first,
    or the disk lacks room.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if card.path is not None:
        return card
    if card.hub_id is None:
        raise NotFound(f"{card.name} is not on the hub")
    folder = folder_for(card, data_dir)
    try:
        patterns = CONFIGS + weights(HfApi().list_repo_files(card.hub_id))
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
    here = read_card(folder)
    return replace(card, path=here.path, family=here.family, max_side=min(card.max_side, here.max_side))


def weights(names: list[str]) -> list[str]:
    """Of a repository's files, the weights of each net in one dtype: the fp16 variant where it has one, since it runs
    anywhere after a cast."""
    chosen = []
    for net in NETS:
        files = [name for name in names if name.startswith(f"{net}/")]
        half, plain = ([name for name in files if any(fnmatch(name, f"{net}/{kind}") for kind in kinds)] for kinds in (HALF, PLAIN))
        chosen += half or plain
    return chosen


def _check_room(needed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise ModelUnavailable(f"{needed / 1e9:.1f} GB are to come, and the disk has room for {free / 1e9:.1f} GB")

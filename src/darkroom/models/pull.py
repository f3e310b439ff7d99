"""Bringing weights from the hub, with one progress bar; a model that did not come whole is never taken for one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from darkroom.errors import ModelUnavailable, NotFound, Unsupported
from darkroom.models.cards import family_of
from darkroom.models.catalogue import COMPLETE, asked_by, folder_for, pull_command, resolve
from darkroom.types import ModelCard

# Hub repositories also hold ONNX, OpenVINO and single-file copies, so what to fetch is named by component.
NETS = {
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
}
OPTIONAL = ("text_encoder_3",)  # T5, without which SD 3.x runs too
INDEX = "model_index.json"
COMPONENTS = "|".join(sorted({*NETS["sdxl"], *NETS["sd3"], "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"}))
CONFIG = re.compile(rf"{re.escape(INDEX)}|LICENSE[^/]*|({COMPONENTS})/([^/]+\.(json|txt)|spiece\.model)")
SHARDS = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors(\.index(\.fp16)?\.json)?")
ROOM = 1.05  # of the bytes still to come, so that the disk is not filled to the last


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: each file's name with what the hub states of it."""

    revision: str
    license: str
    files: dict[str, Any]


def pull(card: ModelCard, data_dir: Path, make_bar: Callable[..., tqdm] = tqdm) -> ModelCard:
    """Download the weights of a card into data_dir/models and return the card with its path; `make_bar` makes the progress bar,
    whose `update` may raise to break off.

    After a break it goes on: in the same run inside the broken file, in a later run behind the last whole file. Raises
    NotFound for an unknown hub id, Unsupported for a repository that holds no SDXL in diffusers' layout, and
    ModelUnavailable where the hub cannot be reached, asks for a licence first, sends another file than it states, or the
    disk lacks room.
    """
    if card.path is not None:
        return card
    if card.hub_id is None:
        raise NotFound(f"{card.name} is not on the hub")
    folder = folder_for(card, data_dir)
    listing = _list(card)
    if INDEX not in listing.files:
        raise Unsupported(f"{card.hub_id} is not in diffusers' layout: it has no {INDEX}")
    _fetch(card, listing, [INDEX], folder)
    names = choose(card, listing, family_of(folder))  # of another kind of model not a gigabyte is brought
    whole, needed = (sum(listing.files[name].size for name in chosen) for chosen in (names, [n for n in names if not (folder / n).exists()]))
    _check_room(needed, folder)
    with make_bar(desc=card.name, total=whole, initial=whole - needed, unit="B", unit_scale=True, disable=None) as bar:
        _fetch(card, listing, names, folder, bar)
    facts = {"hub_id": card.hub_id, "revision": listing.revision, "license": listing.license}
    _mark(folder, facts | {"files": {name: _hash_stated(listing.files[name]) for name in names}})
    return resolve(asked_by(card), data_dir)


def _list(card: ModelCard) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    assert card.hub_id is not None
    with _hub(card):
        info = HfApi().model_info(card.hub_id)
        assert info.sha is not None
        files = {file.path: file for file in HfApi().list_repo_tree(card.hub_id, recursive=True, revision=info.sha) if isinstance(file, RepoFile)}
    stated = info.card_data.to_dict() if info.card_data else {}
    return Listing(info.sha, str(stated.get("license_name") or stated.get("license") or "unknown"), files)


def choose(card: ModelCard, listing: Listing, family: str) -> list[str]:
    """The configs, and the weights of one dtype: a net's fp16 variant where the repository has one, since it runs anywhere after a cast."""
    names = [name for name in listing.files if CONFIG.fullmatch(name) and not SHARDS.fullmatch(name)]
    for net in NETS[family]:
        weights = [name for name in listing.files if name.startswith(f"{net}/") and WEIGHTS.fullmatch(name.removeprefix(f"{net}/"))]
        half = [name for name in weights if ".fp16" in name]
        if net not in OPTIONAL and not any(name.endswith(".safetensors") for name in weights):
            raise Unsupported(f"{card.hub_id} has no .safetensors weights of {net}")
        names += half or weights
    return names


def _fetch(card: ModelCard, listing: Listing, names: list[str], folder: Path, bar: tqdm | None = None) -> None:
    """Bring files that are not here yet, and hold each against what the hub states."""
    from glob import escape

    from huggingface_hub import snapshot_download

    assert card.hub_id is not None
    with _hub(card):
        patterns = [escape(name) for name in names]
        snapshot_download(card.hub_id, revision=listing.revision, local_dir=folder, allow_patterns=patterns, tqdm_class=_told_to(bar))
    for name in names:
        _verify(card, name, listing.files[name], folder / name)


def _told_to(bar: tqdm | None) -> type[tqdm]:
    """What the hub's client shall take for its bars (of files, of bytes that came, of bytes on the disk): none of them is shown,
    and the last is told to `bar`, which knows from the beginning how many there will be."""
    from huggingface_hub.utils.tqdm import tqdm as client_bar

    class Silent(client_bar):
        def __init__(self, *args: Any, name: str | None = None, **options: Any):
            self._on_disk = name == "huggingface_hub.snapshot_download"
            super().__init__(*args, name=name, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._on_disk and bar is not None:
                bar.update(n)

    return Silent


def _verify(card: ModelCard, name: str, stated: Any, path: Path) -> None:
    """Refuse a file that is not the one that the hub states, and remove it, so that the next run brings it anew."""
    if not path.exists():  # the hub's client takes what lies here for enough when the hub is gone in the middle
        raise ModelUnavailable(f"the hub did not deliver {name} of {card.hub_id}; to go on: {pull_command(card)}")
    if _hash_of(path, *_hash_stated(stated)) != _hash_stated(stated):
        path.unlink()
        raise ModelUnavailable(f"{name} of {card.hub_id} came with another hash than the hub states and was removed; to try again: {pull_command(card)}")


def verify(card: ModelCard, data_dir: Path) -> list[str]:
    """What of a pulled model is missing or not what the hub stated when it was pulled: a line for each file. Raises NotFound
    for a model that was not pulled."""
    marker = folder_for(card, data_dir) / COMPLETE if card.hub_id else None
    if marker is None or not marker.exists():
        raise NotFound(f"{card.name} was not pulled, so nobody stated what its files should be")
    faults = []
    for name, stated in json.loads(marker.read_text())["files"].items():
        path = marker.parent / name
        if not path.exists():
            faults.append(f"{name} is missing")
        elif _hash_of(path, *stated) != tuple(stated):
            faults.append(f"{name} is not what the hub stated")
    return faults


def _hash_stated(stated: Any) -> tuple[str, str]:
    """Kind and hash of a file as the hub states them: sha256 of a large one, of a small one git's own name of its content."""
    return ("sha256", stated.lfs.sha256) if stated.lfs else ("git", stated.blob_id)


def _hash_of(path: Path, kind: str, _: str) -> tuple[str, str]:
    with path.open("rb") as content:
        if kind == "sha256":
            return kind, hashlib.file_digest(content, "sha256").hexdigest()
        whole = content.read()
    return kind, hashlib.sha1(b"blob %d\0" % len(whole) + whole, usedforsecurity=False).hexdigest()


def _mark(folder: Path, facts: dict[str, Any]) -> None:
    """Write the marker in one stroke: it is whole or it is not there."""
    draft = folder / f"{COMPLETE}.new"
    draft.write_text(json.dumps(facts))
    os.replace(draft, folder / COMPLETE)


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise ModelUnavailable(f"{needed / 1e9:.1f} GB are to come, and the disk has room for {free / 1e9:.1f} GB")


@contextmanager
def _hub(card: ModelCard) -> Iterator[None]:
    """What the hub's client raises, in our words. Nothing of ours runs inside, so every error there is the hub's, the way's or the disk's."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:  # a subclass of RepositoryNotFoundError, so it comes first
        raise ModelUnavailable(f"{card.hub_id} is gated: agree at https://huggingface.co/{card.hub_id} and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no model {card.hub_id}, or it is private and HF_TOKEN does not open it") from error
    except Exception as error:  # its own classes, its HTTP library's, xet's RuntimeError, OSError
        why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise ModelUnavailable(f"the hub could not deliver {card.hub_id} ({why}{_status(error)}); to go on: {pull_command(card)}") from error


def _status(error: Exception) -> str:
    """The HTTP status behind an error: 401 is a wrong HF_TOKEN, 5xx the hub's own fault."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return ""
    return f", {status}; is HF_TOKEN right?" if status in (401, 403) else f", {status}"

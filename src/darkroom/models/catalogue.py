"""The models known by name, where their weights lie, and how any other is named: a folder, a single file, a hub id."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darkroom.commands import command
from darkroom.errors import Invalid, NotFound, Unsupported
from darkroom.models.cards import card_at, read_card
from darkroom.models.licences import OPEN_RAIL, STABILITY, TURBO, stated
from darkroom.types import UNKNOWN_LICENCE, Licence, ModelCard

DEMO = "demo-xl"
DEMOS = {DEMO: "sdxl", "demo-3.5": "sd3"}  # that may lie in the box, by family
BASE = "stable-diffusion-xl-base-1.0"
COMPLETE = ".complete"  # written last into a folder that was pulled, as JSON: without it, half a model may lie there
ADDED = Path("models") / "added.json"  # in the data folder
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
NONE: Mapping[str, str] = MappingProxyType({})
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _stability(name: str, family: str, parameters: float, licence: Licence, repository: str = "", **fields: Any) -> ModelCard:
    """A model of Stability AI's; `parameters` in thousand millions. Its weights are pulled with two bytes each."""
    count = int(parameters * 1e9)
    return ModelCard(
        name, family, None, hub_id=f"stabilityai/{repository or name}", licence=licence, parameters=count, disk_bytes=2 * count, **fields
    )


KNOWN = (
    _stability(BASE, "sdxl", 3.47, OPEN_RAIL),
    _stability("sdxl-turbo", "sdxl", 3.47, TURBO, min_steps=1, default_steps=1, default_cfg=0.0),
    _stability("stable-diffusion-3-medium", "sd3", 7.69, STABILITY, "stable-diffusion-3-medium-diffusers", gated=True, default_steps=28),
    _stability("stable-diffusion-3.5-medium", "sd3", 8.13, STABILITY, gated=True, default_steps=40, default_cfg=4.5),
    _stability("stable-diffusion-3.5-large", "sd3", 13.81, STABILITY, gated=True, default_steps=28, default_cfg=3.5),
    _stability("stable-diffusion-3.5-large-turbo", "sd3", 13.81, STABILITY, gated=True, min_steps=1, default_steps=4, default_cfg=0.0),
)


OURS = frozenset((*DEMOS, *(card.name for card in KNOWN)))


def known(data_dir: Path, extra: Mapping[str, str] = NONE) -> list[ModelCard]:
    """Every model known by name, with its path where the weights are on this machine: ours, and those that the operator
    named in the settings (`extra`) or by `darkroom models add`. Raises Invalid for a name in the settings that is none."""
    for name in extra:
        if not NAME.fullmatch(name) or name in ("auto", *OURS):
            raise Invalid(f"a name in the setting models must be of letters, digits, dots, dashes and underscores and not one of ours, got {name!r}",
                          name="invalid_name")  # fmt: skip
    cards = [*in_the_box(), *(_listed(card, data_dir) for card in KNOWN)]
    named = {**added(data_dir), **extra}
    return cards + [_named(name, source, data_dir) for name, source in named.items()]


def _named(name: str, source: str, data_dir: Path) -> ModelCard:
    """A model of the operator's; without a path while its files are gone or changed into what is no model."""
    try:
        return replace(_meant(source, data_dir), name=name)
    except (NotFound, Unsupported):
        return ModelCard(name, "sdxl", None)


def added(data_dir: Path) -> dict[str, str]:
    """What `darkroom models add` noted: name -> path or hub id."""
    file = data_dir / ADDED
    return json.loads(file.read_text()) if file.exists() else {}


def add(name: str, source: str, data_dir: Path, extra: Mapping[str, str] = NONE) -> ModelCard:
    """Give a model of the operator's a name. Raises Invalid for a name that is taken or no name, NotFound or Unsupported for
    a source that is no model."""
    if not NAME.fullmatch(name) or name in ("auto", *(card.name for card in known(data_dir, extra))):
        raise Invalid(f"the name must be free, of letters, digits, dots, dashes and underscores, got {name!r}", name="invalid_name")
    card = _meant(source, data_dir)
    path = Path(source).expanduser()
    _note(added(data_dir) | {name: str(path.resolve()) if path.exists() else source}, data_dir)
    return replace(card, name=name)


def remove(card: ModelCard, data_dir: Path) -> str:
    """Take a model away: what was pulled is deleted, what was added is forgotten, files of the operator's own stay where they
    are. Says which. Raises NotFound where there is nothing to take away."""
    names = added(data_dir)
    if card.name in names:
        _note({name: source for name, source in names.items() if name != card.name}, data_dir)
        return f"{card.name} is forgotten; its files stay where they are"
    folder = folder_for(card, data_dir) if card.hub_id else None
    if folder is None or not folder.exists():
        raise NotFound(f"{card.name} was neither pulled nor added, so there is nothing to remove")
    (folder / COMPLETE).unlink(missing_ok=True)  # first, so that a removal that is broken off leaves no half model that loads
    shutil.rmtree(folder)
    return f"{card.name} is removed"


def _note(names: dict[str, str], data_dir: Path) -> None:
    file = data_dir / ADDED
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(names, indent=1))
    os.replace(draft, file)


def pulled(data_dir: Path) -> list[ModelCard]:
    """Every model that was pulled by its hub id."""
    markers = sorted((data_dir / "models").glob(f"*/{COMPLETE}"))
    hub_ids = [json.loads(marker.read_text())["hub_id"] for marker in markers]
    ours = {card.hub_id for card in KNOWN}
    return [_listed(_hub_card(hub_id), data_dir) for hub_id in hub_ids if hub_id not in ours]


def resolve(name: str, data_dir: Path, extra: Mapping[str, str] = NONE) -> ModelCard:
    """The card of a known name, a diffusers folder, a .safetensors file or a hub id.

    path is None where the weights have to be pulled first. Raises NotFound for anything else, and Unsupported for a
    folder of another kind of model.
    """
    cards = {card.name: card for card in known(data_dir, extra)}
    if name == "auto":
        return cards[BASE] if cards[BASE].path else cards[DEMO]
    if name in cards:
        return cards[name]
    try:
        return _meant(name, data_dir)
    except NotFound as error:
        raise NotFound(f"no model {name!r}: give one of {', '.join(cards)}, a diffusers folder, a .safetensors file or a hub id (owner/name)") from error


def _meant(source: str, data_dir: Path) -> ModelCard:
    """The card of a path or a hub id. Raises NotFound or Unsupported."""
    path = Path(source).expanduser()
    if path.exists():
        return _pulled_at(path.resolve(), data_dir) or card_at(path.resolve())
    if not HUB_ID.fullmatch(source):
        raise NotFound(f"{source!r} is no diffusers folder, no .safetensors file and no hub id (owner/name)")
    ours = next((card for card in KNOWN if card.hub_id == source), None)
    return _located(ours or _hub_card(source), data_dir)


def _pulled_at(path: Path, data_dir: Path) -> ModelCard | None:
    """The card of a folder that `pull` fills: by its path too a model is under its own licence. None for any other path. Raises Unsupported where
    the pull was broken off."""
    if path.parent != (data_dir / "models").resolve() or "--" not in path.name or not path.is_dir():
        return None
    if not (path / COMPLETE).exists():
        pull = command(f"models pull {path.name.replace('--', '/', 1)}")
        raise Unsupported(f"{path.name} was not pulled whole; go on with: {pull}")
    return _meant(json.loads((path / COMPLETE).read_text())["hub_id"], data_dir)


def pull_command(card: ModelCard, public: bool = False) -> str:
    """The line that brings the weights of a card; see `commands.command`."""
    return command(f"models pull {asked_by(card)}", public)


def asked_by(card: ModelCard) -> str:
    """What --model and pull take for this card: names on the hub are unique only with their owner's."""
    return card.hub_id if card.hub_id and card.name not in OURS else card.name


def folder_for(card: ModelCard, data_dir: Path) -> Path:
    """Where the weights of a pulled model lie: two owners may give one name, so the owner's is part of it."""
    assert card.hub_id is not None
    return data_dir / "models" / card.hub_id.replace("/", "--")


def memory_bytes(card: ModelCard, dtype: str) -> int:
    """What the weights take in memory; what a picture needs beside them depends on its size."""
    return card.parameters * (4 if dtype == "float32" else 2)


def in_the_box() -> list[ModelCard]:
    """The small checkpoints that the package carries."""
    folders = [Path(str(resources.files("darkroom"))) / "demo" / name for name in DEMOS]
    return [read_card(folder) for folder in folders if (folder / "model_index.json").exists()]


def _hub_card(hub_id: str) -> ModelCard:
    """The card of a hub id. Its family is known once the weights are here; before that SDXL stands for it."""
    return ModelCard(hub_id.split("/")[1], "sdxl", None, hub_id=hub_id)


def _listed(card: ModelCard, data_dir: Path) -> ModelCard:
    """The located card; without a path where what was pulled is damaged, for it must spoil no other."""
    try:
        return _located(card, data_dir)
    except Unsupported:
        return card


def _located(card: ModelCard, data_dir: Path) -> ModelCard:
    """The card with the path of its weights, the family and bounds that lie there, and the licence that the hub states,
    where they were pulled whole. Raises Unsupported where they cannot be read."""
    marker = folder_for(card, data_dir) / COMPLETE
    if not marker.exists():
        return card
    here, licence = read_card(marker.parent), stated(json.loads(marker.read_text())["license"])
    if card.licence != UNKNOWN_LICENCE:
        licence = card.licence
    return replace(card, path=here.path, family=here.family, max_side=min(card.max_side, here.max_side), licence=licence)

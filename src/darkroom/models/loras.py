"""The LoRAs of the data folder: files that the operator put there by hand, or by `darkroom models lora add`."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import replace
from pathlib import Path

from darkroom.engine.lora_header import NAME, SUFFIX, Unfit, file_of, read_head, version_of
from darkroom.errors import Invalid, NotFound, Unsupported
from darkroom.types import LoraCard

LORAS = "loras"  # in the data folder
NAMES = "of letters, digits, dots, dashes and underscores"


def found(data_dir: Path) -> dict[str, LoraCard]:
    """Every .safetensors file of the folder by its name, as it lies there now; those that cannot be used say why."""
    cards = [_card(file) for file in sorted((data_dir / LORAS).glob(f"*{SUFFIX}"))]
    return {card.name: card if NAME.fullmatch(card.name) else LoraCard(card.name, fault=f"its name must be {NAMES}") for card in cards}


def add(name: str, source: Path, data_dir: Path) -> LoraCard:
    """Copy a file into the folder under a name. Raises Invalid for a name that is taken or no name, NotFound where there is no
    file, Unsupported for one that is no LoRA of the families served here."""
    if not NAME.fullmatch(name) or file_of(data_dir / LORAS, name).exists():
        raise Invalid(f"the name must be free, {NAMES}, got {name!r}", name="invalid_name")
    if not source.is_file():
        raise NotFound(f"{source} is no file")
    card = _card(source)
    if card.fault:
        raise Unsupported(f"{source.name} cannot be used: {card.fault}")
    file = file_of(data_dir / LORAS, name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    shutil.copyfile(source, draft)
    os.replace(draft, file)
    return replace(card, name=name)


def remove(name: str, data_dir: Path) -> None:
    """Delete a LoRA; pictures that are being made with it are finished. Raises NotFound."""
    if name not in found(data_dir):
        raise NotFound(f"there is no LoRA {name!r}")
    (data_dir / LORAS / f"{name}{SUFFIX}").unlink()


def _card(file: Path) -> LoraCard:
    try:
        version = version_of(file)
        return replace(_read(file, version), name=file.name.removesuffix(SUFFIX), version=version)
    except OSError as error:
        return LoraCard(file.name.removesuffix(SUFFIX), fault=f"it cannot be read ({error.strerror})")


@functools.lru_cache(maxsize=1024)
def _read(file: Path, version: str) -> LoraCard:
    """The card of a file in that version. Raises OSError."""
    size = file.stat().st_size
    if not file.is_file():
        return LoraCard(file.stem, fault="it is no file")
    try:
        with file.open("rb") as content:
            head = read_head(content, size)
    except Unfit as unfit:
        return LoraCard(file.stem, bytes=size, fault=str(unfit))
    return LoraCard(file.stem, head.families, head.format, head.rank, size)

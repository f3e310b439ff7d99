"""A checkpoint as a diffusers folder of fp16 files, with our `darkroom.json` beside the pipeline's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from .language import card
from .nets import Nets

UNWANTED = ("_name_or_path",)  # a path of the machine it was trained on


def save_folder(nets: Nets, folder: Path) -> None:
    """Write `nets` so that their pipeline's from_pretrained opens them. The nets stay as they are."""
    halved = copy.deepcopy(nets)
    for net in (halved.vae, halved.denoiser, halved.text, halved.text_2):
        net.half()
    halved.pipeline().save_pretrained(folder)
    for config in folder.rglob("*.json"):
        _clean(config)
    (folder / "darkroom.json").write_text(json.dumps(card(nets.name, nets.family, nets.cfg), indent=1) + "\n")


def _clean(config: Path) -> None:
    content = json.loads(config.read_text())
    if any(key in content for key in UNWANTED):
        kept = {key: value for key, value in content.items() if key not in UNWANTED}
        config.write_text(json.dumps(kept, indent=2) + "\n")


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

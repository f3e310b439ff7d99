"""`darkroom doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from darkroom.cli.building import call_on, cards_of
from darkroom.cli.flags import DataDir, Model, settings_of
from darkroom.errors import DarkroomError
from darkroom.settings import Settings
from darkroom.types import ModelCard

if TYPE_CHECKING:
    from darkroom.engine.backend import Backends


def doctor(data_dir: DataDir = None, model: Model = None) -> None:
    """Say what is missing, and the line that mends it."""
    settings = settings_of(data_dir=data_dir, model=model)
    faults = [fault for fault in _faults(settings) if fault]
    for fault in faults:
        typer.echo(f"✗ {fault}")
    if faults:
        raise typer.Exit(1)
    typer.echo("✓ everything is here: make run")
    for line in _backends(settings):
        typer.echo(f"  {line}")


def _faults(settings: Settings) -> list[str]:
    import importlib.util

    from darkroom.models.catalogue import pull_command

    missing = [name for name in ("torch", "diffusers", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    extra = "-e '.[engine]'" if Path("pyproject.toml").exists() else "'darkroom[engine]'"
    faults = [f"{', '.join(missing)} not installed; mend: pip install {extra}"] if missing else [_device_fault(settings)]
    faults.append(_disk_fault(settings.data_dir))
    for card in cards_of(settings):
        if card.path is None:
            faults.append(f"the weights of {card.name} are not here; mend: {pull_command(card)}")
        faults.append(_licence_fault(card, settings))
    return faults


def _device_fault(settings: Settings) -> str:
    try:
        _backends_of(settings).obstacle(0, settings.device, settings.dtype)
    except DarkroomError as error:
        return f"{error}; mend: that, or choose another with --device, --dtype or --backend"
    return ""


def _backends(settings: Settings) -> Iterator[str]:
    """What runs the nets of each model, and why."""
    from darkroom.engine.load import bytes_needed

    for card in cards_of(settings):
        try:
            weights = bytes_needed(card, settings.device, settings.dtype)
            choice = _backends_of(settings).foreseen(card, weights, settings.device, settings.dtype)
            yield f"backend of {card.name}: {choice.backend} ({choice.why})"
        except DarkroomError as error:
            yield f"backend of {card.name}: {error}"


def _backends_of(settings: Settings) -> Backends:
    from darkroom.engine.backend import Backends
    from darkroom.engine.hardware import choose, room_for_weights

    where, _ = choose(settings.device, settings.dtype)
    return Backends(settings.backend, settings.graphs, room_for_weights(settings.memory_budget, where), settings.exact)


def _disk_fault(data_dir: Path) -> str:
    import os
    import shutil

    above = data_dir.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        return f"{data_dir} cannot be made or written to; mend: choose another with --data-dir"
    if shutil.disk_usage(above).free < 2**30:
        return f"less than 1 GiB is free on the disk of {data_dir}; mend: free some, or choose another with --data-dir"
    return ""


def _licence_fault(card: ModelCard, settings: Settings) -> str:
    """A licence that binds a host and that the operator has not accepted; looks only into a data folder that is there."""
    from darkroom.licences import accept_command

    if not card.licence.asks:
        return ""
    known = (settings.data_dir / "darkroom.sqlite").exists()
    if known and call_on(settings, "licence show", {"model": card.name})["accepted"]:
        return ""
    return f"the licence of {card.name} is not accepted; mend: {accept_command(card)}"

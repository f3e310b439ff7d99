"""`darkroom doctor`."""

from __future__ import annotations

import typer

from darkroom.cli.building import card_of
from darkroom.cli.flags import DataDir, Model, settings_of
from darkroom.settings import Settings


def doctor(data_dir: DataDir = None, model: Model = None) -> None:
    """Say what is missing, and the line that mends it."""
    faults = [fault for fault in _faults(settings_of(data_dir=data_dir, model=model)) if fault]
    for fault in faults:
        typer.echo(f"✗ {fault}")
    if faults:
        raise typer.Exit(1)
    typer.echo("✓ everything is here: make run")


def _faults(settings: Settings) -> list[str]:
    import importlib.util
    import os
    import shutil

    from darkroom.models.catalogue import pull_command

    missing = [name for name in ("torch", "diffusers", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    faults = [f"{', '.join(missing)} not installed; mend: pip install 'darkroom[engine]'"] if missing else []
    parent = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    if not os.access(parent, os.W_OK):
        faults.append(f"{parent} cannot be written to; mend: choose another with --data-dir")
    elif shutil.disk_usage(parent).free < 2**30:
        faults.append(f"less than 1 GiB is free on the disk of {parent}; mend: free some, or choose another with --data-dir")
    card = card_of(settings.model, settings)
    if card.path is None:
        faults.append(f"the weights of {card.name} are not here; mend: {pull_command(card)}")
    return faults

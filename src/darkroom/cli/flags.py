"""What several commands share: flags that are settings, and errors of one line."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from darkroom import commands
from darkroom.settings import Settings

OTHER_VARIABLES = {"DARKROOM_DEMO_ICONS"}  # that are read elsewhere


def help_of(field: str) -> str:
    """A flag's help is its setting's, with the default, so that both are written once."""
    setting = Settings.model_fields[field]
    return f"{setting.description} [default: {setting.default}]"


DataDir = Annotated[Path | None, typer.Option("--data-dir", help=help_of("data_dir"), show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help=help_of("model"), show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def settings_of(**flags: Any) -> Settings:
    _refuse_unknown_variables()
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        settings = Settings(**given)
        found_without = Settings(**{name: value for name, value in given.items() if name != "data_dir"})
        commands.works_on(settings.data_dir, found_without.data_dir)
        return settings
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}, got {fault.get('input')!r}" for fault in error.errors()]
        raise failure("; ".join(lines)) from error
    except (SettingsError, ValueError) as error:  # a list in a variable that is no JSON; a darkroom.toml that is no TOML
        where = "darkroom.toml" if isinstance(error, tomllib.TOMLDecodeError) else "a DARKROOM_* variable"
        raise failure(f"{where} cannot be read: {error}") from error


def _refuse_unknown_variables() -> None:
    """As in darkroom.toml, a setting with a wrong name is an error, not nothing."""
    known = {f"DARKROOM_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(name for name in os.environ if name.startswith("DARKROOM_") and name not in known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise failure(f"the variable {name} is no setting; the nearest is {near}")


def failure(message: str) -> typer.Exit:
    typer.echo(f"darkroom: {message}", err=True)
    return typer.Exit(1)

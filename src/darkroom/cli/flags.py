"""What several commands share: flags that are settings, and errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from darkroom.settings import Settings


def help_of(field: str) -> str:
    """A flag's help is its setting's, with the default, so that both are written once."""
    setting = Settings.model_fields[field]
    return f"{setting.description} [default: {setting.default}]"


DataDir = Annotated[Path | None, typer.Option("--data-dir", help=help_of("data_dir"), show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help=help_of("model"), show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def settings_of(**flags: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}, got {fault.get('input')!r}" for fault in error.errors()]
        raise failure("; ".join(lines)) from error


def failure(message: str) -> typer.Exit:
    typer.echo(f"darkroom: {message}", err=True)
    return typer.Exit(1)

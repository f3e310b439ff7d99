"""The command line."""

from __future__ import annotations

import sys

import typer

from darkroom import __version__
from darkroom.errors import DarkroomError
from darkroom.imports import uncollected

with uncollected():
    from darkroom.cli.access import key_app, service_app
    from darkroom.cli.console import link, password
    from darkroom.cli.doctor import doctor
    from darkroom.cli.models import models_app
    from darkroom.cli.pictures import edit, generate
    from darkroom.cli.serve import serve
    from darkroom.cli.webhook import webhook_app

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Darkroom: a self-hosted image service on Stable Diffusion.", pretty_exceptions_enable=False)
app.add_typer(service_app, name="service")
app.add_typer(key_app, name="key")
app.add_typer(models_app, name="models")
app.add_typer(webhook_app, name="webhook")
for command in (serve, generate, edit, doctor, link, password):
    app.command()(command)


def main() -> None:
    """The entry point: an error of ours is one line and exit code 1."""
    try:
        app()
    except DarkroomError as error:
        typer.echo(f"darkroom: {error}", err=True)
        sys.exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)

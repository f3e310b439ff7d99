"""`darkroom link` and `darkroom password`: how the operator comes into the dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from darkroom.cli.building import ADDRESS, call
from darkroom.cli.flags import DataDir, failure, settings_of


def link(data_dir: DataDir = None) -> None:
    """Print a link that signs in to the dashboard once."""
    settings = settings_of(data_dir=data_dir)
    address = settings.data_dir / ADDRESS
    base = address.read_text() if address.exists() else f"http://127.0.0.1:{settings.port}"
    typer.echo(f"{base}/sign-in#link={call(data_dir, 'link')['link']}")


def password(
    stdin: Annotated[bool, typer.Option("--stdin", help="read it from standard input")] = False, data_dir: DataDir = None
) -> None:  # fmt: skip
    """Set the password of the dashboard; everybody who is signed in is signed out."""
    new = sys.stdin.readline().rstrip("\n") if stdin else typer.prompt("new password", hide_input=True, confirmation_prompt=True)
    if not call(data_dir, "password", password=new)["set"]:
        raise failure("the password was not set")
    typer.echo("the password is set")

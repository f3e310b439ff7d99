"""`darkroom link` and `darkroom password`: how the operator comes into the dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from darkroom.cli.building import ADDRESS, call_on
from darkroom.cli.flags import DataDir, failure
from darkroom.cli.folders import found
from darkroom.sessions import password_fault


def link(data_dir: DataDir = None) -> None:
    """Print a link that signs in once to the dashboard of the server that runs here, or on the folder that is
    named."""
    settings = found(data_dir)
    address = settings.data_dir / ADDRESS
    base = address.read_text() if address.exists() else f"http://127.0.0.1:{settings.port}"
    typer.echo(f"{base}/sign-in#link={call_on(settings, 'link', {})['link']}")


def password(
    stdin: Annotated[bool, typer.Option("--stdin", help="read it from standard input")] = False, data_dir: DataDir = None
) -> None:  # fmt: skip
    """Set the password of the dashboard; everybody who is signed in is signed out."""
    settings = found(data_dir)  # before anybody is asked for one
    new = sys.stdin.readline().rstrip("\n") if stdin else typer.prompt("new password", hide_input=True, confirmation_prompt=True)
    if fault := password_fault(new):
        raise failure(f"password {fault}")
    if not call_on(settings, "password", {"password": new})["set"]:
        raise failure("the password was not set")
    typer.echo("the password is set")

"""`darkroom webhook`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from darkroom.cli.access import show
from darkroom.cli.building import call
from darkroom.cli.flags import DataDir, Json, failure

webhook_app = typer.Typer(no_args_is_help=True, help="News of jobs that is sent to addresses, and the secrets that sign it.")
OneService = Annotated[str | None, typer.Option("--service", help="id of the service; the oldest where not given")]


@webhook_app.command("list")
def webhook_list(
    service: Annotated[str | None, typer.Option(help="id of a service")] = None,
    limit: Annotated[int, typer.Option(min=1, help="messages at most")] = 100,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """The messages, newest first: what is waiting, and what was delivered or given up in the last 7 days."""
    messages = call(data_dir, "webhook list", service_id=service, limit=limit)
    columns = ("id", "event", "job_id", "url", "state", "attempts", "last_status", "last_error", "next_try")
    show(messages if as_json else [_shown(message) for message in messages], as_json, columns)


def _shown(message: dict[str, Any]) -> dict[str, Any]:
    waiting = message["state"] == "waiting"
    return message | {"next_try": datetime.fromtimestamp(message["next_at"]).astimezone().isoformat(timespec="seconds") if waiting else None}


@webhook_app.command("retry")
def webhook_retry(
    message_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="a message, also one that was delivered")] = None,
    every: Annotated[bool, typer.Option("--all", help="all that were given up")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Send messages again, now, with their whole schedule of retries before them."""
    if every == (message_id is not None):
        raise failure("name a message, or say --all for those that were given up")
    answer = call(data_dir, "webhook retry", message_id=message_id)
    typer.echo(json.dumps(answer, indent=2) if as_json else f"sending again: {answer['retried']}")


@webhook_app.command("rotate")
def webhook_rotate(service: OneService = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a new secret. The old one signs beside it for another 24 hours."""
    show(call(data_dir, "webhook rotate", service_id=service), as_json, ("secret", "service_id"))


@webhook_app.command("secret")
def webhook_secret(service: OneService = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the secret that signs a service's messages."""
    show(call(data_dir, "webhook secret", service_id=service), as_json, ("secret", "service_id"))

"""`darkroom service` and `darkroom key`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from darkroom.cli.building import call
from darkroom.cli.flags import DataDir, Json

service_app = typer.Typer(no_args_is_help=True, help="Endpoints with a SERVICE_ID.")
key_app = typer.Typer(no_args_is_help=True, help="API keys of a service.")


Models = Annotated[str | None, typer.Option(help="its models, with commas between, the default first; all that the server runs where not given")]


def _names(models: str | None) -> list[str]:
    return [name.strip() for name in models.split(",")] if models else []


def show(answer: Any, as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    for row in answer if isinstance(answer, list) else [answer]:
        typer.echo("  ".join(f"{column}={row[column]}" for column in columns if row.get(column) is not None))


@service_app.command("create")
def service_create(name: str, models: Models = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a service."""
    made = call(data_dir, "service create", creates=True, name=name, models=_names(models))
    show(made, as_json, ("id", "name", "models"))


@service_app.command("models")
def service_models(service_id: str, models: Models = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Choose what a service serves."""
    show(call(data_dir, "service models", service_id=service_id, models=_names(models)), as_json, ("id", "name", "models"))


@service_app.command("list")
def service_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The services, oldest first."""
    show(call(data_dir, "service list"), as_json, ("id", "name", "models"))


@key_app.command("create")
def key_create(
    service: Annotated[str | None, typer.Option(help="id of the service; the oldest where not given")] = None,
    name: Annotated[str, typer.Option(help="what the key is for")] = "default",
    plain: Annotated[bool, typer.Option("--plain", help="print the key alone, as a script takes it")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is shown this once."""
    made = call(data_dir, "key create", creates=True, service_id=service, name=name)
    if plain:
        typer.echo(made["key"])
        return
    show(made, as_json, ("key", "public_id", "service_id", "name"))


@key_app.command("list")
def key_list(service: Annotated[str | None, typer.Option(help="id of a service")] = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The keys without their texts, oldest first."""
    show(call(data_dir, "key list", service_id=service), as_json, ("public_id", "service_id", "name", "last4", "revoked_at", "last_used_at"))


@key_app.command("revoke")
def key_revoke(public_id: str, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a key stop working, at once."""
    show(call(data_dir, "key revoke", public_id=public_id), as_json, ("public_id", "revoked"))


@key_app.command("limits")
def key_limits(
    public_id: str,
    concurrent: Annotated[int, typer.Option(help="jobs that run at once, more wait; 0: no limit")] = 0,
    queued: Annotated[int, typer.Option(help="jobs that wait or run at once; 0: no limit")] = 0,
    pictures_per_minute: Annotated[int, typer.Option(help="0: no limit")] = 0,
    pixel_steps_per_day: Annotated[int, typer.Option(help="pixels times steps in a day (UTC); 0: no limit")] = 0,
    weight: Annotated[float, typer.Option(help="share of the machine beside other keys")] = 1.0,
    default: Annotated[bool, typer.Option("--default", help="the server's own limits again")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Set all limits of one key, in place of the server's."""
    limits = None if default else {
        "concurrent": concurrent, "queued": queued, "pictures_per_minute": pictures_per_minute, "pixel_steps_per_day": pixel_steps_per_day, "weight": weight,
    }  # fmt: skip
    show(call(data_dir, "key limits", public_id=public_id, limits=limits), as_json, ("public_id", "limits"))

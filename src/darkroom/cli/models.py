"""`darkroom models`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.cli.building import call_on, card_of
from darkroom.cli.flags import DataDir, Json, failure, settings_of
from darkroom.commands import command
from darkroom.types import LoraCard, ModelCard

models_app = typer.Typer(no_args_is_help=True, help="Models on this machine and known by name.")
lora_app = typer.Typer(no_args_is_help=True, help="LoRAs on this machine.")
models_app.add_typer(lora_app, name="lora")
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@models_app.command("list")
def models_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The models known by name, whether their weights are here, and those that were pulled by hub id."""
    from darkroom.models.catalogue import asked_by, known, pulled

    settings = settings_of(data_dir=data_dir)
    named = {card.name: card for card in known(settings.data_dir, settings.models)}
    hub_ids = {card.hub_id for card in named.values()}
    named |= {asked_by(card): card for card in pulled(settings.data_dir) if card.hub_id not in hub_ids}
    if as_json:
        typer.echo(json.dumps([_facts(card) for card in named.values()], indent=2))
        return
    for name, card in named.items():
        typer.echo(f"{name}  {_family(card)}  {card.licence.name}  {card.path or _missing(card)}")


@models_app.command("show")
def models_show(name: str, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All that is known of a model: family, limits, size, licence and what it asks of a host."""
    facts = _facts(card_of(name, settings_of(data_dir=data_dir)))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for field, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            typer.echo(f"{field:<16}{line}")


def _family(card: ModelCard) -> str:
    """The family, where it is known: of ours always, of others once their weights are here."""
    return card.family if card.path or card.parameters else "unknown"


def _missing(card: ModelCard) -> str:
    from darkroom.models.catalogue import pull_command

    return f"not here; {pull_command(card)}" if card.hub_id else "no model lies there any more"


def _facts(card: ModelCard) -> dict[str, Any]:
    from darkroom.models.catalogue import memory_bytes, pull_command

    gigabytes = {dtype: f"{memory_bytes(card, dtype) / 1e9:.1f} GB" for dtype in ("float32", "float16")}
    return {
        "name": card.name, "family": _family(card), "hub_id": card.hub_id or "", "path": card.path or "",
        "pull": "" if card.path or not card.hub_id else pull_command(card),
        "gated": "yes: agree on its page on the hub and set HF_TOKEN" if card.gated else "no",
        "on disk": f"about {card.disk_bytes / 1e9:.1f} GB" if card.disk_bytes else "unknown",
        "in memory": f"about {gigabytes['float16']} in half precision, {gigabytes['float32']} in float32" if card.parameters else "unknown",
        "sides": f"{card.default_side} by default, up to {card.max_side}",
        "steps": f"{card.default_steps} by default, {card.min_steps} to {card.max_steps}", "cfg_scale": f"{card.default_cfg:g} by default",
        "licence": " ".join(filter(None, (card.licence.name, card.licence.version))), "licence text": card.licence.url or "",
        "it asks a host": list(card.licence.asks), "notice": card.licence.notice, "badge": card.licence.badge,
    }  # fmt: skip


@models_app.command("pull")
def models_pull(name: str, data_dir: DataDir = None) -> None:
    """Bring the weights of a model from the hub."""
    from darkroom.models.pull import pull

    settings = settings_of(data_dir=data_dir)
    typer.echo(pull(card_of(name, settings), settings.data_dir).path)


@models_app.command("add")
def models_add(name: str, source: Annotated[str, typer.Argument(help="a diffusers folder, a .safetensors file or a hub id")], data_dir: DataDir = None) -> None:
    """Give a model of your own a name."""
    from darkroom.models.catalogue import add

    settings = settings_of(data_dir=data_dir)
    card = add(name, source, settings.data_dir, settings.models)
    typer.echo(f"{card.name}  {card.family}  {card.path or card.hub_id}")


@models_app.command("remove")
def models_remove(name: str, data_dir: DataDir = None, yes: Yes = False) -> None:
    """Delete the weights that were pulled, or forget a name that was added."""
    from darkroom.models.catalogue import remove

    settings = settings_of(data_dir=data_dir)
    card = card_of(name, settings)
    if not yes and not typer.confirm(f"Remove {card.name}?"):
        raise failure("nothing was removed")
    typer.echo(remove(card, settings.data_dir))


@models_app.command("verify")
def models_verify(name: str, data_dir: DataDir = None) -> None:
    """Hold the files of a pulled model against the hashes that the hub stated."""
    from darkroom.models.catalogue import asked_by, pull_command
    from darkroom.models.pull import verify

    settings = settings_of(data_dir=data_dir)
    card = card_of(name, settings)
    faults = verify(card, settings.data_dir)
    for fault in faults:
        typer.echo(f"✗ {fault}")
    if faults:
        remove = command(f"models remove --yes {asked_by(card)}")
        raise failure(f"{name} is damaged; to mend it: {remove} && {pull_command(card)}")
    typer.echo(f"✓ {name} is what the hub stated")


@models_app.command("accept")
def models_accept(name: str, data_dir: DataDir = None, yes: Yes = False, as_json: Json = False) -> None:
    """Show what a model's licence asks of whoever serves it to others, and accept it."""
    settings = settings_of(data_dir=data_dir)  # whose folder may be new: licences come before the first start
    licence = call_on(settings, "licence show", {"model": name})
    if not licence["asks"]:
        typer.echo(f"the licence of {licence['model']} ({licence['name']}) asks nothing of a host")
        return
    typer.echo(f"{licence['model']} is under the {licence['name']} ({licence['version']}): {licence['url']}\nServing it to others, you must", err=True)
    for line in licence["asks"]:
        typer.echo(f"  - {line}", err=True)
    if not yes and not typer.confirm("Have you read the licence, and do you accept it?", err=True):
        raise failure("the licence was not accepted")
    answer = call_on(settings, "licence accept", {"model": name})
    typer.echo(json.dumps(answer, indent=2) if as_json else f"accepted: {answer['licence']} ({answer['version']}) for {answer['model']}")


@lora_app.command("list")
def lora_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The LoRAs that are here, the families they are for, and what is wrong with those that cannot be used."""
    from darkroom.models.loras import found

    cards = found(settings_of(data_dir=data_dir).data_dir).values()
    if as_json:
        typer.echo(json.dumps([asdict(card) for card in cards], indent=2))
        return
    for card in cards:
        typer.echo(_line(card))


@lora_app.command("add")
def lora_add(name: str, file: Annotated[Path, typer.Argument(help="a .safetensors file")], data_dir: DataDir = None) -> None:
    """Copy a LoRA into the data folder under a name; a running server finds it at the next request."""
    from darkroom.models.loras import add

    typer.echo(_line(add(name, file, settings_of(data_dir=data_dir).data_dir)))


@lora_app.command("remove")
def lora_remove(name: str, data_dir: DataDir = None, yes: Yes = False) -> None:
    """Delete a LoRA from the data folder."""
    from darkroom.models.loras import remove

    if not yes and not typer.confirm(f"Remove {name}?"):
        raise failure("nothing was removed")
    remove(name, settings_of(data_dir=data_dir).data_dir)
    typer.echo(f"{name} is removed")


def _line(card: LoraCard) -> str:
    if card.fault:
        return f"✗ {card.name}: {card.fault}"
    return f"{card.name}  {' or '.join(card.families)}  {card.format}  rank {card.rank}  {card.bytes / 1e6:.1f} MB"

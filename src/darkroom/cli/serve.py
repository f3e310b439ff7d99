"""`darkroom serve`."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import socket
import sys
from typing import Annotated, Any

import typer

from darkroom.cli.building import ADDRESS, bring, built, cards_of, given_password
from darkroom.cli.flags import DataDir, Model, help_of, settings_of
from darkroom.cli.folders import is_served, remember
from darkroom.commands import command
from darkroom.errors import DarkroomError
from darkroom.imports import uncollected
from darkroom.licences import accept_command
from darkroom.settings import Settings
from darkroom.types import ModelCard

# said at a later start
AGAIN = "Keys made before go on working; none is shown twice. This makes another, and a picture with it:"


def serve(
    host: Annotated[str | None, typer.Option(help=help_of("host"), show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help=help_of("port"), show_default=False)] = None,
    data_dir: DataDir = None,
    model: Model = None,
    public_url: Annotated[str | None, typer.Option(help=help_of("public_url"), show_default=False)] = None,
    exact: Annotated[bool | None, typer.Option("--exact/--no-exact", help=help_of("exact"), show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help=help_of("device"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=help_of("dtype"), show_default=False)] = None,
    backend: Annotated[str | None, typer.Option(help=help_of("backend"), show_default=False)] = None,
    preload: Annotated[bool | None, typer.Option("--preload/--no-preload", help=help_of("preload"), show_default=False)] = None,
    memory_budget: Annotated[float | None, typer.Option(help=help_of("memory_budget"), show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help=help_of("threads"), show_default=False)] = None,
    max_queue: Annotated[int | None, typer.Option(help=help_of("max_queue"), show_default=False)] = None,
) -> None:
    """Start the server. Prints SERVICE_ID, API_KEY, MODEL and a curl line. Other settings: DARKROOM_* or darkroom.toml."""
    with uncollected():
        from darkroom import log
        from darkroom.admin import owning

    settings = settings_of(
        host=host, port=port, data_dir=data_dir, model=model, public_url=public_url, exact=exact, device=device, dtype=dtype,
        backend=backend, preload=preload, memory_budget=memory_budget, threads=threads, max_queue=max_queue,
    )  # fmt: skip
    listener = _prepared(settings)
    with owning(settings.data_dir):
        cards = bring(settings)
        log.to_stderr(settings.log_level)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # until the server has its own: what was built is closed
        if asyncio.run(_serve(settings, cards, listener)):
            raise typer.Exit(128 + signal.SIGINT)


def _prepared(settings: Settings) -> socket.socket:
    """The listening socket, after all that can be wrong before a data folder is made: what fails leaves none.
    Raises DarkroomError."""
    from darkroom.admin import Busy

    if is_served(settings.data_dir):
        raise Busy(f"another darkroom runs on the data folder {settings.data_dir}")
    given_password(settings)
    cards_of(settings)
    return _listener(settings)


async def _serve(settings: Settings, cards: list[ModelCard], listener: socket.socket) -> bool:
    """Serve until a signal; whether it was Ctrl-C."""
    import structlog

    here = _url(settings.host, listener.getsockname()[1])
    base = settings.public_url.rstrip("/") or here
    structlog.get_logger("serve").info("listening", url=here)
    (settings.data_dir / ADDRESS).write_text(base)
    remember(settings.data_dir)
    async with built(settings, cards) as (desk, starting):
        if not _is_loopback(settings.host) and not await desk.console.sessions.has_password():
            needs = f"at {settings.host} others can reach the dashboard, so it needs a password first"
            raise DarkroomError(f"{needs}: {command('password')} (or DARKROOM_PASSWORD)")
        with uncollected():
            from darkroom.http.app import build
            from darkroom.http.server import Server
        server = Server(build(desk, starting), settings, lambda: _announce(desk, base, cards), lambda: _give_up(desk))
        await server.serve(sockets=[listener])
        return server.interrupted


def _give_up(desk: Any) -> None:
    """While clients can still be answered: those that wait are told, jobs that last are let go of until the next start."""
    desk.jobs.close()
    desk.worker.give_up()


def _listener(settings: Settings) -> socket.socket:
    """The listening socket, bound before anything is promised."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # connections inherit it; the event loop sets it only on sockets that name their protocol, and without it a reply on a
    # connection that is kept waits 40 ms for the client's delayed acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise DarkroomError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another with --port") from error
    return listener


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


async def _announce(desk: Any, base: str, cards: list[ModelCard]) -> None:
    """The block that a person or a script reads: three plain lines, then a curl line that works as pasted."""
    service = (await desk.access.services())[0]
    first = not await desk.access.keys(service.id)
    key = (await desk.access.create_key(service.id))[1] if first else "$API_KEY"
    card = cards[0]
    prompt = card.examples[0] if card.examples else "a red apple on a blue background"
    body = json.dumps({"model": card.name, "prompt": prompt})
    curl = (
        f"curl --fail-with-body {base}/{service.id}/v1/images/generate -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer {key}" -d {shlex.quote(body)} -o out.png'
    )
    # a later start knows no key, so its line makes one: as pasted it would else be refused
    again = f"API_KEY=$({command('key create --plain')}) && {curl}"
    lines = [
        f"SERVICE_ID={base}/{service.id}", f"API_KEY={key}", f"MODEL={card.name}", "",
        *([curl, "", "The key is shown this once; keep it."] if first else [AGAIN, again, ""]),
        *[
            f"Before its first picture accept the licence of {one.name}: {accept_command(one)}"
            for one in cards if not await desk.licences.is_accepted(one)
        ],
        f"Dashboard: {base}/{'' if await desk.console.sessions.has_password() else 'sign-in#link=' + await desk.console.sessions.new_link()}",
        f"Documentation of the API: {base}/docs",
    ]  # fmt: skip
    typer.echo("\n".join(lines))
    sys.stdout.flush()

"""The command line: the only place where things are built and joined."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from darkroom import __version__
from darkroom.errors import DarkroomError
from darkroom.settings import Settings
from darkroom.types import Failed, Finished, ModelCard, Params, Progress

T = TypeVar("T")
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Darkroom: a self-hosted image service on Stable Diffusion.", pretty_exceptions_enable=False)
service_app = typer.Typer(no_args_is_help=True, help="Endpoints with a SERVICE_ID.")
key_app = typer.Typer(no_args_is_help=True, help="API keys of a service.")
models_app = typer.Typer(no_args_is_help=True, help="Models on this machine and known by name.")
app.add_typer(service_app, name="service")
app.add_typer(key_app, name="key")
app.add_typer(models_app, name="models")


def _help(field: str) -> str:
    """A flag's help is its setting's, with the default, so that both are written once."""
    setting = Settings.model_fields[field]
    return f"{setting.description} [default: {setting.default}]"


DataDir = Annotated[Path | None, typer.Option("--data-dir", help=_help("data_dir"), show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help=_help("model"), show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def _settings(**flags: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}, got {fault.get('input')!r}" for fault in error.errors()]
        raise _failure("; ".join(lines)) from error


def _failure(message: str) -> typer.Exit:
    typer.echo(f"darkroom: {message}", err=True)
    return typer.Exit(1)


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


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help=_help("host"), show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help=_help("port"), show_default=False)] = None,
    data_dir: DataDir = None,
    model: Model = None,
    public_url: Annotated[str | None, typer.Option(help=_help("public_url"), show_default=False)] = None,
    exact: Annotated[bool | None, typer.Option("--exact/--no-exact", help=_help("exact"), show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help=_help("device"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=_help("dtype"), show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help=_help("threads"), show_default=False)] = None,
    max_queue: Annotated[int | None, typer.Option(help=_help("max_queue"), show_default=False)] = None,
) -> None:
    """Start the server. Prints SERVICE_ID, API_KEY, MODEL and a curl line. Other settings: DARKROOM_* or darkroom.toml."""
    from darkroom.admin import owning

    settings = _settings(
        host=host, port=port, data_dir=data_dir, model=model, public_url=public_url, exact=exact, device=device, dtype=dtype,
        threads=threads, max_queue=max_queue,
    )  # fmt: skip
    with owning(settings.data_dir):
        card = _bring(settings)
        _log_to_stderr()
        asyncio.run(_serve(settings, card))


def _bring(settings: Settings) -> ModelCard:
    """The card to serve; weights that the hub has are pulled first. Without them the server still starts, and says what it lacks."""
    from darkroom.models.catalogue import resolve
    from darkroom.models.pull import pull

    card = resolve(settings.model, settings.data_dir)
    if card.path is None and card.hub_id:
        typer.echo(f"darkroom: the weights of {card.name} are not here yet; bringing them from the hub", err=True)
        try:
            return pull(card, settings.data_dir)
        except DarkroomError as error:
            typer.echo(f"darkroom: {error}", err=True)
    return card


async def _serve(settings: Settings, card: ModelCard) -> None:
    import structlog
    import uvicorn

    from darkroom.http.app import build

    listener = _listener(settings)
    here = _url(settings.host, listener.getsockname()[1])
    base = settings.public_url.rstrip("/") or here
    structlog.get_logger("serve").info("listening", url=here)
    async with _desk(settings, card) as (desk, starting):
        app = build(desk, starting)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10, server_header=False, timeout_keep_alive=30)
        server = _uvicorn(config, lambda: _announce(desk, base, card))
        await server.serve(sockets=[listener])


def _uvicorn(config: Any, started: Callable[[], Any]) -> Any:
    """uvicorn's server, that tells when it listens."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                await started()

    return Server(config)


def _listener(settings: Settings) -> Any:
    """The listening socket, bound before anything is promised."""
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise DarkroomError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another with --port") from error
    return listener


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


@asynccontextmanager
async def _desk(settings: Settings, card: ModelCard) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """Everything that routes need, joined; the second value starts and ends the Worker and the admin socket."""
    from darkroom.admin import Calls, listening
    from darkroom.gallery.local import LocalGallery
    from darkroom.http.desk import Desk
    from darkroom.jobs import Jobs
    from darkroom.store.jobs import JobStore
    from darkroom.worker.local import LocalWorker

    async with _access(settings) as (database, access):
        await access.serve_models((card.name,))
        if not await access.services():
            await access.create_service("default", (card.name,))
        worker = LocalWorker([card], settings)
        jobs = Jobs(JobStore(database), LocalGallery(settings.data_dir / "pictures"), worker, settings.max_queue)
        await jobs.recover()

        @asynccontextmanager
        async def starting() -> AsyncIterator[None]:
            await worker.start()
            try:
                async with listening(settings.data_dir, Calls(access)):
                    yield
            finally:
                await worker.close()

        yield Desk(settings, {card.name: card}, access, jobs, worker), starting


@asynccontextmanager
async def _access(settings: Settings) -> AsyncIterator[tuple[Any, Any]]:
    """The database, opened, and Access on it."""
    from darkroom.access import Access, read_pepper
    from darkroom.store.access import AccessStore
    from darkroom.store.database import Database

    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.data_dir / "darkroom.sqlite")
    try:
        await database.open()
        access = Access(AccessStore(database), read_pepper(settings.data_dir))
        yield database, access
        await access.close()
    finally:
        await database.close()


async def _announce(desk: Any, base: str, card: ModelCard) -> None:
    """The block that a person or a script reads: three plain lines, then a curl line that works as pasted."""
    service = (await desk.access.services())[0]
    first = not await desk.access.keys(service.id)
    key = (await desk.access.create_key(service.id))[1] if first else "$API_KEY"
    prompt = card.examples[0] if card.examples else "a red apple on a blue background"
    body = json.dumps({"model": card.name, "prompt": prompt})
    lines = [
        f"SERVICE_ID={base}/{service.id}", f"API_KEY={key}", f"MODEL={card.name}", "",
        f"curl {base}/{service.id}/v1/images/generate -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer {key}" -d {_quoted(body)} -o out.png', "",
        "The key is shown this once; keep it." if first else "The key was shown at the first start. Make another with: darkroom key create",
        f"Documentation of the API: {base}/docs",
    ]  # fmt: skip
    typer.echo("\n".join(lines))
    sys.stdout.flush()


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _log_to_stderr() -> None:
    """One line a request and an event on standard error; standard output is for the block."""
    import logging

    import structlog

    # structlog's own choice, where rich is installed, is a trace with every local variable: prompts, keys and pictures
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso"), renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )  # fmt: skip
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


# services and keys


def _call(data_dir: Path | None, call: str, **arguments: Any) -> Any:
    """An operator's call: to the running server, else on the rows themselves."""
    from darkroom.admin import Busy, ask, owning

    settings = _settings(data_dir=data_dir)
    try:
        with owning(settings.data_dir):
            return asyncio.run(_call_rows(settings, call, arguments))
    except Busy:
        return ask(settings.data_dir, call, arguments)


async def _call_rows(settings: Settings, call: str, arguments: dict[str, Any]) -> Any:
    from darkroom.admin import Calls
    from darkroom.models.catalogue import resolve

    async with _access(settings) as (_, access):
        if not await access.services():
            await access.create_service("default", (resolve(settings.model, settings.data_dir).name,))
        return await Calls(access).answer(call, arguments)


def _show(answer: Any, as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    for row in answer if isinstance(answer, list) else [answer]:
        typer.echo("  ".join(f"{column}={row[column]}" for column in columns if row.get(column) is not None))


@service_app.command("create")
def service_create(name: str, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a service."""
    _show(_call(data_dir, "service create", name=name), as_json, ("id", "name", "models"))


@service_app.command("list")
def service_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The services, oldest first."""
    _show(_call(data_dir, "service list"), as_json, ("id", "name", "models"))


@key_app.command("create")
def key_create(
    service: Annotated[str | None, typer.Option(help="id of the service; the oldest where not given")] = None,
    name: Annotated[str, typer.Option(help="what the key is for")] = "default",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is shown this once."""
    _show(_call(data_dir, "key create", service_id=service, name=name), as_json, ("key", "public_id", "service_id", "name"))


@key_app.command("list")
def key_list(service: Annotated[str | None, typer.Option(help="id of a service")] = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The keys without their texts, oldest first."""
    _show(_call(data_dir, "key list", service_id=service), as_json, ("public_id", "service_id", "name", "last4", "revoked_at", "last_used_at"))


@key_app.command("revoke")
def key_revoke(public_id: str, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a key stop working, at once."""
    _show(_call(data_dir, "key revoke", public_id=public_id), as_json, ("public_id", "revoked"))


@models_app.command("list")
def models_list(data_dir: DataDir = None) -> None:
    """The models known by name, whether their weights are here, and those that were pulled by hub id."""
    from darkroom.models.catalogue import asked_by, known, pull_command, pulled

    directory = _settings(data_dir=data_dir).data_dir
    for card in known(directory) + pulled(directory):
        typer.echo(f"{asked_by(card)}  {card.family}  {card.license}  {card.path or 'not here; ' + pull_command(card)}")


@models_app.command("pull")
def models_pull(name: str, data_dir: DataDir = None) -> None:
    """Bring the weights of a model from the hub."""
    from darkroom.models.catalogue import resolve
    from darkroom.models.pull import pull

    directory = _settings(data_dir=data_dir).data_dir
    typer.echo(pull(resolve(name, directory), directory).path)


# pictures without a server

Steps = Annotated[str | None, typer.Option(help="denoising steps, 10 to 50")]
Number = Annotated[str | None, typer.Option()]
Out = Annotated[Path, typer.Option("-o", "--output", help="the PNG to write")]


@app.command()
def generate(
    prompt: str, output: Out = Path("out.png"), negative_prompt: str | None = None, steps: Steps = None, width: Number = None, height: Number = None,
    cfg_scale: Number = None, seed: Number = None, model: Model = None, data_dir: DataDir = None,
) -> None:  # fmt: skip
    """Make a picture from a prompt, without a server."""
    fields = {"prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "width": width, "height": height, "cfg_scale": cfg_scale, "seed": seed}
    _make(fields, None, output, _settings(data_dir=data_dir, model=model))


@app.command()
def edit(
    image: Path, prompt: str, output: Out = Path("out.png"), negative_prompt: str | None = None, steps: Steps = None,
    control_strength: Annotated[str | None, typer.Option(help="influence of the image, 0 to 1; 1 keeps it")] = None,
    width: Number = None, height: Number = None, cfg_scale: Number = None, seed: Number = None, model: Model = None, data_dir: DataDir = None,
) -> None:  # fmt: skip
    """Make a picture from a picture and a prompt, without a server."""
    fields = {
        "prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "width": width, "height": height, "cfg_scale": cfg_scale,
        "seed": seed, "control_strength": control_strength,
    }  # fmt: skip
    _make(fields, image, output, _settings(data_dir=data_dir, model=model))


def _make(fields: dict[str, str | None], image: Path | None, output: Path, settings: Settings) -> None:
    from darkroom import picture

    card = _bring(settings)
    params = _params({name: value for name, value in fields.items() if value is not None}, image, card, settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    finished = asyncio.run(_run(card, params, settings))
    output.write_bytes(picture.to_png(finished.pixels, params, finished.steps_run, settings.embed_prompt))
    typer.echo(f"{output}  {finished.width}x{finished.height}  seed={params.seed}  {finished.inference_seconds:.1f} s")


def _params(fields: dict[str, str], image: Path | None, card: ModelCard, settings: Settings) -> Params:
    """The door's own checks, on text."""
    from darkroom import checks, picture

    asked = checks.check(fields, card, settings.max_pixels, textual=True, image_to_image=image is not None)
    if image is None:
        assert asked.width is not None
        assert asked.height is not None
        return Params(card.name, asked.prompt, asked.negative_prompt, asked.steps, asked.width, asked.height, asked.cfg, asked.seed)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise DarkroomError(f"{image}: {error.strerror}") from error
    pixels, width, height = picture.from_upload(content, card, settings.max_input_pixels, settings.max_pixels, asked.width, asked.height)
    return Params(card.name, asked.prompt, asked.negative_prompt, asked.steps, width, height, asked.cfg, asked.seed, pixels, asked.control_strength)


async def _run(card: ModelCard, params: Params, settings: Settings) -> Finished:
    """One job in a Worker of its own, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from darkroom.worker.local import LocalWorker

    worker = LocalWorker([card], settings)
    await worker.start()
    try:
        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("loading", total=None)
            async with aclosing(worker.submit(f"cli-{secrets.token_hex(4)}", params)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Progress):
                        bar.update(task, description="denoising", completed=event.step, total=event.of)
                    elif isinstance(event, Finished):
                        return event
                    elif isinstance(event, Failed):
                        raise DarkroomError(event.message)
    finally:
        await worker.close()
    raise DarkroomError("the job was cancelled")


@app.command()
def doctor(data_dir: DataDir = None, model: Model = None) -> None:
    """Say what is missing, and the line that mends it."""
    faults = [fault for fault in _faults(_settings(data_dir=data_dir, model=model)) if fault]
    for fault in faults:
        typer.echo(f"✗ {fault}")
    if faults:
        raise typer.Exit(1)
    typer.echo("✓ everything is here: make run")


def _faults(settings: Settings) -> list[str]:
    import importlib.util
    import os
    import shutil

    from darkroom.models.catalogue import pull_command, resolve

    missing = [name for name in ("torch", "diffusers", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    faults = [f"{', '.join(missing)} not installed; mend: pip install 'darkroom[engine]'"] if missing else []
    parent = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    if not os.access(parent, os.W_OK):
        faults.append(f"{parent} cannot be written to; mend: choose another with --data-dir")
    elif shutil.disk_usage(parent).free < 2**30:
        faults.append(f"less than 1 GiB is free on the disk of {parent}; mend: free some, or choose another with --data-dir")
    card = resolve(settings.model, settings.data_dir)
    if card.path is None:
        faults.append(f"the weights of {card.name} are not here; mend: {pull_command(card)}")
    return faults


if __name__ == "__main__":
    main()

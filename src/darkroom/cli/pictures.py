"""`darkroom generate` and `darkroom edit`: pictures without a server."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from darkroom.cli.building import brought, cards_of
from darkroom.cli.flags import DataDir, Model, settings_of
from darkroom.errors import DarkroomError, NotFound
from darkroom.settings import Settings
from darkroom.types import Failed, Finished, Loading, ModelCard, Params, Progress

Steps = Annotated[str | None, typer.Option(help="denoising steps, 10 to 50")]
Number = Annotated[str | None, typer.Option()]
Loras = Annotated[list[str] | None, typer.Option("--lora", metavar="NAME:SCALE", help="a LoRA to lay over the model; may be given several times")]
Out = Annotated[Path, typer.Option("-o", "--output", help="the PNG to write")]


def generate(
    prompt: str, output: Out = Path("out.png"), negative_prompt: str | None = None, steps: Steps = None, width: Number = None, height: Number = None,
    cfg_scale: Number = None, seed: Number = None, lora: Loras = None, model: Model = None, data_dir: DataDir = None,
) -> None:  # fmt: skip
    """Make a picture from a prompt, without a server."""
    fields = {
        "prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "width": width, "height": height, "cfg_scale": cfg_scale,
        "seed": seed, "loras": _loras(lora),
    }  # fmt: skip
    _make(fields, None, output, settings_of(data_dir=data_dir, model=model))


def edit(
    image: Path, prompt: str, output: Out = Path("out.png"), negative_prompt: str | None = None, steps: Steps = None,
    control_strength: Annotated[str | None, typer.Option(help="influence of the image, 0 to 1; 1 keeps it")] = None,
    width: Number = None, height: Number = None, cfg_scale: Number = None, seed: Number = None, lora: Loras = None, model: Model = None,
    data_dir: DataDir = None,
) -> None:  # fmt: skip
    """Make a picture from a picture and a prompt, without a server."""
    fields = {
        "prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "width": width, "height": height, "cfg_scale": cfg_scale,
        "seed": seed, "control_strength": control_strength, "loras": _loras(lora),
    }  # fmt: skip
    _make(fields, image, output, settings_of(data_dir=data_dir, model=model))


def _loras(named: list[str] | None) -> str | None:
    """`NAME:SCALE`, or `NAME` alone, as the field of a form: the checks judge what is in it."""
    if not named:
        return None
    return json.dumps([{"name": name, **({"scale": _number(scale)} if colon else {})} for name, colon, scale in (one.partition(":") for one in named)])


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _make(fields: dict[str, str | None], image: Path | None, output: Path, settings: Settings) -> None:
    from darkroom import picture
    from darkroom.admin import make_data_dir
    from darkroom.jobs.notes import notes_on
    from darkroom.models.catalogue import pull_command

    if not output.parent.is_dir():
        raise DarkroomError(f"{output.parent} is not a folder, so {output.name} cannot be written there")
    if output.is_dir():
        raise DarkroomError(f"{output} is a folder; name the picture's file")
    card = brought(cards_of(settings)[0], settings)
    if card.path is None:
        raise NotFound(f"the weights of {card.name} are not here; bring them with: {pull_command(card)}")
    params = _params({name: value for name, value in fields.items() if value is not None}, image, card, settings)
    make_data_dir(settings.data_dir)
    finished = asyncio.run(_run(card, params, settings))
    try:
        output.write_bytes(picture.to_png(finished.pixels, params, finished.steps_run, settings.embed_prompt))
    except OSError as error:
        raise DarkroomError(f"{output}: {error.strerror}") from error
    typer.echo(f"{output}  {finished.width}x{finished.height}  seed={params.seed}  {finished.inference_seconds:.1f} s")
    for note in notes_on(card, params, finished):
        typer.echo(f"note: {note}", err=True)


def _params(fields: dict[str, str], image: Path | None, card: ModelCard, settings: Settings) -> Params:
    """The door's own checks, on text."""
    from darkroom import checks, picture
    from darkroom.models.loras import found

    here = found(settings.data_dir)
    asked = checks.check(fields, card, settings.max_pixels, textual=True, image_to_image=image is not None, loras=here)
    if image is None:
        assert asked.width is not None
        assert asked.height is not None
        return Params(card.name, asked.prompt, asked.negative_prompt, asked.steps, asked.width, asked.height, asked.cfg, asked.seed, loras=asked.loras)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise DarkroomError(f"{image}: {error.strerror}") from error
    pixels, width, height = picture.from_upload(content, card, settings.max_input_pixels, settings.max_pixels, asked.width, asked.height)
    return Params(
        card.name, asked.prompt, asked.negative_prompt, asked.steps, width, height, asked.cfg, asked.seed, pixels, asked.control_strength,
        asked.loras,
    )  # fmt: skip


async def _run(card: ModelCard, params: Params, settings: Settings) -> Finished:
    """One job in a Worker of its own, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from darkroom import log
    from darkroom.worker.local import LocalWorker

    quiet = settings if "log_level" in settings.model_fields_set else settings.model_copy(update={"log_level": "warning"})
    log.to_stderr(quiet.log_level)
    worker = LocalWorker([card], quiet, prepare=False)
    await worker.start()
    try:
        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"Getting {card.name} ready", total=None)
            async with aclosing(worker.submit(f"cli-{secrets.token_hex(4)}", params)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Loading):
                        bar.update(task, completed=event.part, total=1)
                    elif isinstance(event, Progress):
                        bar.update(task, description="denoising", completed=event.step, total=event.of)
                    elif isinstance(event, Finished):
                        return event
                    elif isinstance(event, Failed):
                        raise DarkroomError(event.message)
    finally:
        await worker.close()
    raise DarkroomError("the job was cancelled")

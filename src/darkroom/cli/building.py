"""Where things are built and joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from darkroom.cli.flags import settings_of
from darkroom.errors import DarkroomError
from darkroom.settings import Settings
from darkroom.types import ModelCard


@dataclass(frozen=True)
class Opened:
    """The rows of a data folder, and the use cases on them that the operator calls."""

    database: Any
    access: Any
    licences: Any


def card_of(name: str, settings: Settings) -> ModelCard:
    """The card of a model by any of its names. Raises NotFound or Unsupported."""
    from darkroom.models.catalogue import resolve

    return resolve(name, settings.data_dir, settings.models)


def bring(settings: Settings) -> ModelCard:
    """The card to serve; weights that the hub has are pulled first. Without them the server still starts, and says what it lacks."""
    from darkroom.models.pull import pull

    card = card_of(settings.model, settings)
    if card.path is None and card.hub_id:
        typer.echo(f"darkroom: the weights of {card.name} are not here yet; bringing them from the hub", err=True)
        try:
            return replace(pull(card, settings.data_dir), name=card.name)
        except DarkroomError as error:
            typer.echo(f"darkroom: {error}", err=True)
    return card


@asynccontextmanager
async def built(settings: Settings, card: ModelCard) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """Everything that routes need, joined; the second value starts and ends the Worker and the admin socket."""
    from darkroom.admin import Calls, listening
    from darkroom.gallery.local import LocalGallery
    from darkroom.http.desk import Desk
    from darkroom.jobs import Jobs
    from darkroom.store.jobs import JobStore
    from darkroom.worker.local import LocalWorker

    async with opened(settings) as rows:
        await rows.access.serve_models((card.name,))
        if not await rows.access.services():
            await rows.access.create_service("default", (card.name,))
        worker = LocalWorker([card], settings)
        jobs = Jobs(JobStore(rows.database), LocalGallery(settings.data_dir / "pictures"), worker, settings.max_queue)
        await jobs.recover()
        # a model that is served by its path is known to its operator, and to clients, by its name
        calls = Calls(rows.access, rows.licences, lambda name: card if name == card.name else card_of(name, settings))

        @asynccontextmanager
        async def starting() -> AsyncIterator[None]:
            await worker.start()
            try:
                async with listening(settings.data_dir, calls):
                    yield
            finally:
                await worker.close()

        yield Desk(settings, {card.name: card}, rows.access, rows.licences, jobs, worker), starting


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """The database, opened, and what stands on it."""
    from darkroom.access import Access, read_pepper
    from darkroom.licences import Licences
    from darkroom.store.access import AccessStore
    from darkroom.store.database import Database
    from darkroom.store.licences import LicenceStore

    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.data_dir / "darkroom.sqlite")
    try:
        await database.open()
        access, licences = Access(AccessStore(database), read_pepper(settings.data_dir)), Licences(LicenceStore(database))
        yield Opened(database, access, licences)
        await access.close()
    finally:
        await database.close()


def call(data_dir: Path | None, name: str, /, **arguments: Any) -> Any:
    """An operator's call by its name: to the running server, else on the rows themselves."""
    from darkroom.admin import Busy, ask, owning

    settings = settings_of(data_dir=data_dir)
    try:
        with owning(settings.data_dir):
            return asyncio.run(_call_rows(settings, name, arguments))
    except Busy:
        return ask(settings.data_dir, name, arguments)


async def _call_rows(settings: Settings, name: str, arguments: dict[str, Any]) -> Any:
    from darkroom.admin import Calls

    async with opened(settings) as rows:
        if not await rows.access.services():
            await rows.access.create_service("default", (card_of(settings.model, settings).name,))
        return await Calls(rows.access, rows.licences, lambda model: card_of(model, settings)).answer(name, arguments)

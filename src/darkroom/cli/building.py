"""Where things are built and joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from darkroom.cli.flags import settings_of
from darkroom.errors import DarkroomError, Invalid
from darkroom.settings import Settings
from darkroom.types import ModelCard


@dataclass(frozen=True)
class Opened:
    """The rows of a data folder, and the use cases on them that the operator calls."""

    database: Any
    access: Any
    licences: Any
    webhooks: Any


def card_of(name: str, settings: Settings) -> ModelCard:
    """The card of a model by any of its names. Raises NotFound or Unsupported."""
    from darkroom.models.catalogue import resolve

    return resolve(name, settings.data_dir, settings.models)


def cards_of(settings: Settings) -> list[ModelCard]:
    """The cards of the models to serve, the default first. Raises NotFound, Unsupported or Invalid."""
    from darkroom.models.catalogue import in_the_box

    names = [name.strip() for name in settings.model.split(",") if name.strip()]
    cards = [card_of(name, settings) for name in names]
    if names == ["auto"]:
        cards += [card for card in in_the_box() if card.name != cards[0].name]
    if len({card.name for card in cards}) < len(cards) or not cards:
        raise Invalid(f"model must name models once each, got {settings.model!r}", name="invalid_model")
    return cards


def bring(settings: Settings) -> list[ModelCard]:
    """The cards to serve; weights that the hub has are pulled first. Without them the server still starts, and says what it lacks."""
    return [_brought(card, settings) for card in cards_of(settings)]


def _brought(card: ModelCard, settings: Settings) -> ModelCard:
    from darkroom.models.pull import pull

    if card.path is None and card.hub_id:
        typer.echo(f"darkroom: the weights of {card.name} are not here yet; bringing them from the hub", err=True)
        try:
            return replace(pull(card, settings.data_dir), name=card.name)
        except DarkroomError as error:
            typer.echo(f"darkroom: {error}", err=True)
    return card


@asynccontextmanager
async def built(settings: Settings, cards: Sequence[ModelCard]) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """Everything that routes need, joined; the second value starts and ends the Worker and the admin socket."""
    from darkroom.admin import Calls, listening
    from darkroom.gallery.local import LocalGallery
    from darkroom.http.desk import Desk
    from darkroom.jobs import Jobs
    from darkroom.store.jobs import JobStore
    from darkroom.worker.local import LocalWorker

    async with opened(settings) as rows:
        served = {card.name: card for card in cards}
        rows.access.serve(tuple(served))
        if not await rows.access.services():
            await rows.access.create_service("default")
        worker = LocalWorker(cards, settings)
        jobs = Jobs(JobStore(rows.database), LocalGallery(settings.data_dir / "pictures"), worker, settings.max_queue)
        await jobs.recover()
        # a model that is served by its path is known to its operator, and to clients, by its name
        calls = Calls(rows.access, rows.licences, rows.webhooks, lambda name: served.get(name) or card_of(name, settings))

        @asynccontextmanager
        async def starting() -> AsyncIterator[None]:
            await worker.start()
            try:
                async with listening(settings.data_dir, calls), running(rows.webhooks.run()):
                    yield
            finally:
                await worker.close()

        yield Desk(settings, served, rows.access, rows.licences, jobs, worker), starting


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Work that goes on in a task of its own while the context lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """The database, opened, and what stands on it."""
    from darkroom.access import Access, read_pepper
    from darkroom.admin import make_data_dir
    from darkroom.licences import Licences
    from darkroom.outgoing import Outgoing
    from darkroom.store.access import AccessStore
    from darkroom.store.database import Database
    from darkroom.store.licences import LicenceStore
    from darkroom.store.webhooks import WebhookStore
    from darkroom.webhooks import Webhooks

    make_data_dir(settings.data_dir)
    database = Database(settings.data_dir / "darkroom.sqlite")
    try:
        await database.open()
        access, licences = Access(AccessStore(database), read_pepper(settings.data_dir)), Licences(LicenceStore(database))
        webhooks = Webhooks(WebhookStore(database), Outgoing(settings.webhook_allow_private))
        yield Opened(database, access, licences, webhooks)
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
        rows.access.serve(tuple(card.name for card in cards_of(settings)))
        if not await rows.access.services():
            await rows.access.create_service("default")
        return await Calls(rows.access, rows.licences, rows.webhooks, lambda model: card_of(model, settings)).answer(name, arguments)

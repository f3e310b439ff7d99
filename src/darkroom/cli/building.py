"""Where things are built and joined."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from darkroom import __version__
from darkroom.cli.folders import found
from darkroom.engine.weights import stamps
from darkroom.errors import DarkroomError, Invalid
from darkroom.imports import uncollected
from darkroom.settings import Settings
from darkroom.types import Job, Limits, ModelCard, PictureRow

ADDRESS = "address"  # file of the data folder that tells where the server is found, or was


@dataclass(frozen=True)
class Opened:
    """The rows of a data folder, and the use cases on them that the operator calls."""

    database: Any
    access: Any
    licences: Any
    webhooks: Any
    sessions: Any


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
    return [brought(card, settings) for card in cards_of(settings)]


def brought(card: ModelCard, settings: Settings) -> ModelCard:
    """The card with its weights; where they cannot be pulled, it says why and stays without."""
    if card.path is None and card.hub_id:
        from darkroom.models.pull import pull

        typer.echo(f"darkroom: the weights of {card.name} are not here yet; bringing them from the hub", err=True)
        try:
            return replace(pull(card, settings.data_dir), name=card.name)
        except DarkroomError as error:
            typer.echo(f"darkroom: {error}", err=True)
    return card


@asynccontextmanager
async def built(settings: Settings, cards: Sequence[ModelCard]) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """Everything that routes need, joined, and the Worker, begun first: it imports far more than this process does meanwhile. The second
    value starts and ends the rest."""
    from darkroom.worker.local import LocalWorker

    worker = LocalWorker(cards, settings)
    await worker.start()
    try:
        async with _joined(settings, cards, worker) as all_of_it:
            yield all_of_it
    finally:
        await worker.close()


@asynccontextmanager
async def _joined(settings: Settings, cards: Sequence[ModelCard], worker: Any) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    with uncollected():
        from darkroom.admin import Calls, listening
        from darkroom.album import Album
        from darkroom.gallery.local import LocalGallery
        from darkroom.http.desk import Console, Desk
        from darkroom.jobs import Jobs, Runs, Watches
        from darkroom.jobs.jobs import Keeping
        from darkroom.jobs.outlook import Outlook
        from darkroom.journal import Journal
        from darkroom.pulls import Pulls
        from darkroom.store.calls import CallStore
        from darkroom.store.jobs import JobStore
        from darkroom.store.pictures import PictureStore

    async with opened(settings) as rows:
        served = {card.name: card for card in cards}
        rows.access.serve(tuple(served))
        if not await rows.access.services():
            await rows.access.create_service("default")
        store, gallery, watches = JobStore(rows.database), LocalGallery(shared_dir(settings) / "pictures"), Watches()
        limits = limits_of(settings)
        runs = Runs(
            store, gallery, worker, watches, served, gateway_id(settings.data_dir), settings.lease_seconds, limits,
            news_of(settings), rows.webhooks.poke,
        )  # fmt: skip
        outlook = Outlook(store, worker, limits, settings.max_queue)
        versions = {card.name: version_of(card, settings) for card in cards}
        jobs = Jobs(store, gallery, runs, watches, outlook, settings.max_queue, limits, Keeping(settings.keep_days, settings.keep_gb * 1e9), versions)
        call_rows = CallStore(rows.database)
        journal = Journal(call_rows)
        await runs.recover()
        # a model that is served by its path is known to its operator, and to clients, by its name
        calls = Calls(rows.access, rows.licences, rows.webhooks, rows.sessions, lambda name: served.get(name) or card_of(name, settings))

        @asynccontextmanager
        async def starting() -> AsyncIterator[None]:
            async with listening(settings.data_dir, calls), running(rows.webhooks.run()), running(jobs.run()), running(runs.run()), running(journal.run()):
                try:
                    yield
                finally:
                    jobs.close()
                    worker.give_up()
                    await runs.close()

        album = Album(PictureStore(rows.database), gallery)
        console = Console(rows.sessions, album, call_rows, journal, Pulls(settings.data_dir))
        yield Desk(settings, served, rows.access, rows.licences, jobs, worker, console), starting


def given_password(settings: Settings) -> str:
    """The password that stands in the settings or in their file; empty where none does. Raises DarkroomError."""
    from darkroom.sessions import password_fault

    password, field = settings.password, "password"
    if settings.password_file is not None:
        field = "password_file"
        try:
            password = settings.password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise DarkroomError(f"password_file {settings.password_file} cannot be read: {reason}") from error
    if fault := password_fault(password) if password or settings.password_file else "":
        raise DarkroomError(f"{field} {fault}")
    return password


def shared_dir(settings: Settings) -> Path:
    """Where the files are that all gateways of one database need."""
    return settings.shared_dir or settings.data_dir


def limits_of(settings: Settings) -> Limits:
    """What a key may do that has no limits of its own."""
    return Limits(settings.key_concurrent, settings.key_queued, settings.key_pictures_per_minute, settings.key_pixel_steps_per_day)


def news_of(settings: Settings) -> Callable[[Job, Sequence[PictureRow]], dict[str, Any] | None]:
    """The outbox' line of an ended job whose client wants to be told."""
    from darkroom.jobs.shown import shown
    from darkroom.store.webhooks import outbox_row
    from darkroom.webhooks import event_body

    def news(job: Job, pictures: Sequence[PictureRow]) -> dict[str, Any] | None:
        if not job.webhook_url:
            return None
        event, now = f"job.{job.status.value}", job.ended_at or job.created_at
        job = job if job.keep else replace(job, with_prompt=False)  # the outbox is no place for what is not to be kept
        body = event_body(event, shown(job, settings.public_url.rstrip("/"), pictures), now)
        return outbox_row(job.id, job.service_id, job.webhook_url, event, body, now)

    return news


def gateway_id(data_dir: Path) -> str:
    """This gateway's name, kept in its data folder: after a start it knows at once what its earlier life left behind."""
    path = data_dir / "gateway"
    if not path.exists() or not path.read_text():
        draft = path.with_suffix(".new")
        draft.write_text(f"gw-{secrets.token_hex(8)}")
        os.replace(draft, path)
    return path.read_text()


def version_of(card: ModelCard, settings: Settings) -> str:
    """What the pictures of a model depend on beside what is asked: its files, our code, the dtype and the mode."""
    said = [__version__, stamps(card), settings.device, settings.dtype, settings.backend, settings.exact]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


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
    from darkroom.sessions import Sessions
    from darkroom.store.access import AccessStore
    from darkroom.store.database import Database
    from darkroom.store.licences import LicenceStore
    from darkroom.store.sessions import SessionStore
    from darkroom.store.webhooks import WebhookStore
    from darkroom.webhooks import Webhooks

    make_data_dir(settings.data_dir)
    make_data_dir(shared_dir(settings))
    database = Database(settings.data_dir / "darkroom.sqlite", settings.database_url)
    try:
        await database.open()
        access, licences = Access(AccessStore(database), read_pepper(shared_dir(settings))), Licences(LicenceStore(database))
        webhooks = Webhooks(WebhookStore(database), Outgoing(settings.webhook_allow_private))
        yield Opened(database, access, licences, webhooks, Sessions(SessionStore(database), given_password(settings)))
        await access.close()
    finally:
        await database.close()


def call(data_dir: Path | None, name: str, /, *, creates: bool = False, **arguments: Any) -> Any:
    """An operator's call by its name: to the running server, else on the rows of a folder that one has used.
    `creates`: a folder that was named may be new. Raises DarkroomError."""
    return call_on(found(data_dir, creates), name, arguments)


def call_on(settings: Settings, name: str, arguments: dict[str, Any]) -> Any:
    """An operator's call on the data folder of these settings, which is made where there is none."""
    from darkroom.admin import Busy, ask, owning

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
        return await Calls(rows.access, rows.licences, rows.webhooks, rows.sessions, lambda model: card_of(model, settings)).answer(name, arguments)

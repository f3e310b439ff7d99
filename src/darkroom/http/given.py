"""The manual's two routes: POST .../v1/images/generate and .../v1/images/control."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from darkroom import checks, picture
from darkroom.errors import ModelNotFound
from darkroom.http.body import Body, form_of, read_json
from darkroom.http.decoding import Decoders
from darkroom.http.desk import Desk, desk_of
from darkroom.http.events import stream
from darkroom.http.examples import CONTROL, GENERATE
from darkroom.http.query import query
from darkroom.http.replies import api_of, json_reply, later_reply, picture_reply, taken_headers
from darkroom.http.wishes import EVENTS, Wishes, wishes_of
from darkroom.jobs import Asked, Ended, Taken
from darkroom.jobs.runs import in_thread
from darkroom.models.loras import found
from darkroom.types import ApiKey, LoraCard, ModelCard, Params, Service

T = TypeVar("T")
MAX_NOTED = 2**15  # characters of a body that the log keeps
DECODERS = Decoders()
NO_FILE = hashlib.sha256().hexdigest()  # what hashes of bodies that Idempotency-Keys came with hold of a request without an image
router = APIRouter(tags=["images"])


class ClientLeft(Exception):
    """The client closed the connection before its reply; nobody is there to be answered."""


@router.post("/v1/images/generate", summary="Text to image", openapi_extra=GENERATE, response_class=Response)
@router.post("/{service_id}/v1/images/generate", include_in_schema=False)
async def generate(request: Request) -> Response:
    """A picture from a prompt, as raw PNG bytes; by `Accept` and `Prefer` also as JPEG or WebP, as JSON, as a job, as events."""
    desk = desk_of(request)
    key, service = await desk.enter(request)
    query(request, {})
    wishes = wishes_of(request)
    body = await read_json(request)
    _note(request, desk, body, wishes)
    card = await _card(desk, service, body)
    loras = await _loras(desk, body)
    asked = checks.check(
        body.fields, card, desk.settings.max_pixels, textual=False, image_to_image=False, faults=body.faults, loras=loras, webhook=desk.webhook
    )
    assert asked.width is not None
    assert asked.height is not None
    params = Params(card.name, asked.prompt, asked.negative_prompt, asked.steps, asked.width, asked.height, asked.cfg, asked.seed,
                    loras=asked.loras, preview_every=asked.preview_every)  # fmt: skip
    return await _make(request, desk, key, params, asked, wishes, _order(request, body, card, loras, asked))


@router.post("/v1/images/control", summary="Image to image", openapi_extra=CONTROL, response_class=Response)
@router.post("/{service_id}/v1/images/control", include_in_schema=False)
async def control(request: Request) -> Response:
    """A picture from a picture and a prompt; the replies are those of text to image."""
    desk = desk_of(request)
    key, service = await desk.enter(request)
    query(request, {})
    wishes = wishes_of(request)
    async with form_of(request) as body:
        _note(request, desk, body, wishes)
        card = await _card(desk, service, body)
        body.faults |= _image_faults(body)
        loras = await _loras(desk, body)
        asked = checks.check(
            body.fields, card, desk.settings.max_pixels, textual=True, image_to_image=True, faults=body.faults, loras=loras, webhook=desk.webhook
        )
        assert body.image is not None
        upload = await _while_connected(request, _decoded(desk, key, body.image, card, asked))
    params = Params(
        card.name, asked.prompt, asked.negative_prompt, asked.steps, upload.width, upload.height, asked.cfg, asked.seed, upload.pixels,
        asked.control_strength, asked.loras, asked.preview_every,
    )  # fmt: skip
    return await _make(request, desk, key, params, asked, wishes, _order(request, body, card, loras, asked, upload.digest))


@dataclass(frozen=True)
class Upload:
    """An init picture: raw RGB, and the SHA-256 of the file that it came in."""

    pixels: bytes
    width: int
    height: int
    digest: str


async def _decoded(desk: Desk, key: ApiKey, image: UploadFile, card: ModelCard, asked: checks.Asked) -> Upload:
    """Until there is a place for it, an upload stays on the disk. Raises UnsupportedMedia, TooLarge or Invalid."""
    limits = desk.settings.max_input_pixels, desk.settings.max_pixels

    def decode() -> Upload:
        content = image.file.read()
        pixels, width, height = picture.from_upload(content, card, *limits, asked.width, asked.height)
        return Upload(pixels, width, height, hashlib.sha256(content).hexdigest())

    async with DECODERS.place(key.public_id):
        return await in_thread(decode)


async def _make(request: Request, desk: Desk, key: ApiKey, params: Params, asked: checks.Asked, wishes: Wishes, order: Order) -> Response:
    """One request, four replies: the picture, JSON, a 202, or events."""
    request.state.model = params.model
    _check_delivery(asked, wishes)
    wanted = Asked(
        params, asked.n, wishes.attached, asked.store, desk.settings.embed_prompt and wishes.embed_prompt, asked.webhook_url, wishes.timeout,
        wishes.idempotency_key, order.body_hash, asked.explicit_seed and desk.settings.result_cache and not wishes.fresh, order.loras,
    )  # fmt: skip
    base, as_url = api_of(desk, request), asked.response_format == "url"
    async with desk.jobs.taking(key, wanted) as taken:
        request.state.job_id = taken.job.id
        headers = taken_headers(taken)
        if wishes.later and wishes.wait is None:
            return await later_reply(desk, request, taken, wishes)
        if wishes.media == EVENTS:
            return stream(desk, taken.job, base, "", as_url, headers | {"X-Job-Id": taken.job.id})
        ended = await _ended(request, desk, taken, wishes)
        if ended is None:
            return await later_reply(desk, request, taken, wishes)
        ended = await desk.jobs.pngs(ended)
        reply = await picture_reply(ended, wishes, headers) if wishes.is_picture else json_reply(ended, base, as_url, headers)
        if not as_url:
            reply.background = BackgroundTask(desk.jobs.delivered, ended)  # once it was sent
        return reply


async def _ended(request: Request, desk: Desk, taken: Taken, wishes: Wishes) -> Ended | None:
    """How the job ended, None where it has not in the time that the client waits. Raises ClientLeft; the job of a client that is
    attached ends with it."""
    try:
        return await _while_connected(request, desk.jobs.result(taken.job, wishes.wait))
    except ClientLeft:
        await desk.jobs.left(taken.job)
        raise


def _check_delivery(asked: checks.Asked, wishes: Wishes) -> None:
    """Fields that only go with some of the replies. Raises Invalid."""
    faults = {}
    lasting = "Prefer: respond-async or Accept: text/event-stream"
    if asked.n > 1 and wishes.is_picture and (wishes.attached or not wishes.later):
        faults["n"] = f"n must be 1 where the reply is the picture itself, got {asked.n}; ask with Accept: application/json, {lasting}"
    if asked.webhook_url and wishes.attached:
        faults["webhook_url"] = f"webhook_url must be absent where the client waits for the reply, got {checks.shown(asked.webhook_url)}; ask with {lasting}"
    if asked.preview_every and wishes.attached:
        faults["preview_every"] = f"preview_every must be 0 where the reply has no events, got {asked.preview_every}; ask with {lasting}"
    if asked.response_format and wishes.is_picture and not wishes.later:
        faults["response_format"] = f"response_format must be absent where the reply is the picture itself, got {asked.response_format}"
    if asked.response_format == "url" and not asked.store and wishes.attached:
        faults["response_format"] = "response_format must be b64 where store is false, got url"
    checks.refuse(faults)


def _note(request: Request, desk: Desk, body: Body, wishes: Wishes) -> None:
    """For the log of requests: the fields as they came, without pictures, where what was asked may be kept. Where it may not, an
    error is noted by its name alone, for its lines quote what was given."""
    kept = body.fields.get("store", True) in (True, "true", "1")
    request.state.private = not (kept and wishes.embed_prompt and desk.settings.embed_prompt)
    if not request.state.private:
        fields = {name: value for name, value in body.fields.items() if not isinstance(value, bytes)}
        try:
            request.state.body = fields if len(json.dumps(fields, allow_nan=False)) <= MAX_NOTED else None
        except ValueError:  # NaN, which Python reads and no JSON column takes; the rules refuse it next
            request.state.body = None


@dataclass(frozen=True)
class Order:
    """body_hash: equal for equal bodies to one address. loras: what the names of the LoRAs asked for stand for now."""

    body_hash: str
    loras: tuple[str, ...]


def _order(request: Request, body: Body, card: ModelCard, loras: dict[str, LoraCard], asked: checks.Asked, image: str = NO_FILE) -> Order:
    fields = {name: repr(value) for name, value in body.fields.items()}
    said = [request.url.path.rpartition("/")[2], card.name, sorted(fields.items()), image]
    return Order(hashlib.sha256(json.dumps(said).encode()).hexdigest(), tuple(loras[lora.name].version for lora in asked.loras))


async def _card(desk: Desk, service: Service, body: Body) -> ModelCard:
    """The card of the model asked for, the service's default where none was; takes the field out. Raises ModelNotFound or
    LicenceNotAccepted; a name that came in a way in which none may is one more fault of the body, and the rest is checked by the default's card."""
    if not service.models:
        raise ModelNotFound("this service has no model that the server runs")
    name = body.fields.pop("model", service.models[0])
    if not isinstance(name, str):
        body.faults["model"] = f"model must be a string, got {checks.shown(name)}"
    if "model" in body.faults:
        name = service.models[0]
    if name not in service.models or name not in desk.cards:
        raise ModelNotFound(f"model must be one of {', '.join(service.models)}, got {checks.shown(name)}")
    if not body.faults:
        await desk.licences.check(desk.cards[name])
    return desk.cards[name]


async def _loras(desk: Desk, body: Body) -> dict[str, LoraCard]:
    """The LoRAs that are here; the folder is looked at for a request that names one."""
    return await asyncio.to_thread(found, desk.settings.data_dir) if "loras" in body.fields else {}


def _image_faults(body: Body) -> dict[str, str]:
    """What is wrong with the way in which the image came; takes the field out."""
    text = body.fields.pop("image", None)
    if text is not None:
        return {"image": f"image must be sent as a file, got the text {checks.shown(text)}"}
    return {} if body.image and body.image.size else {"image": "image must be given: a file with a PNG, JPEG or WebP picture"}


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and stop it when the client goes. Raises ClientLeft then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise ClientLeft
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue



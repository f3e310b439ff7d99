"""The manual's two routes: POST .../v1/images/generate and .../v1/images/control."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from darkroom import checks, picture
from darkroom.errors import Invalid, ModelNotFound
from darkroom.http.body import Body, read_form, read_json
from darkroom.http.desk import Desk, desk_of
from darkroom.http.examples import CONTROL, GENERATE
from darkroom.jobs import Made
from darkroom.models.loras import found
from darkroom.types import ApiKey, LoraCard, ModelCard, Params, Service

T = TypeVar("T")
router = APIRouter(tags=["images"])


class ClientLeft(Exception):
    """The client closed the connection before its reply; nobody is there to be answered."""


@router.post("/v1/images/generate", summary="Text to image", openapi_extra=GENERATE, response_class=Response)
@router.post("/{service_id}/v1/images/generate", include_in_schema=False)
async def generate(request: Request) -> Response:
    """A picture from a prompt, as raw PNG bytes."""
    desk = desk_of(request)
    key, service = await desk.enter(request)
    desk.check_accept(request)
    body = await read_json(request)
    card = await _card(desk, service, body)
    loras = await _loras(desk, body)
    asked = checks.check(body.fields, card, desk.settings.max_pixels, textual=False, image_to_image=False, faults=body.faults, loras=loras)
    assert asked.width is not None
    assert asked.height is not None
    params = Params(card.name, asked.prompt, asked.negative_prompt, asked.steps, asked.width, asked.height, asked.cfg, asked.seed, loras=asked.loras)
    return await _make(request, desk, key, card, params)


@router.post("/v1/images/control", summary="Image to image", openapi_extra=CONTROL, response_class=Response)
@router.post("/{service_id}/v1/images/control", include_in_schema=False)
async def control(request: Request) -> Response:
    """A picture from a picture and a prompt, as raw PNG bytes."""
    desk = desk_of(request)
    key, service = await desk.enter(request)
    desk.check_accept(request)
    body = await read_form(request)
    card = await _card(desk, service, body)
    content = body.fields.pop("image", b"")
    body.faults |= _image_faults(content)
    loras = await _loras(desk, body)
    asked = checks.check(body.fields, card, desk.settings.max_pixels, textual=True, image_to_image=True, faults=body.faults, loras=loras)
    limits = desk.settings.max_input_pixels, desk.settings.max_pixels
    pixels, width, height = await asyncio.to_thread(picture.from_upload, content, card, *limits, asked.width, asked.height)
    params = Params(
        card.name, asked.prompt, asked.negative_prompt, asked.steps, width, height, asked.cfg, asked.seed, pixels, asked.control_strength,
        asked.loras,
    )  # fmt: skip
    return await _make(request, desk, key, card, params)


async def _make(request: Request, desk: Desk, key: ApiKey, card: ModelCard, params: Params) -> Response:
    made = await _while_connected(request, desk.jobs.make(key, card, params, _with_prompt(desk, request)))
    return Response(made.png, media_type="image/png", headers=_headers(made))


def _headers(made: Made) -> dict[str, str]:
    params, finished = made.job.params, made.finished
    headers = {
        "Seed": str(params.seed), "Finish-Reason": "SUCCESS", "X-Model": params.model, "X-Steps-Run": str(finished.steps_run),
        "X-Queue-Ms": str(round(finished.queue_seconds * 1000)), "X-Inference-Ms": str(round(finished.inference_seconds * 1000)),
    }  # fmt: skip
    if made.notes:
        headers["X-Model-Note"] = "; ".join(made.notes)
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in headers.items()}


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


def _image_faults(content: str | bytes) -> dict[str, str]:
    if isinstance(content, str):
        return {"image": f"image must be sent as a file, got the text {checks.shown(content)}"}
    return {} if content else {"image": "image must be given: a file with a PNG, JPEG or WebP picture"}


def _with_prompt(desk: Desk, request: Request) -> bool:
    """Whether the picture may tell its prompt: the setting says so, and the request's header does not forbid it."""
    header = request.headers.get("x-embed-prompt", "true").strip().lower()
    if header not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise Invalid(f"the header X-Embed-Prompt must be true or false, got {checks.shown(header)}", name="invalid_request")
    return desk.settings.embed_prompt and header in ("true", "1", "yes", "on")


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



"""The manual's two routes: POST .../v1/images/generate and .../v1/images/control."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from darkroom import checks, picture
from darkroom.errors import BadRequest, Invalid, ModelNotFound, UnsupportedMedia
from darkroom.http.desk import Desk, desk_of
from darkroom.http.examples import CONTROL, GENERATE
from darkroom.jobs import Made
from darkroom.models.loras import found
from darkroom.types import ApiKey, LoraCard, ModelCard, Params, Service

T = TypeVar("T")
router = APIRouter(tags=["images"])
MAX_JSON = 2**20  # bytes: a prompt of 10,000 characters with every one escaped fits well
MAX_FIELD = 2**16  # bytes of a form's text field
MAX_FIELDS = 32  # fields and files of a form


class ClientLeft(Exception):
    """The client closed the connection before its reply; nobody is there to be answered."""


@router.post("/v1/images/generate", summary="Text to image", openapi_extra=GENERATE, response_class=Response)
@router.post("/{service_id}/v1/images/generate", include_in_schema=False)
async def generate(request: Request) -> Response:
    """A picture from a prompt, as raw PNG bytes."""
    desk = desk_of(request)
    key, service = await desk.enter(request)
    desk.check_accept(request)
    raw = await _json(request)
    card = await _card(desk, service, raw)
    asked = checks.check(raw, card, desk.settings.max_pixels, textual=False, image_to_image=False, loras=await _loras(desk, raw))
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
    raw = await _form(request)
    card = await _card(desk, service, raw)
    content = raw.pop("image", b"")
    try:
        asked = checks.check(raw, card, desk.settings.max_pixels, textual=True, image_to_image=True, loras=await _loras(desk, raw))
    except Invalid as error:
        raise Invalid(*error.lines, *_image_faults(content), name=error.name if content else "invalid_request") from error
    if faults := _image_faults(content):
        raise Invalid(*faults, name="invalid_image")
    limits = desk.settings.max_input_pixels, desk.settings.max_pixels
    pixels, width, height = await asyncio.to_thread(picture.from_upload, content, card, *limits, asked.width, asked.height)
    params = Params(
        card.name, asked.prompt, asked.negative_prompt, asked.steps, width, height, asked.cfg, asked.seed, pixels, asked.control_strength,
        asked.loras,
    )  # fmt: skip
    return await _make(request, desk, key, card, params)


async def _make(request: Request, desk: Desk, key: ApiKey, card: ModelCard, params: Params) -> Response:
    with_prompt = desk.settings.embed_prompt and request.headers.get("x-embed-prompt", "true").strip().lower() != "false"
    made = await _while_connected(request, desk.jobs.make(key, card, params, with_prompt))
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


async def _card(desk: Desk, service: Service, raw: dict[str, Any]) -> ModelCard:
    """The card of the model asked for, the service's default where none was; takes the field out. Raises ModelNotFound,
    LicenceNotAccepted or Invalid."""
    name = raw.pop("model", service.models[0])
    if not isinstance(name, str):
        raise Invalid(f"model must be a string, got {checks.shown(name)}", name="invalid_model")
    if name not in service.models or name not in desk.cards:
        raise ModelNotFound(f"model must be one of {', '.join(service.models)}, got {checks.shown(name)}")
    await desk.licences.check(desk.cards[name])
    return desk.cards[name]


async def _loras(desk: Desk, raw: dict[str, Any]) -> dict[str, LoraCard]:
    """The LoRAs that are here; the folder is looked at for a request that names one."""
    return await asyncio.to_thread(found, desk.settings.data_dir) if "loras" in raw else {}


async def _json(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMedia(f"Content-Type must be application/json, got {checks.shown(kind)}")
    body = await desk_of(request).body(request, MAX_JSON)
    try:
        raw = json.loads(body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body must be JSON ({error})"[:200]) from error
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    return raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal names in silence; we do not."""
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out and out[name] != value:
            raise Invalid(f"{checks.shown(name)} must be given once, got two different values", name="invalid_request")
        out[name] = value
    return out


async def _form(request: Request) -> dict[str, Any]:
    """Text fields as str and `image` as bytes. A field may come twice with the same value, and as a file part: that is
    what `requests` makes of a string in `files=`, as the manual's own example does with `model`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise UnsupportedMedia(f"Content-Type must be multipart/form-data, got {checks.shown(kind)}")
    desk_of(request).bound(request, desk_of(request).settings.max_body_bytes)
    try:
        async with request.form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD) as form:
            return await _fields(form)
    except (MultiPartException, UnicodeDecodeError) as error:
        raise BadRequest(f"the body must be multipart/form-data ({getattr(error, 'message', error)})"[:200]) from error


async def _fields(form: FormData) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, part in form.multi_items():
        value = await _value(name, part)
        if name in out and out[name] != value:
            raise Invalid(f"{checks.shown(name)} must be given once, got two different values", name="invalid_request")
        out[name] = value
    return out


async def _value(name: str, part: UploadFile | str) -> str | bytes:
    if isinstance(part, str):
        return part
    if name == "image":
        return await part.read()
    content = await part.read(MAX_FIELD + 1)
    if len(content) > MAX_FIELD:
        raise Invalid(f"{checks.shown(name)} must be at most {MAX_FIELD} bytes of text, got a larger file", name="invalid_request")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{checks.shown(name)} must be text in UTF-8, got other bytes", name="invalid_request") from error


def _image_faults(content: str | bytes) -> list[str]:
    if isinstance(content, str):
        return [f"image must be sent as a file, got the text {checks.shown(content)}"]
    return [] if content else ["image must be given: a file with a PNG, JPEG or WebP picture"]


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



"""What is served, and whether the server is well."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from darkroom import __version__
from darkroom.http.desk import Desk, desk_of
from darkroom.models.loras import found
from darkroom.types import LoraCard, ModelCard

router = APIRouter(tags=["service"])


@router.get("/v1/models", summary="Models of the service", openapi_extra={"security": [{"bearer": []}]})
@router.get("/{service_id}/v1/models", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """The service's models in OpenAI's list shape, with what may be asked of each."""
    desk = desk_of(request)
    _, service = await desk.enter(request)
    cards = [desk.cards[name] for name in service.models if name in desk.cards]
    loras = await asyncio.to_thread(found, desk.settings.data_dir)
    return {"object": "list", "data": [_model(desk, card, service.created_at, loras) | await _licence(desk, card) for card in cards]}


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="The gateway is up")
async def healthz(request: Request) -> dict[str, str]:
    """Answers as soon as the gateway listens, whatever the model does."""
    return {"status": "ok", "version": __version__, "worker": desk_of(request).worker.state().status}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="The model is loaded")
async def readyz(request: Request) -> JSONResponse:
    """200 when a picture can be made at once, else 503. `preparing`: models that make pictures already, on PyTorch, and are
    still to be measured on a faster backend, which happens once."""
    state = desk_of(request).worker.state()
    body = {"status": state.status, "loaded": list(state.loaded), "loading": state.loading, "device": state.device, "dtype": state.dtype}
    body["preparing"] = list(state.preparing)
    return JSONResponse(body | ({"error": state.error} if state.error else {}), 200 if state.status == "ready" else 503)


def _model(desk: Desk, card: ModelCard, created: float, loras: dict[str, LoraCard]) -> dict[str, Any]:
    state = desk.worker.state()
    return {
        "id": card.name, "object": "model", "created": int(created), "owned_by": "darkroom", "family": card.family,
        "default_side": card.default_side, "max_side": card.max_side, "default_steps": card.default_steps,
        "steps": [card.min_steps, card.max_steps], "default_cfg_scale": card.default_cfg,
        "loaded": card.name in state.loaded, "loading": card.name == state.loading,
        "memory_bytes": dict(zip(state.loaded, state.memory, strict=True)).get(card.name, 0),
        "loras": sorted(lora.name for lora in loras.values() if card.family in lora.families),
        "hint": card.hint, "examples": list(card.examples),
    }  # fmt: skip


async def _licence(desk: Desk, card: ModelCard) -> dict[str, Any]:
    """What a page must show of a licence, and whether the model may be used yet."""
    licence = card.licence
    return {
        "license": licence.name, "license_url": licence.url, "license_version": licence.version, "license_asks": list(licence.asks),
        "license_accepted": await desk.licences.is_accepted(card), "notice": licence.notice, "badge": licence.badge,
    }  # fmt: skip

"""Models, and the machine that they run on."""

from __future__ import annotations

import asyncio
import platform
import shutil
import time
from typing import Any

from fastapi import APIRouter, Request

from darkroom import __version__
from darkroom.commands import same_again
from darkroom.errors import Invalid, ModelUnavailable, NotFound
from darkroom.http.desk import Desk, desk_of
from darkroom.models.catalogue import known, memory_bytes, pull_command
from darkroom.types import ModelCard

router = APIRouter()
STARTED = time.time()


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """Those that are served, then all that are known by name."""
    desk = desk_of(request)
    await desk.signed_in(request)
    return {"data": [await _shown(desk, card) for card in (await _cards(desk)).values()]}


@router.post("/models/{name}/{action}")
async def act(request: Request) -> dict[str, Any]:
    """accept, load, unload, pull, cancel-pull."""
    desk = desk_of(request)
    await desk.signed_in(request)
    name, action = request.path_params["name"], request.path_params["action"]
    card = (await _cards(desk)).get(name)
    if card is None or action not in ("accept", "load", "unload", "pull", "cancel-pull"):
        raise NotFound("there is no such model, or nothing such to do with it")
    if action in ("load", "unload") and name not in desk.cards:
        again = _serve_command(desk, name)
        raise Invalid(f"{name} is not served; serve it with: {again}", name="invalid_model")
    match action:
        case "accept":
            await desk.licences.accept(card)
        case "load":
            await desk.licences.check(card)
            if desk.cards[name].path is None:
                raise ModelUnavailable(f"the weights of {name} are not here; bring them with: {pull_command(card)}, then start the server again")
            desk.worker.load(name)
        case "unload":
            desk.worker.unload(name)
        case "pull":
            await desk.licences.check(card)
            desk.console.pulls.start(card)
        case "cancel-pull":
            desk.console.pulls.stop(name)
    return await _shown(desk, card)


@router.get("/system")
async def system(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    state, data_dir = desk.worker.state(), desk.settings.data_dir
    database = sum(file.stat().st_size for file in data_dir.glob("darkroom.sqlite*"))
    free = (await asyncio.to_thread(shutil.disk_usage, data_dir)).free
    return {
        "version": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True), "device": state.device, "dtype": state.dtype,
        "worker": {"status": state.status, "error": state.error}, "queue_depth": await desk.jobs.depth(), "running": desk.jobs.in_hand,
        "costs": desk.worker.costs(), "uptime_s": round(time.time() - STARTED),
        "disk": {"pictures_bytes": await desk.jobs.picture_bytes(), "free_bytes": free, "database_bytes": database},
    }  # fmt: skip


async def _cards(desk: Desk) -> dict[str, ModelCard]:
    found = await asyncio.to_thread(known, desk.settings.data_dir, desk.settings.models)
    return dict(desk.cards) | {card.name: card for card in found if card.name not in desk.cards}


def _serve_command(desk: Desk, name: str) -> str:
    """What starts this server again with one more model."""
    now = ",".join(desk.cards) if desk.settings.model == "auto" else desk.settings.model
    return same_again("--model", f"{now},{name}")


async def _shown(desk: Desk, card: ModelCard) -> dict[str, Any]:
    state, licence, pull = desk.worker.state(), card.licence, desk.console.pulls.of(card.name)
    memory = dict(zip(state.loaded, state.memory, strict=True)).get(card.name, 0)
    serve_command = "" if card.name in desk.cards else _serve_command(desk, card.name)
    return {
        "name": card.name, "family": card.family, "hub_id": card.hub_id, "installed": card.path is not None or bool(pull and pull.done and pull.error is None),
        "served": card.name in desk.cards, "serve_command": serve_command,
        "loaded": card.name in state.loaded, "loading": card.name == state.loading,
        "preparing": card.name in state.preparing,
        "memory_bytes": memory, "memory_needed_bytes": memory_bytes(card, state.dtype or "float32") if card.parameters else 0, "disk_bytes": card.disk_bytes,
        "default_side": card.default_side, "max_side": card.max_side, "default_steps": card.default_steps, "steps": [card.min_steps, card.max_steps],
        "default_cfg_scale": card.default_cfg, "gated": card.gated, "hint": card.hint, "examples": list(card.examples),
        "pull": None if pull is None or (pull.done and pull.error is None) else {"part": round(pull.part, 4), "error": pull.error},
        "license": {
            "name": licence.name, "version": licence.version, "url": licence.url, "asks": list(licence.asks), "notice": licence.notice,
            "badge": licence.badge, "accepted": await desk.licences.is_accepted(card),
        },
    }  # fmt: skip

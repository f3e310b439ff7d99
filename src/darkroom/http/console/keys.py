"""Services and their keys."""

from __future__ import annotations

from dataclasses import asdict, replace
from dataclasses import fields as fields_of
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from darkroom.http.desk import desk_of
from darkroom.http.query import fields, instant, names, query, text
from darkroom.http.replies import base_of
from darkroom.jobs.shown import iso
from darkroom.types import ApiKey, Limits, Service

router = APIRouter()


@router.get("/services")
async def services(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    return {"data": [service_shown(service, base_of(desk, request)) for service in await desk.access.services()]}


@router.post("/services", status_code=201)
async def create_service(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = await fields(request, {"name": text(100), "models": names})
    return service_shown(await desk.access.create_service(asked.get("name", ""), asked.get("models", ())), base_of(desk, request))


@router.patch("/services/{service_id}")
async def change_service(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    service_id = request.path_params["service_id"]
    asked = await fields(request, {"name": text(100), "models": names})
    if "name" in asked:
        await desk.access.rename(service_id, asked["name"])
    if "models" in asked:
        await desk.access.set_models(service_id, asked["models"])
    return service_shown(await desk.access.service(service_id), base_of(desk, request))


@router.get("/keys")
async def keys(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    return {"data": [_shown(key) for key in await desk.access.keys(query(request, {"service_id": text(50)}).get("service_id"))]}


@router.post("/keys", status_code=201)
async def create_key(request: Request) -> dict[str, Any]:
    """Its text is in this answer and nowhere else."""
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = await fields(request, {"service_id": text(50), "name": text(100), "expires_at": lambda value: None if value is None else instant(value)})
    key, secret = await desk.access.create_key(asked.get("service_id"), asked.get("name") or "default", asked.get("expires_at"))
    return _shown(key) | {"key": secret}


@router.patch("/keys/{public_id}")
async def change_key(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    public_id = request.path_params["public_id"]
    asked = await fields(request, {"limits": _limits})
    if "limits" in asked:
        await desk.access.set_limits(public_id, asked["limits"])
    return _shown(await desk.access.key(public_id))


@router.delete("/keys/{public_id}", status_code=204, response_class=Response)
async def revoke(request: Request) -> Response:
    desk = desk_of(request)
    await desk.signed_in(request)
    await desk.access.revoke(request.path_params["public_id"])
    return Response(status_code=204)


def service_shown(service: Service, base: str) -> dict[str, Any]:
    """`url` is the value that is called SERVICE_ID."""
    return {
        "id": service.id, "name": service.name, "models": list(service.models), "url": f"{base}/{service.id}",
        "created_at": iso(service.created_at),
    }  # fmt: skip


def _shown(key: ApiKey) -> dict[str, Any]:
    times = ("created_at", "last_used_at", "expires_at", "revoked_at")
    plain = {name: getattr(key, name) for name in ("public_id", "service_id", "name", "last4")}
    return plain | {name: iso(getattr(key, name)) for name in times} | {"limits": key.limits and asdict(key.limits)}


def _limits(value: Any) -> Limits | None:
    if value is None:
        return None
    known = {field.name for field in fields_of(Limits)}
    numbers = isinstance(value, dict) and all(isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) < 1e18 for one in value.values())
    if not numbers or not set(value) <= known or any(name != "weight" and one != int(one) for name, one in value.items()):
        raise ValueError(f"null, or an object with numbers: {', '.join(sorted(known))}")
    exact: dict[str, Any] = {name: float(one) if name == "weight" else int(one) for name, one in value.items()}
    return replace(Limits(), **exact)

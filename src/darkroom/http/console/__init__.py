"""What the dashboard needs beyond the API: /console/..., for a person who is signed in."""

from fastapi import APIRouter

from darkroom.http.console import gallery, keys, log, machine, sign_in

router = APIRouter(prefix="/console", include_in_schema=False)
for part in (sign_in, keys, gallery, log, machine):
    router.include_router(part.router)

__all__ = ["router"]

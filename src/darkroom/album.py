"""Use cases of the gallery: pages of pictures, search, stars, thumbnails, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from darkroom.errors import NotFound
from darkroom.picture import thumbnail
from darkroom.types import PictureRow

SIDE = 320  # pixels of a thumbnail's longer side


class Rows(Protocol):
    """Where pictures are kept; see `store/pictures.py`."""

    async def page(self, service_id: str, search: Any, limit: int, before: tuple[float, str] | None = None) -> list[PictureRow]: ...
    async def find(self, picture_id: str) -> PictureRow | None: ...
    async def star(self, picture_id: str, starred: bool) -> bool: ...
    async def remove(self, service_id: str, picture_ids: Sequence[str]) -> list[PictureRow]: ...


class Gallery(Protocol):
    """Where picture files are kept; see `gallery/`."""

    def get(self, picture: PictureRow) -> bytes: ...
    def put_thumbnail(self, key: str, content: bytes) -> None: ...
    def get_thumbnail(self, key: str) -> bytes: ...
    def delete(self, key: str) -> None: ...


class Album:
    """Pictures of all services; thumbnails are made when they are first asked for."""

    def __init__(self, rows: Rows, gallery: Gallery):
        self._rows, self._gallery = rows, gallery

    async def page(self, service_id: str, search: Any, limit: int, before: tuple[float, str] | None = None) -> list[PictureRow]:
        """Newest first."""
        return await self._rows.page(service_id, search, limit, before)

    async def find(self, picture_id: str) -> PictureRow:
        """Raises NotFound."""
        picture = await self._rows.find(picture_id)
        if picture is None:
            raise NotFound(f"there is no picture {picture_id[:60]}")
        return picture

    async def star(self, picture_id: str, starred: bool) -> PictureRow:
        """Raises NotFound."""
        await self._rows.star(picture_id, starred)
        return await self.find(picture_id)

    async def thumbnail(self, picture_id: str) -> bytes:
        """WebP. Raises NotFound or PictureDamaged."""
        picture = await self.find(picture_id)
        try:
            return await asyncio.to_thread(self._thumbnail, picture)
        except FileNotFoundError as error:
            raise NotFound(f"the file of picture {picture_id} is gone") from error

    def _thumbnail(self, picture: PictureRow) -> bytes:
        try:
            return self._gallery.get_thumbnail(picture.key)
        except FileNotFoundError:
            content = thumbnail(self._gallery.get(picture), SIDE)
            self._gallery.put_thumbnail(picture.key, content)
            return content

    async def delete(self, service_id: str, picture_ids: Sequence[str]) -> tuple[int, int]:
        """Remove pictures and their files; how many there were, and the bytes they took."""
        gone = await self._rows.remove(service_id, picture_ids)
        for picture in gone:
            await asyncio.to_thread(self._gallery.delete, picture.key)
        return len(gone), sum(picture.bytes for picture in gone)
